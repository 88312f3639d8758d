"""The records that one worker knows: they spare the server calls, and serve while the server is unavailable.

Contains: the records of the server's last replies, and the lock over them, over the hot prefixes and over the
restore queue. Must not depend on: connections, commands, clocks (`now` is given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import RLock

from cachemw.core.hash_types import StoreKey
from cachemw.core.reuse.record import PrefixRecord, new_record, record_arrival, record_arrivals
from cachemw.fork_safety import after_fork_in_child
from cachemw.stores.protocol import CacheEntry
from cachemw.stores.record_lru import RecordLru
from cachemw.stores.redis.hot_prefixes import HotPrefixes, HotUpdate
from cachemw.stores.redis.restore_queue import RestoreQueue

_SHARED = 1_024
_RECORDS = 32_768


class NearCache:
    """Keep the records that one worker knows, by their store keys. Any number of threads may use one.

    `tenant` returns the namespace that a name belongs to: each has its fair share of the records that are
    kept.
    """

    def __init__(self, tenant: Callable[[bytes], str] = lambda _: "") -> None:
        self._tenant = tenant
        self._records = RecordLru(_RECORDS)
        self._hot = HotPrefixes(_SHARED)
        self._queue = RestoreQueue(_RECORDS)
        self._lock = RLock()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Leave all unpublished data to the parent."""
        self._lock = RLock()
        self._queue.clear()
        self._hot.discard_unpublished()

    # -- while the server answers -------------------------------------------------------------

    def answer_locally(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None] | None:
        """Return the records of these shared prefixes if all of them are hot and fresh, else None."""
        with self._lock:
            return self._hot.fresh(names, now)

    def count(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None] | None:
        """Count an arrival of shared prefixes, to be published later; return the records before it.

        Returns None, and counts nothing, if one of them is not hot.
        """
        with self._lock:
            return self._hot.count(names, now)

    def lookup_reply(
        self, names: Sequence[StoreKey], shared_count: int, records: list[PrefixRecord | None], now: float
    ) -> list[PrefixRecord | None]:
        """Return the server's records, completed by local ones that it has lost or not received yet.

        The first `shared_count` names are shared prefixes.
        """
        with self._lock:
            for name, record in zip(names[:shared_count], records, strict=False):
                known = record is not None and record.arrivals and name in self._hot
                if record is not None and known and not self._queue.holds(name):
                    self._hot.replied(name, record, now)
            for index, (name, remote) in enumerate(zip(names, records, strict=True)):
                if remote is not None and remote.arrivals and not self._queue.holds(name):
                    continue
                local = self._record(name, now)
                if local is not None:
                    records[index] = local if remote is None else _merged(local, remote)
        return records

    def snapshot_known(self, names: Sequence[StoreKey]) -> list[bool]:
        """Return for each name whether its record is kept. `store_reply` takes this, from before a call."""
        with self._lock:
            return [self._records.has(self._tenant(name), name) for name in names]

    def store_reply(
        self,
        names: Sequence[StoreKey],
        shared_count: int,
        records: list[PrefixRecord | None],
        now: float,
        known: Sequence[bool],
    ) -> None:
        """Cache the records from before an arrival that the server returned.

        If the server has lost a record, put the local one into `records` and schedule its restore.

        Args:
            names: The names of the arrival.
            shared_count: The first so many names are shared prefixes.
            records: The server's records, changed in place.
            now: The time of the arrival in seconds.
            known: The result of `snapshot_known` from before the call.
        """
        with self._lock:
            overtaken: dict[StoreKey, PrefixRecord] = {}
            if None in records or self._queue.holds_any(names):
                overtaken = self._put_local(names, records, now, known)
            self._records.store_reply(self._space(names), names, records, now)
            for index, (name, record) in enumerate(zip(names[:shared_count], records, strict=False)):
                if name not in overtaken:
                    ends = int(index == len(names) - 1)
                    after = new_record(ends, now) if record is None else record_arrival(record, ends, now)
                    self._hot.replied(name, after, now)
            for name, local in overtaken.items():
                if self._records.has(self._tenant(name), name):
                    self._records.put(self._tenant(name), name, local)

    def _put_local(
        self,
        names: Sequence[StoreKey],
        records: list[PrefixRecord | None],
        now: float,
        known: Sequence[bool],
    ) -> dict[StoreKey, PrefixRecord]:
        """Put the local records in the place of those that the server has lost or not received.

        Returns the local records of names that no worker knew at the time of the call. The reply to a first
        arrival has come after those to later ones: nothing is lost, and they count the first one already.
        """
        overtaken: dict[StoreKey, PrefixRecord] = {}
        for index, (name, remote) in enumerate(zip(names, records, strict=True)):
            if remote is not None and not self._queue.holds(name):
                continue
            local = self._record(name, now)
            if local is None:
                continue
            if remote is None and not self._queue.holds(name) and not known[index]:
                overtaken[name] = local
                continue
            if remote is None or not self._queue.is_restoring(name):
                self._queue.schedule_lost(name)
            records[index] = local if remote is None else _merged(local, remote)
        return overtaken

    def record_write(self, names: Sequence[StoreKey], entries: Sequence[CacheEntry]) -> list[int]:
        """Note the provider's entries, and return the indexes of those that are to be published at once.

        The refresh of a shared prefix whose entry is cached can wait.
        """
        with self._lock:
            self._records.write(self._space(names), names, entries)
            return [
                index
                for index, (name, entry) in enumerate(zip(names, entries, strict=True))
                if not (entry.is_shared and self._hot.write(name, entry))
            ]

    # -- flush --------------------------------------------------------------------------------

    def drain_hot_updates(self, updates: list[HotUpdate]) -> None:
        """Add to `updates` the news of shared prefixes that is to be published now."""
        with self._lock:
            self._hot.drain_updates(updates)

    def published(self, updates: Sequence[HotUpdate], records: Sequence[PrefixRecord | None]) -> None:
        """Take over the server's records from before the arrivals of `updates`."""
        with self._lock:
            for (name, arrivals, last, _), record in zip(updates, records, strict=True):
                local = self._hot.record(name)
                if record is None and local is not None and local.arrivals > arrivals:
                    self._schedule([name])  # the server has lost the earlier arrivals
                self._hot.replied(name, record_arrivals(record, arrivals, last), last)

    def records_to_restore(self, records: dict[StoreKey, PrefixRecord]) -> None:
        """Add to `records` those that the server lost or did not receive: the caller sends them now."""
        names: list[StoreKey] = []
        with self._lock:
            for name in self._queue.scheduled:
                record = self._record(name, float("-inf"))
                if record is not None:
                    records[name] = record
            self._queue.begin(names)

    def restored(self, names: Iterable[StoreKey]) -> None:
        """Note that the server has received these records."""
        with self._lock:
            self._queue.finish(names)

    # -- while the server is unavailable ------------------------------------------------------

    def observe(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None]:
        """Count an arrival locally, and schedule the restore of its records."""
        with self._lock:
            self._schedule(names)
            for name in names:
                self._hot.discard(name)
            return self._records.observe(self._space(names), names, now)

    def peek(self, names: Sequence[StoreKey], now: float) -> list[PrefixRecord | None]:
        """Return the local records."""
        with self._lock:
            return self._records.peek(self._space(names), names, now)

    def claim(self, names: Sequence[StoreKey], entries: Sequence[CacheEntry], now: float) -> bool:
        """Claim entries among the requests of this worker."""
        with self._lock:
            return self._records.claim(self._space(names), names, entries, now)

    def schedule_restore(self, names: Sequence[StoreKey]) -> None:
        """Give these records to the server with the next flush."""
        with self._lock:
            self._schedule(names)

    def _schedule(self, names: Sequence[StoreKey]) -> None:
        for name in names:
            # Arrivals of a hot prefix are counted there alone.
            if (record := self._hot.record(name)) is not None:
                self._records.put(self._tenant(name), name, record)
        self._queue.schedule(names)

    def _record(self, name: StoreKey, now: float) -> PrefixRecord | None:
        return self._records.find(self._tenant(name), [name], now)[0]

    def _space(self, names: Sequence[StoreKey]) -> str:
        """Return the namespace of a call's names: all names of a call have the same one."""
        return self._tenant(names[0]) if names else ""


def _merged(local: PrefixRecord, remote: PrefixRecord) -> PrefixRecord:
    """Return one record of two, as the server's `restore` makes it; `in_flight_until` is the server's."""
    most = remote if remote.arrivals > local.arrivals else local
    gone = local.expires == 0 and local.ttl > 0
    entry = remote if remote.expires > local.expires and not gone else local
    return most._replace(expires=entry.expires, ttl=entry.ttl, in_flight_until=remote.in_flight_until)
