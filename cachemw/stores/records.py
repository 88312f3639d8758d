"""Records of prefixes in this process: what the memory store is, and what a worker goes on with alone.

Lives here: a bounded dictionary and what arrivals, entries and claims do to it. Must not know: what keys
are made of, locks, the network.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import repeat

from cachemw.core.reuse import Prefix, arrive, first
from cachemw.stores.base import FORGET, Entry

# The record before an arrival, whether the request ended there, and when it came.
_Heard = tuple[Prefix | None, int, float]


class Records:
    """At most `limit` records, the longest unused dropped first. One thread at a time may use them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # A plain dict would look for its first key through the holes that earlier evictions left.
        self._records: OrderedDict[bytes, Prefix | _Heard] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._records

    def observe(self, keys: Sequence[bytes], now: float) -> list[Prefix | None]:
        """Count one arrival of a request that ends with the last key; see `Store.observe`."""
        records, last = self._records, len(keys) - 1
        found: list[Prefix | None] = []
        for index, key in enumerate(keys):
            record, whole = records.pop(key, None), int(index == last)
            if record is not None and not isinstance(record, Prefix):
                record = _added(record)
            if record is None or now - record.last > FORGET:
                found.append(None)
                records[key] = first(whole, now)
            else:
                found.append(record)
                records[key] = arrive(record, whole, now)
        self._bound()
        return found

    def heard(self, keys: Sequence[bytes], records: Sequence[Prefix | None], now: float) -> None:
        """Take over what another has counted: the records from before an arrival, which is yet to be added.

        It is added when a record is asked for, since most never are.
        """
        for key in keys:
            self._records.pop(key, None)  # what is used goes to the end
        whole = (*repeat(0, len(keys) - 1), 1)
        self._records.update(zip(keys, zip(records, whole, repeat(now), strict=False), strict=True))
        self._bound()

    def peek(self, keys: Iterable[bytes], now: float) -> list[Prefix | None]:
        """Return what `observe` would, and count nothing."""
        found = []
        for key in keys:
            record = self._get(key)
            found.append(None if record is None or now - record.last > FORGET else record)
        return found

    def write(self, keys: Sequence[bytes], entries: Sequence[Entry]) -> None:
        """Set what the provider holds; see `Store.write`."""
        for key, entry in zip(keys, entries, strict=True):
            record = self._get(key)
            if record is None:
                continue
            if entry.expires == 0 or entry.expires > record.expires:
                record = record._replace(expires=entry.expires, ttl=entry.ttl)
            self._records[key] = record._replace(pending=entry.pending)

    def claim(self, keys: Sequence[bytes], entries: Sequence[Entry], now: float) -> bool:
        """Set the `pending` of each entry unless another was first; see `Store.claim`."""
        found = [(key, record, entry) for key, entry in zip(keys, entries, strict=True)
                 if (record := self._get(key)) is not None]  # fmt: skip
        if any(record.pending > now or record.living(now) for _, record, _ in found):
            return False
        for key, record, entry in found:
            self._records[key] = record._replace(pending=entry.pending)
        return True

    def put(self, key: bytes, record: Prefix) -> None:
        """Set one record."""
        self._records[key] = record

    def _get(self, key: bytes) -> Prefix | None:
        held = self._records.get(key)
        if held is None or isinstance(held, Prefix):
            return held
        record = self._records[key] = _added(held)
        return record

    def _bound(self) -> None:
        while len(self._records) > self._limit:
            self._records.popitem(last=False)


def _added(heard: _Heard) -> Prefix:
    record, whole, now = heard
    # That another's answer has begun is never heard here, so nobody waits for it.
    return first(whole, now) if record is None else arrive(record, whole, now)._replace(pending=0.0)
