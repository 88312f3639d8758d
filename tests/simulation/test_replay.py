"""The order of events in a replay, its sums, and the check that only markers were added."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.types import Model
from cachemw.simulation.equality import same_request
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.replay import Answered, Body, Outcome, Sent, Weights, no_caching, replay
from tests.simulation.prompts import MODEL

MARK = {"type": "ephemeral"}
TEXT = "The same words for everyone. " * 40


def body(*texts: str, marked: bool = False) -> dict[str, Any]:
    """Return a user message of text parts; the first may be marked."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text} for text in texts]
    if marked:
        parts[0]["cache_control"] = MARK
    return {"model": "claude-test", "messages": [{"role": "user", "content": parts}]}


def fresh(model: Model = MODEL) -> ProviderCache:
    """Return a provider without a minimum."""
    return ProviderCache(model, Options(minimum=0))


class Noting:
    """Mark the first part of every request, and record the order of events."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, float, int]] = []

    def __call__(self, request: Sent) -> tuple[Body, Answered]:
        """Send it marked."""
        self.heard.append(("sent", request.at, -1))
        content = request.body["messages"][0]["content"]
        marked = body(*(part["text"] for part in content), marked=True)

        def answered(at: float, ticket: Ticket) -> None:
            self.heard.append(("begun", at, ticket.cache_read))

        return marked, answered


def test_events_arrive_in_order_of_time() -> None:
    """A policy learns of an answer when it begins; requests sent before read nothing of it."""
    stream = [Sent(at, body(TEXT, str(at)), latency) for at, latency in ((0, 10), (5, 2), (7, 1), (20, 1))]
    policy = Noting()
    outcome = replay(stream, policy, fresh())
    times = [(what, at) for what, at, _ in policy.heard]
    assert times == [
        ("sent", 0), ("sent", 5), ("begun", 7), ("sent", 7), ("begun", 8), ("begun", 10), ("sent", 20), ("begun", 21),
    ]  # fmt: skip
    reads = [read > 0 for what, _, read in policy.heard if what == "begun"]
    assert reads == [False, True, False, True]
    assert outcome.requests == 4


def test_cost_follows_the_prices_of_the_model() -> None:
    """Cost is tokens of each kind by the model's prices, relative to an uncached token."""
    model = find_model("claude-opus-5-5")
    assert model is not None
    assert Weights.of(model) == (0.05, 1.25, 2.0)
    assert Weights.of(MODEL) == (0.1, 1.25, 2.0)
    stream = [Sent(at, body(TEXT, "a"), 1.0) for at in (0.0, 60.0)]
    outcome = replay(stream, Noting(), fresh(model))
    assert outcome.cache_read == outcome.cache_write_5m > 0
    assert outcome.total == replay(stream, no_caching, fresh(model)).total
    assert outcome.cost == pytest.approx(
        0.05 * outcome.cache_read + 1.25 * outcome.cache_write_5m + outcome.uncached
    )


def test_no_caching_costs_one_for_each_token() -> None:
    """The baseline reads and writes nothing."""
    stream = [Sent(at, body(TEXT, "a"), 1.0) for at in (0.0, 60.0)]
    outcome = replay(stream, no_caching, fresh())
    assert (outcome.cache_read, outcome.cache_write_5m, outcome.cache_write_1h) == (0, 0, 0)
    assert outcome.cost == outcome.uncached == outcome.total


def test_refused_request_is_counted_and_sent_without_markers() -> None:
    """Five markers are too many: the original request is billed."""

    def too_many(request: Sent) -> tuple[Body, None]:
        parts = [{"type": "text", "text": "x", "cache_control": MARK} for _ in range(5)]
        return {**request.body, "messages": [{"role": "user", "content": parts}]}, None

    stream = [Sent(0.0, body("x", "x", "x", "x", "x"), 1.0)]
    outcome = replay(stream, too_many, fresh())
    assert (outcome.refused, outcome.changed) == (1, 0)
    assert outcome.cost == replay(stream, no_caching, fresh()).cost


def test_stream_refused_without_markers_is_an_error() -> None:
    """A stream that no policy can send compares no policies."""
    with pytest.raises(Refused):
        replay([Sent(0.0, {"model": "claude-test", "messages": [{"role": "?"}]}, 1.0)], no_caching, fresh())


def test_changed_request_is_counted() -> None:
    """A policy that changes a word is detected."""

    def shouting(request: Sent) -> tuple[Body, None]:
        changed = copy.deepcopy(dict(request.body))
        changed["messages"][0]["content"][0]["text"] += "!"
        return changed, None

    stream = [Sent(float(at), body("a"), 1.0) for at in range(3)]
    assert replay(stream, shouting, fresh()).changed == 3
    assert replay([], shouting, fresh()) == Outcome()


def tools(*names: str, **schema: Any) -> dict[str, Any]:
    """Return a body with these tools."""
    functions = [{"type": "function", "function": {"name": name, "parameters": schema}} for name in names]
    return {"tools": functions, "messages": [{"role": "user", "content": "Hi"}]}


def said(*parts: Any, **more: Any) -> dict[str, Any]:
    """Return a body of one message with this content, a string or parts."""
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"messages": [{"role": "user", "content": content, **more}]}


def text(value: str, **more: Any) -> dict[str, Any]:
    """Return a text part."""
    return {"type": "text", "text": value, **more}


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ONE, TWO = {"a": 1, "b": 2}, {"b": 2, "a": 1}
SAME: tuple[tuple[Mapping[str, Any], Mapping[str, Any], dict[str, bool], bool], ...] = (
    (said("a"), said(text("a", cache_control=MARK)), {}, True),
    (said("a"), said(text("b")), {}, False),
    (said("a"), said("a", cache_control=MARK), {}, True),
    (said("a"), said("a", name="x"), {}, False),
    (said("a"), {**said("a"), "cache_control": MARK}, {}, True),
    (said("a"), {**said("a"), "temperature": 1}, {}, False),
    (said(text("a"), text("b")), said(text("a"), text("b", cache_control=MARK)), {}, True),
    (said("ab"), said(text("a"), text("b")), {}, False),
    (said("ab"), said(text("a", cache_control=MARK), text("b")), {"split_text": True}, True),
    (said("ab"), said(text("a"), text("c")), {"split_text": True}, False),
    (said(text("a", x=1), text("b")), said(text("a"), text("b", x=1)), {"split_text": True}, False),
    (said("a", tool_calls=[CALL]), said("a", tool_calls=[{**CALL, "cache_control": MARK}]), {}, True),
    (said("a", tool_calls=[CALL]), said("a", tool_calls=[{**CALL, "id": "2"}]), {}, False),
    (said("a", tool_calls=[CALL]), said("a"), {}, False),
    ({"messages": []}, said("a"), {}, False),
    ({}, {}, {}, True),
    (tools("f", "g"), tools("f", "g"), {}, True),
    (tools("f", "g"), tools("g", "f"), {}, False),
    (tools("f", "g"), tools("g", "f"), {"sort_tools": True}, True),
    (tools("f", "g"), tools("f", "f"), {"sort_tools": True}, False),
    (tools("f", "g"), tools("f"), {"sort_tools": True}, False),
    (tools("f", **ONE), tools("f", **TWO), {}, False),
    (tools("f", **ONE), tools("f", **TWO), {"sort_tools": True}, True),
    (tools("f"), {**tools("f"), "tools": [{**tools("f")["tools"][0], "cache_control": MARK}]}, {}, True),
    (tools("f", cache_control={"type": "string"}), tools("f"), {}, False),
)  # fmt: skip


@pytest.mark.parametrize(("came", "left", "allowed", "equal"), SAME)
def test_same_request_allows_markers_and_opt_ins_only(
    came: Mapping[str, Any], left: Mapping[str, Any], allowed: dict[str, bool], equal: bool
) -> None:
    """Two bodies are equal except for markers and the changes of the opt-ins."""
    assert same_request(came, left, **allowed) is equal
    assert same_request(left, came, **allowed) is equal
