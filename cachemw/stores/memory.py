"""The store of one process: exact, bounded, and lost with the process.

Contains: dictionaries and a lock. Must not depend on: the clock of records (`now` is given), the network,
text.
"""
# ruff: noqa: ARG002 - a store takes all arguments of the protocol, used or not

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from threading import RLock

from cachemw.core.hash_types import PrefixHash
from cachemw.core.reuse.record import PrefixRecord
from cachemw.fork_safety import after_fork_in_child
from cachemw.stores.protocol import Arrival, CacheEntry
from cachemw.stores.record_lru import RecordLru

DEFAULT_MAX_PREFIXES = 200_000


class MemoryStore:
    """Keep at most `max_prefixes` records; the largest namespace loses its longest unused one first."""

    local = True

    def __init__(self, max_prefixes: int = DEFAULT_MAX_PREFIXES) -> None:
        self._records = RecordLru(max_prefixes)
        self._tables: dict[tuple[str, str], dict[str, int]] = {}
        self._kept: dict[tuple[str, str], float] = {}  # the time until which each is kept
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = RLock()

    def lookup(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.lookup`."""
        return self.peek(arrival, now)

    def observe(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.observe`."""
        with self._lock:
            return self._records.observe(arrival.namespace, arrival.keys, now)

    def write(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> None:
        """See `Store.write`."""
        with self._lock:
            self._records.write(namespace, [entry.key for entry in entries], entries)

    def peek(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.peek`."""
        with self._lock:
            return self._records.peek(arrival.namespace, arrival.keys, now)

    def claim(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
        now: float,
    ) -> bool:
        """See `Store.claim`."""
        with self._lock:
            return self._records.claim(namespace, [entry.key for entry in entries], entries, now)

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`. As on a server, `keep` is in real seconds, not by the caller's clock."""
        key, now = (namespace, table), time.monotonic()
        with self._lock:
            if self._kept.get(key, 0.0) < now:  # usually a new table
                for old in [old for old, until in self._kept.items() if until < now]:
                    self._tables.pop(old, None)
                    del self._kept[old]
            self._kept[key] = now + keep
            sums = self._tables.setdefault(key, {})
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

    def flush(self) -> bool:
        """See `Store.flush`: all amounts are already added."""
        return False

    def close(self) -> None:
        """See `Store.close`."""


class AsyncMemoryStore:
    """`MemoryStore` for the async engine; no call waits."""

    local = True

    def __init__(self, max_prefixes: int = DEFAULT_MAX_PREFIXES) -> None:
        self._store = MemoryStore(max_prefixes)

    async def lookup(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.lookup`."""
        return self._store.lookup(arrival, now)

    async def observe(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.observe`."""
        return self._store.observe(arrival, now)

    async def write(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> None:
        """See `Store.write`."""
        self._store.write(namespace, shared_shard_key, conversation_shard_key, entries)

    async def peek(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.peek`."""
        return self._store.peek(arrival, now)

    async def claim(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
        now: float,
    ) -> bool:
        """See `Store.claim`."""
        return self._store.claim(namespace, shared_shard_key, conversation_shard_key, entries, now)

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        self._store.add(namespace, table, amounts, keep)

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        return self._store.read(namespace, tables)

    async def flush(self) -> bool:
        """See `Store.flush`."""
        return self._store.flush()

    async def close(self) -> None:
        """See `Store.close`."""
        self._store.close()
