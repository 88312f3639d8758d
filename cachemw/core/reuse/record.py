"""The record of one prefix, and its change with an arrival.

Contains: the values that a store keeps for a prefix. Must not depend on: stores (they apply `record_arrival`,
in Python or in Lua), requests, prices, the forecast made from a record (`core.reuse.forecast`).

Times are seconds; a record holds no text and no key.
"""

from __future__ import annotations

from typing import NamedTuple

from cachemw.core.tuning import RECORD

FIVE_MINUTES = 300.0
ONE_HOUR = 3600.0


class PrefixRecord(NamedTuple):
    """One prefix as a store knows it *before* the arrival that asks.

    `arrivals` counts the requests, the last at `last_arrival`, `last_gap` seconds after the one before (0 for
    the first). `trials_5m` and `reuses_5m` are decayed counts of arrivals, and of those followed by another
    within five minutes. `trials_1h` and `reuses_1h` count arrivals not followed within five minutes, and
    those of them followed within an hour. `request_ended_here` is 1 if the last request ended with the
    prefix, 0 if it went on. `expires` and `ttl` describe the provider's entry in seconds, 0 if none was ever
    written. `in_flight_until` is the time until which a request that writes the entry may still wait for its
    response to start, 0 if there is none.

    A record of 0 arrivals has no other counts: no request with this prefix has been accepted yet.
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
        """Return True if the provider still holds an entry that a request started `now` can read."""
        return self.expires > now

    def by_clock_ahead(self, seconds: float) -> PrefixRecord:
        """Return the record by a clock that is so many seconds ahead; a time of 0 ("never") stays 0."""
        return self._replace(
            last_arrival=self.last_arrival + seconds,
            expires=self.expires and self.expires + seconds,
            in_flight_until=self.in_flight_until and self.in_flight_until + seconds,
        )


_made = tuple.__new__  # does the same as the class's constructor in two thirds of the time


def new_record(whole: int, now: float) -> PrefixRecord:
    """Return the record of a prefix seen for the first time."""
    return PrefixRecord(1, now, 0.0, 0.0, 0.0, 0.0, 0.0, whole, 0.0, 0, 0.0)


def in_flight_record(until: float) -> PrefixRecord:
    """Return the record of a prefix without arrivals that a request is about to write."""
    return PrefixRecord(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, 0, until)


def record_arrival(record: PrefixRecord, whole: int, now: float) -> PrefixRecord:
    """Return the record after one more arrival.

    Clocks of workers differ, so arrivals may come out of order: a gap is never below zero, and `last_arrival`
    never goes back.
    """
    arrivals, last, _, trials, reuses, late_trials, late_reuses, _, expires, ttl, in_flight = record
    gap, keep = now - last if now > last else 0.0, RECORD.decay
    trials = trials * keep + 1.0
    reuses *= keep
    if gap <= FIVE_MINUTES:
        reuses += 1.0
    else:
        late_trials = late_trials * keep + 1.0
        late_reuses = late_reuses * keep + (gap <= ONE_HOUR)
    return _made(
        PrefixRecord,
        (
            arrivals + 1,
            last + gap,
            gap,
            trials,
            reuses,
            late_trials,
            late_reuses,
            whole,
            expires,
            ttl,
            in_flight,
        ),
    )


def record_arrivals(record: PrefixRecord | None, count: int, now: float) -> PrefixRecord:
    """Return the record after `count` simultaneous arrivals of requests that went on after the prefix."""
    record = new_record(0, now) if record is None else record_arrival(record, 0, now)
    if count == 1:
        return record
    keep = RECORD.decay ** (count - 1)
    more = (1.0 - keep) / (1.0 - RECORD.decay)
    return record._replace(
        arrivals=record.arrivals + count - 1,
        last_gap=0.0,
        trials_5m=record.trials_5m * keep + more,
        reuses_5m=record.reuses_5m * keep + more,
    )
