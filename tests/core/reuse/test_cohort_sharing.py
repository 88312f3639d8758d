"""The exchange of cohort counts: the sums, their tables, and their bounds."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

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

SECRET = b"a secret"
START = 1_000 * 600.0  # where a table begins
Table = dict[str, dict[str, int]]
Tune = Callable[[str, float], None]


class Counting(CohortExchange):
    """A worker with its counts."""

    def __init__(self, secret: bytes) -> None:
        super().__init__(secret)
        self.counted: dict[str, list[int]] = {}

    def count(self, name: str, kind: int) -> None:
        """Count one of a kind in a class."""
        self.counted.setdefault(name, [0] * 5)[kind] += 1

    def publishes(self, now: float) -> tuple[str, dict[str, int]]:
        """Return the amounts to publish now."""
        return self.drain_updates(now, self.counted)


def names(merge: CohortExchange, owner: str, count: int) -> list[str]:
    """Return the names of so many classes of an owner."""
    return [merge.name(owner, (number,)) for number in range(count)]


def begun(*groups: list[str]) -> dict[str, int]:
    """Return the sums of a table in which one trial began in each of these classes."""
    return {name + "b": 1 for group in groups for name in group}


def publish(worker: Counting, tables: Table, now: float) -> None:
    """Let a worker add to the tables."""
    name, amounts = worker.publishes(now)
    sums = tables.setdefault(name, {})
    for field, amount in amounts.items():
        sums[field] = sums.get(field, 0) + amount


def read(worker: CohortExchange, tables: Table, now: float) -> list[tuple[str, RemoteCounts]]:
    """Let a worker read the tables that it asks for."""
    return [
        told for name in worker.tables(now) for told in worker.merge_updates(name, tables.get(name, {}), now)
    ]


def test_exchange_reads_other_workers_once_and_never_itself() -> None:
    """Each worker reads the counts of the others since its last look, and never its own."""
    one, other, tables = Counting(SECRET), Counting(SECRET), Table()
    name = one.name("me", ("messages", 0))
    for kind in (BEGUN, BEGUN, REUSED_5M, REUSED_1H, NOT_REUSED, ENDED_THERE, ENDED_THERE):
        one.count(name, kind)
    other.count(name, BEGUN)
    for worker in (one, other, one):
        publish(worker, tables, START)
    assert read(one, tables, START + 10) == [(name, RemoteCounts(START + 5, 1, 0, 0, 0, 0))]
    assert read(other, tables, START + 10) == [(name, RemoteCounts(START + 5, 2, 1, 1, 1, 2))]
    one.count(name, REUSED_5M)
    publish(one, tables, START + 20)
    assert read(other, tables, START + 30) == [(name, RemoteCounts(START + 20, 0, 1, 0, 0, 0))]
    assert read(one, tables, START + 30) == read(other, tables, START + 31) == []


def test_exchange_with_delayed_counts_invents_none() -> None:
    """A store may add published counts late; until then a worker reads no count that was not published."""
    one, other, tables = Counting(SECRET), Counting(SECRET), Table()
    name = one.name("me", ("tools",))
    one.count(name, BEGUN)
    table, late = one.publishes(START)
    assert read(one, tables, START + 1) == []
    other.count(name, BEGUN)
    other.count(name, BEGUN)
    publish(other, tables, START + 2)
    assert [told.began for _, told in read(one, tables, START + 3)] == [1]
    for field, amount in late.items():
        tables[table][field] += amount
    assert [told.began for _, told in read(one, tables, START + 4)] == [1]


@pytest.mark.parametrize(
    ("read_at", "now", "slots"),
    [
        (None, 0, range(994, 1001)),
        (0, 30, range(999, 1001)),
        (100, 130, range(1000, 1001)),
        (590, 620, range(1000, 1002)),
        (650, 680, range(1000, 1002)),
        (661, 690, range(1001, 1002)),
        (100, 100_000, range(1160, 1167)),
        (100, -700, range(998, 999)),
    ],
)
def test_exchange_reads_tables_that_may_have_changed(read_at: float | None, now: float, slots: range) -> None:
    """A worker reads the tables of an hour at first, then those that may have changed, usually one."""
    worker = Counting(SECRET)
    if read_at is not None:
        read(worker, {}, START + read_at)
    assert worker.tables(START + now) == [f"chances:{slot}" for slot in slots]


@pytest.mark.parametrize(
    "sums",
    [
        {"": 1}, {"b": 1}, {"x" * 24: 1}, {"x" * 24 + "z": 1}, {"x" * 24 + "bs": 1}, {"x" * 25 + "b": 1},
        {"x" * 24 + "b": 0}, {"x" * 24 + "b": -5}, {"x" * 16 + "b": 1}, {"refused|databricks|model|text": 3},
    ],
)  # fmt: skip
def test_exchange_ignores_unknown_names(sums: dict[str, int]) -> None:
    """Names of another version or program are left out."""
    assert Counting(SECRET).merge_updates("chances:1000", sums, START + 1) == []


def test_cohort_names_are_keyed() -> None:
    """Only a name and a letter leave the process; the name reveals nothing without the secret."""
    key = ("messages", 0, "user", "text", "inner", 1, -1, 0, b"a digest of a prompt")
    worker = Counting(SECRET)
    name = worker.name("me", key)
    assert name == Counting(SECRET).name("me", key)
    assert name not in {CohortExchange(b"another").name("me", key), worker.name("me", key[:-1])}
    assert CohortExchange(b"x" * 500).name("me", key) != CohortExchange(b"x" * 501).name("me", key)
    worker.count(name, ENDED_THERE)
    _, amounts = worker.publishes(START)
    assert [re.fullmatch("[0-9a-f]{24}[bslow]", field) is not None for field in amounts] == [True]


def test_exchange_publishes_a_bounded_number_of_cohorts(tune: Tune) -> None:
    """Cohorts with the highest counts come first; the others wait."""
    tune("sharing.published_at_once", 3)
    worker = Counting(SECRET)
    for number in range(10):
        for _ in range(10 - number):
            worker.count(f"{number:024}", BEGUN)
    told = [[field[:-1] for field in worker.publishes(START)[1]] for _ in range(5)]
    expected = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9,), ())
    assert told == [[f"{number:024}" for number in numbers] for numbers in expected]


def test_tables_of_cohorts_are_bounded(tune: Tune) -> None:
    """A full table gets no new cohort, and a worker reads at most four times as many."""
    tune("sharing.cohorts_per_table", 2)
    worker = Counting(SECRET)
    sums = {f"{number:024}b": 1 for number in range(50)}
    assert len(worker.merge_updates("chances:1000", sums, START)) == 8
    worker.count(f"{0:024}", REUSED_5M)
    worker.count(f"{40:024}", REUSED_5M)
    assert worker.publishes(START)[1] == {f"{0:024}s": 1}
    assert worker.publishes(START + 600) == ("chances:1001", {})


def test_exchange_forgets_old_tables() -> None:
    """A worker remembers the counts only of tables that it may still read."""
    worker, sums = Counting(SECRET), {f"{0:024}b": 1}
    for step in range(200):
        now = START + step * 30.0
        for table in worker.tables(now):
            worker.merge_updates(table, sums, now)
        assert len(worker._seen) <= 7
    assert len(worker._seen) == 1


def test_exchange_forgets_tables_if_reads_fail() -> None:
    """A worker that only publishes, since reads fail, remembers no more tables than it would read."""
    worker, name = Counting(SECRET), f"{0:024}"
    for step in range(50):
        worker.count(name, BEGUN)
        assert worker.publishes(START + step * 600.0) == (f"chances:{1000 + step}", {name + "b": 1})
        assert len(worker._seen) <= 7


# -- owners ----------------------------------------------------------------------------------------


def test_cohort_names_differ_by_owner_in_both_parts() -> None:
    """A name begins with its owner's tag, and no part of it shows that two owners have the same cohort."""
    merge, key = CohortExchange(SECRET), ("messages", 0)
    one, other = merge.name("one", key), merge.name("other", key)
    assert one[:TAG_LENGTH] != other[:TAG_LENGTH]
    assert one[TAG_LENGTH:] != other[TAG_LENGTH:]
    assert (
        one[:TAG_LENGTH]
        == merge.name("one", ("tools",))[:TAG_LENGTH]
        != CohortExchange(b"another").name("one", key)[:TAG_LENGTH]
    )


def test_exchange_of_a_busy_owner_leaves_each_other_owner_its_turn(tune: Tune) -> None:
    """The busiest cohort of every owner comes first, for any counts of one owner."""
    tune("sharing.published_at_once", 6)
    worker = Counting(SECRET)
    for name in names(worker, "busy", 100):
        for _ in range(50):
            worker.count(name, BEGUN)
    calm, quiet = names(worker, "calm", 3), names(worker, "quiet", 1)
    for times, name in enumerate([*calm, *quiet], 1):
        for _ in range(times):
            worker.count(name, REUSED_5M)
    told = {field[:-1] for field in worker.publishes(START)[1]}
    assert len(told) == 6
    assert {calm[2], calm[1], *quiet} <= told
    assert calm[0] in {field[:-1] for field in worker.publishes(START)[1]}


def test_full_table_has_room_for_another_owner(
    tune: Tune,
) -> None:
    """A table that one owner filled still takes the cohorts of another, up to its share."""
    tune("sharing.cohorts_per_table", 20)
    worker = Counting(SECRET)
    busy, calm = names(worker, "busy", 50), names(worker, "calm", 6)
    for name in busy:
        worker.count(name, BEGUN)
    assert len(worker.publishes(START)[1]) == 20
    for name in [*busy, *calm]:
        worker.count(name, BEGUN)
    told = {field[:-1] for field in worker.publishes(START)[1]}
    assert set(calm) <= told
    assert len(told & set(busy)) == 20


def test_table_of_a_busy_owner_is_read_for_another(tune: Tune) -> None:
    """A worker reads the cohorts of an owner after those of a busy one, in one reading and in the next."""
    tune("sharing.cohorts_per_table", 5)
    for together in (True, False):
        worker = Counting(SECRET)
        busy, calm = names(worker, "busy", 1000), names(worker, "calm", 6)
        if not together:
            worker.merge_updates("chances:1000", begun(busy), START)
        found = {name for name, _ in worker.merge_updates("chances:1000", begun(busy, calm), START + 1)}
        assert set(calm) <= found
        assert len(worker._seen["chances:1000"]) <= 40


@pytest.mark.parametrize("owners", [2, 3, 5, 10])
def test_table_of_several_busy_owners_has_room_for_each(tune: Tune, owners: int) -> None:
    """Each later owner is read too, for any order of owners, and the table stays bounded."""
    tune("sharing.cohorts_per_table", 20)
    worker = Counting(SECRET)
    groups = [names(worker, f"owner {number}", 200) for number in range(owners)]
    for number, group in enumerate(groups):
        found = worker.merge_updates("chances:1000", begun(group), START + number)
        assert found, f"owner {number} of {owners} is crowded out"
    assert len(worker._seen["chances:1000"]) <= 8 * 4 * 20
