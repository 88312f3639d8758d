"""What one worker knows of prefixes by itself: to spare the server, and to go on while that is away.

Lives here: the records last heard of, the heads that arrive all the time, and what others have yet to be
told of both. Must not know: connections, commands, clocks (`now` is given).

Heads are the prefixes that end in the tools or system section. A fleet shares few of them, so each request
would ask one shard for the same ones: a worker answers for them from here for a tenth of a second, and
sends the arrivals that it counted meanwhile as one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

from cachemw.core.reuse import Prefix, arrive_often
from cachemw.stores.base import Entry
from cachemw.stores.records import Records

# Seconds for which a head is answered from here; and from how many arrivals on, since what a young one
# learns from another worker changes the plan.
FRESH = 0.1
_HOT = 4
# Seconds by which the answer to a first arrival may come after those to later ones.
_OVERTAKEN = 0.01
_HEADS = 1_024
_RECORDS = 32_768


class _Head:
    """One head as it stands, and what of that the others don't know yet."""

    __slots__ = ("count", "entry", "heard", "last", "record")

    def __init__(self, record: Prefix, now: float) -> None:
        self.record = record
        self.heard = self.last = now
        self.count = 0
        self.entry: Entry | None = None


class Held(NamedTuple):
    """What of one head is to be sent: arrivals, the last at `last`, and the entry that they refreshed."""

    name: bytes
    arrivals: int
    last: float
    entry: Entry | None


class Near:
    """Keep what one worker knows, by the server's names for it. Any thread may ask."""

    def __init__(self) -> None:
        self._records = Records(_RECORDS)
        self._heads: dict[bytes, _Head] = {}
        self._owed: set[bytes] = set()
        self._lock = Lock()

    def hot(self, names: Sequence[bytes], now: float) -> list[Prefix | None] | None:
        """Count an arrival of these heads and return the records from before it, if none need be asked for."""
        known, heads = self._heads, []
        with self._lock:
            for name in names:
                head = known.get(name)
                if head is None or not 0.0 <= now - head.heard < FRESH or head.record.seen < _HOT:
                    return None
                if head.record.pending > now:
                    return None
                heads.append(head)
            found: list[Prefix | None] = [head.record for head in heads]
            for head in heads:
                head.record = arrive_often(head.record, 1, now)
                head.count += 1
                head.last = now
        return found

    def heard(self, names: Sequence[bytes], heads: int, records: list[Prefix | None], now: float) -> None:
        """Note the records from before an arrival; in place of those that the server has lost put ours.

        The first `heads` names are heads.
        """
        with self._lock:
            if None in records or not self._owed.isdisjoint(names):
                self._put_ours(names, records, now)
            self._records.heard(names, records, now)
            for name, record in zip(names[:heads], records, strict=False):
                self._stand(name, arrive_often(record, 1, now), now)

    def _put_ours(self, names: Sequence[bytes], records: list[Prefix | None], now: float) -> None:
        """Put what is known here in the place of what the server has lost, or was not told of."""
        for index, (name, theirs) in enumerate(zip(names, records, strict=True)):
            if theirs is not None and name not in self._owed:
                continue
            (ours,) = self._records.peek([name], now)
            if ours is None or (theirs is not None and ours.seen <= theirs.seen):
                continue
            # The answer to a first arrival may come after those to later ones: the server has lost nothing.
            if theirs is None and name not in self._owed and now - ours.last < _OVERTAKEN:
                continue
            self._owed.add(name)
            if theirs is not None:
                ours = ours._replace(pending=theirs.pending)
                if theirs.expires > ours.expires:
                    ours = ours._replace(expires=theirs.expires, ttl=theirs.ttl)
            records[index] = ours

    def sent(self, held: Sequence[Held], records: Sequence[Prefix | None]) -> None:
        """Note the records from before the arrivals that were sent as numbers."""
        with self._lock:
            for (name, arrivals, last, _), record in zip(held, records, strict=True):
                self._stand(name, arrive_often(record, arrivals, last), last)

    def _stand(self, name: bytes, record: Prefix, now: float) -> None:
        head = self._heads.get(name)
        if head is not None:
            if head.count:
                record = arrive_often(record, head.count, head.last)
            # Answers may overtake each other.
            if record.seen >= head.record.seen:
                head.record, head.heard = record, now
            return
        if len(self._heads) >= _HEADS:
            for idle in [idle for idle, head in self._heads.items() if not head.count and head.entry is None]:
                del self._heads[idle]
        if len(self._heads) < _HEADS:
            self._heads[name] = _Head(record, now)

    def wrote(self, names: Sequence[bytes], entries: Sequence[Entry]) -> list[int]:
        """Note what the provider holds, and return which of it the others must be told at once.

        That a living entry of a head lives on can wait.
        """
        urgent = []
        with self._lock:
            self._records.write(names, entries)
            for index, (name, entry) in enumerate(zip(names, entries, strict=True)):
                head = self._heads.get(name) if entry.head else None
                if head is None:
                    urgent.append(index)
                    continue
                lives = head.record.expires > entry.expires - entry.ttl > 0 and not head.record.pending
                if entry.expires == 0 or entry.expires > head.record.expires:
                    head.record = head.record._replace(expires=entry.expires, ttl=entry.ttl)
                head.record = head.record._replace(pending=entry.pending)
                # What is told at once says more than what was held back before.
                head.entry = entry if lives and not entry.pending else None
                if head.entry is None:
                    urgent.append(index)
        return urgent

    def due(self) -> list[Held]:
        """Return what of heads is to be sent now, in the order of their names."""
        with self._lock:
            held = [
                Held(name, head.count, head.last, head.entry)
                for name, head in sorted(self._heads.items())
                if head.count or head.entry is not None
            ]
            for name, *_ in held:
                head = self._heads[name]
                head.count, head.entry = 0, None
        return held

    # -- while the server is away ---------------------------------------------------------------

    def observe(self, names: Sequence[bytes], now: float) -> list[Prefix | None]:
        """Count an arrival here alone."""
        with self._lock:
            for name in names:
                if (head := self._heads.pop(name, None)) is not None:
                    self._records.put(name, head.record)
            self._owe(names)
            return self._records.observe(names, now)

    def peek(self, names: Sequence[bytes], now: float) -> list[Prefix | None]:
        """Return what is known here."""
        with self._lock:
            return self._records.peek(names, now)

    def claim(self, names: Sequence[bytes], entries: Sequence[Entry], now: float) -> bool:
        """Claim entries among the requests of this worker."""
        with self._lock:
            return self._records.claim(names, entries, now)

    def lost(self, names: Sequence[bytes]) -> None:
        """Note that the server was not told of these."""
        with self._lock:
            self._owe(names)

    def _owe(self, names: Sequence[bytes]) -> None:
        if len(self._owed) < _RECORDS:
            self._owed.update(names)

    def owed(self) -> dict[bytes, Prefix]:
        """Return the records that the server lost or was not told of, for once."""
        with self._lock:
            names, self._owed = list(self._owed), set()
            found = self._records.peek(names, float("-inf"))
        return {name: record for name, record in zip(names, found, strict=True) if record is not None}
