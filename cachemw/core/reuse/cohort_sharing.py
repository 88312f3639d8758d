"""What workers tell each other of classes: integers that a shared store adds up, by table and name.

Lives here: which sums this worker adds, which tables it reads, and what the others have counted since it last
looked. Must not know: what a class is, stores. Time is an argument, seconds.

A table holds what was counted in ten minutes. Sums commute: a trial that begins at one worker and ends at
another is one trial, whoever tells first. A name is a hash keyed by the secret, so a table tells no
one else what it counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

KEEP = 7200.0
"""Seconds after its last use until a table is dropped."""
_SLOT = 600.0
# A worker that joins reads the last hour: what is older would count less than half.
_BACK = 6
# Clocks of workers differ, and what was told may be on its way: a table is still read so long after its end.
_LAG = 60.0
# At once a worker tells of so many classes, those first that it counted most in; the others wait.
_TOLD = 256
# A worker tells of no new class where its table holds so many, and takes in no more than four times as many.
_CLASSES = 512
_NAMES = 16_384  # names that are not made again

_LETTERS = "bslow"
TAG_LENGTH = 8
"""Hexadecimal digits at the start of a class's name that say whose it is: of a namespace or group, keyed."""
BEGUN, REUSED_5M, REUSED_1H, NOT_REUSED, ENDED_THERE = range(len(_LETTERS))
"""Where in a class's list of counts each kind is."""
_HEX = TAG_LENGTH + 16


class RemoteCounts(NamedTuple):
    """What others counted in one class: trials that began, and how trials ended; `at`: when, on average."""

    at: float
    began: int
    reused_5m: int
    reused_1h: int
    not_reused: int
    ended_there: int


class CohortExchange:
    """Choose what to tell of what this worker counts, and find what the others did."""

    def __init__(self, secret: bytes) -> None:
        self._secret = blake2b(secret, digest_size=32).digest()
        self.name = lru_cache(_NAMES)(self._name)
        # By table and name: what this worker has told, and has been told.
        self._seen: dict[str, dict[str, list[int]]] = {}
        self._read_at: float | None = None

    def _name(self, owner: str, key: tuple[object, ...]) -> str:
        """Return a class's name in the store, from its owner and its key here."""
        return self._hash(repr(owner), TAG_LENGTH) + self._hash(repr((owner, key)), _HEX - TAG_LENGTH)

    def _hash(self, text: str, digits: int) -> str:
        return blake2b(text.encode(), digest_size=digits // 2, key=self._secret).hexdigest()

    def drain_updates(self, now: float, counted: Mapping[str, list[int]]) -> tuple[str, dict[str, int]]:
        """Return a table, and what is to be added to it of what was counted, by class; set that to 0."""
        table = _table(int(now // _SLOT))
        # Also where no table can be read for long.
        self._forget(now)
        seen = self._seen.setdefault(table, {})
        amounts: dict[str, int] = {}
        room = _Room(seen, _CLASSES)
        for name, counts in _busiest(counted)[:_TOLD]:
            if room.has(name):
                before = seen.get(name, [0] * len(_LETTERS))
                seen[name] = [*map(sum, zip(before, counts, strict=True))]
                amounts |= {
                    name + letter: count for letter, count in zip(_LETTERS, counts, strict=True) if count
                }
            counts[:] = [0] * len(_LETTERS)
        return table, amounts

    def tables(self, now: float) -> list[str]:
        """Return the tables to read now, each by itself, oldest first: as a rule one."""
        last = int(now // _SLOT)
        first = last - _BACK
        if self._read_at is not None:
            first = min(max(first, int((self._read_at - _LAG) // _SLOT)), last)
        return [_table(slot) for slot in range(first, last + 1)]

    def merge_updates(
        self, table: str, sums: Mapping[str, int], now: float
    ) -> list[tuple[str, RemoteCounts]]:
        """Return what others counted in each class since this table was read before.

        What this worker told may not have arrived: until it has, a little of theirs is missed.
        """
        seen = self._seen.setdefault(table, {})
        start = int(table.rpartition(":")[2]) * _SLOT
        end = min(start + _SLOT, now)
        at = (min(max(start, self._read_at or start), end) + end) / 2.0
        found: dict[str, list[int]] = {}
        room = _Room(seen, 4 * _CLASSES)
        for field, total in sums.items():
            name, kind = field[:_HEX], _LETTERS.find(field[_HEX:])
            if len(field) != _HEX + 1 or kind < 0 or not room.has(name):
                continue
            counts = seen.setdefault(name, [0] * len(_LETTERS))
            if total > counts[kind]:
                found.setdefault(name, [0] * len(_LETTERS))[kind] = total - counts[kind]
                counts[kind] = total
        if now < start + _SLOT:
            self._read_at = now
            self._forget(now)
        return [(name, RemoteCounts(at, *counts)) for name, counts in found.items()]

    def _forget(self, now: float) -> None:
        """Remember only what was heard in tables that may still be read."""
        self._seen = {name: self._seen[name] for name in self.tables(now) if name in self._seen}


class _Room:
    """The names that a table may still take in: each owner has its share, the busiest can't crowd out the rest."""

    def __init__(self, seen: dict[str, list[int]], most: int) -> None:
        self._seen, self._most = seen, most
        self._owners = Counter(name[:TAG_LENGTH] for name in seen)

    def has(self, name: str) -> bool:
        """Return True if a name is in the table, or is counted in now because there is room for it."""
        if name in self._seen:
            return True
        share = self._most // (len(self._owners) + 1)
        if self._owners.total() >= self._most and self._owners[name[:TAG_LENGTH]] >= share:
            return False
        self._owners[name[:TAG_LENGTH]] += 1
        return True


def _busiest(counted: Mapping[str, list[int]]) -> list[tuple[str, list[int]]]:
    """Return the classes with counts to publish, the busiest of each owner first, owner by owner in turn."""
    busiest = sorted((item for item in counted.items() if any(item[1])), key=lambda item: -sum(item[1]))
    ranks: Counter[str] = Counter()
    ranked = []
    for name, counts in busiest:
        ranked.append((ranks[name[:TAG_LENGTH]], name, counts))
        ranks[name[:TAG_LENGTH]] += 1
    return [(name, counts) for _, name, counts in sorted(ranked, key=lambda item: item[0])]


def _table(slot: int) -> str:
    return f"chances:{slot}"
