"""What is remembered of a prefix, and how likely it is to be read again.

Lives here: the record of one prefix, how an arrival changes it, and the chances that follow. Must
not know: stores (they keep records and apply `arrive`, in Python or in Lua), requests, prices.

Times are seconds; a record holds no text and no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import exp
from typing import NamedTuple

from cachemw.core.blocks import Parsed
from cachemw.core.providers import Ttl

SHORT = 300.0
LONG = 3600.0
# An old trial counts a sixteenth less with each later one: some thirty arrivals make a record.
_KEEP = 15 / 16


class Prefix(NamedTuple):
    """One prefix as a store knows it *before* the arrival that asks.

    `seen` arrivals, the last at `last`, `gap` seconds after the one before (0 for the first).
    `trials` / `hits`: decayed counts of arrivals that were (not) followed by another within five
    minutes. `late_trials` / `late_hits`: the same for those not followed within five minutes, and
    an hour. `child`: hash of the block that followed last (0: the request ended here); `left`:
    decayed count of arrivals that went on by another block than the one before. `expires`, `ttl`:
    the provider's entry, seconds; 0 where none was ever written.
    """

    seen: int
    last: float
    gap: float
    trials: float
    hits: float
    late_trials: float
    late_hits: float
    child: int
    left: float
    expires: float
    ttl: int

    def living(self, now: float) -> bool:
        """Say whether the provider still holds an entry that a request started `now` can read."""
        return self.expires > now


def first(child: int, now: float) -> Prefix:
    """Return the record of a prefix seen for the first time."""
    return Prefix(1, now, 0.0, 0.0, 0.0, 0.0, 0.0, child, 0.0, 0.0, 0)


def arrive(record: Prefix, child: int, now: float) -> Prefix:
    """Return the record after one more arrival.

    Arrivals may come out of order by a worker's clock: a gap is never below zero and `last` never
    goes back.
    """
    seen, last, _, trials, hits, late_trials, late_hits, old_child, left, expires, ttl = record
    gap = now - last if now > last else 0.0
    soon = gap <= SHORT
    trials = trials * _KEEP + 1.0
    hits = hits * _KEEP + soon
    if not soon:
        late_trials = late_trials * _KEEP + 1.0
        late_hits = late_hits * _KEEP + (gap <= LONG)
    left = left * _KEEP + (child != old_child)
    return Prefix(seen + 1, last + gap, gap, trials, hits, late_trials, late_hits, child, left, expires, ttl)


class Depth(NamedTuple):
    """What is known of one watched prefix.

    `block`: its last. `chance` that it is read again within five minutes, and `more`: the reads that are
    then expected after that one, each within five minutes of the one before. `hour`, `more_hourly`: the same
    within the hour. `living`: the TTL of the entry that the provider holds, None where it holds none.
    """

    block: int
    chance: float
    more: float
    hour: float
    more_hourly: float
    living: Ttl | None


# -- classes of prefixes: what happened to others like it ----------------------------------------

# Chances before anything is known, worth two observations. An agent with tools or a conversation in
# progress is likely to go on within minutes; a single turn without tools is not; a whole prompt that
# comes again is a retry, not the start of a series.
_RUNNING, _SINGLE, _SINGLE_HEAD, _REPEAT = 0.6, 0.1, 0.3, 0.2
_LATE, _LATE_REPEAT = 0.2, 0.05
_PRIOR = 2.0
# How many observations the level above is worth.
_ABOVE = 3.0
# A prefix's own record counts from its fourth arrival: its first reuse must not vouch for itself.
_OWN_FROM = 4
_OWN_PRIOR = 4.0
# From its eighth arrival on it speaks for itself alone, and no longer for its class.
_VOTES = 8
_KNOWN = 0.5
# A class forgets: trials beyond the window, and half of all in half an hour.
_WINDOW = 64.0
_HALF_LIFE = 1800.0
_CLASSES = 20_000
_RAMP = 40.0
_LATE_RAMP = 300.0
_LATE_PRIOR = 6.0


class _Class:
    """Decayed counts of a class.

    `hits` came again within five minutes, `late` within the hour, `over` after it; `open` have not, and
    began at `since` on average. `waited` sums the seconds past five minutes that the late and the over
    took, at most to the hour. `whole` came again as a whole prompt.
    """

    __slots__ = ("hits", "late", "open", "over", "since", "time", "waited", "whole")

    def __init__(self, now: float) -> None:
        self.hits = self.late = self.over = self.open = self.waited = self.whole = 0.0
        self.since = self.time = now

    def begin(self, now: float) -> None:
        """Count a trial that begins."""
        self.open += 1.0
        self.since += (now - self.since) / self.open

    def end(self, start: float, passed: float, *, whole: bool) -> None:
        """Count that a trial ended `passed` seconds after its start."""
        self.whole += whole
        rest = self.open - 1.0
        if rest > 0.0:
            self.since += (self.since - start) / rest
        self.open = max(rest, 0.0)
        if passed <= SHORT:
            self.hits += 1.0
            return
        self.waited += min(passed, LONG) - SHORT
        if passed <= LONG:
            self.late += 1.0
        else:
            self.over += 1.0

    def age(self, now: float) -> None:
        """Let old evidence count less."""
        keep = 1.0
        if now > self.time + 1.0:
            keep = 0.5 ** ((now - self.time) / _HALF_LIFE)
            self.time = now
        if (trials := (self.hits + self.late + self.over + self.open) * keep) > _WINDOW:
            keep *= _WINDOW / trials
        if keep < 1.0:
            self.hits *= keep
            self.late *= keep
            self.over *= keep
            self.open *= keep
            self.waited *= keep
            self.whole *= keep

    def chances(self, above: float, late_above: float, weight: float, now: float) -> tuple[float, float]:
        """Return the chances of this class, drawn towards those of the level above.

        An open trial counts as failed as far as it has waited. For the later chance that would take an hour to
        learn, so it comes from the rate of returns over all the time that was waited for them.
        """
        waiting = max(now - self.since, 0.0)
        failed = self.late + self.over + self.open * min(1.0, waiting / _RAMP)
        chance = (self.hits + weight * above) / (self.hits + failed + weight)
        lost = self.over + self.open * min(1.0, _past_five(2.0 * waiting) / _LATE_RAMP)
        late = (self.late + _LATE_PRIOR * late_above) / (self.late + lost + _LATE_PRIOR)
        return chance, late


def _reads(chances: Sequence[float]) -> float:
    """Return the expected number of reads in a row, the last chance holding for all further ones."""
    last = min(chances[-1], 0.98)
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


class Reuse:
    """Learn from arrivals how likely a prefix of some class is to be read again.

    A class is the place and role of a prefix's last block, how often it was seen and how far apart;
    counted for all traffic, for its stage of a conversation, its tools, and its tools with system. Each
    level is drawn towards the one above as far as it has few trials.
    """

    def __init__(self) -> None:
        self._classes: dict[tuple[object, ...], _Class] = {}

    def judge(
        self,
        parsed: Parsed,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[Prefix | None],
        now: float,
    ) -> list[Depth]:
        """Count what this arrival shows, and return the chances of each watched prefix from here."""
        blocks, tools, system = parsed.blocks, parsed.tools, parsed.system
        spoken = [block.role == "assistant" for block in blocks]
        turns = list(accumulate(now and not before for before, now in pairwise([False, *spoken])))
        running = tools > 0 or turns[-1] > 0
        known = dict(zip(watched, records, strict=True))
        trunk: list[object] = [0]
        if tools and known.get(tools - 1) is not None:
            trunk.append(digests[tools - 1])
        elif not tools:
            trunk.append(b"")
        if len(trunk) == 2 and system > tools and known.get(system - 1) is not None:
            trunk += [digests[system - 1], 0]
        end = len(blocks) - 1
        depths = []
        for index, record in zip(watched, records, strict=True):
            place = _place(parsed, index, end)
            trunk[0] = _stage(turns[index])
            if len(trunk) == 4:
                trunk[3] = min(turns[index], 16)
            living: Ttl | None = None
            if record is None:
                sighting, gap = 1, -1
            else:
                sighting = record.seen + 1
                passed = max(now - record.last, 0.0)
                gap = _gap(passed)
                if record.expires > now:
                    living = "1h" if record.ttl >= LONG else "5m"
                if record.seen < _VOTES:
                    old = _gap(record.gap) if record.seen > 1 else -1
                    was = (*place[:-1], record.child == 0, min(record.seen, _OWN_FROM), old)
                    self._resolve(was, trunk, passed, now, whole=index == end)
                if place[-1] and record.child == 0:
                    place = (*place[:-1], "repeat")
            name = (*place, min(sighting, _OWN_FROM), gap)
            if place[-1] == "repeat":
                prior = _REPEAT
            elif running:
                prior = _RUNNING
            else:
                prior = _SINGLE_HEAD if index < end else _SINGLE
            start = sighting < _OWN_FROM
            if sighting < _VOTES:
                chance, late = self._chance(name, trunk, prior, now, start=True)
            else:
                chance, late = _KNOWN, _LATE
            if start:
                more, more_hourly = self._after(place, sighting, trunk, prior, now)
                if place[-1] and (whole := self._whole(name)):
                    again = self._after((*place[:-1], "repeat"), sighting, trunk, _REPEAT, now)
                    more += whole * (again[0] - more)
                    more_hourly += whole * (again[1] - more_hourly)
                hour = chance + (1 - chance) * late
            else:
                assert record is not None
                slow = passed > SHORT
                chance = (record.hits + (not slow) + _OWN_PRIOR * chance) / (record.trials + 1 + _OWN_PRIOR)
                late = (record.late_hits + (slow and passed <= LONG) + _OWN_PRIOR * late) / (
                    record.late_trials + slow + _OWN_PRIOR
                )
                hour = chance + (1 - chance) * late
                more, more_hourly = _reads([chance]), _reads([hour])
            depths.append(Depth(index, chance, more, hour, more_hourly, living))
        return depths

    def _after(
        self, place: tuple[object, ...], sighting: int, trunk: Sequence[object], prior: float, now: float
    ) -> tuple[float, float]:
        """Return the reads expected after the next arrival, each within five minutes, or within the hour."""
        inner = place if place[-1] == "repeat" else (*place[:-1], False)
        chances = [
            self._chance((*inner, later, 0), trunk, prior, now, start=False)
            for later in range(sighting + 1, _OWN_FROM + 1)
        ]
        return _reads([soon for soon, _ in chances]), _reads([soon + (1 - soon) * late for soon, late in chances])

    def _whole(self, name: tuple[object, ...]) -> float:
        """Return the share of returns that came as a whole prompt, not as the start of a longer one."""
        found = self._classes.get(name)
        if found is None or not found.whole:
            return 0.0
        return found.whole / (found.hits + found.late + found.over + 1.0)

    def _resolve(
        self, name: tuple[object, ...], trunk: Sequence[object], passed: float, now: float, *, whole: bool
    ) -> None:
        """Count that a prefix of this class came again."""
        for level in range(len(trunk) + 1):
            found = self._classes.get((*name, *trunk[:level]))
            if found is not None:
                found.end(now - passed, passed, whole=whole)

    def _chance(
        self, name: tuple[object, ...], trunk: Sequence[object], prior: float, now: float, *, start: bool
    ) -> tuple[float, float]:
        """Return the chances of a class, and count one more trial of it if one starts."""
        chance, late, weight = prior, _LATE_REPEAT if name[-3] == "repeat" else _LATE, _PRIOR
        for level in range(len(trunk) + 1):
            key = (*name, *trunk[:level])
            found = self._classes.get(key)
            if found is None:
                if not start:
                    continue
                if len(self._classes) >= _CLASSES:
                    self._evict()
                found = self._classes[key] = _Class(now)
            found.age(now)
            chance, late = found.chances(chance, late, weight, now)
            weight = _ABOVE
            if start:
                found.begin(now)
        return chance, late

    def _evict(self) -> None:
        """Drop the half that was used longest ago."""
        by_age = sorted(self._classes, key=lambda key: self._classes[key].time)
        for key in by_age[: len(by_age) // 2]:
            del self._classes[key]


def _stage(turns: int) -> int:
    return min(turns, 2)


def _gap(seconds: float) -> int:
    return 0 if seconds <= SHORT else 1 if seconds <= 1020 else 2 if seconds <= LONG else 3


def _place(parsed: Parsed, index: int, end: int) -> tuple[object, ...]:
    """Return where in a request a prefix ends: section, which of its first blocks, role, at the end."""
    block = parsed.blocks[index]
    if index < parsed.tools:
        return ("tools", index == end)
    if index < parsed.system:
        return ("system", min(index - parsed.tools, 3), index + 1 == parsed.system, index == end)
    return ("messages", min(index - parsed.system, 3), block.role, block.kind, index == end)
