"""Cohorts and their trials, at one worker and at several that exchange counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.core.reuse import cohorts as module
from cachemw.core.reuse.cohorts import CohortName, CohortTable, TrialEnd
from cachemw.settings import Settings

SECRET = b"a secret"
NAME: CohortName = ("messages", 0, "user", "text", "inner")
LEVELS: list[CohortName] = [(), (0,), (0, b"tools")]
START = 6_000_000.0
OWNER = "me"


def begin(
    classes: CohortTable,
    now: float,
    *,
    owner: str = OWNER,
    name: CohortName = NAME,
    levels: list[CohortName] = LEVELS,
) -> None:
    """Let a prefix arrive for the first time, in a request that the provider accepts."""
    classes.observe(owner, (), classes.trials_begun(name, 1, -1, levels), now)


def end(
    classes: CohortTable,
    now: float,
    passed: float = 10.0,
    *,
    owner: str = OWNER,
    name: CohortName = NAME,
    whole: bool = False,
) -> None:
    """Let one come again."""
    classes.observe(owner, classes.trials_ended(name, 1, -1, LEVELS, passed, whole=whole), (), now)


def chance(
    classes: CohortTable,
    now: float,
    *,
    owner: str = OWNER,
    name: CohortName = NAME,
    prior: float = 0.5,
    ends: Iterable[TrialEnd] = (),
) -> float:
    """Return how likely such a prefix is to come again within five minutes, after these ends of trials."""
    return classes.p_reuse_5m(classes.view(owner, ends, now), name, 1, -1, LEVELS, prior, own=False)


def late_chance(
    classes: CohortTable, now: float, *, owner: str = OWNER, ends: Iterable[TrialEnd] = ()
) -> float:
    """Return how likely it is to come again within the hour if it does not within five minutes."""
    return classes.p_late_reuse(classes.view(owner, ends, now), NAME, 1, LEVELS)


def whole_share(classes: CohortTable, now: float) -> float:
    """Return the share of returns that came as a whole prompt."""
    return classes.share_ended_there(classes.view(OWNER, (), now), NAME, 1, -1)


def counted(classes: CohortTable, owner: str = OWNER, name: CohortName = NAME) -> list[tuple[float, ...]]:
    """Return the counts in each level, 0 where there are none."""
    found = [classes._counts_of(owner, (*name, 1, -1, *level), START) for level in LEVELS]
    classes._cohorts.close(owner)
    return [(c.reused_5m, c.reused_1h, c.not_reused, c.ended_there, c.pending_trials) for c in found]


class Fleet:
    """Some workers with one set of tables; any of them may begin a trial, end one, or exchange."""

    def __init__(self, count: int, *, hours: bool = False) -> None:
        self.workers = [CohortTable(hours=hours, secret=SECRET) for _ in range(count)]
        self.tables: dict[str, dict[str, int]] = {}

    def begin(self, worker: int, now: float) -> None:
        """Let a prefix arrive for the first time."""
        begin(self.workers[worker], now)

    def end(self, worker: int, now: float, passed: float = 10.0, *, whole: bool = False) -> None:
        """Let one come again."""
        end(self.workers[worker], now, passed, whole=whole)

    def exchange(self, worker: int, now: float) -> None:
        """Let a worker publish its counts and read those of the others."""
        told = self.workers[worker]
        table, amounts = told.drain_updates(now)
        sums = self.tables.setdefault(table, {})
        for name, amount in amounts.items():
            sums[name] = sums.get(name, 0) + amount
        for table in told.tables(now):
            told.merge_updates(table, dict(self.tables.get(table, {})), now)

    def chance(self, worker: int, now: float) -> float:
        """Return a worker's probability for such prefixes."""
        return chance(self.workers[worker], now)

    def sums(self, worker: int) -> list[tuple[float, ...]]:
        """Return a worker's counts in each level, 0 where it has none."""
        return counted(self.workers[worker])


@pytest.mark.parametrize(
    ("timeline", "chances"),
    [
        # Without trials the prior holds. Then two trials begin, and are not published yet.
        ("", (0.5, 0.5)),
        ("A begins, A begins", (0.3, 0.5)),
        # They are published, and fail.
        ("A begins, A begins, A publishes, B reads", (0.3, 0.3)),
        # They end at either worker: in any order of publication they are the same two trials.
        ("A begins, A begins, A ends, A ends, A publishes, B reads", (0.7, 0.7)),
        ("A begins, A begins, A publishes, B reads, B ends, B ends, B publishes, A reads", (0.7, 0.7)),
        ("A begins, A begins, B ends, B ends, B publishes, A reads, A publishes, B reads", (0.7, 0.7)),
        ("A begins, A begins, A publishes, B ends, B ends, B publishes, A reads, B reads", (0.7, 0.7)),
        # One ends late: it is lost for the five minutes.
        ("A begins, A begins, A publishes, B lags, B reads, B ends, B publishes, A reads", (0.5, 0.5)),
    ],
)
def test_trial_of_two_workers_is_one_trial(timeline: str, chances: tuple[float, float]) -> None:
    """A trial that begins at one worker and ends at another is one trial at both."""
    fleet = Fleet(2)
    for step in filter(None, timeline.split(", ")):
        who, what = "AB".index(step[0]), step[2:]
        if what in ("publishes", "reads"):
            fleet.exchange(who, START + 1)
        elif what == "begins":
            fleet.begin(who, START)
        else:
            fleet.end(who, START, passed=400.0 if what == "lags" else 10.0)
    for who in (0, 1):
        assert fleet.chance(who, START + 90) == pytest.approx(chances[who], abs=0.01)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["begin", "end", "late", "over", "whole", "exchange"])),
        max_size=40,
    ),
    st.permutations(range(3)),
)
def test_exchange_in_any_order_gives_the_same_sums(steps: list[tuple[int, str]], order: list[int]) -> None:
    """All workers end with the counts that one worker would have, for any order of exchanges."""
    fleet, alone = Fleet(3), Fleet(1)
    passed = {"end": 10.0, "whole": 10.0, "late": 400.0, "over": 4000.0}
    for who, what in steps:
        for workers, worker in ((fleet, who), (alone, 0)):
            if what == "begin":
                workers.begin(worker, START)
            elif what in passed:
                workers.end(worker, START, passed[what], whole=what == "whole")
            else:
                workers.exchange(worker, START)
    for _ in range(2):
        for who in order:
            fleet.exchange(who, START)
    for who in range(3):
        assert fleet.sums(who) == alone.sums(0)


def test_new_worker_has_the_counts_of_the_others() -> None:
    """After one exchange a new worker has the probabilities of the others, for late reuse too."""
    fleet, steps = Fleet(3, hours=True), []
    for number in range(60):
        begun, passed = START + number * 20, 5.0 if number % 2 else 900.0
        steps += [(begun, number, 0.0), (begun + 6, number, -1.0)]
        if number % 3:
            steps.append((begun + passed, 60 - number, passed))
    for now, who, passed in sorted(steps):
        if passed > 0.0:
            fleet.end(who % 2, now, passed, whole=True)
        elif passed == 0.0:
            fleet.begin(who % 2, now)
        else:
            fleet.exchange(who % 2, now)
    now = START + 2200
    for who in (0, 1, 0, 2):
        fleet.exchange(who, now)
    assert fleet.chance(2, now) == pytest.approx(fleet.chance(0, now), abs=0.02)
    assert abs(fleet.chance(2, now) - 0.5) > 0.15
    late = [late_chance(worker, now) for worker in fleet.workers]
    assert late[2] == pytest.approx(late[0], abs=0.1)
    assert late[2] > 0.3
    whole = [whole_share(worker, now) for worker in fleet.workers]
    assert whole[2] == pytest.approx(whole[0], abs=0.05)
    assert whole[2] > 0.8


def test_remote_counts_age_like_local_ones() -> None:
    """Counts that are an hour old when they are read count about half, as local ones do."""
    fleet = Fleet(2)
    for _ in range(20):
        fleet.begin(0, START)
        fleet.end(0, START)
    fleet.exchange(0, START)
    fleet.exchange(1, START + 3590)
    soon = [sums[0] for sums in fleet.sums(1)]
    assert soon == pytest.approx([20 * 0.5 ** (3290 / 3600)] * 3, rel=0.01)


def test_remote_counts_are_held_to_the_window() -> None:
    """Any number of remote counts can be outweighed by later ones."""
    fleet = Fleet(2)
    for number in range(1000):
        fleet.begin(0, START + number / 10)
        fleet.end(0, START + number / 10)
    fleet.exchange(0, START + 100)
    fleet.exchange(1, START + 101)
    assert fleet.chance(1, START + 101) > 0.95
    assert all(0 < sums[0] <= 65 for sums in fleet.sums(1))


def test_unknown_names_change_no_probability() -> None:
    """Names that no worker published, and counts of unknown cohorts, are ignored."""
    fleet = Fleet(1)
    fleet.begin(0, START)
    before = fleet.chance(0, START + 60)
    garbage = {"": 5, "x" * 25: 9, "f" * 24 + "b": 10**15, "f" * 24 + "s": -3}
    fleet.tables["chances:10000"] = garbage
    fleet.exchange(0, START + 1)
    assert fleet.chance(0, START + 60) == before


def test_cohorts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of local and remote cohorts are bounded, and a dropped cohort starts anew."""
    monkeypatch.setattr(module, "_MOST_COHORTS", 10)
    one = CohortTable(hours=False, secret=SECRET)
    for number in range(50):
        begin(one, START + number, name=("messages", number), levels=[()])
        assert len(one._cohorts) <= 10
        assert len(one._named) <= 10
    table, amounts = one.drain_updates(START + 60)
    assert len(amounts) == len(one._named)
    other = CohortTable(hours=False, secret=SECRET)
    for number in range(50):
        other.merge_updates(table, {f"{number:024}b": 1}, START + 61)
    assert len(other._named) == 10


def test_worker_without_a_secret_exchanges_nothing() -> None:
    """Without a secret a worker publishes and reads no counts."""
    alone = CohortTable(hours=True)
    begin(alone, START)
    assert alone.drain_updates(START) == ("", {})
    assert alone.tables(START) == []
    alone.merge_updates("chances:10000", {"f" * 24 + "b": 1}, START)
    assert len(alone._named) == 0
    end(alone, START, 5.0, name=("tools",))
    assert chance(alone, START, name=("tools",), prior=0.3) == pytest.approx(0.3)


# -- owners ----------------------------------------------------------------------------------------


def taught(classes: CohortTable, owner: str, count: int = 20) -> CohortTable:
    """Let an owner's prefixes come again so many times, and return the classes."""
    for number in range(count):
        begin(classes, START + number, owner=owner)
        end(classes, START + number, owner=owner)
    return classes


@pytest.mark.parametrize("secret", [None, SECRET])
def test_cohorts_of_two_owners_learn_apart(secret: bytes | None) -> None:
    """One owner's returns change no probability and no count of another's, at this worker and at the next."""
    classes = taught(CohortTable(hours=True, secret=secret), "one")
    assert chance(classes, START + 30, owner="one") > 0.9
    assert chance(classes, START + 30, owner="other") == 0.5
    assert late_chance(classes, START + 30, owner="other") == late_chance(CohortTable(hours=True), START)
    assert counted(classes, "other") == [(0.0, 0.0, 0.0, 0.0, 0.0)] * 3


def test_published_cohorts_belong_to_their_owner() -> None:
    """An exchange brings an owner its own counts, and no count of another owner."""
    teller, hearer = (
        taught(CohortTable(hours=False, secret=SECRET), "one"),
        CohortTable(hours=False, secret=SECRET),
    )
    table, amounts = teller.drain_updates(START + 20)
    hearer.merge_updates(table, amounts, START + 20)
    assert counted(hearer, "other") == [(0.0, 0.0, 0.0, 0.0, 0.0)] * 3
    for found in counted(hearer, "one"):
        assert found == pytest.approx((20.0, 0.0, 0.0, 0.0, 0.0), rel=0.01)


def test_cohorts_of_a_group_are_shared_by_its_namespaces() -> None:
    """Namespaces that the operator put into one group learn together, all others by themselves."""
    settings = Settings(cohort_groups={"team-*": "product"})
    classes = taught(CohortTable(hours=False), settings.cohort_group("team-a"))
    seen = {
        space: chance(classes, START + 30, owner=settings.cohort_group(space))
        for space in ("team-a", "team-b", "stranger", "product")
    }
    assert seen["team-a"] == seen["team-b"] > 0.9
    assert seen["stranger"] == seen["product"] == 0.5


@pytest.mark.parametrize("secret", [None, SECRET])
def test_cohorts_of_a_small_owner_survive_a_flood_of_another(
    monkeypatch: pytest.MonkeyPatch, secret: bytes | None
) -> None:
    """An owner within its fair share loses no count to one that has new cohorts without end."""
    monkeypatch.setattr(module, "_MOST_COHORTS", 100)
    classes = taught(CohortTable(hours=False, secret=secret), "mine")
    before = chance(classes, START + 60, owner="mine")
    for number in range(500):
        begin(classes, START + 60, owner="flood", name=("messages", number), levels=[()])
    assert len(classes._cohorts) <= 100
    assert len(classes._named) <= 100
    assert chance(classes, START + 60, owner="mine") == before > 0.9


def test_published_cohorts_are_bounded_for_each_owner(
    monkeypatch: pytest.MonkeyPatch, tune: Callable[[str, float], None]
) -> None:
    """Remote counts of one owner evict no local counts of another."""
    monkeypatch.setattr(module, "_MOST_COHORTS", 100)
    tune("sharing.cohorts_per_table", 1000)
    classes = taught(CohortTable(hours=False, secret=SECRET), "mine")
    told, elsewhere = (
        sum(classes.drain_updates(START + 60)[1].values()),
        CohortTable(hours=False, secret=SECRET),
    )
    assert told == 2 * 20 * len(LEVELS)
    for number in range(500):
        begin(elsewhere, START + 60, owner="flood", name=("messages", number), levels=[()])
        table, amounts = elsewhere.drain_updates(START + 60)
        classes.merge_updates(table, amounts, START + 60)
    end(classes, START + 60, owner="mine")
    assert len(classes._named) <= 100
    assert sum(classes.drain_updates(START + 61)[1].values()) == len(LEVELS)


@pytest.mark.parametrize("secret", [None, SECRET])
def test_forecast_changes_no_cohort(secret: bytes | None) -> None:
    """A forecast counts and publishes nothing, for any number of forecasts."""
    classes = taught(CohortTable(hours=True, secret=secret), OWNER)
    classes.drain_updates(START + 60)
    before, later = counted(classes), chance(classes, START + 60)
    ends = classes.trials_ended(NAME, 1, -1, LEVELS, 400.0, whole=True)
    for _ in range(50):
        assert chance(classes, START + 60, ends=ends) < later
        assert late_chance(classes, START + 60, ends=ends) > 0.0
    assert chance(classes, START + 60) == later
    for found, once in zip(counted(classes), before, strict=True):
        assert found == pytest.approx(once, rel=0.02)  # evidence ages by a minute
    assert classes.drain_updates(START + 60)[1] == {}


def test_forecast_counts_the_returns_of_its_own_request() -> None:
    """A request's own returns count in its forecast before they are learned."""
    classes = CohortTable(hours=False)
    for _ in range(4):
        begin(classes, START)
    ends = classes.trials_ended(NAME, 1, -1, LEVELS, 10.0, whole=False) * 4
    ahead = chance(classes, START + 60, ends=ends)
    assert chance(classes, START + 60) < 0.5 < ahead
    classes.observe(OWNER, ends, (), START + 60)
    assert chance(classes, START + 60) == pytest.approx(ahead, abs=0.01)
