"""What is remembered of a prefix, and how likely it is to be read again.

Lives here: the record of one prefix, how an arrival changes it, and the chances that follow. Must
not know: stores (they keep records and apply `arrive`, in Python or in Lua), requests, prices.

Times are seconds; a record holds no text and no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cachemw.core.blocks import Parsed
from cachemw.core.providers import Ttl

SHORT = 300.0
LONG = 3600.0
# An old trial counts a sixteenth less with each later one: some thirty arrivals make a record.
_KEEP = 15 / 16


class Prefix(NamedTuple):
    """One prefix as a store knows it *before* the arrival that asks.

    `seen` arrivals, the last at `last`, `gap` seconds after the one before (0 for the first).
    `trials` / `hits`: decayed counts of arrivals that were (not) followed by another within five
    minutes. `late_trials` / `late_hits`: the same for those not followed within five minutes, and
    an hour. `child`: hash of the block that followed last (0: the request ended here); `left`:
    decayed count of arrivals that went on by another block than the one before. `expires`, `ttl`:
    the provider's entry, seconds; 0 where none was ever written.
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

    def living(self, now: float) -> bool:
        """Say whether the provider still holds an entry that a request started `now` can read."""
        return self.expires > now


def first(child: int, now: float) -> Prefix:
    """Return the record of a prefix seen for the first time."""
    return Prefix(1, now, 0.0, 0.0, 0.0, 0.0, 0.0, child, 0.0, 0.0, 0)


def arrive(record: Prefix, child: int, now: float) -> Prefix:
    """Return the record after one more arrival.

    Arrivals may come out of order by a worker's clock: a gap is never below zero and `last` never
    goes back.
    """
    seen, last, _, trials, hits, late_trials, late_hits, old_child, left, expires, ttl = record
    gap = now - last if now > last else 0.0
    soon = gap <= SHORT
    trials = trials * _KEEP + 1.0
    hits = hits * _KEEP + soon
    if not soon:
        late_trials = late_trials * _KEEP + 1.0
        late_hits = late_hits * _KEEP + (gap <= LONG)
    left = left * _KEEP + (child != old_child)
    return Prefix(seen + 1, last + gap, gap, trials, hits, late_trials, late_hits, child, left, expires, ttl)


class Depth(NamedTuple):
    """What is known of one watched prefix.

    `block`: its last; `chance` that it is read again within five minutes; `late`: within an
    hour, where not within five minutes; `living`: the TTL of the entry that the provider holds.
    """

    block: int
    chance: float
    late: float
    living: Ttl | None


# Chances before anything is known. An agent with tools or a conversation in progress is likely to
# go on within minutes; a single turn without tools is not.
_RUNNING = 0.6
_SINGLE = 0.1
_SINGLE_HEAD = 0.3
_LATE = 0.2
# A prefix's own record counts from its fourth arrival: its first reuse must not vouch for itself.
_OWN_FROM = 4
_PRIOR_WEIGHT = 2.0


def depths(
    parsed: Parsed, watched: Sequence[int], records: Sequence[Prefix | None], now: float
) -> list[Depth]:
    """Return the chances of each watched prefix, from its role and its own record."""
    running = parsed.tools > 0 or any(block.role == "assistant" for block in parsed.blocks)
    found = []
    for index, record in zip(watched, records, strict=True):
        chance = _RUNNING if running else _SINGLE_HEAD if index < parsed.system else _SINGLE
        late = _LATE
        living: Ttl | None = None
        if record is not None:
            if record.living(now):
                living = "1h" if record.ttl >= LONG else "5m"
            if record.seen >= _OWN_FROM:
                chance = (record.hits + _PRIOR_WEIGHT * chance) / (record.trials + _PRIOR_WEIGHT)
                late = (record.late_hits + _PRIOR_WEIGHT * late) / (record.late_trials + _PRIOR_WEIGHT)
        found.append(Depth(index, chance, late, living))
    return found
