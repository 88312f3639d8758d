"""Prefix hashes: requests that share a prefix and those that do not, and the tracked blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachemw.core.request.parser import Parser, WireFormat
from cachemw.core.request.prefix_hashes import hash_prefixes
from cachemw.core.request.tracked_prefixes import track_prefixes
from cachemw.core.rules.types import Model
from cachemw.errors import BodyError
from tests.bodies import SAME, Body, bodies, listed

KEPT = Model("claude-kept", 1024, None)
STRIPPED = Model("claude-stripped", 1024, None, thinking="stripped")
MARK = {"type": "ephemeral"}


def digests(body: Body, namespace: str = "n", wire: WireFormat = "chat", model: Model = KEPT) -> list[bytes]:
    """Return a body's chain."""
    return hash_prefixes(Parser().parse(body, model, wire), namespace)


def agent() -> Body:
    """Return a body with every section: two tools, two system messages, a turn with a tool round."""
    return {
        "model": "databricks-claude-sonnet-4-6",
        "tools": [
            {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"a": {"type": "string"}}}},
            {"type": "function", "function": {"name": "g"}},
        ],
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": "Hi."},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "11"},
        ],
    }  # fmt: skip


TOOLS, SYSTEM, ALL = 2, 4, 7


def shared(one: list[bytes], other: list[bytes]) -> int:
    """Return how many prefixes two chains have in common; they never meet again after they part."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    assert same == sorted(same, reverse=True)
    return sum(same)


def set_text(path: tuple[Any, ...], value: Any) -> Callable[[Body], None]:
    """Return a change of one node."""

    def change(body: Body) -> None:
        node: Any = body
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


CHANGES: list[tuple[str, Callable[[Body], Any], int]] = [
    ("nothing", lambda body: None, ALL),
    ("model", set_text(("model",), "databricks-claude-sonnet-4-5"), 0),
    ("first tool", set_text(("tools", 0, "function", "description"), "e"), 0),
    ("last tool", set_text(("tools", 1, "function", "name"), "h"), 1),
    ("tools' order", lambda body: body["tools"].reverse(), 0),
    ("a tool more", lambda body: body["tools"].append({"function": {"name": "h"}}), TOOLS),
    ("first system", set_text(("messages", 0, "content"), "Be rude."), TOOLS),
    ("last system", set_text(("messages", 1, "content", 0, "text"), "Be brief!"), TOOLS + 1),
    ("user", set_text(("messages", 2, "content"), "Hi!"), SYSTEM),
    ("arguments", set_text(("messages", 3, "tool_calls", 0, "function", "arguments"), "{ }"), SYSTEM + 1),
    ("result", set_text(("messages", 4, "content"), "12"), SYSTEM + 2),
    ("tool_choice", set_text(("tool_choice",), "required"), SYSTEM),
    ("parallel_tool_calls", set_text(("parallel_tool_calls",), False), SYSTEM),
    ("speed", set_text(("speed",), "fast"), TOOLS),
    ("web search", set_text(("web_search_options",), {}), TOOLS),
    ("thinking", set_text(("thinking",), {"type": "enabled", "budget_tokens": 2000}), 0),
    ("effort", set_text(("reasoning_effort",), "low"), 0),
    ("native effort", set_text(("output_config",), {"effort": "low"}), 0),
    ("the default effort", set_text(("output_config",), {"effort": "high"}), ALL),
    ("response_format", set_text(("response_format",), {"type": "json_object"}), 0),
    ("temperature", set_text(("temperature",), 0.1), ALL),
    ("an image at the end", lambda body: body["messages"].append({"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}), SYSTEM),
    ("an image in a result", set_text(("messages", 4, "content"), [{"type": "image_url", "image_url": {"url": "u"}}]), SYSTEM),
    ("citations", lambda body: body["messages"].append({"role": "user", "content": [{"type": "document", "citations": {"enabled": True}}]}), TOOLS),
    ("a turn more", lambda body: body["messages"].append({"role": "user", "content": "And?"}), ALL),
    ("a late system", lambda body: body["messages"].append({"role": "system", "content": "Rhyme."}), SYSTEM),
    ("a marker at the top", set_text(("cache_control",), MARK), ALL),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "kept"), [case[1:] for case in CHANGES], ids=[case[0] for case in CHANGES]
)
def test_change_keeps_the_prefixes_before_it(change: Callable[[Body], Any], kept: int) -> None:
    """Each change keeps exactly the prefixes that the provider's table of invalidation keeps."""
    other = agent()
    change(other)
    assert shared(digests(agent()), digests(other)) == kept


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("databricks-claude-opus-4-6", "system.ai.claude-opus-4-6", True),
        ("databricks-claude-opus-4-6", "claude-opus-4-6", True),
        ("databricks-claude-opus-4-6", "databricks-claude-opus-4-5", False),
        ("databricks-our-own", "system.ai.our-own", True),
        ("main.services.our-own", "system.ai.our-own", False),
    ],
)
def test_spellings_of_one_model_share_prefixes(one: str, other: str, same: bool) -> None:
    """A gateway's name and an alias are one model; another model shares no prefix."""
    chains = [digests({**agent(), "model": name}) for name in (one, other)]
    assert (chains[0] == chains[1]) is same
    assert shared(*chains) == (ALL if same else 0)


def test_tenants_share_no_prefix() -> None:
    """Another namespace or wire format has no prefix in common."""
    namespaces = ["n", "m", "", "n\x00", "n\x00observed", "N"]
    chains = [digests(agent(), namespace) for namespace in namespaces]
    chains.append(digests({**agent(), "model": "observed\x00databricks-claude-sonnet-4-6"}, "n"))
    found = {digest for each in chains for digest in each}
    assert len(found) == sum(map(len, chains))
    plain = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert digests(plain) != digests(plain, wire="messages")


def test_model_name_that_json_cannot_carry_is_refused() -> None:
    """A lone surrogate in the model's name is refused like one in a text."""
    with pytest.raises(BodyError, match="not_json"):
        digests({**agent(), "model": "\ud800"})


def test_each_block_has_a_prefix_hash() -> None:
    """Hashes have 16 bytes, one a block, all different."""
    found = digests(agent())
    assert len(found) == len(set(found)) == ALL
    assert {len(digest) for digest in found} == {16}


def test_repeated_block_has_another_prefix_hash() -> None:
    """The same block twice is two prefixes."""
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 5}]}
    assert len(set(digests(body))) == 5


def test_empty_section_passes_on_its_key() -> None:
    """Parameters of the system section key the messages too if there is no system section."""
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert (
        len({digests({**body, **rest})[0] for rest in ({}, {"speed": "fast"}, {"tool_choice": "auto"})}) == 3
    )


def test_stripped_thinking_changes_no_hash() -> None:
    """A strip model's prompt is the same with or without old thinking, until the turn is over."""
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm.", "signature": "s"}]}
    text = {"type": "text", "text": "So."}
    user = {"role": "user", "content": "Why?"}

    def body(*parts: Any, more: bool) -> Body:
        return {
            "model": "m",
            "messages": [user, {"role": "assistant", "content": list(parts)}, *([user] if more else [])],
        }

    assert digests(body(thought, text, more=True), model=STRIPPED) == digests(
        body(text, more=True), model=STRIPPED
    )
    assert digests(body(thought, text, more=False), model=STRIPPED) != digests(
        body(text, more=False), model=STRIPPED
    )
    assert digests(body(thought, text, more=True)) != digests(body(text, more=True))
    # The turn that ends loses the entry that held the thinking: only the user's message is left.
    during, after = (
        digests(body(thought, text, more=False), model=STRIPPED),
        digests(body(thought, text, more=True), model=STRIPPED),
    )
    assert shared(during, after) == 1


@settings(max_examples=150, deadline=None)
@given(bodies(), st.sampled_from(SAME))
@example(("messages", {"model": "m", "system": "", "messages": [{"role": "user", "content": "Hi."}]}), listed)
def test_equal_bodies_have_equal_hashes(
    drawn: tuple[WireFormat, Body], change: Callable[[Body], Body]
) -> None:
    """Markers, one-part lists, envelope order and empty fields change no hash."""
    wire, body = drawn
    other = change(copy.deepcopy(body))
    for model in (KEPT, STRIPPED):
        assert digests(body, wire=wire, model=model) == digests(other, wire=wire, model=model)


@settings(max_examples=150, deadline=None)
@given(bodies(), st.data())
def test_appended_messages_keep_the_prefix(drawn: tuple[WireFormat, Body], data: st.DataObject) -> None:
    """A conversation that goes on keeps its prefixes on a model that keeps thinking."""
    wire, body = drawn
    cut = data.draw(st.integers(1, len(body["messages"])))
    messages = body["messages"][:cut]
    if any(m["role"] in ("system", "developer") for m in body["messages"][cut:]):
        return
    images = Parser().parse({**body, "messages": messages}, KEPT, wire), Parser().parse(body, KEPT, wire)
    if images[0].params != images[1].params or images[0].system_params != images[1].system_params:
        return
    short = digests({**body, "messages": messages}, wire=wire)
    assert digests(body, wire=wire)[: len(short)] == short


# -- tracked blocks -------------------------------------------------------------------------------


def turns(count: int, tools: int = 0, system: int = 0, width: int = 0, **rest: Any) -> Body:
    """Return a conversation of `count` user turns; a `width` makes each answer that many calls."""
    messages: list[Body] = [{"role": "system", "content": f"s{n}"} for n in range(system)]
    for turn in range(count):
        messages.append({"role": "user", "content": f"u{turn}"})
        if turn + 1 < count or width:
            calls = [{"id": f"{turn}.{n}"} for n in range(width)]
            messages.append(
                {"role": "assistant", "content": f"a{turn}", **({"tool_calls": calls} if width else {})}
            )
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": "r"} for call in calls]
            if width and turn + 1 < count:
                messages.append({"role": "assistant", "content": f"b{turn}"})
    return {
        "model": "m",
        "messages": messages,
        "tools": [{"function": {"name": f"t{n}"}} for n in range(tools)],
        **rest,
    }


def watched(body: Body) -> list[int]:
    """Return the tracked blocks of a body."""
    return track_prefixes(Parser().parse(body, KEPT))


@pytest.mark.parametrize(
    "body",
    [turns(1), turns(3), turns(40), turns(900), turns(1, tools=60), turns(1, system=60), turns(30, tools=9, system=9, width=24), turns(2, width=400)],
)  # fmt: skip
def test_tracked_blocks_are_few_and_include_the_ends(body: Body) -> None:
    """A request of any length has under 90 tracked blocks with the end of each section and the last block."""
    parsed = Parser().parse(body, KEPT)
    found = track_prefixes(parsed)
    assert found == sorted(set(found))
    assert 0 < len(found) < 90
    assert found[-1] == len(parsed.blocks) - 1
    assert {parsed.tools_end - 1, parsed.system_end - 1} - {-1} <= set(found)
    assert found[0] >= 0


@pytest.mark.parametrize("width", [0, 1, 5, 24, 60])
def test_end_of_a_request_is_tracked_in_later_turns(width: int) -> None:
    """The end of a request, where its entry is, is tracked in the five turns that follow."""
    ends: list[int] = []
    for count in range(1, 60):
        body = turns(count, tools=3, system=1, width=width)
        found = set(watched(body))
        assert set(ends[-5:]) <= found
        ends.append(len(Parser().parse(body, KEPT).blocks) - 1)


def test_old_ends_are_tracked_at_a_stride() -> None:
    """A tracked block of a long conversation's past was tracked when the conversation was shorter."""
    short, long = set(watched(turns(150))), set(watched(turns(151)))
    past = {index for index in long if 8 < index < 200}
    assert past
    assert past <= short


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("count", [1, 50])
def test_blocks_with_client_markers_are_tracked(at: int, count: int) -> None:
    """A block that the client marked is tracked at any place, since added breakpoints depend on it."""
    body = turns(count, tools=9)
    body["tools"][at]["cache_control"] = MARK
    assert at in watched(body)


def test_system_section_alone_is_tracked() -> None:
    """A body of system messages only is tracked to its end."""
    for count in (3, 40):
        body = {"model": "m", "messages": [{"role": "system", "content": f"s{n}"} for n in range(count)]}
        assert watched(body)[-1] == count - 1


@settings(max_examples=100, deadline=None)
@given(bodies())
def test_tracked_blocks_of_any_body_are_bounded(drawn: tuple[WireFormat, Body]) -> None:
    """For any body the tracked blocks exist, are bounded, and end with the last."""
    wire, body = drawn
    for model in (KEPT, STRIPPED):
        parsed = Parser().parse(body, model, wire)
        found = track_prefixes(parsed)
        assert found == sorted(set(found))
        assert found[-1] == len(parsed.blocks) - 1
        assert len(found) < 90
