"""Writing markers by path copy, stripping them, and the form in which two bodies are equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.core.request.equality import canonical
from cachemw.core.request.markers import insert, marker_value, strip
from cachemw.core.request.parser import Parser, WireFormat
from cachemw.core.rules.types import Model, Ttl
from tests.bodies import SAME, Body, Path, bodies, listed, unmarked, walk

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
KEPT = Model("claude-kept", 1024, None)


def agent() -> Body:
    """Return a body with every place where a marker may stand."""
    return {
        "model": "m",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"cache_control": {"type": "object"}}}}}],
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "Hi."}, {"type": "text", "text": "There."}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"cache_control": 1}'}}]},
            {"role": "tool", "tool_call_id": "1", "content": "11"},
        ],
    }  # fmt: skip


def at(body: Any, path: Path) -> Any:
    """Return the node at a path."""
    for key in path:
        body = body[key]
    return body


def test_marker_value_names_one_hour_only() -> None:
    """A marker without a TTL means 5m; 1h is named."""
    assert marker_value("5m") == {"type": "ephemeral"}
    assert marker_value("1h") == {"type": "ephemeral", "ttl": "1h"}
    assert marker_value("5m") is not marker_value("5m")


def test_insert_without_a_place_returns_the_body() -> None:
    """Without a place the body itself comes back."""
    body = agent()
    assert insert(body, []) is body


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("tools", 0), {**agent()["tools"][0], "cache_control": MARK}),
        (("messages", 0, "content"), [{"type": "text", "text": "Be kind.", "cache_control": MARK}]),
        (("messages", 1, "content", 1), {"type": "text", "text": "There.", "cache_control": MARK}),
        (
            ("messages", 2, "tool_calls", 0),
            {**agent()["messages"][2]["tool_calls"][0], "cache_control": MARK},
        ),
        (("messages", 3, "content"), [{"type": "text", "text": "11", "cache_control": MARK}]),
    ],
)
def test_insert_marks_each_place(path: Path, expected: Any) -> None:
    """A marker stands beside the content; a marked string becomes a list, and nothing else changes."""
    body = agent()
    marked = insert(body, [(path, "5m")])
    assert at(marked, path) == expected
    assert body == agent()
    rest = dict(marked)
    node: Any = marked
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = at(body, path)
    assert rest == agent()


def test_insert_marks_the_system_field() -> None:
    """A native system string becomes a list, a block in it is marked in place."""
    body = {"model": "m", "system": "s", "messages": []}
    assert insert(body, [(("system",), "1h")])["system"] == [
        {"type": "text", "text": "s", "cache_control": HOUR}
    ]
    body["system"] = [{"type": "text", "text": "s"}]
    assert insert(body, [(("system", 0), "5m")])["system"] == [
        {"type": "text", "text": "s", "cache_control": MARK}
    ]


def test_unchanged_parts_are_the_callers_own_objects() -> None:
    """Objects off the path to a change are shared with the caller, and the caller's own are not changed."""
    body = agent()
    marked = insert(body, [(("messages", 1, "content", 0), "5m"), (("messages", 2, "tool_calls", 0), "5m")])
    assert marked["tools"] is body["tools"]
    for index in (0, 3):
        assert marked["messages"][index] is body["messages"][index]
    assert marked["messages"][1]["content"][1] is body["messages"][1]["content"][1]
    call = marked["messages"][2]["tool_calls"][0]
    assert call["function"] is body["messages"][2]["tool_calls"][0]["function"]
    for path in (
        (),
        ("messages",),
        ("messages", 1),
        ("messages", 1, "content"),
        ("messages", 2, "tool_calls", 0),
    ):
        assert at(marked, path) is not at(body, path)


def test_insert_marks_a_repeated_object_once() -> None:
    """A message that stands twice in a body is marked only at the given place."""
    message = {"role": "user", "content": [{"type": "text", "text": "Hi."}]}
    body = {"model": "m", "messages": [message, message]}
    marked = insert(body, [(("messages", 1, "content", 0), "5m")])
    assert marked["messages"][0] is message
    assert marked["messages"][1]["content"][0]["cache_control"] == MARK
    assert "cache_control" not in message["content"][0]


def test_insert_copies_tuples_and_other_mappings() -> None:
    """A tuple or other mapping on the path becomes a list or dict in the copy."""
    body = MappingProxyType({"messages": (MappingProxyType({"role": "user", "content": "a"}),)})
    marked = insert(body, [(("messages", 0, "content"), "5m")])
    assert marked == {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": MARK}]}]
    }
    assert canonical(marked) == canonical(body)


# -- strip and canonical --------------------------------------------------------------------------


def test_strip_removes_markers_only() -> None:
    """Markers are removed wherever they are markers; properties and arguments of that name stay."""
    body = agent()
    body["cache_control"] = MARK
    body["tools"][0]["cache_control"] = MARK
    body["tools"][0]["function"]["cache_control"] = MARK
    body["messages"][1]["content"][0]["cache_control"] = HOUR
    body["messages"][2]["tool_calls"][0]["cache_control"] = MARK
    body["messages"][2]["tool_calls"][0]["function"]["cache_control"] = MARK
    body["messages"][3]["cache_control"] = MARK
    before = copy.deepcopy(body)
    assert strip(body) == agent()
    assert body == before


def test_strip_reaches_into_tool_results() -> None:
    """Inner parts of a native tool result lose their markers; a call's input keeps keys of that name."""
    inner = {"type": "text", "text": "a"}
    body = {
        "system": [{**inner, "cache_control": MARK}],
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"cache_control": 1}, "cache_control": MARK}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [{**inner, "cache_control": MARK}]}]},
        ],
    }  # fmt: skip
    assert strip(body) == {
        "system": [inner],
        "messages": [
            {"role": "assistant", "content": [{"type": "tool_use", "input": {"cache_control": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "content": [inner]}]},
        ],
    }


@pytest.mark.parametrize(
    "body",
    [
        {}, {"messages": None}, {"messages": "x"}, {"messages": [None, 3, "a"]}, {"messages": [{"role": "user"}]},
        {"messages": [{"content": 5, "tool_calls": "x"}]}, {"messages": [{"content": [None, [1]]}], "tools": [7]}, {"system": 3},
    ],
)  # fmt: skip
def test_canonical_of_odd_bodies_raises_nothing(body: Any) -> None:
    """Comparing never fails, for any body."""
    assert canonical(body) == canonical(copy.deepcopy(body))
    assert strip(body) == body


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda node: node + " ", ("messages", 0, "content")),
        (lambda node: node[::-1], ("messages", 1, "content")),
        (lambda node: {**node, "x": None}, ("messages", 1, "content", 0)),
        (lambda node: {"properties": {}}, ("tools", 0, "function", "parameters")),
        (lambda node: '{"cache_control": 2}', ("messages", 2, "tool_calls", 0, "function", "arguments")),
        (lambda node: "", ("messages", 2, "content")),
        (lambda node: node + node[:1], ("messages",)),
        (lambda node: "n", ("model",)),
    ],
)
def test_canonical_distinguishes_every_other_change(change: Callable[[Any], Any], path: Path) -> None:
    """Any change but a marker or a one-part list makes another request; absence differs from None."""
    body = agent()
    changed = insert(copy.deepcopy(body), [])
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = change(node[path[-1]])
    assert canonical(changed) != canonical(body)


@settings(max_examples=150, deadline=None)
@given(bodies(), st.data())
def test_any_markers_keep_the_canonical_form(drawn: tuple[WireFormat, Body], data: st.DataObject) -> None:
    """Markers at any places keep the canonical form and the caller's objects."""
    wire, body = drawn
    parsed = Parser().parse(body, KEPT, wire)
    free = [index for index, block in enumerate(parsed.blocks) if block.markable and block.marker is None]
    chosen = data.draw(st.lists(st.sampled_from(free), max_size=4, unique=True)) if free else []
    ttls: list[Ttl] = [data.draw(st.sampled_from(["5m", "1h"])) for _ in chosen]
    before, ids = copy.deepcopy(body), {path: id(node) for path, node in walk(body)}

    places = [(parsed.path(index), ttl) for index, ttl in zip(chosen, ttls, strict=True)]
    marked = insert(body, places)
    assert canonical(marked) == canonical(body)
    assert unmarked(listed(dict(marked))) == unmarked(listed(body))
    assert body == before
    assert {path: id(node) for path, node in walk(body)} == ids

    again = Parser().parse(marked, KEPT, wire)
    assert again.client_marker_count == parsed.client_marker_count + len(chosen)
    found = {index: block.marker for index, block in enumerate(again.blocks) if index in chosen}
    assert found == dict(zip(chosen, ttls, strict=True))
    # Off the way to a marker everything is shared.
    ways = {path[:depth] for path, _ in places for depth in range(len(path) + 1)}
    for key, value in marked.items():
        if isinstance(value, (list, Mapping)) and (key,) not in ways:
            assert value is body[key]


def test_canonical_of_an_empty_system_string_is_no_blank_block() -> None:
    """An empty string means no system prompt; a blank text block is content, and has a prefix of its own."""
    messages = [{"role": "user", "content": "Hi."}]
    blank = [{"type": "text", "text": ""}]
    empty, listed_blank = ({"model": "m", "system": system, "messages": messages} for system in ("", blank))
    assert canonical(empty) != canonical(listed_blank)
    assert len(Parser().parse(empty, KEPT, "messages").blocks) == 1
    assert len(Parser().parse(listed_blank, KEPT, "messages").blocks) == 2


@settings(max_examples=100, deadline=None)
@given(bodies(), st.sampled_from([copy.deepcopy, unmarked, listed]))
def test_canonical_of_any_body_is_stable(
    drawn: tuple[WireFormat, Body], change: Callable[[Body], Body]
) -> None:
    """Markers and one-part lists do not change the form; it is its own form and has no marker."""
    _, body = drawn
    before = copy.deepcopy(body)
    form = canonical(body)
    assert form == canonical(change(body)) == canonical(form)
    assert strip(form) == form
    assert canonical(strip(body)) == form
    assert body == before
    assert change in SAME
