"""Tables of several namespaces under one limit."""

from sys import getsizeof

from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.fair_table import FairTable


def filled(limit: int, **sizes: int) -> FairTable[int, str]:
    """Return a table in which each namespace was given so many entries."""
    table: FairTable[int, str] = FairTable(limit)
    for namespace, size in sizes.items():
        for key in range(size):
            table.put(namespace, [(key, namespace)])
    return table


def test_table_with_one_namespace_evicts_its_oldest_entries():
    """A single namespace may use the whole limit, and loses the entries that were set longest ago."""
    table = filled(10, alone=13)
    assert list(table.read("alone")) == list(range(3, 13))
    assert len(table) == 10


def test_table_with_a_flooding_namespace_keeps_the_entries_of_the_others():
    """A namespace below its fair share loses nothing, however much another one sets."""
    table = filled(100, victim=40, flood=5_000)
    assert list(table.read("victim")) == list(range(40))
    assert len(table.read("flood")) <= 60


def test_table_with_many_namespaces_cuts_the_largest_to_one_size():
    """The limit is shared out: the largest tables end up equally long."""
    table = filled(90, small=10, large=60, larger=70)
    assert len(table.read("small")) == 10
    assert len(table.read("large")) == len(table.read("larger")) == 40


def test_table_of_a_namespace_that_was_cut_gives_its_memory_back():
    """Tenants that come, grow and leave do not keep the memory of their largest table."""
    table = filled(4_096, first=4_096)
    largest = getsizeof(table.read("first"))
    for number in range(15):
        for key in range(4_096):
            table.put(f"later {number}", [(key, "later")])
    assert 0 < len(table.read("first")) <= 256
    assert getsizeof(table.read("first")) < largest / 8


def test_table_entry_that_is_set_again_becomes_the_newest():
    """Use keeps an entry."""
    table = filled(3, only=3)
    table.put("only", [(0, "again")])
    table.put("only", [(3, "new")])
    assert list(table.read("only").items()) == [(2, "only"), (0, "again"), (3, "new")]


def test_table_namespace_that_was_emptied_is_forgotten():
    """A namespace without entries takes no room and no share."""
    table = filled(10, gone=2, kept=2)
    table.open("gone").clear()
    table.close("gone")
    assert len(table) == 2
    assert not table.read("gone")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50)), max_size=300), st.integers(1, 40))
def test_table_of_any_history_holds_the_limit_and_the_fair_share(steps, limit):
    """The total never exceeds the limit, and the count is exact."""
    table: FairTable[int, int] = FairTable(limit)
    for namespace, key in steps:
        table.put(namespace, [(key, key)])
        sizes = [len(table.read(name)) for name in "abcd"]
        assert len(table) == sum(sizes) <= limit
