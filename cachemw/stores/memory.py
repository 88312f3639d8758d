"""The store of one process: exact, bounded, and gone with it.

Lives here: dictionaries and a lock. Must not know: clocks (`now` is given), the network, text.
"""
# ruff: noqa: ARG002 - a store takes what the protocol says, used or not

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

from cachemw.core.reuse import Prefix, arrive, first
from cachemw.stores.base import FORGET, Arrival, Entry

DEFAULT_MAX_PREFIXES = 200_000


class MemoryStore:
    """Keep at most `max_prefixes` records, the longest unused dropped first."""

    local = True

    def __init__(self, max_prefixes: int = DEFAULT_MAX_PREFIXES) -> None:
        self._limit = max_prefixes
        # A plain dict would look for its first key through the holes that earlier evictions left.
        self._records: OrderedDict[bytes, Prefix] = OrderedDict()
        self._tables: dict[tuple[str, str], dict[str, int]] = {}
        self._lock = Lock()

    def observe(self, arrival: Arrival, now: float | None) -> list[Prefix | None]:
        """See `Store.observe`; a `now` of None is refused, since this store has no clock."""
        if now is None:
            raise ValueError("the memory store has no clock of its own: give `now`")
        records, tenant = self._records, _tenant(arrival.namespace)
        found: list[Prefix | None] = []
        with self._lock:
            for digest, child in zip(arrival.keys, arrival.children, strict=True):
                key = tenant + digest
                record = records.pop(key, None)
                if record is None or now - record.last > FORGET:
                    found.append(None)
                    records[key] = first(child, now)
                else:
                    found.append(record)
                    records[key] = arrive(record, child, now)
            while len(records) > self._limit:
                records.popitem(last=False)
        return found

    def write(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float | None
    ) -> None:
        """See `Store.write`."""
        records, tenant = self._records, _tenant(namespace)
        with self._lock:
            for entry in entries:
                key = tenant + entry.key
                record = records.get(key)
                if record is None:
                    continue
                if entry.expires == 0 or entry.expires > record.expires:
                    record = record._replace(expires=entry.expires, ttl=entry.ttl)
                records[key] = record._replace(pending=entry.pending)

    def peek(self, arrival: Arrival, now: float) -> list[Prefix | None]:
        """See `Store.peek`."""
        tenant = _tenant(arrival.namespace)
        with self._lock:
            found = [self._records.get(tenant + digest) for digest in arrival.keys]
        return [None if record is None or now - record.last > FORGET else record for record in found]

    def claim(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float) -> bool:
        """See `Store.claim`."""
        records, tenant = self._records, _tenant(namespace)
        with self._lock:
            found = [
                (tenant + entry.key, entry.pending) for entry in entries if tenant + entry.key in records
            ]
            if any(records[key].pending > now or records[key].living(now) for key, _ in found):
                return False
            for key, pending in found:
                records[key] = records[key]._replace(pending=pending)
        return True

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`; tables live as long as the process."""
        with self._lock:
            sums = self._tables.setdefault((namespace, table), {})
            for name, amount in amounts.items():
                sums[name] = sums.get(name, 0) + amount

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        total: dict[str, int] = {}
        with self._lock:
            for table in tables:
                for name, amount in self._tables.get((namespace, table), {}).items():
                    total[name] = total.get(name, 0) + amount
        return total

    def close(self) -> None:
        """See `Store.close`."""


def _tenant(namespace: str) -> bytes:
    return namespace.encode("utf-8", "surrogatepass")


class AsyncMemoryStore:
    """`MemoryStore` for the async engine; nothing in it waits."""

    local = True

    def __init__(self, max_prefixes: int = DEFAULT_MAX_PREFIXES) -> None:
        self._store = MemoryStore(max_prefixes)

    async def observe(self, arrival: Arrival, now: float | None) -> list[Prefix | None]:
        """See `Store.observe`."""
        return self._store.observe(arrival, now)

    async def write(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float | None
    ) -> None:
        """See `Store.write`."""
        self._store.write(namespace, root, trunk, entries, now)

    async def peek(self, arrival: Arrival, now: float) -> list[Prefix | None]:
        """See `Store.peek`."""
        return self._store.peek(arrival, now)

    async def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float
    ) -> bool:
        """See `Store.claim`."""
        return self._store.claim(namespace, root, trunk, entries, now)

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        self._store.add(namespace, table, amounts, keep)

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        return self._store.read(namespace, tables)

    async def close(self) -> None:
        """See `Store.close`."""
        self._store.close()
