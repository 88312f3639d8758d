"""The order of sorted tools and keys, the lists that stay, and the equality."""

from __future__ import annotations

import copy
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.core.opt_ins.sort_tools import sort_tools, unordered
from cachemw.simulation.equality import same_request
from tests.bodies import EPHEMERAL, Body, Wire, bodies

LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
)
SCHEMA = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


def chat(name: str, **function: Any) -> Body:
    """Return a tool of an OpenAI chat body."""
    return {"type": "function", "function": {"name": name, "parameters": {}, **function}}


def native(name: str, **rest: Any) -> Body:
    """Return a tool of an Anthropic Messages body."""
    return {"name": name, "input_schema": {}, **rest}


def sorted_names(*tools: Any) -> list[str]:
    """Return the tools' names as they leave."""
    return [
        tool.get("function", tool).get("name") or tool["type"]
        for tool in sort_tools({"tools": list(tools)})["tools"]
    ]


def keys(value: Any) -> Any:
    """Return the order of all keys in a value."""
    if isinstance(value, dict):
        return [(key, keys(inner)) for key, inner in value.items()]
    return [keys(inner) for inner in value] if isinstance(value, list) else None


@pytest.mark.parametrize(
    "tools",
    [
        [chat("b"), chat("a"), chat("c")],
        [native("b"), native("c"), native("a")],
        [native("c"), {"type": "web_search_20250305", "name": "a"}, chat("b")],
    ],
)
def test_tools_are_sent_by_name(tools: list[Body]) -> None:
    """Tools are sorted by name in either wire format."""
    assert sorted_names(*tools) == ["a", "b", "c"]


def test_tools_of_one_name_are_sorted_by_content() -> None:
    """Equal names are sorted by content, never by the order of arrival."""
    one, two, nameless = native("a", description="x"), native("a", description="y"), {"type": "z"}
    ways = [[one, two, nameless], [nameless, two, one], [two, nameless, one]]
    assert len({str(sort_tools({"tools": tools})["tools"]) for tools in ways}) == 1


def test_keys_are_sorted_at_any_depth() -> None:
    """Keys are sorted in schemas and lists of schemas; the order of a list is content and stays."""
    schema = {"type": "object", "required": ["b", "a"], "anyOf": [{"y": {"d": 1, "c": 2}, "x": 0}]}
    (tool,) = sort_tools({"tools": [chat("f", parameters=schema)]})["tools"]
    assert list(tool) == ["function", "type"]
    assert list(tool["function"]["parameters"]) == ["anyOf", "required", "type"]
    assert tool["function"]["parameters"]["required"] == ["b", "a"]
    assert keys(tool["function"]["parameters"]["anyOf"]) == [[("x", None), ("y", [("c", None), ("d", None)])]]


def test_shuffled_tools_leave_as_the_same_bytes() -> None:
    """The same bytes leave for any order of tools and keys, and sorted tools leave as the body itself."""
    one = {"model": "m", "tools": [chat("a", strict=True), chat("b")], "messages": []}
    other = {
        **one,
        "tools": [
            chat("b"),
            {"function": {"strict": True, "parameters": {}, "name": "a"}, "type": "function"},
        ],
    }
    left = sort_tools(one)
    assert keys(left["tools"]) == keys(sort_tools(other)["tools"])
    assert left["tools"] == sort_tools(other)["tools"]
    assert sort_tools(left) is left
    assert left["messages"] is one["messages"]


@pytest.mark.parametrize(
    "tools",
    [
        None, {}, "tools", [], [1, chat("a")], [chat("b"), None],
        [{**chat("b"), "cache_control": EPHEMERAL}, chat("a")],
        [chat("b"), chat("a", cache_control=EPHEMERAL)],
        [chat("b", parameters={"maximum": float("nan")}), chat("a")],
        [chat("b", parameters={"enum": (1, 2)}), chat("a")],
        [chat("b", parameters={1: 2}), chat("a")],
        [chat("b", parameters={"default": 2**70}), chat("a")],
        [chat("b", parameters={"x": object()}), chat("a")],
        [chat("b\ud800"), chat("a")],
        [MappingProxyType(chat("b")), chat("a")],
    ],
)  # fmt: skip
def test_unsortable_tools_leave_as_they_came(tools: Any) -> None:
    """Tools that are no list, are marked by the client, or would change through JSON stay."""
    body = {"tools": tools}
    assert sort_tools(body) is body
    assert sort_tools({}) == {}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", ""]), SCHEMA), max_size=5), st.randoms())
def test_any_tools_leave_complete_and_in_one_order(drawn: list[tuple[str, Any]], random: Any) -> None:
    """Random shuffled tools leave complete and in one order; the caller's objects stay unchanged."""
    tools = [chat(name, parameters=schema) for name, schema in drawn]
    body: Body = {"tools": tools, "messages": []}
    before = copy.deepcopy(body)
    left = sort_tools(body)
    shuffled = {**body, "tools": random.sample(tools, len(tools))}
    assert body == before
    assert keys(body) == keys(before)
    assert keys(sort_tools(shuffled)) == keys(left)
    assert sort_tools(shuffled) == left
    assert sort_tools(left) is left
    assert unordered(left) == unordered(body) == unordered(shuffled)
    assert same_request(body, left, sort_tools=True)


@settings(max_examples=200, deadline=None)
@given(bodies())
def test_any_body_changes_in_its_tools_only(drawn: tuple[Wire, Body]) -> None:
    """Only the list of tools changes in a random body, and only if it has no marker of the client."""
    _, body = drawn
    before = copy.deepcopy(body)
    left = sort_tools(body)
    assert body == before
    assert {key: value for key, value in left.items() if key != "tools"} == {
        key: value for key, value in body.items() if key != "tools"
    }
    assert unordered(left) == unordered(body)
    if any("cache_control" in (*tool, *tool.get("function", ())) for tool in body.get("tools", ())):
        assert left is body
    if left is not body:
        assert sort_tools(left) is left


def test_unordered_distinguishes_other_tools() -> None:
    """The equality distinguishes tools with other content; markers do not count."""
    one = {"messages": [], "tools": [chat("a"), chat("b")]}
    assert unordered(one) == unordered(
        {"messages": [], "tools": [chat("b"), {**chat("a"), "cache_control": EPHEMERAL}]}
    )
    for other in ([chat("a")], [chat("a"), chat("c")], [chat("a"), chat("b"), chat("b")]):
        assert unordered(one) != unordered({"messages": [], "tools": other})
