"""What one worker knows of prefixes by itself: to spare the server, and to go on while that is away.

Lives here: the records last heard of, the heads that arrive all the time, and what others have yet to be
told of both. Must not know: connections, commands, clocks (`now` is given).

Heads are the prefixes that end in the tools or system section. A fleet shares few of them, so each request
would ask one shard for the same ones: a worker answers for them from here for a tenth of a second, and
sends the arrivals that it counted meanwhile as one number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import RLock
from typing import NamedTuple

from cachemw.core.reuse.record import PrefixRecord, new_record, record_arrival, record_arrivals
from cachemw.fork_safety import after_fork_in_child
from cachemw.stores.protocol import CacheEntry
from cachemw.stores.record_lru import RecordLru

# Seconds for which a head is answered from here; and from how many arrivals on, since what a young one
# learns from another worker changes the plan.
FRESH = 0.1
# Seconds after the server's last word on a head in which arrivals of it are still counted here.
_COUNTED = 60.0
_HOT = 4
_HEADS = 1_024
_RECORDS = 32_768


class _Head:
    """One head as it stands, and what of that the others don't know yet."""

    __slots__ = ("count", "entry", "heard", "last", "record")

    def __init__(self, record: PrefixRecord, now: float) -> None:
        self.record = record
        self.heard = self.last = now
        self.count = 0
        self.entry: CacheEntry | None = None


class HotUpdate(NamedTuple):
    """What of one head is to be sent: arrivals, the last at `last`, and the entry that they refreshed."""

    name: bytes
    arrivals: int
    last: float
    entry: CacheEntry | None


class NearCache:
    """Keep what one worker knows, by the server's names for it. Any thread may ask.

    `tenant` returns the namespace that a name belongs to: each has its fair share of the records that are kept.
    """

    def __init__(self, tenant: Callable[[bytes], str] = lambda _: "") -> None:
        self._tenant = tenant
        self._records = RecordLru(_RECORDS)
        self._heads: dict[bytes, _Head] = {}
        # What the server is to be given; and what it is being given, or was just now (True): answers from
        # before that may still be on their way.
        self._to_restore: set[bytes] = set()
        self._restoring: dict[bytes, bool] = {}
        self._lock = RLock()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Leave to the parent what is yet to be sent."""
        self._lock = RLock()
        self._to_restore, self._restoring = set(), {}
        for head in self._heads.values():
            head.count, head.entry = 0, None

    def answer_locally(self, names: Sequence[bytes], now: float) -> list[PrefixRecord | None] | None:
        """Return the records of these heads if all of them are known here well enough, and lately."""
        with self._lock:
            heads = self._hot(names, now)
            if heads is None or not all(0.0 <= now - head.heard < FRESH for head in heads):
                return None
            return [head.record for head in heads]

    def count(self, names: Sequence[bytes], now: float) -> list[PrefixRecord | None] | None:
        """Count an arrival of these heads here, to be published later, and return the records from before it.

        Return None, and count nothing, if one of them is not hot.
        """
        with self._lock:
            heads = self._hot(names, now)
            if heads is None or any(now - head.heard > _COUNTED for head in heads):
                return None
            found: list[PrefixRecord | None] = [head.record for head in heads]
            for head in heads:
                head.record = record_arrivals(head.record, 1, now)
                head.last = max(head.last, now) if head.count else now
                head.count += 1
            return found

    def _hot(self, names: Sequence[bytes], now: float) -> list[_Head] | None:
        heads = [head for name in names if (head := self._heads.get(name)) is not None]
        if len(heads) < len(names) or any(
            head.record.arrivals < _HOT or head.record.in_flight_until > now for head in heads
        ):
            return None
        return heads

    def looked(
        self, names: Sequence[bytes], heads: int, records: list[PrefixRecord | None], now: float
    ) -> list[PrefixRecord | None]:
        """Return the server's records, completed by those that it has lost or was not given yet.

        The first `heads` names are heads.
        """
        with self._lock:
            for name, record in zip(names[:heads], records, strict=False):
                if record is not None and record.arrivals and name in self._heads and not self._ours(name):
                    self._stand(name, record, now)
            for index, (name, theirs) in enumerate(zip(names, records, strict=True)):
                if theirs is not None and theirs.arrivals and not self._ours(name):
                    continue
                ours = self._record(name, now)
                if ours is not None:
                    records[index] = ours if theirs is None else _merged(ours, theirs)
        return records

    def snapshot_known(self, names: Sequence[bytes]) -> list[bool]:
        """Say of each whether there is a record of it here: to be told to `heard`, from before the call."""
        with self._lock:
            return [self._records.has(self._tenant(name), name) for name in names]

    def store_reply(
        self,
        names: Sequence[bytes],
        heads: int,
        records: list[PrefixRecord | None],
        now: float,
        known: Sequence[bool],
    ) -> None:
        """Note the records from before an arrival; in place of those that the server has lost put ours.

        The first `heads` names are heads.
        """
        with self._lock:
            overtaken: dict[bytes, PrefixRecord] = {}
            told = self._to_restore.isdisjoint(names) and self._restoring.keys().isdisjoint(names)
            if None in records or not told:
                overtaken = self._put_ours(names, records, now, known)
            self._records.heard(self._space(names), names, records, now)
            for index, (name, record) in enumerate(zip(names[:heads], records, strict=False)):
                if name not in overtaken:
                    whole = int(index == len(names) - 1)
                    after = new_record(whole, now) if record is None else record_arrival(record, whole, now)
                    self._stand(name, after, now)
            for name, ours in overtaken.items():
                if self._records.has(self._tenant(name), name):
                    self._records.put(self._tenant(name), name, ours)

    def _put_ours(
        self,
        names: Sequence[bytes],
        records: list[PrefixRecord | None],
        now: float,
        known: Sequence[bool],
    ) -> dict[bytes, PrefixRecord]:
        """Put what is known here in the place of what the server has lost, or was not told of.

        Return what is here of those that nobody knew when they were asked for: the answer to a first arrival
        came after those to later ones, so nothing is lost and it is counted in them.
        """
        overtaken: dict[bytes, PrefixRecord] = {}
        for index, (name, theirs) in enumerate(zip(names, records, strict=True)):
            if theirs is not None and not self._ours(name):
                continue
            ours = self._record(name, now)
            if ours is None:
                continue
            if theirs is None and not self._ours(name) and not known[index]:
                overtaken[name] = ours
                continue
            if theirs is None or name not in self._restoring:
                self._to_restore.add(name)
            records[index] = ours if theirs is None else _merged(ours, theirs)
        return overtaken

    def _ours(self, name: bytes) -> bool:
        """Say whether what the server answers of a prefix may be from before it was given what is known here."""
        return name in self._to_restore or name in self._restoring

    def sent(self, held: Sequence[HotUpdate], records: Sequence[PrefixRecord | None]) -> None:
        """Note the records from before the arrivals that were sent as numbers."""
        with self._lock:
            for (name, arrivals, last, _), record in zip(held, records, strict=True):
                head = self._heads.get(name)
                if record is None and head is not None and head.record.arrivals > arrivals:
                    self._owe([name])  # the server has lost what came before these
                self._stand(name, record_arrivals(record, arrivals, last), last)

    def _stand(self, name: bytes, record: PrefixRecord, now: float) -> None:
        head = self._heads.get(name)
        if head is not None:
            if head.count:
                record = record_arrivals(record, head.count, head.last)
            # Answers may overtake each other.
            if record.arrivals >= head.record.arrivals:
                head.record, head.heard = record, now
            return
        if len(self._heads) >= _HEADS:
            for idle in [idle for idle, head in self._heads.items() if not head.count and head.entry is None]:
                del self._heads[idle]
        if len(self._heads) < _HEADS:
            self._heads[name] = _Head(record, now)

    def record_write(self, names: Sequence[bytes], entries: Sequence[CacheEntry]) -> list[int]:
        """Note what the provider holds, and return which of it the others must be told at once.

        That a living entry of a head lives on can wait.
        """
        urgent = []
        with self._lock:
            self._records.write(self._space(names), names, entries)
            for index, (name, entry) in enumerate(zip(names, entries, strict=True)):
                head = self._heads.get(name) if entry.is_shared else None
                if head is None:
                    urgent.append(index)
                    continue
                lives = (
                    head.record.expires > entry.expires - entry.ttl > 0 and not head.record.in_flight_until
                )
                if entry.expires == 0 or entry.expires > head.record.expires:
                    head.record = head.record._replace(expires=entry.expires, ttl=entry.ttl)
                head.record = head.record._replace(in_flight_until=entry.in_flight_until)
                waits = lives and not entry.in_flight_until
                if waits or (head.entry is not None and entry.expires):
                    # As on the server: the later end wins, and the last word on what is pending.
                    later = max(head.entry or entry, entry, key=lambda each: each.expires)
                    head.entry = later._replace(in_flight_until=entry.in_flight_until)
                else:
                    head.entry = None
                if not waits:
                    urgent.append(index)
        return urgent

    def drain_hot_updates(self) -> list[HotUpdate]:
        """Return what of heads is to be sent now, in the order of their names."""
        with self._lock:
            held = [
                HotUpdate(name, head.count, head.last, head.entry)
                for name, head in sorted(self._heads.items())
                if head.count or head.entry is not None
            ]
            for name, *_ in held:
                head = self._heads[name]
                head.count, head.entry = 0, None
        return held

    # -- while the server is away ---------------------------------------------------------------

    def observe(self, names: Sequence[bytes], now: float) -> list[PrefixRecord | None]:
        """Count an arrival here alone."""
        with self._lock:
            self._owe(names)
            for name in names:
                self._heads.pop(name, None)
            return self._records.observe(self._space(names), names, now)

    def peek(self, names: Sequence[bytes], now: float) -> list[PrefixRecord | None]:
        """Return what is known here."""
        with self._lock:
            return self._records.peek(self._space(names), names, now)

    def claim(self, names: Sequence[bytes], entries: Sequence[CacheEntry], now: float) -> bool:
        """Claim entries among the requests of this worker."""
        with self._lock:
            return self._records.claim(self._space(names), names, entries, now)

    def schedule_restore(self, names: Sequence[bytes]) -> None:
        """Note that the server was not told of these."""
        with self._lock:
            self._owe(names)

    def _owe(self, names: Sequence[bytes]) -> None:
        for name in names:
            self._restoring.pop(name, None)
            if (head := self._heads.get(name)) is not None:
                # Arrivals of a hot head are counted there alone.
                self._records.put(self._tenant(name), name, head.record)
        if len(self._to_restore) < _RECORDS:
            self._to_restore.update(names)

    def records_to_restore(self) -> dict[bytes, PrefixRecord]:
        """Return the records that the server lost or was not told of, for once: it is given them now."""
        with self._lock:
            names, self._to_restore = list(self._to_restore), set()
            self._restoring = {name: False for name, answered in self._restoring.items() if not answered}
            self._restoring.update(dict.fromkeys(names, False))
            found = {name: self._record(name, float("-inf")) for name in names}
        return {name: record for name, record in found.items() if record is not None}

    def _record(self, name: bytes, now: float) -> PrefixRecord | None:
        return self._records.find(self._tenant(name), [name], now)[0]

    def _space(self, names: Sequence[bytes]) -> str:
        """Return the namespace of a call's names: a call has names of one namespace only."""
        return self._tenant(names[0]) if names else ""

    def restored(self, names: Iterable[bytes]) -> None:
        """Note that the server has what it was given."""
        with self._lock:
            self._restoring.update({name: True for name in names if name in self._restoring})


def _merged(ours: PrefixRecord, theirs: PrefixRecord) -> PrefixRecord:
    """Return one record of two, as the server's `restore` does; what is pending is theirs."""
    most = theirs if theirs.arrivals > ours.arrivals else ours
    dead = ours.expires == 0 and ours.ttl > 0
    entry = theirs if theirs.expires > ours.expires and not dead else ours
    return most._replace(expires=entry.expires, ttl=entry.ttl, in_flight_until=theirs.in_flight_until)
