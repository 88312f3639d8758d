"""Cohorts: counts of prefixes that are alike, for all traffic and along a path that narrows it.

Contains: how the trials of a cohort are counted, aged and turned into a probability, level by level. Must not
depend on: which cohort a prefix is in, stores. Time is an argument, in seconds.

Counts are those of this worker, and with a secret those of the other workers too
(`core.reuse.cohort_sharing`).

Each *owner* has cohorts of its own: an owner is a namespace, or a group of namespaces that the operator
declared as one. A forecast changes nothing; `observe` counts a request once the provider has accepted it.
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
from cachemw.core.tuning import COHORTS

_MOST_COHORTS = 20_000  # in memory, over all owners

CohortName = tuple[object, ...]
_made = tuple.__new__  # does the same as the class's constructor in two thirds of the time


class CohortCounts:
    """Decayed counts of a cohort's trials: one begins with each arrival of a prefix, and ends with the next.

    Trials counted in `reused_5m` ended within five minutes, in `reused_1h` within the hour, in `not_reused`
    after it. `pending_trials` have not ended (they are right-censored) and began at `pending_since` on
    average. Prefixes counted in `ended_there` came again as a whole prompt. A cohort with a `name` is shared
    between workers: the end of a trial may be known before its beginning, so `pending_trials` may be below 0.
    `unpublished` counts are not sent yet.
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

    def add_remote(self, remote: RemoteCounts, now: float) -> None:
        """Add the counts of other workers, which have aged since."""
        self.age(now)
        keep = 0.5 ** (max(now - remote.at, 0.0) / COHORTS.half_life)
        self.reused_5m += remote.reused_5m * keep
        self.reused_1h += remote.reused_1h * keep
        self.not_reused += remote.not_reused * keep
        self.ended_there += remote.ended_there * keep
        if (began := remote.began * keep) > 0.0:
            self.pending_since += (
                (remote.at - self.pending_since) * began / (max(self.pending_trials, 0.0) + began)
            )
        self.pending_trials += began - (remote.reused_5m + remote.reused_1h + remote.not_reused) * keep
        self.age(now)

    def is_old(self, now: float) -> bool:
        """Return True if `age` would change the counts."""
        return (
            now > self.aged_to + 1.0
            or self.reused_5m + self.reused_1h + self.not_reused + max(self.pending_trials, 0.0)
            > COHORTS.window
        )

    def age(self, now: float) -> None:
        """Let old evidence count less."""
        keep = 1.0
        if now > self.aged_to + 1.0:
            keep = 0.5 ** ((now - self.aged_to) / COHORTS.half_life)
            self.aged_to = now
        if (
            trials := (self.reused_5m + self.reused_1h + self.not_reused + max(self.pending_trials, 0.0))
            * keep
        ) > COHORTS.window:
            keep *= COHORTS.window / trials
        if keep < 1.0:
            self.reused_5m *= keep
            self.reused_1h *= keep
            self.not_reused *= keep
            self.pending_trials *= keep
            self.ended_there *= keep

    def expected_failures(self, now: float) -> float:
        """Return the trials not reused within five minutes; pending ones count by their waiting time."""
        waited = min(1.0, max(now - self.pending_since, 0.0) / COHORTS.censoring_ramp)
        return self.reused_1h + self.not_reused + max(self.pending_trials, 0.0) * waited

    def p_late_reuse(self, parent: float, now: float) -> float:
        """Return the probability of reuse within the hour, given none within five minutes.

        It is estimated directly, from trials that have waited past five minutes. The difference of two
        separately estimated probabilities would be noise.
        """
        waited = min(
            1.0, _mean_wait_past_five_minutes(2.0 * (now - self.pending_since)) / COHORTS.late_censoring_ramp
        )
        lost = self.not_reused + max(self.pending_trials, 0.0) * waited
        return (self.reused_1h + COHORTS.late_prior_weight * parent) / (
            self.reused_1h + lost + COHORTS.late_prior_weight
        )


class TrialEnd(NamedTuple):
    """The end of a trial: its cohort, the seconds since it began, and True if the request ended there."""

    cohort: CohortName
    waited: float
    ended_there: bool


class CohortView:
    """The counts of one owner as they would stand after the ends of one request.

    With `complete` a cohort without counts takes part as one without trials, since workers share cohorts.
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
        """Return the counts of a cohort, aged to now; None if it has none.

        The stored counts do not change: a forecast of a request that is never accepted leaves no trace.
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
    """All cohorts by owner, name, arrivals, gap and level.

    With `hours` late reuse is learned. With a `secret` workers exchange their counts, under names that it
    keys.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self._cohorts: FairTable[CohortName, CohortCounts] = FairTable(_MOST_COHORTS)
        self._exchange = CohortExchange(secret) if secret is not None else None
        # The same cohorts by published name, and those that only other workers have seen; by the tag of their
        # owner.
        self._named: FairTable[str, CohortCounts] = FairTable(_MOST_COHORTS)

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
        """Return the probability of reuse within five minutes: the prior, shrunk level by level.

        With `own` the request itself is in this cohort, so each level takes part, even without trials.
        """
        seen: list[tuple[float, float]] = []
        complete = own or view.complete
        for level in levels:
            found = view.get((*name, sighting, gap, *level))
            if found is not None:
                seen.append((found.reused_5m, found.expected_failures(view.now)))
            elif complete:
                seen.append((0.0, 0.0))
        p_reuse, weight = prior, COHORTS.prior_weight
        # A level's trials are among those of its parent: each counts once, at its narrowest level.
        for (soon, lost), (nearer, nearer_lost) in pairwise([*seen, (0.0, 0.0)]):
            soon, lost = max(soon - nearer, 0.0), max(lost - nearer_lost, 0.0)
            p_reuse = (soon + weight * p_reuse) / (soon + lost + weight)
            weight = COHORTS.parent_weight
        return p_reuse

    def p_late_reuse(
        self, view: CohortView, name: CohortName, sighting: int, levels: Sequence[CohortName]
    ) -> float:
        """Return the probability of late reuse; all arrivals after the first share one cohort."""
        p_late = COHORTS.p_late_repeat if name[-1] == "repeat" else COHORTS.p_late
        if not self._hours:
            return p_late
        for level in levels:
            if (found := view.get((*name, sighting > 1, *level))) is not None:
                p_late = found.p_late_reuse(p_late, view.now)
        return p_late

    def share_ended_there(self, view: CohortView, name: CohortName, sighting: int, gap: int) -> float:
        """Return the share of returns that came as a whole prompt, not as the start of a longer one."""
        found = view.get((*name, sighting, gap))
        if found is None or not found.ended_there:
            return 0.0
        return found.ended_there / (found.reused_5m + found.reused_1h + found.not_reused + 1.0)

    def trials_begun(
        self, name: CohortName, sighting: int, gap: int, levels: Sequence[CohortName]
    ) -> list[CohortName]:
        """Return the cohorts in which a trial begins with the arrival of such a prefix."""
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
        """Return the trials that end with the return of a prefix of this cohort."""
        return [
            _made(TrialEnd, (key, passed, whole)) for key in self.trials_begun(name, sighting, gap, levels)
        ]

    def observe(self, owner: str, ends: Iterable[TrialEnd], begins: Iterable[CohortName], now: float) -> None:
        """Count the trials that a request ended and began at `now`, once the provider has accepted it."""
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
        """Return the counts of a cohort as the newest of its owner, new ones if there are none."""
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

    # -- exchange between workers -------------------------------------------------------------

    def discard_unpublished(self) -> None:
        """Discard the unpublished counts: after a fork the parent publishes them."""
        for found in self._named.values():
            found.unpublished = [0, 0, 0, 0, 0]

    def drain_updates(self, now: float) -> tuple[str, dict[str, int]]:
        """Return a table and the amounts to add to it for other workers; empty without a secret."""
        if self._exchange is None:
            return "", {}
        return self._exchange.drain_updates(
            now, {found.name: found.unpublished for found in self._named.values()}
        )

    def tables(self, now: float) -> list[str]:
        """Return the tables to read, each by itself; empty without a secret."""
        return self._exchange.tables(now) if self._exchange is not None else []

    def merge_updates(self, table: str, sums: Mapping[str, int], now: float) -> None:
        """Add the counts that other workers published in a table."""
        for name, remote in (
            self._exchange.merge_updates(table, sums, now) if self._exchange is not None else ()
        ):
            found = self._named.read(name[:TAG_LENGTH]).get(name) or CohortCounts(now, name)
            found.add_remote(remote, now)
            self._named.put(name[:TAG_LENGTH], [(name, found)])


def _mean_wait_past_five_minutes(longest: float) -> float:
    """Return the mean seconds past five minutes, up to the hour, of waits spread evenly up to the longest."""
    if longest <= FIVE_MINUTES:
        return 0.0
    span = ONE_HOUR - FIVE_MINUTES
    within = min(longest, ONE_HOUR) - FIVE_MINUTES
    return (within * within / 2.0 + max(longest - ONE_HOUR, 0.0) * span) / longest
