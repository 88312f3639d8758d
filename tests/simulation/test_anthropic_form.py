"""A body in the form that Claude gets: the place of each part, its content, and the parameters of entries."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cachemw.core.rules.types import Model
from tests.simulation.chat_bodies import (
    EPHEMERAL,
    HIDDEN,
    IMAGE,
    KEPT,
    STRIPPED,
    THOUGHT,
    Body,
    call,
    read,
    text,
    tool,
    user,
)

AGENT: Body = {
    "model": "databricks-claude-sonnet-4-5",
    "tools": [tool("look", at={"type": "string"}), tool("buy")],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [text("Be kind."), text("Be right.")]},
        user(text("What is this?"), IMAGE),
        {
            "role": "assistant",
            "content": [THOUGHT, HIDDEN, text("Let me look.")],
            "tool_calls": [call(1), call(2)],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "A lamp."},
        {"role": "tool", "tool_call_id": "c2", "content": [text("Red."), text("Old.")]},
        {"role": "assistant", "content": None, "tool_calls": [call(3)]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        user("Thank you."),
    ],
}


def test_positions_of_a_databricks_request_have_section_role_and_type() -> None:
    """Every part of a request with all documented shapes has its place, role and type."""
    found = [(p.place, p.role, p.type) for p in read(AGENT)]
    assert found == [
        (("tools", 0), "tools", "custom"),
        (("tools", 1), "tools", "custom"),
        (("system", 0), "system", "text"),
        (("system", 1), "system", "text"),
        (("system", 2), "system", "text"),
        (("messages", 0, "content", 0), "user", "text"),
        (("messages", 0, "content", 1), "user", "image"),
        (("messages", 1, "content", 0), "assistant", "thinking"),
        (("messages", 1, "content", 1), "assistant", "redacted_thinking"),
        (("messages", 1, "content", 2), "assistant", "text"),
        (("messages", 1, "content", 3), "assistant", "tool_use"),
        (("messages", 1, "content", 4), "assistant", "tool_use"),
        (("messages", 2, "content", 0), "user", "tool_result"),
        (("messages", 2, "content", 1), "user", "tool_result"),
        (("messages", 3, "content", 0), "assistant", "tool_use"),
        (("messages", 4, "content", 0), "user", "tool_result"),
        (("messages", 5, "content", 0), "user", "text"),
    ]


def test_prefix_of_a_position_is_the_sum_so_far() -> None:
    """Each position has tokens, and its prefix is the sum up to its end."""
    found = read(AGENT)
    assert all(p.tokens > 0 for p in found)
    assert [p.prefix for p in found] == [sum(q.tokens for q in found[: n + 1]) for n in range(len(found))]


def reversed_keys(value: Any) -> Any:
    """Return a value with the keys of all its objects reversed, except in tool schemas."""
    if isinstance(value, list):
        return [reversed_keys(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: inner if key == "parameters" else reversed_keys(inner) for key, inner in reversed(value.items())
    }


SAME: dict[str, tuple[Body, Body]] = {
    "a string and its one-part list": ({"messages": [user("hello")]}, {"messages": [user(text("hello"))]}),
    "a marker or none": (
        {"messages": [user(text("hello"), text("you"))]},
        {"messages": [user(text("hello", cache_control=EPHEMERAL), text("you"))]},
    ),
    "a marker on a tool call, a tool or in a result": (
        AGENT,
        {
            **AGENT,
            "tools": [AGENT["tools"][0], {**AGENT["tools"][1], "cache_control": EPHEMERAL}],
            "messages": [
                *AGENT["messages"][:6],
                {**AGENT["messages"][6], "tool_calls": [{**call(3), "cache_control": EPHEMERAL}]},
                *AGENT["messages"][7:],
            ],
        },
    ),
    "a tool result's string and its marked one-part list": (
        {"messages": [{"role": "tool", "tool_call_id": "a", "content": "done"}]},
        {
            "messages": [
                {"role": "tool", "tool_call_id": "a", "content": [text("done", cache_control=EPHEMERAL)]}
            ]
        },
    ),
    "a marker beside a string": (
        {"messages": [user("hello")]},
        {"messages": [user("hello", cache_control=EPHEMERAL)]},
    ),
    "a marker inside a tool's function": (
        {"tools": [tool("look")], "messages": [user("hi")]},
        {
            "tools": [
                {"type": "function", "function": {**tool("look")["function"], "cache_control": EPHEMERAL}}
            ],
            "messages": [user("hi")],
        },
    ),
    "the key order of envelopes": (AGENT, reversed_keys(AGENT)),
    "one message or two of one role": (
        {"messages": [user(text("a"), text("b"))]},
        {"messages": [user("a"), user("b")]},
    ),
    "system and developer": (
        {"messages": [{"role": "system", "content": "Be brief."}, user("hi")]},
        {"messages": [{"role": "developer", "content": "Be brief."}, user("hi")]},
    ),
    "no content, an empty one, or none at all beside tool calls": (
        {"messages": [user("hi"), {"role": "assistant", "content": "", "tool_calls": [call(1)]}]},
        {"messages": [user("hi"), {"role": "assistant", "tool_calls": [call(1)]}]},
    ),
    "an empty field or none": (
        {"messages": [user("hi"), {"role": "assistant", "content": "yes"}]},
        {
            "messages": [
                user("hi"),
                {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None},
            ]
        },
    ),
    "the default effort or none": (
        {"messages": [user("hi")]},
        {"messages": [user("hi")], "reasoning_effort": "high", "output_config": {"effort": "high"}},
    ),
    "parameters that shape the answer only": (
        {"messages": [user("hi")]},
        {"messages": [user("hi")], "temperature": 0.5, "max_tokens": 5, "stream": True, "user": "x"},
    ),
}


@pytest.mark.parametrize("case", SAME, ids=str)
def test_positions_of_equal_content_are_equal(case: str) -> None:
    """Digests and tokens agree at every position."""
    one, other = SAME[case]
    first, second = (
        [(p.place[0], p.role, p.type, p.digest, p.prefix) for p in read(body)] for body in (one, other)
    )
    assert first == second


def _swap(body: Body, change: Callable[[Body], None]) -> Body:
    other = copy.deepcopy(body)
    change(other)
    return other


DIFFERENT: dict[str, Callable[[Body], None]] = {
    "a byte of a text": lambda b: b["messages"][2]["content"][0].update(text="What is that?"),
    "a byte of an image": lambda b: b["messages"][2]["content"][1]["image_url"].update(
        url="data:image/png;base64,AAAA"
    ),
    "an image's detail": lambda b: b["messages"][2]["content"][1]["image_url"].update(detail="low"),
    "a thought": lambda b: b["messages"][3]["content"][0]["summary"][0].update(text="Ha."),
    "a signature": lambda b: b["messages"][3]["content"][0]["summary"][0].update(signature="t"),
    "white space in arguments": lambda b: b["messages"][3]["tool_calls"][0]["function"].update(
        arguments="{ }"
    ),
    "a call's id": lambda b: b["messages"][3]["tool_calls"][0].update(id="c9"),
    "which call a result answers": lambda b: b["messages"][4].update(tool_call_id="c9"),
    "a result": lambda b: b["messages"][5]["content"].pop(),
    "a message's other keys": lambda b: b["messages"][4].update(name="look"),
    "a tool's description": lambda b: b["tools"][0]["function"].update(description="Looks well."),
    "the order of tools": lambda b: b["tools"].reverse(),
    "key order in a tool's schema": lambda b: b["tools"][0]["function"].update(
        parameters=dict(reversed(b["tools"][0]["function"]["parameters"].items()))
    ),
}


@pytest.mark.parametrize("case", DIFFERENT, ids=str)
def test_prefix_of_changed_content_differs(case: str) -> None:
    """The digest of the whole prompt differs, and reading does not change the body."""
    before = copy.deepcopy(AGENT)
    assert read(_swap(AGENT, DIFFERENT[case]))[-1].digest != read(AGENT)[-1].digest
    assert before == AGENT


def test_prefix_of_another_role_differs() -> None:
    """Equal words of user and assistant are two prefixes."""
    said = {"messages": [user("a"), user("b")]}
    answered = {"messages": [user("a"), {"role": "assistant", "content": "b"}]}
    assert read(said)[-1].digest != read(answered)[-1].digest


LOST: list[tuple[str, Body, dict[str, Any], str]] = [
    ("another model", {}, {"model": Model("claude-other", 1024, None)}, "tools"),
    ("a response format", {"response_format": {"type": "json_object"}}, {}, "tools"),
    ("thinking", {"thinking": {"type": "enabled", "budget_tokens": 2048}}, {}, "tools"),
    ("effort", {"reasoning_effort": "low"}, {}, "tools"),
    ("effort of the Messages wire", {"output_config": {"effort": "low"}}, {}, "tools"),
    ("effort, narrow reading", {"reasoning_effort": "low"}, {"thinking_scope": "messages"}, "messages"),
    ("speed", {"speed": "fast"}, {}, "system"),
    ("tool choice", {"tool_choice": "none"}, {}, "messages"),
    ("parallel calls", {"parallel_tool_calls": False}, {}, "messages"),
    (
        "an image added at the end",
        {"messages": [*AGENT["messages"][:2], user("hi"), user(IMAGE)]},
        {},
        "messages",
    ),
]


@pytest.mark.parametrize(("name", "change", "options", "lost"), LOST, ids=[case[0] for case in LOST])
def test_changed_parameter_changes_its_section_and_later_ones(
    name: str, change: Body, options: dict[str, Any], lost: str
) -> None:
    """The invalidation table: a parameter changes the prefixes of these sections."""
    base: Body = {**AGENT, "messages": [*AGENT["messages"][:2], user("hi")]}
    plain = {key: value for key, value in options.items() if key != "model"}
    one, other = read(base, **plain), read({**base, **change}, **options)
    order = ["tools", "system", "messages"]
    for before, after in zip(one, other, strict=False):
        section = str(before.place[0])
        assert (before.digest != after.digest) == (order.index(section) >= order.index(lost)), (name, section)


def test_old_thinking_of_a_stripping_model_is_not_in_the_prompt() -> None:
    """Thinking before the user's last turn is removed; turns of tool results keep it."""
    kinds = [p.type for p in read(AGENT, model=STRIPPED)]
    assert "thinking" not in kinds
    assert "redacted_thinking" not in kinds
    open_turn = {**AGENT, "messages": AGENT["messages"][:-1]}
    kept = [p.type for p in read(open_turn, model=STRIPPED)]
    assert (kept.count("thinking"), kept.count("redacted_thinking")) == (1, 1)


def test_old_thinking_on_the_messages_wire_is_not_in_the_prompt() -> None:
    """A user message of tool results only is no new turn; a message with a text is one."""
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    use = {"type": "tool_use", "id": "a", "name": "look", "input": {"at": "x"}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": "lamp"}
    for last, kept in (([result], True), ([result, text("Go on.")], False)):
        body = {
            "messages": [
                user("hi"),
                {"role": "assistant", "content": [thought, use]},
                {"role": "user", "content": last},
            ]
        }
        assert ("thinking" in [p.type for p in read(body, "messages", STRIPPED)]) is kept


@pytest.mark.parametrize(
    ("model", "mid_system", "expected"),
    [
        (KEPT, "model", ["system", "user", "system", "user"]),
        (STRIPPED, "model", ["system", "system", "user", "user"]),
        (KEPT, "hoist", ["system", "system", "user", "user"]),
        (STRIPPED, "keep", ["system", "user", "system", "user"]),
    ],
)
def test_late_system_message_follows_the_row_or_the_option(
    model: Model, mid_system: str, expected: list[str]
) -> None:
    """The model's row or the option decides between keeping and hoisting."""
    body = {
        "messages": [
            {"role": "system", "content": "a"},
            user("b"),
            {"role": "system", "content": "c"},
            user("d"),
        ]
    }
    assert [p.role for p in read(body, model=model, mid_system=mid_system)] == expected


def test_key_order_of_a_call_input_on_the_messages_wire_is_content() -> None:
    """Two orders of the same input are two prefixes."""
    bodies = [
        {
            "messages": [
                {
                    "role": "assistant",
                    "content": [{"type": "tool_use", "id": "a", "name": "n", "input": given}],
                }
            ]
        }
        for given in ({"x": 1, "y": 2}, {"y": 2, "x": 1})
    ]
    one, other = (read(body, "messages")[-1].digest for body in bodies)
    assert one != other
