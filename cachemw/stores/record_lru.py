"""Records of prefixes in this process, for the memory store and for a worker whose store is unavailable.

Contains: a bounded dictionary, and the effect of arrivals, entries and claims on it. Must not depend on: the
content of keys, locks, the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

from cachemw.core.fair_table import FairTable
from cachemw.core.reuse.record import PrefixRecord, in_flight_record, new_record, record_arrival
from cachemw.stores.protocol import FORGET, CacheEntry

# The record before an arrival, whether the request ended there, and the time of the arrival.
_Reply = tuple[PrefixRecord | None, int, float]


class RecordLru:
    """At most `limit` records of all namespaces; the largest namespace loses its longest unused record first.

    A prefix without arrivals has no record, but a request that is about to write it can be noted. Reads then
    return a record of 0 arrivals with its `in_flight_until`. Not thread-safe.
    """

    def __init__(self, limit: int) -> None:
        # A plain dict would search for its first key through the holes of earlier evictions.
        self._records: FairTable[bytes, PrefixRecord | _Reply] = FairTable(limit)
        self._pending: FairTable[bytes, float] = FairTable(max(limit // 4, 64))

    def has(self, namespace: str, key: bytes) -> bool:
        """Return True if a record of a prefix is kept."""
        return key in self._records.read(namespace)

    def observe(self, namespace: str, keys: Sequence[bytes], now: float) -> list[PrefixRecord | None]:
        """Count one arrival of a request that ends with the last key; see `Store.observe`."""
        records, pending, last = self._records.open(namespace), self._pending.open(namespace), len(keys) - 1
        found: list[PrefixRecord | None] = []
        for index, key in enumerate(keys):
            record, whole = records.pop(key, None), int(index == last)
            if record is not None and not isinstance(record, PrefixRecord):
                record = _added(record)
            if record is None or now - record.last_arrival > FORGET:
                found.append(None)
                until = pending.pop(key, 0.0) if record is None else record.in_flight_until
                fresh = new_record(whole, now)
                records[key] = fresh._replace(in_flight_until=until) if until else fresh
            else:
                found.append(record)
                records[key] = record_arrival(record, whole, now)
        self._records.close(namespace)
        self._pending.close(namespace)
        return found

    def store_reply(
        self, namespace: str, keys: Sequence[bytes], records: Sequence[PrefixRecord | None], now: float
    ) -> None:
        """Cache a store server's reply: the records from before an arrival, which is yet to be added.

        The arrival is added when a record is read, since most records never are.
        """
        table = self._records.open(namespace)
        for key in keys:
            table.pop(key, None)  # a used key goes to the end
        whole = (*repeat(0, len(keys) - 1), 1)
        table.update(zip(keys, zip(records, whole, repeat(now), strict=False), strict=True))
        self._records.close(namespace)

    def peek(self, namespace: str, keys: Iterable[bytes], now: float) -> list[PrefixRecord | None]:
        """Return the records as `observe` does, and those of writes in flight; count nothing."""
        records, pending = self._records.read(namespace), self._pending.read(namespace)
        found = []
        for key in keys:
            record = records.get(key)
            if record is not None and not isinstance(record, PrefixRecord):
                record = records[key] = _added(record)
            if record is None or now - record.last_arrival > FORGET:
                until = pending.get(key, 0.0) if record is None else record.in_flight_until
                record = in_flight_record(until) if until > now else None
            found.append(record)
        return found

    def find(self, namespace: str, keys: Iterable[bytes], now: float) -> list[PrefixRecord | None]:
        """Return the records of prefixes with arrivals, None for the rest."""
        return [
            None if record is None or not record.arrivals else record
            for record in self.peek(namespace, keys, now)
        ]

    def write(self, namespace: str, keys: Sequence[bytes], entries: Sequence[CacheEntry]) -> None:
        """Note the provider's entries; see `Store.write`."""
        records, pending = self._records.read(namespace), self._pending.open(namespace)
        for key, entry in zip(keys, entries, strict=True):
            record = self._get(namespace, key)
            if record is None:
                pending.pop(key, None)
                if entry.in_flight_until:
                    pending[key] = entry.in_flight_until
                continue
            if entry.is_gone or entry.expires > record.expires:
                record = record._replace(expires=entry.expires, ttl=entry.ttl)
            records[key] = record._replace(in_flight_until=entry.in_flight_until)
        self._pending.close(namespace)

    def claim(self, namespace: str, keys: Sequence[bytes], entries: Sequence[CacheEntry], now: float) -> bool:
        """Set `in_flight_until` of each entry unless another request was first; see `Store.claim`."""
        found = self.peek(namespace, keys, now)
        if any(
            record is not None and (record.in_flight_until > now or record.is_cached(now)) for record in found
        ):
            return False
        self.write(namespace, keys, [entry.in_flight(entry.in_flight_until) for entry in entries])
        return True

    def put(self, namespace: str, key: bytes, record: PrefixRecord) -> None:
        """Set one record."""
        self._records.open(namespace)[key] = record
        self._records.close(namespace)

    def _get(self, namespace: str, key: bytes) -> PrefixRecord | None:
        records = self._records.read(namespace)
        held = records.get(key)
        if held is None or isinstance(held, PrefixRecord):
            return held
        record = records[key] = _added(held)
        return record


def _added(reply: _Reply) -> PrefixRecord:
    record, whole, now = reply
    # This worker does not learn that the response to another request has begun, so no request waits for it.
    return (
        new_record(whole, now)
        if record is None
        else record_arrival(record, whole, now)._replace(in_flight_until=0.0)
    )
