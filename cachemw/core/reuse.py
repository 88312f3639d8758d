"""The record of one prefix, and what an arrival does to it.

Lives here: what a store keeps of a prefix. Must not know: stores (they apply `arrive`, in Python or in
Lua), requests, prices, what follows from a record (`core.chances`).

Times are seconds; a record holds no text and no key.
"""

from __future__ import annotations

from typing import NamedTuple

SHORT = 300.0
LONG = 3600.0
# An old trial counts a thirty-second less with each later one: some sixty arrivals make a record.
_KEEP = 31 / 32


class Prefix(NamedTuple):
    """One prefix as a store knows it *before* the arrival that asks.

    `seen` arrivals, the last at `last`, `gap` seconds after the one before (0 for the first).
    `trials` / `hits`: decayed counts of arrivals that were (not) followed by another within five
    minutes. `late_trials` / `late_hits`: the same for those not followed within five minutes, and
    an hour. `child`: hash of the block that followed last (0: the request ended here); `left`:
    decayed count of arrivals that went on by another block than the one before. `expires`, `ttl`:
    the provider's entry, seconds; 0 where none was ever written. `pending`: until when a request that
    writes it may still be waiting for its answer to begin; 0 where none is.
    """

    seen: int
    last: float
    gap: float
    trials: float
    hits: float
    late_trials: float
    late_hits: float
    child: int
    left: float
    expires: float
    ttl: int
    pending: float

    def living(self, now: float) -> bool:
        """Say whether the provider still holds an entry that a request started `now` can read."""
        return self.expires > now


_made = tuple.__new__  # what the class's own constructor does, a third faster


def first(child: int, now: float) -> Prefix:
    """Return the record of a prefix seen for the first time."""
    return Prefix(1, now, 0.0, 0.0, 0.0, 0.0, 0.0, child, 0.0, 0.0, 0, 0.0)


def arrive(record: Prefix, child: int, now: float) -> Prefix:
    """Return the record after one more arrival.

    Arrivals may come out of order by a worker's clock: a gap is never below zero and `last` never
    goes back.
    """
    seen, last, _, trials, hits, late_trials, late_hits, old_child, left, *entry = record
    gap = now - last if now > last else 0.0
    soon = gap <= SHORT
    trials = trials * _KEEP + 1.0
    hits = hits * _KEEP + soon
    if not soon:
        late_trials = late_trials * _KEEP + 1.0
        late_hits = late_hits * _KEEP + (gap <= LONG)
    left = left * _KEEP + (child != old_child)
    return _made(
        Prefix, (seen + 1, last + gap, gap, trials, hits, late_trials, late_hits, child, left, *entry)
    )
