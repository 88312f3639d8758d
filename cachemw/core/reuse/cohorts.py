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
from cachemw.core.reuse.cohort_sharing import (
    BEGUN,
    ENDED_THERE,
    NOT_REUSED,
    REUSED_1H,
    REUSED_5M,
    TAG_LENGTH,
    CohortExchange,
    RemoteCounts,
)
from cachemw.core.reuse.record import FIVE_MINUTES, ONE_HOUR

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

CohortName = tuple[object, ...]
_made = tuple.__new__  # the class's own constructor takes a third longer


class CohortCounts:
    """Decayed counts of a class's trials: one begins with each arrival of a prefix, and ends with the next.

    `soon` ended within five minutes, `late` within the hour, `over` after it; `open` have not, and began at
    `since` on average. `whole` came again as a whole prompt. A class with a `name` is shared: the end of a
    trial may be known before its beginning, so `open` may be below 0; `untold` is what others have not heard of.
    """

    __slots__ = (
        "aged_to",
        "ended_there",
        "name",
        "not_reused",
        "pending_since",
        "pending_trials",
        "reused_1h",
        "reused_5m",
        "unpublished",
    )

    def __init__(self, now: float, name: str = "") -> None:
        self.reused_5m = self.reused_1h = self.not_reused = self.pending_trials = self.ended_there = 0.0
        self.pending_since = self.aged_to = now
        self.name = name
        self.unpublished = [0, 0, 0, 0, 0]

    def copy(self) -> CohortCounts:
        """Return equal counts that are not shared with other workers."""
        twin = CohortCounts(self.aged_to)
        twin.reused_5m, twin.reused_1h, twin.not_reused = self.reused_5m, self.reused_1h, self.not_reused
        twin.pending_trials, twin.ended_there, twin.pending_since, twin.name = (
            self.pending_trials,
            self.ended_there,
            self.pending_since,
            self.name,
        )
        return twin

    def begin_trial(self, now: float) -> None:
        """Count a trial that begins."""
        self.pending_trials += 1.0
        self.pending_since += (now - self.pending_since) / max(self.pending_trials, 1.0)

    def end_trial(self, now: float, passed: float, *, whole: bool) -> None:
        """Count that a trial ended now, `passed` seconds after it began."""
        rest = self.pending_trials - 1.0
        if rest > 0.0:
            self.pending_since += (self.pending_since - now + passed) / rest
        self.pending_trials = rest if self.name else max(rest, 0.0)
        self.ended_there += whole
        if passed <= FIVE_MINUTES:
            self.reused_5m += 1.0
        elif passed <= ONE_HOUR:
            self.reused_1h += 1.0
        else:
            self.not_reused += 1.0

    def add_remote(self, told: RemoteCounts, now: float) -> None:
        """Count what other workers did, which has aged since."""
        self.age(now)
        keep = 0.5 ** (max(now - told.at, 0.0) / _HALF_LIFE)
        self.reused_5m += told.reused_5m * keep
        self.reused_1h += told.reused_1h * keep
        self.not_reused += told.not_reused * keep
        self.ended_there += told.ended_there * keep
        if (began := told.began * keep) > 0.0:
            self.pending_since += (
                (told.at - self.pending_since) * began / (max(self.pending_trials, 0.0) + began)
            )
        self.pending_trials += began - (told.reused_5m + told.reused_1h + told.not_reused) * keep
        self.age(now)

    def is_old(self, now: float) -> bool:
        """Return True if `age` would change the counts."""
        return (
            now > self.aged_to + 1.0
            or self.reused_5m + self.reused_1h + self.not_reused + max(self.pending_trials, 0.0) > _WINDOW
        )

    def age(self, now: float) -> None:
        """Let old evidence count less."""
        keep = 1.0
        if now > self.aged_to + 1.0:
            keep = 0.5 ** ((now - self.aged_to) / _HALF_LIFE)
            self.aged_to = now
        if (
            trials := (self.reused_5m + self.reused_1h + self.not_reused + max(self.pending_trials, 0.0))
            * keep
        ) > _WINDOW:
            keep *= _WINDOW / trials
        if keep < 1.0:
            self.reused_5m *= keep
            self.reused_1h *= keep
            self.not_reused *= keep
            self.pending_trials *= keep
            self.ended_there *= keep

    def expected_failures(self, now: float) -> float:
        """Return how many did not come again within five minutes, the open ones as far as they have waited."""
        waited = min(1.0, max(now - self.pending_since, 0.0) / _RAMP)
        return self.reused_1h + self.not_reused + max(self.pending_trials, 0.0) * waited

    def p_late_reuse(self, above: float, now: float) -> float:
        """Return the chance of coming again within the hour where it was not within five minutes.

        Learned by itself, from trials that have waited past five minutes: two chances learned apart and
        subtracted would be noise.
        """
        waited = min(1.0, _mean_wait_past_five_minutes(2.0 * (now - self.pending_since)) / _LATE_RAMP)
        lost = self.not_reused + max(self.pending_trials, 0.0) * waited
        return (self.reused_1h + _LATE_PRIOR * above) / (self.reused_1h + lost + _LATE_PRIOR)


class TrialEnd(NamedTuple):
    """The end of a trial: its class, the seconds since it began, and whether the request ended there."""

    cohort: CohortName
    waited: float
    ended_there: bool


class CohortView:
    """The counts of one owner as they would stand after the ends of one request.

    `complete`: a class without counts takes part as one without trials, since workers share classes.
    """

    def __init__(
        self,
        find: Callable[[CohortName], CohortCounts | None],
        ends: Iterable[TrialEnd],
        now: float,
        *,
        complete: bool,
    ) -> None:
        self._find, self.now, self.complete = find, now, complete
        self._ends: dict[CohortName, list[TrialEnd]] = {}
        for end in ends:
            self._ends.setdefault(end[0], []).append(end)
        self._after: dict[CohortName, CohortCounts] = {}

    def get(self, key: CohortName) -> CohortCounts | None:
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
                found.end_trial(self.now, passed, whole=whole)
            found.age(self.now)
        self._after[key] = found
        return found


class CohortTable:
    """All classes by owner, name, sightings, gap and level.

    `hours`: whether the later chance is learned. With a `secret` other workers hear of them under names
    that it keys, and theirs are counted in.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self._cohorts: FairTable[CohortName, CohortCounts] = FairTable(_CLASSES)
        self._exchange = CohortExchange(secret) if secret is not None else None
        # The same by name, and those that only others have met; by the tag of their owner.
        self._named: FairTable[str, CohortCounts] = FairTable(_CLASSES)

    def view(self, owner: str, ends: Iterable[TrialEnd], now: float) -> CohortView:
        """Return an owner's counts as a request with these ends would leave them."""
        own = self._cohorts.read(owner)
        if self._exchange is None:
            return CohortView(own.get, ends, now, complete=False)
        name, named = self._exchange.name, self._named

        def find(key: CohortName) -> CohortCounts | None:
            if (found := own.get(key)) is not None:
                return found
            published = name(owner, key)
            return named.read(published[:TAG_LENGTH]).get(published)

        return CohortView(find, ends, now, complete=True)

    def p_reuse_5m(
        self, view: CohortView, name: CohortName, sighting: int, gap: int, levels: Sequence[CohortName], prior: float, *, own: bool
    ) -> float:  # fmt: skip
        """Return the chance of coming again within five minutes.

        `own`: the request itself is in this class, so that each level takes part, also without trials.
        """
        seen: list[tuple[float, float]] = []
        complete = own or view.complete
        for level in levels:
            found = view.get((*name, sighting, gap, *level))
            if found is not None:
                seen.append((found.reused_5m, found.expected_failures(view.now)))
            elif complete:
                seen.append((0.0, 0.0))
        chance, weight = prior, _PRIOR
        # A level's trials are among those of the level above: each counts once, where it is nearest.
        for (soon, lost), (nearer, nearer_lost) in pairwise([*seen, (0.0, 0.0)]):
            soon, lost = max(soon - nearer, 0.0), max(lost - nearer_lost, 0.0)
            chance, weight = (soon + weight * chance) / (soon + lost + weight), _ABOVE
        return chance

    def p_late_reuse(
        self, view: CohortView, name: CohortName, sighting: int, levels: Sequence[CohortName]
    ) -> float:
        """Return the later chance; all sightings after the first are one class: such returns are few."""
        chance = _LATE_REPEAT if name[-1] == "repeat" else _LATE
        if not self._hours:
            return chance
        for level in levels:
            if (found := view.get((*name, sighting > 1, *level))) is not None:
                chance = found.p_late_reuse(chance, view.now)
        return chance

    def share_ended_there(self, view: CohortView, name: CohortName, sighting: int, gap: int) -> float:
        """Return the share of returns that came as a whole prompt, not as the start of a longer one."""
        found = view.get((*name, sighting, gap))
        if found is None or not found.ended_there:
            return 0.0
        return found.ended_there / (found.reused_5m + found.reused_1h + found.not_reused + 1.0)

    def trials_begun(
        self, name: CohortName, sighting: int, gap: int, levels: Sequence[CohortName]
    ) -> list[CohortName]:
        """Return the classes in which a trial begins with the arrival of such a prefix."""
        begins = [(*name, sighting, gap, *level) for level in levels]
        if self._hours:
            begins += [(*name, sighting > 1, *level) for level in levels]
        return begins

    def trials_ended(
        self,
        name: CohortName,
        sighting: int,
        gap: int,
        levels: Sequence[CohortName],
        passed: float,
        *,
        whole: bool,
    ) -> list[TrialEnd]:
        """Return the ends of trials that the return of a prefix of this class shows."""
        return [
            _made(TrialEnd, (key, passed, whole)) for key in self.trials_begun(name, sighting, gap, levels)
        ]

    def observe(self, owner: str, ends: Iterable[TrialEnd], begins: Iterable[CohortName], now: float) -> None:
        """Count what a request showed at `now`, once the provider has accepted it."""
        for key, passed, whole in ends:
            # A trial may have begun at a worker that has not published it yet.
            found = (
                self._cohorts.read(owner).get(key)
                if self._exchange is None
                else self._counts_of(owner, key, now)
            )
            if found is None:
                continue
            found.end_trial(now, passed, whole=whole)
            found.unpublished[
                REUSED_5M if passed <= FIVE_MINUTES else REUSED_1H if passed <= ONE_HOUR else NOT_REUSED
            ] += 1
            found.unpublished[ENDED_THERE] += whole
        for key in begins:
            found = self._counts_of(owner, key, now)
            found.age(now)
            found.begin_trial(now)
            found.unpublished[BEGUN] += 1
        self._cohorts.close(owner)

    def _counts_of(self, owner: str, key: CohortName, now: float) -> CohortCounts:
        """Return the counts of a class as the newest of its owner, new ones where there are none."""
        table = self._cohorts.open(owner)
        found = table.get(key)
        if found is None:
            name = "" if self._exchange is None else self._exchange.name(owner, key)
            found = self._named.read(name[:TAG_LENGTH]).get(name) or CohortCounts(now, name)
            table[key] = found
        else:
            table.move_to_end(key)
        if found.name:
            self._named.put(found.name[:TAG_LENGTH], [(found.name, found)])
        return found

    # -- what workers tell each other ---------------------------------------------------------

    def discard_unpublished(self) -> None:
        """Leave to another what was counted here and not told yet."""
        for found in self._named.values():
            found.unpublished = [0, 0, 0, 0, 0]

    def drain_updates(self, now: float) -> tuple[str, dict[str, int]]:
        """Return a table, and what to add to it for the others; nothing without a secret."""
        if self._exchange is None:
            return "", {}
        return self._exchange.drain_updates(
            now, {found.name: found.unpublished for found in self._named.values()}
        )

    def tables(self, now: float) -> list[str]:
        """Return the tables in which others tell, each to be read by itself; none without a secret."""
        return self._exchange.tables(now) if self._exchange is not None else []

    def merge_updates(self, table: str, sums: Mapping[str, int], now: float) -> None:
        """Count what others told in a table."""
        for name, told in (
            self._exchange.merge_updates(table, sums, now) if self._exchange is not None else ()
        ):
            found = self._named.read(name[:TAG_LENGTH]).get(name) or CohortCounts(now, name)
            found.add_remote(told, now)
            self._named.put(name[:TAG_LENGTH], [(name, found)])


def _mean_wait_past_five_minutes(longest: float) -> float:
    """Return the mean seconds past five minutes, up to the hour, of waits spread evenly up to the longest."""
    if longest <= FIVE_MINUTES:
        return 0.0
    span = ONE_HOUR - FIVE_MINUTES
    within = min(longest, ONE_HOUR) - FIVE_MINUTES
    return (within * within / 2.0 + max(longest - ONE_HOUR, 0.0) * span) / longest
