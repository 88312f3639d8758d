"""The tables in which workers that share a store exchange learned facts and cohort counts.

Contains: the amounts to publish, the tables to read, and the merge of their sums. Must not depend on: stores.
"""

from __future__ import annotations

from collections.abc import Mapping

from cachemw.core.reuse import cohort_sharing
from cachemw.engine import learned_facts
from cachemw.engine.shared import LedgerDelta, Shared

_EVERY_SECONDS = 30.0


class WorkerExchange:
    """Exchange learned facts and cohort counts with the other workers of a store."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._last = float("-inf")

    def is_due(self) -> bool:
        """Return True if the last exchange began at least half a minute ago, and count this one as begun."""
        now = self._shared.clock()
        if now - self._last < _EVERY_SECONDS:
            return False
        self._last = now
        return True

    def drain_updates(self) -> list[tuple[str, LedgerDelta, float]]:
        """Return the unpublished amounts: each a table, the amounts to add, and the seconds that the table is kept."""
        shared = self._shared
        with shared.reuse_lock:
            table, counts = shared.reuse.cohorts.drain_updates(shared.clock())
        updates = [
            (learned_facts.TABLE, shared.facts.drain_updates(), learned_facts.KEEP),
            (table, counts, cohort_sharing.KEEP),
        ]
        return [(table, amounts, keep) for table, amounts, keep in updates if amounts]

    def tables(self) -> list[str]:
        """Return the tables in which other workers publish, each to be read by itself."""
        shared = self._shared
        with shared.reuse_lock:
            return [learned_facts.TABLE, *shared.reuse.cohorts.tables(shared.clock())]

    def merge_updates(self, table: str, sums: Mapping[str, int]) -> None:
        """Learn from the sums that other workers have published in a table."""
        shared = self._shared
        if table == learned_facts.TABLE:
            shared.facts.merge_updates(sums)
        else:
            with shared.reuse_lock:
                shared.reuse.cohorts.merge_updates(table, sums, shared.clock())
