"""Amounts on their way to a shared store: added up, sent in batches, each added exactly once.

Lives here: what waits, and what was sent without an answer. Must not know: connections, what is summed.

An answer that is lost leaves open whether the batch was added. So it keeps its number, and is sent again
until one answer says so: the server remembers each sender's last number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from threading import RLock
from uuid import uuid4

from cachemw.fork_safety import after_fork_in_child

# Names of a table, and tables, that wait at most.
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
    """Hold amounts until they are known to have been added. Any thread may use one."""

    def __init__(self) -> None:
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Hold nothing: the parent sends what it has."""
        self._lock = RLock()
        self._numbers = count(1)
        self._waiting: dict[tuple[str, str], Batch] = {}
        self._sending: dict[tuple[str, str], Batch] = {}
        self.sender = uuid4().hex

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> int:
        """Hold amounts back, and return how many found no place."""
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
        """Return what is to be sent now: of each table one batch, the last one again until it is `added`."""
        with self._lock:
            for key in [key for key in self._waiting if key not in self._sending]:
                # In this order an exception in between leaves each batch in one of the two.
                batch = self._waiting[key]
                batch.number = next(self._numbers)
                self._sending[key] = batch
                del self._waiting[key]
            return list(self._sending.values())

    def added(self, batch: Batch) -> None:
        """Note that a batch need not be sent again."""
        key = batch.namespace, batch.table
        with self._lock:
            # Another thread may have sent it too, and the next one be on its way.
            if self._sending.get(key) is batch:
                del self._sending[key]

    @property
    def empty(self) -> bool:
        """Say whether all has been added."""
        return not self._waiting and not self._sending
