"""Bounded tables of several namespaces that share one limit, so that no tenant can evict another's entries.

Contains: the tables and the rule of eviction. Must not depend on: the values, clocks, locks. One thread at a
time may use a table.

All namespaces together hold at most `limit` entries. Above it the largest tables are cut to one common size,
oldest entries first. A namespace that holds less than its fair share (the limit divided by the number of
namespaces) never loses an entry to another namespace.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_NO_ENTRIES: OrderedDict[Any, Any] = OrderedDict()


class FairTable(Generic[K, V]):
    """Keep one ordered table per namespace, `limit` entries in total."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tables: dict[str, OrderedDict[K, V]] = {}
        self._sizes: dict[str, int] = {}
        self._peaks: dict[str, int] = {}  # the most entries that each table object has held
        self._total = 0

    def __len__(self) -> int:
        return self._total

    def read(self, namespace: str) -> OrderedDict[K, V]:
        """Return the entries of a namespace, oldest first; an empty table if it has none.

        A value may be set anew in it. Use `open` and `close` to add or remove entries.
        """
        return self._tables.get(namespace) or _NO_ENTRIES

    def values(self) -> list[V]:
        """Return the values of all namespaces."""
        return [value for table in self._tables.values() for value in table.values()]

    def open(self, namespace: str) -> OrderedDict[K, V]:
        """Return the table of a namespace to change; call `close` after the change."""
        table = self._tables.get(namespace)
        if table is None:
            table = self._tables[namespace] = OrderedDict()
        return table

    def close(self, namespace: str) -> None:
        """Count the entries of a namespace that was changed, and evict if the limit is exceeded."""
        size = len(self._tables.get(namespace, ()))
        self._total += size - self._sizes.pop(namespace, 0)  # set anew, so that the latest namespace is last
        if size:
            self._sizes[namespace] = size
            self._peaks[namespace] = max(size, self._peaks.get(namespace, 0))
        else:
            self._tables.pop(namespace, None)
            self._peaks.pop(namespace, None)
        if self._total > self._limit:
            self._evict()

    def put(self, namespace: str, entries: Iterable[tuple[K, V]]) -> None:
        """Set entries as the newest of their namespace."""
        table = self.open(namespace)
        for key, value in entries:
            table[key] = value
            table.move_to_end(key)
        self.close(namespace)

    def _evict(self) -> None:
        """Cut the largest tables to one size, or to one less, to free room for some more entries.

        Tables of namespaces that were changed longest ago are those cut to one less.
        """
        needed = self._total - (self._limit - self._limit // 256)
        sizes = sorted(self._sizes.values(), reverse=True)
        level = freed = shorter = 0
        for count, (size, smaller) in enumerate(pairwise([*sizes, 0]), 1):
            gain = count * (size - smaller)
            if freed + gain >= needed:
                each, shorter = divmod(needed - freed, count)
                level = size - each
                break
            freed += gain
        for rank, namespace in enumerate([name for name, size in self._sizes.items() if size >= level]):
            table = self._tables[namespace]
            while len(table) > level - (rank < shorter):
                table.popitem(last=False)
            self._total += len(table) - self._sizes[namespace]
            self._sizes[namespace] = len(table)
            if not table:
                del self._tables[namespace], self._sizes[namespace], self._peaks[namespace]
            elif 2 * len(table) < self._peaks[namespace]:
                # A dictionary never gives memory back when entries are removed, only a new one is small again.
                self._tables[namespace] = OrderedDict(table)
                self._peaks[namespace] = len(table)
