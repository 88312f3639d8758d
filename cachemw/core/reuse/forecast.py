"""How likely a prefix is to be read again: from its own record, and from what happened to others like it.

Lives here: which class a prefix is in, what each arrival shows, and the chances that follow. Must not
know: stores, prices, plans. What is learned is kept in the object; time is an argument. `forecast` changes nothing;
`observe` counts what a request showed, once the provider has accepted it.

A class is the place and role of a prefix's last block, how often it was seen, and how long ago. It is counted
for all traffic, for its stage of a conversation, its tools, its tools with system, and the very turn; each level
is drawn towards the one above as far as it has few trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

from cachemw.core.request.parser import Parsed
from cachemw.core.reuse.cohorts import Classes, End, Name
from cachemw.core.reuse.record import LONG, SHORT, Prefix
from cachemw.core.rules.providers import Ttl

# Chances before anything is known, worth two observations. An agent with tools or a conversation in
# progress is likely to go on within minutes; a single turn without tools is not; a whole prompt that
# comes again is a retry, not the start of a series.
_RUNNING, _SINGLE, _SINGLE_HEAD, _REPEAT = 0.6, 0.1, 0.3, 0.2
# A prefix's own record counts from its fourth arrival: its first reuse must not vouch for itself. From
# the eighth on it speaks for itself alone, and no longer for its class.
_OWN_FROM, _ALONE_FROM = 4, 8
_OWN_PRIOR = 4.0
_OWN_LATE_PRIOR = 16.0
_KNOWN = 0.5
# A chance is never so sure that more reads than this are expected.
_SURE = 0.98


_made = tuple.__new__  # what the class's own constructor does, a third faster


class Depth(NamedTuple):
    """What is known of one watched prefix.

    `block`: its last. `chance` that it is read again within five minutes, and `more`: the reads that are
    then expected after that one, each within five minutes of the one before. `hour`, `more_hourly`: the same
    within the hour. `living`: the TTL of the entry that the provider holds, None where it holds none.
    `pending`: another request is about to have written it.
    """

    block: int
    chance: float
    more: float
    hour: float
    more_hourly: float
    living: Ttl | None
    pending: bool = False


class Reuse:
    """Learn from arrivals how likely a prefix of some class is to be read again.

    `hours`: whether entries of an hour may be written; without it the later chance is not learned. `secret`:
    what keys the names under which other workers hear of the `classes`; None where there are none.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self.classes = Classes(hours=hours, secret=secret)

    def forecast(
        self,
        parsed: Parsed,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[Prefix | None],
        now: float,
        owner: str = "",
    ) -> list[Depth]:
        """Return the chances of each watched prefix from here; count nothing.

        `owner` is the namespace, or the group of namespaces, whose classes count.
        """
        spoken = [block.role == "assistant" for block in parsed.blocks]
        answered = [*spoken[1:], False]
        depths = [
            None
            if record is None or record.seen < _ALONE_FROM or self._hours
            else _alone(index, record, now, answered=answered[index])
            for index, record in zip(watched, records, strict=True)
        ]
        if not all(depths):
            left = [index for index, depth in zip(watched, depths, strict=True) if depth is None]
            request = _Request(parsed, digests, watched, records, now)
            others = iter(_Forecast(self.classes, request, left, owner, hours=self._hours).depths())
            depths = [depth or next(others) for depth in depths]
        return cast("list[Depth]", depths)

    def observe(
        self,
        parsed: Parsed,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[Prefix | None],
        now: float,
        owner: str = "",
    ) -> None:
        """Count what a request that arrived at `now` shows, by the records from before its arrival."""
        if any(record is None or record.seen < _ALONE_FROM for record in records):
            request = _Request(parsed, digests, watched, records, now)
            self.classes.observe(owner, request.ends(self.classes), request.begins(self.classes), now)


class _Place(NamedTuple):
    """Which class a prefix is in at this arrival: its name, sightings and gap; the levels that narrow it."""

    block: int
    name: Name
    sighting: int
    gap: int
    levels: list[Name]
    prior: float


class _Request:
    """The prefixes of one request, with the records from before its arrival.

    A record without arrivals says only that another request is about to write the prefix.
    """

    def __init__(
        self,
        parsed: Parsed,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[Prefix | None],
        now: float,
    ) -> None:
        self.parsed, self.now = parsed, now
        self.held = dict(zip(watched, records, strict=True))
        self.known = {
            index: record if record is not None and record.seen else None
            for index, record in self.held.items()
        }
        self.spoken = [block.role == "assistant" for block in parsed.blocks]
        pairs = pairwise([False, *self.spoken])
        self._turns = list(accumulate(after and not before for before, after in pairs))
        self._running = parsed.tools > 0 or self._turns[-1] > 0
        self._trunk = _trunk(parsed, digests, self.known)
        self.end = len(parsed.blocks) - 1

    def passed(self, record: Prefix) -> float:
        """Return the seconds since a prefix arrived before."""
        return max(self.now - record.last, 0.0)

    def place(self, index: int) -> _Place:
        """Return the class of a prefix at this arrival."""
        record, whole = self.known[index], index == self.end
        levels = _levels(self._trunk, self._turns[index])
        prior = _RUNNING if self._running else _SINGLE if whole else _SINGLE_HEAD
        kind = "end" if whole else "inner"
        if whole and record is not None and record.whole:
            prior, kind = _REPEAT, "repeat"
        name = (*_place(self.parsed, index), kind)
        if record is None:
            return _Place(index, name, 1, -1, levels, prior)
        return _Place(index, name, record.seen + 1, _gap(self.passed(record)), levels, prior)

    def ends(self, classes: Classes) -> list[End]:
        """Return the trials that this arrival ends."""
        ends: list[End] = []
        for index, record in self.known.items():
            if record is None or record.seen >= _ALONE_FROM:
                continue
            # How it stood at its last arrival says which class its trial was counted in.
            gap = _gap(record.gap) if record.seen > 1 else -1
            name = (*_place(self.parsed, index), "end" if record.whole else "inner")
            sighting, levels = min(record.seen, _OWN_FROM), _levels(self._trunk, self._turns[index])
            ends += classes.ends(name, sighting, gap, levels, self.passed(record), whole=index == self.end)
        return ends

    def begins(self, classes: Classes) -> list[Name]:
        """Return the classes in which a trial begins with this arrival, one for each level."""
        begins: list[Name] = []
        for index in self.held:
            place = self.place(index)
            if place.sighting < _ALONE_FROM:
                sighting = min(place.sighting, _OWN_FROM)
                begins += classes.begins(place.name, sighting, place.gap, place.levels)
        return begins


class _Forecast:
    """The chances of those prefixes of a request whose records don't yet speak for themselves alone."""

    def __init__(
        self, classes: Classes, request: _Request, indexes: Sequence[int], owner: str, *, hours: bool
    ) -> None:
        self._classes, self._request, self._indexes, self._hours = classes, request, indexes, hours
        # The returns of this very request count in its own forecasts.
        self._view = classes.view(owner, request.ends(classes), request.now)

    def depths(self) -> list[Depth]:
        """Return what is known of each prefix."""
        request = self._request
        depths: list[Depth] = []
        new: Depth | None = None  # the first head that was never seen
        for index in self._indexes:
            record, place = request.known[index], request.place(index)
            if record is None:
                found = self._by_class(place)
                if new is not None:
                    # Under tools or a system prompt that don't come again nothing does.
                    found = found._replace(
                        chance=min(found.chance, new.chance), hour=min(found.hour, new.hour)
                    )
                elif index < request.parsed.system:
                    new = found
            else:
                found = self._seen(place, record)
            held = request.held[index]
            if held is not None:
                answered = index < request.end and request.spoken[index + 1]
                living, pending = _held(held, request.now, answered=answered)
                found = found._replace(living=living, pending=pending)
            depths.append(found)
        return depths

    def _seen(self, place: _Place, record: Prefix) -> Depth:
        """Return the chances of a prefix with a record: its own as far as it has one."""
        if place.sighting < _OWN_FROM:
            return self._by_class(place)
        classes, view, passed = self._classes, self._view, self._request.passed(record)
        chance, alone = _KNOWN, place.sighting >= _ALONE_FROM
        if not alone:
            chance = classes.soon(view, place.name, _OWN_FROM, place.gap, place.levels, place.prior, own=True)
        late = classes.late(view, place.name, place.sighting, place.levels)
        soon = passed <= SHORT
        chance = (record.hits + soon + _OWN_PRIOR * chance) / (record.trials + 1.0 + _OWN_PRIOR)
        # A record only tells of the times when it came again, so of the later chance its class knows more.
        late = (record.late_hits + (not soon and passed <= LONG) + _OWN_LATE_PRIOR * late) / (
            record.late_trials + (not soon) + _OWN_LATE_PRIOR
        )
        hour = chance + (1.0 - chance) * late
        return Depth(place.block, chance, _reads([chance]), hour, _reads([hour]), None)

    def _by_class(self, place: _Place) -> Depth:
        index, name, sighting, gap, levels, prior = place
        classes, view = self._classes, self._view
        chance = classes.soon(view, name, sighting, gap, levels, prior, own=True)
        late = classes.late(view, name, sighting, levels)
        more, more_hourly = self._after(name, sighting, levels, prior)
        if name[-1] != "inner" and (share := classes.whole(view, name, sighting, gap)):
            again = self._after((*name[:-1], "repeat"), sighting, levels, _REPEAT)
            more += share * (again[0] - more)
            more_hourly += share * (again[1] - more_hourly)
        return Depth(index, chance, more, chance + (1.0 - chance) * late, more_hourly, None)

    def _after(self, name: Name, sighting: int, levels: Sequence[Name], prior: float) -> tuple[float, float]:
        """Return the reads expected after the next arrival, each within five minutes, or within the hour."""
        classes, view = self._classes, self._view
        name = name if name[-1] == "repeat" else (*name[:-1], "inner")
        soon, hourly = [], []
        for later in range(sighting + 1, _OWN_FROM + 1):
            chance = classes.soon(view, name, later, 0, levels, prior, own=False)
            soon.append(chance)
            if self._hours:
                late = classes.late(view, name, later, levels)
                hourly.append(chance + (1.0 - chance) * late)
        return _reads(soon), _reads(hourly) if hourly else 0.0


def refreshed(depths: Sequence[Depth], records: Sequence[Prefix | None], now: float) -> list[Depth]:
    """Return the same chances with what a later look at the same records says of entries.

    Chances are not judged again: a look at records counts nothing, and only entries change within a wait.
    """
    later = []
    for depth, record in zip(depths, records, strict=True):
        living, pending = depth.living, False
        if record is not None and living is None:
            living, pending = _held(record, now, answered=False)
        later.append(depth._replace(living=living, pending=pending))
    return later


def _alone(index: int, record: Prefix, now: float, *, answered: bool) -> Depth:
    """Return what is known of a prefix by its record alone, without the later chance."""
    soon = now - record.last <= SHORT
    chance = (record.hits + soon + _OWN_PRIOR * _KNOWN) / (record.trials + 1.0 + _OWN_PRIOR)
    more = _forever(chance)
    living, pending = _held(record, now, answered=answered)
    return _made(Depth, (index, chance, more, chance, more, living, pending))


def _held(record: Prefix, now: float, *, answered: bool) -> tuple[Ttl | None, bool]:
    """Return the TTL of the entry that the provider holds, and whether one is pending.

    `answered`: the model speaks right after it.
    """
    living, pending = record.expires > now, record.pending > now
    if pending and (living or (answered and record.whole)):
        # Where a prompt ended here and its answer is in this one, it has begun.
        living, pending = True, False
    if not living:
        return None, pending
    return ("1h" if record.ttl >= LONG else "5m"), pending


def _trunk(parsed: Parsed, digests: Sequence[bytes], known: Mapping[int, Prefix | None]) -> list[bytes]:
    """Return the digests of tools and system that a class may be kept for: those seen before.

    Tools or a system prompt that change with every request would fill the table with classes of one.
    """
    tools, system = parsed.tools, parsed.system
    if tools and known.get(tools - 1) is None:
        return []
    trunk = [digests[tools - 1] if tools else b""]
    if system > tools and known.get(system - 1) is not None:
        trunk.append(digests[system - 1])
    return trunk


def _levels(trunk: Sequence[bytes], turns: int) -> list[Name]:
    """Return what narrows a class, level by level: nothing, the stage, tools, system, the very turn."""
    stage = min(turns, 2)
    levels: list[Name] = [(), (stage,)]
    if trunk:
        levels.append((stage, trunk[0]))
    if len(trunk) > 1:
        levels += [(stage, *trunk), (stage, *trunk, min(turns, 16))]
    return levels


def _gap(seconds: float) -> int:
    return 0 if seconds <= SHORT else 1 if seconds <= 1020 else 2 if seconds <= LONG else 3


def _place(parsed: Parsed, index: int) -> Name:
    """Return where in a request a prefix ends: its section, which of the first blocks there, its role."""
    block = parsed.blocks[index]
    if index < parsed.tools:
        return ("tools",)
    if index < parsed.system:
        return ("system", min(index - parsed.tools, 3), index + 1 == parsed.system)
    return ("messages", min(index - parsed.system, 3), block.role, block.kind)


def _forever(chance: float) -> float:
    """Return the expected number of reads in a row where each has this chance."""
    sure = min(chance, _SURE)
    return sure / (1.0 - sure)


def _reads(chances: Sequence[float]) -> float:
    """Return the expected number of reads in a row, the last chance holding for all further ones."""
    reads = _forever(chances[-1])
    for chance in reversed(chances[:-1]):
        reads = chance * (1.0 + reads)
    return reads
