"""Bodies that are no chat requests: they pass as the same objects."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from cachemw.core.planner.plan import Reason
from tests.bodies import Body
from tests.engine.calls import MODEL, agent, make_middleware, usage


def deep(levels: int = 10_000) -> Any:
    """Return lists nested in lists."""
    node: Any = "a"
    for _ in range(levels):
        node = [node]
    return node


def looped() -> list[Any]:
    """Return a list that contains itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


class Message(BaseModel):
    """A message as an SDK returns it."""

    role: str = "assistant"
    content: str = "Hi."


def with_message(message: Any) -> Body:
    """Return an agent's request that ends with the given message."""
    body = agent()
    body["messages"].append(message)
    return body


def user(content: Any) -> Body:
    """Return an agent's request that ends with a user message of the given content."""
    return with_message({"role": "user", "content": content})


BAD_BODIES: list[tuple[Any, str]] = [
    (None, "not_a_mapping"), ("body", "not_a_mapping"), (b"{}", "not_a_mapping"), (7, "not_a_mapping"), ([agent()], "not_a_mapping"),
    ({"model": MODEL}, "no_messages"), (agent(messages=None), "no_messages"), (agent(messages=[]), "no_messages"),
    (agent(messages="Hi."), "no_messages"), (agent(messages={"role": "user"}), "no_messages"), (agent(messages=7), "no_messages"),
    (agent(tools=7), "bad_tools"), (agent(tools=["f"]), "bad_tools"), (agent(tools={"f": 1}), "bad_tools"),
    (with_message(None), "bad_message"), (with_message("Hi."), "bad_message"), (with_message({"role": 7, "content": "a"}), "bad_message"),
    (user(7), "bad_message"), (user({"type": "text"}), "bad_message"), (user(["a"]), "bad_message"), (user([None]), "bad_message"),
    (with_message(Message()), "not_json"), (user([Message()]), "not_json"), (user(object()), "not_json"), (user(b"a"), "not_json"),
    (user(deep()), "not_json"), (user([{"type": "text", "text": "a", "x": deep()}]), "not_json"), (user(looped()), "not_json"),
    (agent(tools=[{"function": looped()}]), "not_json"), (agent(tool_choice=deep()), "not_json"), (agent(response_format=looped()), "not_json"),
    (user("\ud800"), "not_json"), (user([{"type": "text", "text": "a\udfff"}]), "not_json"), (agent(model=MODEL + "\ud800"), "not_json"),
    (user([{"type": "text", "text": "a", "x": float("nan")}]), "not_json"), (agent(tools=[{"function": {"x": float("inf")}}]), "not_json"),
    (agent(temperature=float("nan")), "not_json"), (agent(top_p=float("-inf")), "not_json"), (agent(thinking={"budget_tokens": float("nan")}), "not_json"),
    (user([{"type": "text", "text": "a", "x": 2**70}]), "not_json"), (user([{"type": "text", "text": "a", "x": 10**400}]), "not_json"),
    (with_message({"role": "user", "content": "a", 5: 6}), "not_json"), (user([{5: 6}]), "not_json"), (user({1, 2}), "not_json"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES)
def test_unreadable_body_passes_as_the_same_object(body: Any, reason: str) -> None:
    """The same object goes out, counted by reason and settled like any other; no exception is raised."""
    mw = make_middleware()
    call = mw.prepare(body, labels={"app": "a"})
    assert call.body is body
    assert call.plan.skipped is Reason.UNREADABLE
    assert mw.counts[f"pass.{reason}"] == 1
    assert not {name for name in mw.counts if name.startswith("error")}
    assert call.labels == {"app": "a"}
    mw.begun(call)
    assert mw.settle(call, usage(uncached=9)).usage is not None
    (row,) = mw.report().rows
    assert (row.calls, row.labels, row.uncached) == (1, {"app": "a"}, 9)
    assert call.plan.explain() == "No breakpoint: the body could not be read as a chat request."
    # The next request is planned as usual.
    assert mw.prepare(agent()).plan.added


def test_body_without_a_model_name_passes() -> None:
    """A body without a model name has no rules, and passes."""
    for body in ({}, *(agent(model=model) for model in (None, 7, ["m"], ""))):
        mw = make_middleware()
        assert mw.prepare(body).body is body
        assert mw.counts["skip.model_unknown"] == 1
