"""The events that hooks receive, and the limits of labels."""

from __future__ import annotations

import threading
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

import cachemw
from cachemw.core.planner.plan import Plan, Reason
from cachemw.errors import ConfigError
from cachemw.events import Counted, Counters, Event, Prepared, Settled
from cachemw.reporting import labelling
from cachemw.reporting.labelling import OTHER, LabelLimits

BODY = {
    "model": "databricks-claude-sonnet-4-6",
    "messages": [{"role": "user", "content": "secret words " * 2000}],
}
USAGE = {
    "prompt_tokens": 5000,
    "completion_tokens": 10,
    "cache_read_input_tokens": 0,
    "cache_creation_input_tokens": 4000,
}


def test_counters_are_exact_among_threads() -> None:
    """Counts are by name, sorted, and exact among threads."""
    counters = Counters()

    def count() -> None:
        for _ in range(500):
            counters.add("b")

    callers = [threading.Thread(target=count) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    counters.add("a")
    assert list(counters.all().items()) == [("a", 1), ("b", 2000)]
    counters.all()["a"] = 9
    assert counters.all()["a"] == 1


def test_hook_receives_prepared_and_settled_calls() -> None:
    """A hook receives a call when it is prepared and settled, with its id, labels, plan and receipt."""
    events: list[Event] = []
    with closing(cachemw.Middleware(provider="databricks", hooks=[events.append])) as mw:
        call = mw.prepare(BODY, labels={"app": "support"})
        receipt = mw.settle(call, USAGE, partial=True)
        mw.settle(call, USAGE)
    prepared = [event for event in events if isinstance(event, Prepared)]
    settled = [event for event in events if isinstance(event, Settled)]
    assert prepared == [Prepared(call.id, {"app": "support"}, call.plan)]
    assert settled == [Settled(call.id, {"app": "support"}, receipt, True)]
    assert Counted("settle.partial") in events
    assert "secret" not in repr(events)


def test_hook_that_raises_does_not_stop_the_others() -> None:
    """A hook's failure is counted by class, and the other hooks still receive the event."""
    told: list[Event] = []

    def bad(event: Event) -> None:
        raise LookupError(str(event))

    with closing(cachemw.Middleware(provider="databricks", hooks=[bad, told.append])) as mw:
        call = mw.prepare(BODY)
        assert mw.settle(call, USAGE).usage is not None
        assert mw.counts["error.hook.LookupError"] == len(told)
    assert told


def test_interrupt_in_a_hook_passes() -> None:
    """An exception that is no `Exception` is never held up, and leaves no call behind."""

    def stop(event: Event) -> None:
        raise KeyboardInterrupt

    with closing(cachemw.Middleware(provider="databricks", hooks=[stop])) as mw:
        with pytest.raises(KeyboardInterrupt):
            mw.prepare(BODY)
        assert mw.report("process").totals.unsettled == 0


def test_events_are_frozen() -> None:
    """No hook can change an event."""
    event = Prepared("id", {}, Plan(skipped=Reason.NO_SLOT))
    with pytest.raises(AttributeError):
        event.call = "other"  # type: ignore[misc]


# -- labels ---------------------------------------------------------------------------------------


def labelled(mw: cachemw.Middleware, **labels: Any) -> dict[str, str]:
    """Return the labels that a call ends up with, whose request the provider accepts."""
    call = mw.prepare(BODY, **labels)
    mw.begun(call)
    return dict(call.labels)


def test_labels_hold_inside_their_block() -> None:
    """Calls inside are labelled; an inner block adds or sets anew, and leaving it restores."""
    with closing(cachemw.Middleware()) as mw:
        assert labelled(mw) == {}
        with cachemw.labels(app="support", team="a"):
            assert labelled(mw) == {"app": "support", "team": "a"}
            with cachemw.labels(team="b"):
                assert labelled(mw) == {"app": "support", "team": "b"}
            assert labelled(mw) == {"app": "support", "team": "a"}
            assert labelled(mw, labels={"x": "y"}) == {"x": "y"}
            assert labelled(mw, labels={}) == {}
        with pytest.raises(ZeroDivisionError), cachemw.labels(app="x"):
            raise ZeroDivisionError
        assert labelled(mw) == {}


def test_label_that_is_no_string_is_refused() -> None:
    """A label that is no string is refused at once."""
    with pytest.raises(ConfigError, match=r"labels: app is 5; a string is needed"), cachemw.labels(app=5):  # type: ignore[arg-type]
        raise AssertionError


@pytest.mark.parametrize(
    ("labels", "kept", "cut"),
    [
        ({"app": "support"}, {"app": "support"}, 0),
        ({"app": "x" * 8}, {"app": "x" * 8}, 0),
        ({"app": "x" * 9}, {"app": "other"}, 1),
        ({"n" * 9: "v"}, {"other": "other"}, 1),
        ({"app": ""}, {"app": ""}, 0),
        ({"app": 5}, {"other": "other"}, 1),
        ({5: "v"}, {"other": "other"}, 1),
        ({"app": None, "b": "c"}, {"other": "other", "b": "c"}, 1),
        ({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "1", "other": "other"}, 1),
        ({"app": "other"}, {"app": "other"}, 0),
    ],
)
def test_labels_over_their_limits_are_cut_and_counted(labels: Any, kept: dict[str, str], cut: int) -> None:
    """A label that is too long, too many, or no string becomes "other" and is counted."""
    with closing(cachemw.Middleware(provider="databricks", max_labels=2, max_label_length=8)) as mw:
        call = mw.prepare(BODY, labels=labels)
        assert call.labels == kept
        assert mw.counts.get("labels.cut", 0) == cut
        assert call.body is not BODY or call.plan.skipped


def test_known_label_values_stay_after_the_limit() -> None:
    """Values that were known before the limit stay known; new ones are "other"."""
    with closing(cachemw.Middleware(max_labels=2)) as mw:
        found = [labelled(mw, labels={"app": value})["app"] for value in ("a", "b", "c", "a", "d", "b")]
        assert found == ["a", "b", "other", "a", "other", "b"]
        assert mw.counts["labels.cut"] == 2
    with closing(cachemw.Middleware(max_labels=0)) as mw:
        assert labelled(mw, labels={"app": "a"}) == {"other": "other"}


def test_report_has_a_row_for_each_label_set() -> None:
    """Rows are by label set; money is exact."""
    with closing(cachemw.Middleware(provider="databricks")) as mw:
        for app in ("a", "b", "b"):
            mw.settle(mw.prepare(BODY, labels={"app": app}), USAGE)
        rows = {row.labels["app"]: row for row in mw.report().rows}
        assert {app: row.calls for app, row in rows.items()} == {"a": 1, "b": 2}
        assert rows["b"].paid == 2 * rows["a"].paid == 2 * (Decimal("0.003") + Decimal("0.015"))


# -- the room that labels take ---------------------------------------------------------------------


def taken(limits: LabelLimits, namespace: str, **labels: str) -> dict[str, str]:
    """Return the labels of a request that the provider accepts."""
    kept, _ = limits.apply(namespace, labels)
    limits.learn(namespace, kept)
    return kept


def test_labels_of_requests_that_fail_take_no_room() -> None:
    """Junk labels of refused requests leave the room to those of accepted ones, and no row in the report."""
    with closing(cachemw.Middleware(provider="databricks", max_labels=2)) as mw:
        for number in range(50):
            mw.fail(mw.prepare(BODY, labels={"app": f"junk-{number}", f"name-{number}": "x"}))
        assert [labelled(mw, labels={"app": app})["app"] for app in ("a", "b", "c")] == ["a", "b", "other"]
        rows = [row.labels for row in mw.report().rows if row.calls]
        assert sorted(row["app"] for row in rows) == ["a", "b", "other"]


def test_labels_of_one_namespace_take_no_room_of_another() -> None:
    """Each namespace has its own names and values, whatever the others used up."""
    with closing(cachemw.Middleware(provider="databricks", max_labels=2)) as mw:
        for number in range(50):
            labelled(mw, labels={"app": str(number), f"name-{number}": "x"}, namespace="flood")
        found = [labelled(mw, labels={"app": app}, namespace="mine")["app"] for app in ("a", "b", "c")]
        assert found == ["a", "b", "other"]
        assert labelled(mw, labels={"app": "a"}, namespace="flood") == {"app": "other"}


def test_labels_of_requests_at_the_same_time_keep_to_the_limit() -> None:
    """However many requests wait for their answers at once, a report shows no more values than the limit."""
    with closing(cachemw.Middleware(provider="databricks", max_labels=2)) as mw:
        for call in [mw.prepare(BODY, labels={"app": str(number)}) for number in range(20)]:
            mw.settle(call, USAGE)
        apps = {row.labels["app"] for row in mw.report().rows if row.calls}
        assert len(apps - {OTHER}) == 2
        assert mw.report().totals.calls == 20


def test_labels_of_a_small_namespace_survive_a_flood_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace within its fair share loses no label to one that uses up the shared tables."""
    monkeypatch.setattr(labelling, "_NAMES", 40)
    monkeypatch.setattr(labelling, "_ALL_SETS", 60)
    limits = LabelLimits(100, 64)
    for app in "abcde":
        taken(limits, "mine", app=app, team="t")
    for number in range(500):
        taken(limits, f"flood-{number % 3}", **{f"name-{number % 90}": str(number)})
    assert len(limits._values) <= 40
    assert len(limits._sets) <= 60
    assert limits._values.read("mine") == {"app": set("abcde"), "team": {"t"}}
    assert len(limits._sets.read("mine")) == 5


def test_labels_in_too_many_sets_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace has so many different sets of labels; further ones count as "other", known ones stay."""
    monkeypatch.setattr(labelling, "_SETS", 3)
    limits = LabelLimits(100, 64)
    for app in "abc":
        assert taken(limits, "mine", app=app, team="t") == {"app": app, "team": "t"}
    assert limits.apply("mine", {"app": "a", "team": "u"}) == ({"app": OTHER, "team": OTHER}, 2)
    assert limits.apply("mine", {"app": "b", "team": "t"}) == ({"app": "b", "team": "t"}, 0)
    assert limits.apply("mine", {}) == ({}, 0)
    assert limits.apply("another", {"app": "a", "team": "u"}) == ({"app": "a", "team": "u"}, 0)


@pytest.mark.parametrize("namespaces", [40, 41, 200])
def test_labels_of_many_namespaces_keep_to_the_limit(
    monkeypatch: pytest.MonkeyPatch, namespaces: int
) -> None:
    """The namespace that used a label last is held to its limit, however many namespaces there are."""
    monkeypatch.setattr(labelling, "_NAMES", 40)
    limits = LabelLimits(1, 64)
    for number in range(namespaces):
        taken(limits, str(number), app="a")
        assert limits.apply(str(number), {"app": "b"}) == ({"app": OTHER}, 1)
