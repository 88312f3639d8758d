"""Amounts on their way to a shared store: added up, sent in batches, each batch added exactly once.

Contains: waiting amounts, and batches without an answer. Must not depend on: connections, the meaning of
amounts.

A lost answer leaves open whether the server added the batch. The batch keeps its number and is sent again
until the server confirms it. The server remembers the last number of each sender, so sending is idempotent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from threading import RLock
from uuid import uuid4

from cachemw.fork_safety import after_fork_in_child

# The most names of a table, and the most tables, that wait.
_MOST, _TABLES = 20_000, 1_000


@dataclass(slots=True)
class Batch:
    """Amounts of one table that are sent together."""

    namespace: str
    table: str
    keep: float
    number: int
    amounts: dict[str, int]


class SumsOutbox:
    """Hold amounts until the server confirms them. Any number of threads may use one."""

    def __init__(self) -> None:
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Start empty: the parent sends its own amounts."""
        self._lock = RLock()
        self._numbers = count(1)
        self._waiting: dict[tuple[str, str], Batch] = {}
        self._sending: dict[tuple[str, str], Batch] = {}
        self.sender = uuid4().hex

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> int:
        """Hold amounts back, and return the number of those that found no place."""
        lost = 0
        if not amounts:
            return lost
        with self._lock:
            batch = self._waiting.get((namespace, table))
            if batch is None:
                if len(self._waiting) >= _TABLES:
                    return len(amounts)
                batch = self._waiting[namespace, table] = Batch(namespace, table, keep, 0, {})
            sums = batch.amounts
            for name, amount in amounts.items():
                if name in sums:
                    sums[name] += amount
                elif len(sums) < _MOST:
                    sums[name] = amount
                else:
                    lost += 1
        return lost

    def batches(self) -> list[Batch]:
        """Return the batches to send now, one of each table; a batch returns until it is `added`."""
        with self._lock:
            for key in [key for key in self._waiting if key not in self._sending]:
                # In this order an interrupt leaves each batch in at least one of the two.
                batch = self._waiting[key]
                batch.number = next(self._numbers)
                self._sending[key] = batch
                del self._waiting[key]
            return list(self._sending.values())

    def added(self, batch: Batch) -> None:
        """Note that the server has added a batch."""
        key = batch.namespace, batch.table
        with self._lock:
            # Another thread may have sent it too, and the next batch may be on its way.
            if self._sending.get(key) is batch:
                del self._sending[key]

    @property
    def empty(self) -> bool:
        """Return True if the server has added all amounts."""
        return not self._waiting and not self._sending
