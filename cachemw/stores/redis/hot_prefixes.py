"""Shared prefixes that arrive all the time, answered for by the worker itself.

Contains: their records, the arrivals and entries that are not yet published. Must not depend on: locks,
commands, clocks (`now` is given).

Shared prefixes end in the tools or system section. A fleet has few of them, so each request would ask one
shard for the same ones. A worker answers for them for a tenth of a second, and publishes the arrivals of that
time as one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cachemw.core.hash_types import StoreKey
from cachemw.core.reuse.record import PrefixRecord, record_arrivals
from cachemw.stores.protocol import CacheEntry

# Seconds for which the worker answers after the server's last reply.
FRESH = 0.1
# Seconds after that reply in which the worker still counts arrivals by itself.
_COUNTED = 60.0
# Arrivals from which a prefix is hot. With fewer, the arrivals at another worker would change the plan.
_HOT = 4


class HotUpdate(NamedTuple):
    """The unpublished arrivals of a shared prefix, the last at `last`, and the entry that they refreshed."""

    name: StoreKey
    arrivals: int
    last: float
    entry: CacheEntry | None


class _SharedPrefix:
    """One shared prefix: its record with all arrivals, and the part that is not yet published."""

    __slots__ = ("count", "entry", "last", "record", "replied_at")

    def __init__(self, record: PrefixRecord, now: float) -> None:
        self.record = record
        self.replied_at = self.last = now
        self.count = 0
        self.entry: CacheEntry | None = None


class HotPrefixes:
    """Keep at most `limit` shared prefixes. Not thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._prefixes: dict[StoreKey, _SharedPrefix] = {}

    def __len__(self) -> int:
        return len(self._prefixes)

    def __contains__(self, name: StoreKey) -> bool:
        return name in self._prefixes

    def record(self, name: StoreKey) -> PrefixRecord | None:
        """Return the record of a prefix with the unpublished arrivals, None if it is not kept."""
        prefix = self._prefixes.get(name)
        return None if prefix is None else prefix.record

    def discard(self, name: StoreKey) -> None:
        """Forget a prefix and its unpublished part."""
        self._prefixes.pop(name, None)

    def discard_unpublished(self) -> None:
        """Leave all unpublished parts to another process."""
        for prefix in self._prefixes.values():
            prefix.count, prefix.entry = 0, None

    def fresh(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None] | None:
        """Return the records of these prefixes if all are hot with a recent server reply, else None."""
        prefixes = self._hot(names, now)
        if prefixes is None or not all(0.0 <= now - prefix.replied_at < FRESH for prefix in prefixes):
            return None
        return [prefix.record for prefix in prefixes]

    def count(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None] | None:
        """Count one arrival of these prefixes and return the records from before it.

        Returns None, and counts nothing, if one of them is not hot.
        """
        prefixes = self._hot(names, now)
        if prefixes is None or any(now - prefix.replied_at > _COUNTED for prefix in prefixes):
            return None
        found: list[PrefixRecord | None] = [prefix.record for prefix in prefixes]
        for prefix in prefixes:
            prefix.record = record_arrivals(prefix.record, 1, now)
            prefix.last = max(prefix.last, now) if prefix.count else now
            prefix.count += 1
        return found

    def _hot(self, names: Sequence[StoreKey], now: float) -> list[_SharedPrefix] | None:
        prefixes = [prefix for name in names if (prefix := self._prefixes.get(name)) is not None]
        if len(prefixes) < len(names) or any(
            prefix.record.arrivals < _HOT or prefix.record.in_flight_until > now for prefix in prefixes
        ):
            return None
        return prefixes

    def replied(self, name: StoreKey, record: PrefixRecord, now: float) -> None:
        """Take over the server's record of a prefix, and add the arrivals that are not yet published."""
        prefix = self._prefixes.get(name)
        if prefix is not None:
            if prefix.count:
                record = record_arrivals(record, prefix.count, prefix.last)
            # Replies may overtake each other; more arrivals mean a later one.
            if record.arrivals >= prefix.record.arrivals:
                prefix.record, prefix.replied_at = record, now
            return
        if len(self._prefixes) >= self._limit:
            self._drop_idle()
        if len(self._prefixes) < self._limit:
            self._prefixes[name] = _SharedPrefix(record, now)

    def _drop_idle(self) -> None:
        idle = [name for name, prefix in self._prefixes.items() if not prefix.count and prefix.entry is None]
        for name in idle:
            del self._prefixes[name]

    def write(self, name: StoreKey, entry: CacheEntry) -> bool:
        """Note an entry of a prefix. Return True if publishing it can wait, False if it is urgent.

        The refresh of an entry that is cached can wait.
        """
        prefix = self._prefixes.get(name)
        if prefix is None:
            return False
        record = prefix.record
        refreshes = record.expires > entry.expires - entry.ttl > 0 and not record.in_flight_until
        if entry.is_gone or entry.expires > record.expires:
            record = record._replace(expires=entry.expires, ttl=entry.ttl)
        prefix.record = record._replace(in_flight_until=entry.in_flight_until)
        waits = refreshes and not entry.in_flight_until
        if waits or (prefix.entry is not None and not entry.is_gone):
            # As on the server: the later end counts, and the last `in_flight_until`.
            later = max(prefix.entry or entry, entry, key=lambda each: each.expires)
            prefix.entry = later._replace(in_flight_until=entry.in_flight_until)
        else:
            prefix.entry = None
        return waits

    def drain_updates(self, updates: list[HotUpdate]) -> None:
        """Add to `updates` the unpublished parts in the order of their names, before anything is changed."""
        updates += [
            HotUpdate(name, prefix.count, prefix.last, prefix.entry)
            for name, prefix in sorted(self._prefixes.items(), key=lambda item: item[0])
            if prefix.count or prefix.entry is not None
        ]
        for name, *_ in updates:
            prefix = self._prefixes[name]
            prefix.count, prefix.entry = 0, None
