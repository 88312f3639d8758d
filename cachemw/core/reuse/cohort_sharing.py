"""The exchange of cohort counts between workers: integers that a shared store adds up, by table and name.

Contains: which sums this worker adds, which tables it reads, and the counts of other workers since its last
look. Must not depend on: the meaning of a cohort, stores. Time is an argument, in seconds.

A table holds the counts of ten minutes. Sums commute: a trial that begins at one worker and ends at another
is one trial, in either order of publication. A name is a hash keyed by the secret, so a table reveals no
cohort.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from cachemw.core.tuning import SHARING

KEEP = 7200.0
"""Seconds after its last use until a table is dropped."""
# A worker publishes no new cohort in a full table, and reads at most this many times as many.
_READ_FACTOR = 4
_NAMES = 16_384  # names in memory that are not hashed again

_LETTERS = "bslow"
TAG_LENGTH = 8
"""Hexadecimal digits at the start of a cohort's name: the keyed hash of its owner, a namespace or group."""
BEGUN, REUSED_5M, REUSED_1H, NOT_REUSED, ENDED_THERE = range(len(_LETTERS))
"""Places of each kind in a cohort's list of counts."""
_HEX = TAG_LENGTH + 16


class RemoteCounts(NamedTuple):
    """Counts of other workers in one cohort: trials begun, trials by their end, and the mean time."""

    at: float
    began: int
    reused_5m: int
    reused_1h: int
    not_reused: int
    ended_there: int


class CohortExchange:
    """Choose the counts that this worker publishes, and find those of the other workers."""

    def __init__(self, secret: bytes) -> None:
        self._secret = blake2b(secret, digest_size=32).digest()
        self.name = lru_cache(_NAMES)(self._name)
        # The counts that this worker has published or read, by table and name.
        self._seen: dict[str, dict[str, list[int]]] = {}
        self._read_at: float | None = None

    def _name(self, owner: str, key: tuple[object, ...]) -> str:
        """Return a cohort's name in the store, made of its owner and its key in this process."""
        return self._hash(repr(owner), TAG_LENGTH) + self._hash(repr((owner, key)), _HEX - TAG_LENGTH)

    def _hash(self, text: str, digits: int) -> str:
        return blake2b(text.encode(), digest_size=digits // 2, key=self._secret).hexdigest()

    def drain_updates(self, now: float, counted: Mapping[str, list[int]]) -> tuple[str, dict[str, int]]:
        """Return a table and the amounts to add to it, by cohort; set the published counts to 0."""
        table = _table(int(now // SHARING.slot))
        # Called here too, since reads may fail for long.
        self._forget(now)
        seen = self._seen.setdefault(table, {})
        amounts: dict[str, int] = {}
        room = _Room(seen, SHARING.cohorts_per_table)
        for name, counts in _busiest(counted)[: SHARING.published_at_once]:
            if room.has(name):
                before = seen.get(name, [0] * len(_LETTERS))
                seen[name] = [*map(sum, zip(before, counts, strict=True))]
                amounts |= {
                    name + letter: count for letter, count in zip(_LETTERS, counts, strict=True) if count
                }
            counts[:] = [0] * len(_LETTERS)
        return table, amounts

    def tables(self, now: float) -> list[str]:
        """Return the tables to read now, each by itself, oldest first: usually one."""
        last = int(now // SHARING.slot)
        first = last - SHARING.slots_read_back
        if self._read_at is not None:
            first = min(max(first, int((self._read_at - SHARING.clock_lag) // SHARING.slot)), last)
        return [_table(slot) for slot in range(first, last + 1)]

    def merge_updates(
        self, table: str, sums: Mapping[str, int], now: float
    ) -> list[tuple[str, RemoteCounts]]:
        """Return the counts of other workers in each cohort since this table was read before.

        The amounts that this worker published may not have arrived yet. Until they have, a few counts of
        other workers are missed.
        """
        seen = self._seen.setdefault(table, {})
        start = int(table.rpartition(":")[2]) * SHARING.slot
        end = min(start + SHARING.slot, now)
        at = (min(max(start, self._read_at or start), end) + end) / 2.0
        found: dict[str, list[int]] = {}
        room = _Room(seen, _READ_FACTOR * SHARING.cohorts_per_table)
        for field, total in sums.items():
            name, kind = field[:_HEX], _LETTERS.find(field[_HEX:])
            if len(field) != _HEX + 1 or kind < 0 or not room.has(name):
                continue
            counts = seen.setdefault(name, [0] * len(_LETTERS))
            if total > counts[kind]:
                found.setdefault(name, [0] * len(_LETTERS))[kind] = total - counts[kind]
                counts[kind] = total
        if now < start + SHARING.slot:
            self._read_at = now
            self._forget(now)
        return [(name, RemoteCounts(at, *counts)) for name, counts in found.items()]

    def _forget(self, now: float) -> None:
        """Forget the counts of tables that will not be read again."""
        self._seen = {name: self._seen[name] for name in self.tables(now) if name in self._seen}


class _Room:
    """The names that a table may still hold: each owner has a share, so none crowds out another."""

    def __init__(self, seen: dict[str, list[int]], most: int) -> None:
        self._seen, self._most = seen, most
        self._owners = Counter(name[:TAG_LENGTH] for name in seen)

    def has(self, name: str) -> bool:
        """Return True if a name is in the table, or if there is room and it takes it."""
        if name in self._seen:
            return True
        share = self._most // (len(self._owners) + 1)
        if self._owners.total() >= self._most and self._owners[name[:TAG_LENGTH]] >= share:
            return False
        self._owners[name[:TAG_LENGTH]] += 1
        return True


def _busiest(counted: Mapping[str, list[int]]) -> list[tuple[str, list[int]]]:
    """Return the cohorts with counts to publish, the busiest of each owner first, owner by owner in turn."""
    busiest = sorted((item for item in counted.items() if any(item[1])), key=lambda item: -sum(item[1]))
    ranks: Counter[str] = Counter()
    ranked = []
    for name, counts in busiest:
        ranked.append((ranks[name[:TAG_LENGTH]], name, counts))
        ranks[name[:TAG_LENGTH]] += 1
    return [(name, counts) for _, name, counts in sorted(ranked, key=lambda item: item[0])]


def _table(slot: int) -> str:
    return f"chances:{slot}"
