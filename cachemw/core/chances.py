"""How likely a prefix is to be read again: from its own record, and from what happened to others like it.

Lives here: the classes of prefixes, what each arrival teaches them, and the chances that follow. Must not
know: stores, prices, plans. What is learned is kept in the object; time is an argument.

A class is the place and role of a prefix's last block, how often it was seen, and how long ago. It is counted
for all traffic, for its stage of a conversation, its tools, its tools with system, and the very turn; each level
is drawn towards the one above as far as it has few trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from cachemw.core.blocks import Parsed
from cachemw.core.providers import Ttl
from cachemw.core.reuse import LONG, SHORT, Prefix

# Chances before anything is known, worth two observations. An agent with tools or a conversation in
# progress is likely to go on within minutes; a single turn without tools is not; a whole prompt that
# comes again is a retry, not the start of a series.
_RUNNING, _SINGLE, _SINGLE_HEAD, _REPEAT = 0.6, 0.1, 0.3, 0.2
_PRIOR = 2.0
# The same of coming back within the hour where it was not within five minutes; slower to be believed.
_LATE, _LATE_REPEAT = 0.2, 0.05
_LATE_PRIOR = 4.0
# How many observations the level above is worth.
_ABOVE = 3.0
# A prefix's own record counts from its fourth arrival: its first reuse must not vouch for itself. From
# the eighth on it speaks for itself alone, and no longer for its class.
_OWN_FROM, _ALONE_FROM = 4, 8
_OWN_PRIOR = 4.0
_OWN_LATE_PRIOR = 16.0
_KNOWN = 0.5
# A class forgets: trials beyond the window, and half of all in an hour.
_WINDOW = 64.0
_HALF_LIFE = 3600.0
_CLASSES = 20_000
# An open trial counts as failed in full once it has waited this long, within five minutes and past them.
_RAMP, _LATE_RAMP = 30.0, 300.0
# A chance is never so sure that more reads than this are expected.
_SURE = 0.98

Name = tuple[object, ...]


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


class _Class:
    """Decayed counts of a class's trials: one begins with each arrival of a prefix, and ends with the next.

    `soon` ended within five minutes, `late` within the hour, `over` after it; `open` have not, and began at
    `since` on average. `whole` came again as a whole prompt.
    """

    __slots__ = ("late", "open", "over", "since", "soon", "time", "whole")

    def __init__(self, now: float) -> None:
        self.soon = self.late = self.over = self.open = self.whole = 0.0
        self.since = self.time = now

    def begin(self, now: float) -> None:
        """Count a trial that begins."""
        self.open += 1.0
        self.since += (now - self.since) / self.open

    def end(self, now: float, passed: float, *, whole: bool) -> None:
        """Count that a trial ended now, `passed` seconds after it began."""
        rest = self.open - 1.0
        if rest > 0.0:
            self.since += (self.since - now + passed) / rest
        self.open = max(rest, 0.0)
        self.whole += whole
        if passed <= SHORT:
            self.soon += 1.0
        elif passed <= LONG:
            self.late += 1.0
        else:
            self.over += 1.0

    def age(self, now: float) -> None:
        """Let old evidence count less."""
        keep = 1.0
        if now > self.time + 1.0:
            keep = 0.5 ** ((now - self.time) / _HALF_LIFE)
            self.time = now
        if (trials := (self.soon + self.late + self.over + self.open) * keep) > _WINDOW:
            keep *= _WINDOW / trials
        if keep < 1.0:
            self.soon *= keep
            self.late *= keep
            self.over *= keep
            self.open *= keep
            self.whole *= keep

    def lost(self, now: float) -> float:
        """Return how many did not come again within five minutes, the open ones as far as they have waited."""
        return self.late + self.over + self.open * min(1.0, max(now - self.since, 0.0) / _RAMP)

    def late_chance(self, above: float, now: float) -> float:
        """Return the chance of coming again within the hour where it was not within five minutes.

        Learned by itself, from trials that have waited past five minutes: two chances learned apart and
        subtracted would be noise.
        """
        lost = self.over + self.open * min(1.0, _past_five(2.0 * (now - self.since)) / _LATE_RAMP)
        return (self.late + _LATE_PRIOR * above) / (self.late + lost + _LATE_PRIOR)


class Reuse:
    """Learn from arrivals how likely a prefix of some class is to be read again.

    `hours`: whether entries of an hour may be written; without it the later chance is not learned.
    """

    def __init__(self, *, hours: bool) -> None:
        self._hours = hours
        self._classes: dict[Name, _Class] = {}

    def judge(
        self,
        parsed: Parsed,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[Prefix | None],
        now: float,
    ) -> list[Depth]:
        """Count what this arrival shows, and return the chances of each watched prefix from here."""
        blocks = parsed.blocks
        spoken = [block.role == "assistant" for block in blocks]
        turns = list(accumulate(after and not before for before, after in pairwise([False, *spoken])))
        running = parsed.tools > 0 or turns[-1] > 0
        trunk = _trunk(parsed, digests, dict(zip(watched, records, strict=True)))
        end = len(blocks) - 1
        depths: list[Depth] = []
        new: Depth | None = None  # the first head that was never seen
        for index, record in zip(watched, records, strict=True):
            if record is not None and record.seen >= _ALONE_FROM and not self._hours:
                found = _alone(index, record, now)
                depths.append(_held(found, record, now, answered=index < end and spoken[index + 1]))
                continue
            place, whole = _place(parsed, index), index == end
            levels = _levels(trunk, turns[index])
            prior = _RUNNING if running else _SINGLE_HEAD if index < end else _SINGLE
            if record is None:
                name = (*place, "end" if whole else "inner")
                found = self._by_class(index, name, 1, -1, levels, prior, now)
                if new is not None:
                    # Under tools or a system prompt that don't come again nothing does.
                    found = found._replace(
                        chance=min(found.chance, new.chance), hour=min(found.hour, new.hour)
                    )
                elif index < parsed.system:
                    new = found
                depths.append(found)
                continue
            passed = max(now - record.last, 0.0)
            if record.seen < _ALONE_FROM:
                # How it stood at its last arrival says which class its trial was counted in.
                gap = _gap(record.gap) if record.seen > 1 else -1
                before = (*place, "end" if record.whole else "inner")
                self._resolve(before, min(record.seen, _OWN_FROM), gap, levels, passed, now, whole=whole)
            if whole and record.whole:
                prior = _REPEAT
            found = self._seen(index, place, record, levels, prior, passed, now, whole=whole)
            depths.append(_held(found, record, now, answered=index < end and spoken[index + 1]))
        return depths

    def _seen(
        self, index: int, place: Name, record: Prefix, levels: Sequence[Name], prior: float, passed: float,
        now: float, *, whole: bool,
    ) -> Depth:  # fmt: skip
        """Return the chances of a prefix with a record: its own as far as it has one."""
        sighting = record.seen + 1
        name = (*place, "repeat" if prior == _REPEAT else "end" if whole else "inner")
        if sighting < _OWN_FROM:
            return self._by_class(index, name, sighting, _gap(passed), levels, prior, now)
        chance, alone = _KNOWN, sighting >= _ALONE_FROM
        if not alone:
            chance = self._soon(name, _OWN_FROM, _gap(passed), levels, prior, now, start=True)
        late = self._late(name, sighting, levels, now, start=not alone)
        soon = passed <= SHORT
        chance = (record.hits + soon + _OWN_PRIOR * chance) / (record.trials + 1.0 + _OWN_PRIOR)
        # A record only tells of the times when it came again, so of the later chance its class knows more.
        late = (record.late_hits + (not soon and passed <= LONG) + _OWN_LATE_PRIOR * late) / (
            record.late_trials + (not soon) + _OWN_LATE_PRIOR
        )
        hour = chance + (1.0 - chance) * late
        return Depth(index, chance, _reads([chance]), hour, _reads([hour]), None)

    def _by_class(
        self,
        index: int,
        name: Name,
        sighting: int,
        gap: int,
        levels: Sequence[Name],
        prior: float,
        now: float,
    ) -> Depth:
        chance = self._soon(name, sighting, gap, levels, prior, now, start=True)
        late = self._late(name, sighting, levels, now, start=True)
        more, more_hourly = self._after(name, sighting, levels, prior, now)
        if name[-1] != "inner" and (share := self._whole(name, sighting, gap)):
            again = self._after((*name[:-1], "repeat"), sighting, levels, _REPEAT, now)
            more += share * (again[0] - more)
            more_hourly += share * (again[1] - more_hourly)
        return Depth(index, chance, more, chance + (1.0 - chance) * late, more_hourly, None)

    def _after(
        self, name: Name, sighting: int, levels: Sequence[Name], prior: float, now: float
    ) -> tuple[float, float]:
        """Return the reads expected after the next arrival, each within five minutes, or within the hour."""
        name = name if name[-1] == "repeat" else (*name[:-1], "inner")
        soon, hourly = [], []
        for later in range(sighting + 1, _OWN_FROM + 1):
            chance = self._soon(name, later, 0, levels, prior, now, start=False)
            soon.append(chance)
            if self._hours:
                late = self._late(name, later, levels, now, start=False)
                hourly.append(chance + (1.0 - chance) * late)
        return _reads(soon), _reads(hourly) if hourly else 0.0

    def _whole(self, name: Name, sighting: int, gap: int) -> float:
        """Return the share of returns that came as a whole prompt, not as the start of a longer one."""
        found = self._classes.get((*name, sighting, gap))
        if found is None or not found.whole:
            return 0.0
        return found.whole / (found.soon + found.late + found.over + 1.0)

    # -- the classes --------------------------------------------------------------------------

    def _soon(
        self,
        name: Name,
        sighting: int,
        gap: int,
        levels: Sequence[Name],
        prior: float,
        now: float,
        *,
        start: bool,
    ) -> float:
        seen: list[tuple[float, float]] = []
        for level in levels:
            found = self._class((*name, sighting, gap, *level), now, start=start)
            if found is not None:
                seen.append((found.soon, found.lost(now)))
                if start:
                    found.begin(now)
        chance, weight = prior, _PRIOR
        # A level's trials are among those of the level above: each counts once, where it is nearest.
        for (soon, lost), (nearer, nearer_lost) in pairwise([*seen, (0.0, 0.0)]):
            soon, lost = max(soon - nearer, 0.0), max(lost - nearer_lost, 0.0)
            chance, weight = (soon + weight * chance) / (soon + lost + weight), _ABOVE
        return chance

    def _late(self, name: Name, sighting: int, levels: Sequence[Name], now: float, *, start: bool) -> float:
        """Return the later chance; all sightings after the first are one class: such returns are few."""
        chance = _LATE_REPEAT if name[-1] == "repeat" else _LATE
        if not self._hours:
            return chance
        for level in levels:
            found = self._class((*name, sighting > 1, *level), now, start=start)
            if found is not None:
                chance = found.late_chance(chance, now)
                if start:
                    found.begin(now)
        return chance

    def _resolve(
        self,
        name: Name,
        sighting: int,
        gap: int,
        levels: Sequence[Name],
        passed: float,
        now: float,
        *,
        whole: bool,
    ) -> None:
        """Count that a prefix of this class came again."""
        for level in levels:
            if (found := self._classes.get((*name, sighting, gap, *level))) is not None:
                found.end(now, passed, whole=whole)
            if self._hours and (found := self._classes.get((*name, sighting > 1, *level))) is not None:
                found.end(now, passed, whole=whole)

    def _class(self, key: Name, now: float, *, start: bool) -> _Class | None:
        found = self._classes.get(key)
        if found is None:
            if not start:
                return None
            if len(self._classes) >= _CLASSES:
                self._evict()
            found = self._classes[key] = _Class(now)
        found.age(now)
        return found

    def _evict(self) -> None:
        """Drop the half that was used longest ago."""
        by_age = sorted(self._classes, key=lambda key: self._classes[key].time)
        for key in by_age[: len(by_age) // 2]:
            del self._classes[key]


def refreshed(depths: Sequence[Depth], records: Sequence[Prefix | None], now: float) -> list[Depth]:
    """Return the same chances with what a later look at the same records says of entries.

    Chances are not judged again: the records count this request's own arrival by now.
    """
    later = []
    for depth, record in zip(depths, records, strict=True):
        seen = depth._replace(pending=False)
        if record is not None and depth.living is None:
            seen = _held(seen, record, now, answered=False)
        later.append(seen)
    return later


def _alone(index: int, record: Prefix, now: float) -> Depth:
    """Return the chances of a prefix by its record alone, without the later one."""
    soon = now - record.last <= SHORT
    chance = (record.hits + soon + _OWN_PRIOR * _KNOWN) / (record.trials + 1.0 + _OWN_PRIOR)
    more = _reads([chance])
    return Depth(index, chance, more, chance, more, None)


def _held(depth: Depth, record: Prefix, now: float, *, answered: bool) -> Depth:
    """Return a depth with what the provider holds of it; `answered`: the model speaks right after it."""
    living, pending = record.expires > now, record.pending > now
    if not living and not pending:
        return depth
    if pending and (living or (answered and record.whole)):
        # Where a prompt ended here and its answer is in this one, it has begun.
        living, pending = True, False
    ttl: Ttl | None = ("1h" if record.ttl >= LONG else "5m") if living else None
    return Depth(depth.block, depth.chance, depth.more, depth.hour, depth.more_hourly, ttl, pending)


def _trunk(parsed: Parsed, digests: Sequence[bytes], known: dict[int, Prefix | None]) -> list[bytes]:
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


def _reads(chances: Sequence[float]) -> float:
    """Return the expected number of reads in a row, the last chance holding for all further ones."""
    last = min(chances[-1], _SURE)
    reads = last / (1.0 - last)
    for chance in reversed(chances[:-1]):
        reads = chance * (1.0 + reads)
    return reads


def _past_five(longest: float) -> float:
    """Return the mean seconds past five minutes, up to the hour, of waits spread evenly up to the longest."""
    if longest <= SHORT:
        return 0.0
    span = LONG - SHORT
    within = min(longest, LONG) - SHORT
    return (within * within / 2.0 + max(longest - LONG, 0.0) * span) / longest
