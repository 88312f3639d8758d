"""The record of one prefix, and what an arrival does to it.

Lives here: what a store keeps of a prefix. Must not know: stores (they apply `arrive`, in Python or in
Lua), requests, prices, what follows from a record (`core.chances`).

Times are seconds; a record holds no text and no key.
"""

from __future__ import annotations

from typing import NamedTuple

FIVE_MINUTES = 300.0
ONE_HOUR = 3600.0
# An old trial counts a thirty-second less with each later one: some sixty arrivals make a record.
_KEEP = 31 / 32


class PrefixRecord(NamedTuple):
    """One prefix as a store knows it *before* the arrival that asks.

    `seen` arrivals, the last at `last`, `gap` seconds after the one before (0 for the first).
    `trials` / `hits`: decayed counts of arrivals that were (not) followed by another within five
    minutes. `late_trials` / `late_hits`: the same for those not followed within five minutes, and
    an hour. `whole`: 1 where the last request ended here, 0 where it went on. `expires`, `ttl`:
    the provider's entry, seconds; 0 where none was ever written. `pending`: until when a request that
    writes it may still be waiting for its answer to begin; 0 where none is. A record of 0 arrivals says
    nothing else: no request with this prefix has been accepted yet.
    """

    arrivals: int
    last_arrival: float
    last_gap: float
    trials_5m: float
    reuses_5m: float
    trials_1h: float
    reuses_1h: float
    request_ended_here: int
    expires: float
    ttl: int
    in_flight_until: float

    def is_cached(self, now: float) -> bool:
        """Say whether the provider still holds an entry that a request started `now` can read."""
        return self.expires > now

    def by_clock_ahead(self, seconds: float) -> PrefixRecord:
        """Return the record by a clock that is so many seconds ahead; times that say "never" stay 0."""
        return self._replace(
            last_arrival=self.last_arrival + seconds,
            expires=self.expires and self.expires + seconds,
            in_flight_until=self.in_flight_until and self.in_flight_until + seconds,
        )


_made = tuple.__new__  # what the class's own constructor does, a third faster


def new_record(whole: int, now: float) -> PrefixRecord:
    """Return the record of a prefix seen for the first time."""
    return PrefixRecord(1, now, 0.0, 0.0, 0.0, 0.0, 0.0, whole, 0.0, 0, 0.0)


def in_flight_record(until: float) -> PrefixRecord:
    """Return the record of a prefix without arrivals that a request is about to write."""
    return PrefixRecord(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, until)


def record_arrival(record: PrefixRecord, whole: int, now: float) -> PrefixRecord:
    """Return the record after one more arrival.

    Arrivals may come out of order by a worker's clock: a gap is never below zero and `last` never
    goes back.
    """
    seen, last, _, trials, hits, late_trials, late_hits, _, expires, ttl, pending = record
    gap = now - last if now > last else 0.0
    trials = trials * _KEEP + 1.0
    hits *= _KEEP
    if gap <= FIVE_MINUTES:
        hits += 1.0
    else:
        late_trials = late_trials * _KEEP + 1.0
        late_hits = late_hits * _KEEP + (gap <= ONE_HOUR)
    return _made(
        PrefixRecord,
        (seen + 1, last + gap, gap, trials, hits, late_trials, late_hits, whole, expires, ttl, pending),
    )


def record_arrivals(record: PrefixRecord | None, count: int, now: float) -> PrefixRecord:
    """Return the record after so many arrivals at once, none of which ended here."""
    record = new_record(0, now) if record is None else record_arrival(record, 0, now)
    if count == 1:
        return record
    keep = _KEEP ** (count - 1)
    more = (1.0 - keep) / (1.0 - _KEEP)
    return record._replace(
        arrivals=record.arrivals + count - 1,
        last_gap=0.0,
        trials_5m=record.trials_5m * keep + more,
        reuses_5m=record.reuses_5m * keep + more,
    )
