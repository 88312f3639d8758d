"""The outbox of sums: each amount is added once, through any losses and repetitions."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.stores.redis import sums_outbox as module
from cachemw.stores.redis.sums_outbox import Batch, SumsOutbox


class Server:
    """Add batches as the script does."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], int] = {}
        self.sums: Counter[str] = Counter()

    def add(self, batch: Batch) -> None:
        key = batch.namespace, batch.table
        if self.last.get(key, 0) < batch.number:
            self.last[key] = batch.number
            for name, amount in batch.amounts.items():
                self.sums[f"{batch.table} {name}"] += amount


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["10", "11"]),
            st.sampled_from(["calls", "read"]),
            st.integers(-5, 9),
            st.sampled_from(["hold", "send", "answer lost", "request lost"]),
        )
    )
)
def test_amount_through_any_losses_is_added_once(steps: list[tuple[str, str, int, str]]) -> None:
    """Requests and replies may be lost in any order: the sums are exact in the end."""
    tally, server, wanted = SumsOutbox(), Server(), Counter[str]()

    def send(how: str) -> None:
        for batch in tally.batches():
            if how != "request lost":
                server.add(batch)
            if how == "send":
                tally.added(batch)

    for table, name, amount, how in steps:
        assert tally.add("acme", table, {name: amount}, 60) == 0
        wanted[f"{table} {name}"] += amount
        if how != "hold":
            send(how)
    send("send")
    send("send")
    assert tally.empty
    assert server.sums == wanted


def test_late_confirmation_leaves_the_next_batch() -> None:
    """A late confirmation of a batch does not confirm the next one."""
    tally = SumsOutbox()
    tally.add("acme", "10", {"calls": 1}, 60)
    (mine,), (theirs,) = tally.batches(), tally.batches()
    assert mine is theirs
    tally.added(mine)
    tally.add("acme", "10", {"calls": 2}, 60)
    (following,) = tally.batches()
    tally.added(theirs)
    assert tally.batches() == [following]
    assert following.number > mine.number
    assert following.amounts == {"calls": 2}


def test_batches_are_separate_for_each_namespace_and_table() -> None:
    """Each batch has the keep time of its table."""
    tally = SumsOutbox()
    tally.add("acme", "10", {"calls": 1}, 60)
    tally.add("other", "10", {"calls": 2}, 70)
    tally.add("acme", "11", {}, 60)
    assert [(batch.namespace, batch.amounts, batch.keep) for batch in tally.batches()] == [
        ("acme", {"calls": 1}, 60), ("other", {"calls": 2}, 70),
    ]  # fmt: skip


def test_outbox_when_full_refuses_new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a long outage known names are still summed; new ones are refused and counted."""
    monkeypatch.setattr(module, "_MOST", 2)
    monkeypatch.setattr(module, "_TABLES", 2)
    tally = SumsOutbox()
    assert tally.add("acme", "10", {"a": 1, "b": 1, "c": 1}, 60) == 1
    assert tally.add("acme", "10", {"a": 1}, 60) == 0
    assert tally.add("acme", "11", {"a": 1}, 60) == 0
    assert tally.add("acme", "12", {"a": 1, "b": 1}, 60) == 2
    assert [batch.amounts for batch in tally.batches()] == [{"a": 2, "b": 1}, {"a": 1}]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_outbox_in_a_fork_is_empty() -> None:
    """The parent sends its own amounts; the child is another sender."""
    tally = SumsOutbox()
    tally.add("acme", "10", {"calls": 1}, 60)
    reader, speaker = os.pipe()
    child = os.fork()
    if child == 0:
        tally.add("acme", "10", {"calls": 5}, 60)
        os.write(speaker, f"{tally.sender} {[batch.amounts for batch in tally.batches()]}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    sender, _, held = os.read(reader, 1000).decode().partition(" ")
    assert held == "[{'calls': 5}]"
    assert sender != tally.sender
    assert [batch.amounts for batch in tally.batches()] == [{"calls": 1}]
    os.close(reader)
    os.close(speaker)
