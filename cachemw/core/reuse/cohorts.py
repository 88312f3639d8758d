"""What became of prefixes alike: counts by class, for all traffic and for what narrows it.

Lives here: how the trials of a class are counted, forgotten and made a chance of, level by level. Must not
know: which class a prefix is in, stores. Time is an argument, seconds.

Counts are this worker's, and with a secret those of the other workers too (`core.merging`).

Each *owner* has classes of its own: an owner is a namespace, or a group of namespaces that the operator declared as
one. A request changes nothing by being forecast; `observe` counts what it shows, once the provider has accepted it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from cachemw.core.fair_table import FairTable
from cachemw.core.reuse.cohort_sharing import BEGAN, LATE, OVER, SOON, TAG, WHOLE, Merge, Told
from cachemw.core.reuse.record import LONG, SHORT

# What is believed before anything is known, in observations; the later chance is slower to be believed.
_PRIOR, _LATE_PRIOR = 2.0, 4.0
# The chance of coming back within the hour where it was not within five minutes, before anything is known.
_LATE, _LATE_REPEAT = 0.2, 0.05
# How many observations the level above is worth.
_ABOVE = 3.0
# A class forgets: trials beyond the window, and half of all in an hour.
_WINDOW = 64.0
_HALF_LIFE = 3600.0
_CLASSES = 20_000
# An open trial counts as failed in full once it has waited this long, within five minutes and past them.
_RAMP, _LATE_RAMP = 30.0, 300.0

Name = tuple[object, ...]
_made = tuple.__new__  # the class's own constructor takes a third longer


class Counts:
    """Decayed counts of a class's trials: one begins with each arrival of a prefix, and ends with the next.

    `soon` ended within five minutes, `late` within the hour, `over` after it; `open` have not, and began at
    `since` on average. `whole` came again as a whole prompt. A class with a `name` is shared: the end of a
    trial may be known before its beginning, so `open` may be below 0; `untold` is what others have not heard of.
    """

    __slots__ = ("late", "name", "open", "over", "since", "soon", "time", "untold", "whole")

    def __init__(self, now: float, name: str = "") -> None:
        self.soon = self.late = self.over = self.open = self.whole = 0.0
        self.since = self.time = now
        self.name = name
        self.untold = [0, 0, 0, 0, 0]

    def copy(self) -> Counts:
        """Return equal counts that are not shared with other workers."""
        twin = Counts(self.time)
        twin.soon, twin.late, twin.over = self.soon, self.late, self.over
        twin.open, twin.whole, twin.since, twin.name = self.open, self.whole, self.since, self.name
        return twin

    def begin(self, now: float) -> None:
        """Count a trial that begins."""
        self.open += 1.0
        self.since += (now - self.since) / max(self.open, 1.0)

    def end(self, now: float, passed: float, *, whole: bool) -> None:
        """Count that a trial ended now, `passed` seconds after it began."""
        rest = self.open - 1.0
        if rest > 0.0:
            self.since += (self.since - now + passed) / rest
        self.open = rest if self.name else max(rest, 0.0)
        self.whole += whole
        if passed <= SHORT:
            self.soon += 1.0
        elif passed <= LONG:
            self.late += 1.0
        else:
            self.over += 1.0

    def add(self, told: Told, now: float) -> None:
        """Count what other workers did, which has aged since."""
        self.age(now)
        keep = 0.5 ** (max(now - told.at, 0.0) / _HALF_LIFE)
        self.soon += told.soon * keep
        self.late += told.late * keep
        self.over += told.over * keep
        self.whole += told.whole * keep
        if (began := told.began * keep) > 0.0:
            self.since += (told.at - self.since) * began / (max(self.open, 0.0) + began)
        self.open += began - (told.soon + told.late + told.over) * keep
        self.age(now)

    def is_old(self, now: float) -> bool:
        """Return True if `age` would change the counts."""
        return now > self.time + 1.0 or self.soon + self.late + self.over + max(self.open, 0.0) > _WINDOW

    def age(self, now: float) -> None:
        """Let old evidence count less."""
        keep = 1.0
        if now > self.time + 1.0:
            keep = 0.5 ** ((now - self.time) / _HALF_LIFE)
            self.time = now
        if (trials := (self.soon + self.late + self.over + max(self.open, 0.0)) * keep) > _WINDOW:
            keep *= _WINDOW / trials
        if keep < 1.0:
            self.soon *= keep
            self.late *= keep
            self.over *= keep
            self.open *= keep
            self.whole *= keep

    def lost(self, now: float) -> float:
        """Return how many did not come again within five minutes, the open ones as far as they have waited."""
        waited = min(1.0, max(now - self.since, 0.0) / _RAMP)
        return self.late + self.over + max(self.open, 0.0) * waited

    def late_chance(self, above: float, now: float) -> float:
        """Return the chance of coming again within the hour where it was not within five minutes.

        Learned by itself, from trials that have waited past five minutes: two chances learned apart and
        subtracted would be noise.
        """
        waited = min(1.0, _past_five(2.0 * (now - self.since)) / _LATE_RAMP)
        lost = self.over + max(self.open, 0.0) * waited
        return (self.late + _LATE_PRIOR * above) / (self.late + lost + _LATE_PRIOR)


class End(NamedTuple):
    """The end of a trial: its class, the seconds since it began, and whether the request ended there."""

    name: Name
    passed: float
    whole: bool


class View:
    """The counts of one owner as they would stand after the ends of one request.

    `complete`: a class without counts takes part as one without trials, since workers share classes.
    """

    def __init__(
        self, find: Callable[[Name], Counts | None], ends: Iterable[End], now: float, *, complete: bool
    ) -> None:
        self._find, self.now, self.complete = find, now, complete
        self._ends: dict[Name, list[End]] = {}
        for end in ends:
            self._ends.setdefault(end[0], []).append(end)
        self._after: dict[Name, Counts] = {}

    def get(self, key: Name) -> Counts | None:
        """Return the counts of a class, aged to now; None where nothing was counted yet.

        The counts themselves stay as they are: a forecast of a request that is never accepted leaves no trace.
        """
        if (found := self._after.get(key)) is not None:
            return found
        if (found := self._find(key)) is None:
            return None
        ends = self._ends.get(key, ())
        if ends or found.is_old(self.now):
            found = found.copy()
            for _, passed, whole in ends:
                found.end(self.now, passed, whole=whole)
            found.age(self.now)
        self._after[key] = found
        return found


class Classes:
    """All classes by owner, name, sightings, gap and level.

    `hours`: whether the later chance is learned. With a `secret` other workers hear of them under names
    that it keys, and theirs are counted in.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self._classes: FairTable[Name, Counts] = FairTable(_CLASSES)
        self._merge = Merge(secret) if secret is not None else None
        # The same by name, and those that only others have met; by the tag of their owner.
        self._named: FairTable[str, Counts] = FairTable(_CLASSES)

    def view(self, owner: str, ends: Iterable[End], now: float) -> View:
        """Return an owner's counts as a request with these ends would leave them."""
        own = self._classes.read(owner)
        if self._merge is None:
            return View(own.get, ends, now, complete=False)
        name, named = self._merge.name, self._named

        def find(key: Name) -> Counts | None:
            if (found := own.get(key)) is not None:
                return found
            published = name(owner, key)
            return named.read(published[:TAG]).get(published)

        return View(find, ends, now, complete=True)

    def soon(
        self, view: View, name: Name, sighting: int, gap: int, levels: Sequence[Name], prior: float, *, own: bool
    ) -> float:  # fmt: skip
        """Return the chance of coming again within five minutes.

        `own`: the request itself is in this class, so that each level takes part, also without trials.
        """
        seen: list[tuple[float, float]] = []
        complete = own or view.complete
        for level in levels:
            found = view.get((*name, sighting, gap, *level))
            if found is not None:
                seen.append((found.soon, found.lost(view.now)))
            elif complete:
                seen.append((0.0, 0.0))
        chance, weight = prior, _PRIOR
        # A level's trials are among those of the level above: each counts once, where it is nearest.
        for (soon, lost), (nearer, nearer_lost) in pairwise([*seen, (0.0, 0.0)]):
            soon, lost = max(soon - nearer, 0.0), max(lost - nearer_lost, 0.0)
            chance, weight = (soon + weight * chance) / (soon + lost + weight), _ABOVE
        return chance

    def late(self, view: View, name: Name, sighting: int, levels: Sequence[Name]) -> float:
        """Return the later chance; all sightings after the first are one class: such returns are few."""
        chance = _LATE_REPEAT if name[-1] == "repeat" else _LATE
        if not self._hours:
            return chance
        for level in levels:
            if (found := view.get((*name, sighting > 1, *level))) is not None:
                chance = found.late_chance(chance, view.now)
        return chance

    def whole(self, view: View, name: Name, sighting: int, gap: int) -> float:
        """Return the share of returns that came as a whole prompt, not as the start of a longer one."""
        found = view.get((*name, sighting, gap))
        if found is None or not found.whole:
            return 0.0
        return found.whole / (found.soon + found.late + found.over + 1.0)

    def begins(self, name: Name, sighting: int, gap: int, levels: Sequence[Name]) -> list[Name]:
        """Return the classes in which a trial begins with the arrival of such a prefix."""
        begins = [(*name, sighting, gap, *level) for level in levels]
        if self._hours:
            begins += [(*name, sighting > 1, *level) for level in levels]
        return begins

    def ends(
        self, name: Name, sighting: int, gap: int, levels: Sequence[Name], passed: float, *, whole: bool
    ) -> list[End]:
        """Return the ends of trials that the return of a prefix of this class shows."""
        return [_made(End, (key, passed, whole)) for key in self.begins(name, sighting, gap, levels)]

    def observe(self, owner: str, ends: Iterable[End], begins: Iterable[Name], now: float) -> None:
        """Count what a request showed at `now`, once the provider has accepted it."""
        for key, passed, whole in ends:
            # A trial may have begun at a worker that has not published it yet.
            found = self._classes.read(owner).get(key) if self._merge is None else self._kept(owner, key, now)
            if found is None:
                continue
            found.end(now, passed, whole=whole)
            found.untold[SOON if passed <= SHORT else LATE if passed <= LONG else OVER] += 1
            found.untold[WHOLE] += whole
        for key in begins:
            found = self._kept(owner, key, now)
            found.age(now)
            found.begin(now)
            found.untold[BEGAN] += 1
        self._classes.close(owner)

    def _kept(self, owner: str, key: Name, now: float) -> Counts:
        """Return the counts of a class as the newest of its owner, new ones where there are none."""
        table = self._classes.open(owner)
        found = table.get(key)
        if found is None:
            name = "" if self._merge is None else self._merge.name(owner, key)
            found = self._named.read(name[:TAG]).get(name) or Counts(now, name)
            table[key] = found
        else:
            table.move_to_end(key)
        if found.name:
            self._named.put(found.name[:TAG], [(found.name, found)])
        return found

    # -- what workers tell each other ---------------------------------------------------------

    def leave_untold(self) -> None:
        """Leave to another what was counted here and not told yet."""
        for found in self._named.values():
            found.untold = [0, 0, 0, 0, 0]

    def news(self, now: float) -> tuple[str, dict[str, int]]:
        """Return a table, and what to add to it for the others; nothing without a secret."""
        if self._merge is None:
            return "", {}
        return self._merge.news(now, {found.name: found.untold for found in self._named.values()})

    def tables(self, now: float) -> list[str]:
        """Return the tables in which others tell, each to be read by itself; none without a secret."""
        return self._merge.tables(now) if self._merge is not None else []

    def absorb(self, table: str, sums: Mapping[str, int], now: float) -> None:
        """Count what others told in a table."""
        for name, told in self._merge.absorb(table, sums, now) if self._merge is not None else ():
            found = self._named.read(name[:TAG]).get(name) or Counts(now, name)
            found.add(told, now)
            self._named.put(name[:TAG], [(name, found)])


def _past_five(longest: float) -> float:
    """Return the mean seconds past five minutes, up to the hour, of waits spread evenly up to the longest."""
    if longest <= SHORT:
        return 0.0
    span = LONG - SHORT
    within = min(longest, LONG) - SHORT
    return (within * within / 2.0 + max(longest - LONG, 0.0) * span) / longest
