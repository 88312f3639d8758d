"""A whole body as blocks: sections and their order, paths, keys of an entry, unreadable bodies."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings

from cachemw.core.request import parser as module
from cachemw.core.request.parser import ParsedRequest, Parser, WireFormat
from cachemw.core.rules.types import Model
from cachemw.errors import BodyError
from tests.bodies import Body, bodies

KEPT = Model("claude-kept", 1024, None)
MID = Model("claude-mid", 1024, None, mid_system=True)
STRIPPED = Model("claude-stripped", 1024, None, thinking="stripped")
MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}


def parse(body: Any, model: Model = KEPT, wire: WireFormat = "chat") -> ParsedRequest:
    """Read a body with a parser of its own."""
    return Parser().parse(body, model, wire)


def chat(*messages: Any, **rest: Any) -> Body:
    """Return a chat body; a string is a message whose role is its first letter's."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    listed = [{"role": roles[m[0]], "content": m} if isinstance(m, str) else m for m in messages]
    return {"model": "claude-x", "messages": listed, **rest}


def paths(parsed: ParsedRequest) -> list[str]:
    """Return each block's path, dotted."""
    return [".".join(map(str, parsed.path(index))) for index in range(len(parsed.blocks))]


TOOL = {"type": "function", "function": {"name": "f"}}
CALLS = {"role": "assistant", "content": "Look.", "tool_calls": [{"id": "1"}, {"id": "2"}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "11"}
THOUGHT = {"type": "reasoning", "summary": []}
TEXT = {"type": "text", "text": "t"}


def test_blocks_are_in_the_providers_order() -> None:
    """Tools come first, then system, then messages, each block with the path of its marker."""
    parsed = parse({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [TEXT, TEXT]}, CALLS, RESULT],
                    "tools": [TOOL, TOOL], "model": "claude-x"})  # fmt: skip
    assert paths(parsed) == [
        "tools.0", "tools.1", "messages.0.content", "messages.1.content.0", "messages.1.content.1",
        "messages.2.content", "messages.2.tool_calls.0", "messages.2.tool_calls.1", "messages.3.content",
    ]  # fmt: skip
    assert (parsed.tools_end, parsed.system_end) == (2, 3)
    assert [block.role for block in parsed.blocks] == ["tool"] * 2 + ["system"] + ["user"] * 2 + [
        "assistant"
    ] * 3 + ["user"]


def test_native_blocks_are_in_the_providers_order() -> None:
    """The Messages API's system is a field: a string has its own path, or each block has one."""
    body: Body = {
        "model": "claude-x",
        "messages": [{"role": "user", "content": "u"}],
        "tools": [{"name": "f"}],
        "system": "s",
    }
    assert paths(parse(body, wire="messages")) == ["tools.0", "system", "messages.0.content"]
    body["system"] = [TEXT, TEXT]
    parsed = parse(body, wire="messages")
    assert paths(parsed) == ["tools.0", "system.0", "system.1", "messages.0.content"]
    assert (parsed.tools_end, parsed.system_end) == (1, 3)
    for empty in (None, "", []):
        assert parse({**body, "system": empty}, wire="messages").system_end == 1


def test_system_field_of_a_chat_body_is_ignored() -> None:
    """In the chat format `system` is some other parameter."""
    assert len(parse(chat("u", system="s")).blocks) == 1


def test_leading_system_messages_are_the_system_section() -> None:
    """All system and developer messages before the first other one are one section."""
    developer = {"role": "developer", "content": "d"}
    parsed = parse(chat("s", developer, {"role": "system", "content": [TEXT, TEXT]}, "u"))
    assert (parsed.tools_end, parsed.system_end, len(parsed.blocks)) == (0, 4, 5)


def test_late_system_message_is_hoisted() -> None:
    """A model without mid-list system messages reads a late one in the system section, path and all."""
    parsed = parse(chat("s", "u", "a", "s2", "u2"))
    assert paths(parsed) == [f"messages.{index}.content" for index in (0, 3, 1, 2, 4)]
    assert parsed.system_end == 2


def test_late_system_message_stays_for_models_that_keep_it() -> None:
    """A model with mid-list system messages reads a late one in its place."""
    parsed = parse(chat("s", "u", "a", "s2", "u2"), MID)
    assert paths(parsed) == [f"messages.{index}.content" for index in range(5)]
    assert parsed.system_end == 1


def test_hoisted_message_changes_the_prefix() -> None:
    """A hoisted message changes the blocks before the conversation, a kept one does not."""
    before, after = chat("s", "u"), chat("s", "u", "a", "s2")
    for model, same in ((KEPT, 1), (MID, 2)):
        one, two = parse(before, model), parse(after, model)
        assert sum(a == b for a, b in zip(one.blocks, two.blocks, strict=False)) == same


@pytest.mark.parametrize(
    ("messages", "left"),
    [
        (["u", {"role": "assistant", "content": [THOUGHT, TEXT]}, "u"], 3),
        (["u", {"role": "assistant", "content": [THOUGHT, TEXT]}], 3),
        (["u", {"role": "assistant", "content": [THOUGHT]}, "u"], 2),
        (["u", {**CALLS, "content": [THOUGHT]}, RESULT], 5),
        (["u", {**CALLS, "content": [THOUGHT]}, RESULT, "u"], 5),
        (["u", {"role": "assistant", "content": [THOUGHT]}, "s", "u"], 3),
    ],
)
def test_old_thinking_is_stripped(messages: list[Any], left: int) -> None:
    """A strip model forgets thinking before the user's last own message; a tool result is no such message."""
    assert len(parse(chat(*messages), STRIPPED).blocks) == left
    assert sum(str(block.kind) == "reasoning" for block in parse(chat(*messages)).blocks) == 1


def test_markers_on_stripped_blocks_are_counted() -> None:
    """The request leaves with every marker, even on blocks that the model forgets."""
    old = {
        "role": "assistant",
        "content": [{**THOUGHT, "cache_control": MARK}, {**TEXT, "cache_control": HOUR}],
    }
    parsed = parse(chat("u", old, "u", tools=[{**TOOL, "cache_control": MARK}], cache_control=HOUR), STRIPPED)
    assert (parsed.client_marker_count, parsed.automatic_marker) == (4, "1h")
    assert [block.marker for block in parsed.blocks] == ["5m", None, "1h", None]
    assert parse(chat("u")).client_marker_count == 0


# -- other parts of an entry's key ----------------------------------------------------------------

IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com"}}]}
CITED = {"role": "user", "content": [{"type": "document", "source": {}, "citations": {"enabled": True}}]}
KEYS: list[tuple[str, Body, str]] = [
    ("thinking", {"thinking": {"type": "enabled", "budget_tokens": 1024}}, "root"),
    ("budget", {"thinking": {"type": "enabled", "budget_tokens": 2048}}, "root"),
    ("reasoning", {"reasoning": {"max_tokens": 100}}, "root"),
    ("effort", {"reasoning_effort": "low"}, "root"),
    ("native effort", {"output_config": {"effort": "low"}}, "root"),
    ("format", {"response_format": {"type": "json_object"}}, "root"),
    ("native format", {"output_config": {"format": {"type": "json_schema"}, "effort": "high"}}, "root"),
    ("speed", {"speed": "fast"}, "system_params"),
    ("web search", {"web_search_options": {}}, "system_params"),
    ("tool choice", {"tool_choice": "auto"}, "params"),
    ("a tool", {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "params"),
    ("parallel calls", {"parallel_tool_calls": False}, "params"),
    ("no parallel use", {"disable_parallel_tool_use": True}, "params"),
]  # fmt: skip


@pytest.mark.parametrize(("rest", "column"), [case[1:] for case in KEYS], ids=[case[0] for case in KEYS])
def test_parameter_keys_its_sections(rest: Body, column: str) -> None:
    """Each parameter is part of the key from the section on where a change of it loses entries."""
    plain, keyed = parse(chat("u")), parse(chat("u", **rest))
    changed = {
        name for name in ("root", "system_params", "params") if getattr(plain, name) != getattr(keyed, name)
    }
    assert changed == {column}


def test_parameter_values_have_different_keys() -> None:
    """No two values of a parameter share a key."""
    parsed = [parse(chat("u", **rest)) for _, rest, _ in KEYS] + [parse(chat("u"))]
    found = {(p.root, p.system_params, p.params) for p in parsed}
    assert len(found) == len(parsed)


@pytest.mark.parametrize(
    "rest",
    [
        {"output_config": {"effort": "high"}}, {"output_config": {}}, {"thinking": None, "tool_choice": None},
        {"temperature": 0.5}, {"max_tokens": 9}, {"user": "u"}, {"stream": True, "n": 1}, {"metadata": {"thinking": 1}},
    ],
)  # fmt: skip
def test_parameters_outside_the_prompt_key_nothing(rest: Body) -> None:
    """Explicit defaults, and parameters that the prompt does not contain, are no part of a key."""
    plain, keyed = parse(chat("u")), parse(chat("u", **rest))
    assert [getattr(plain, n) for n in ("root", "system_params", "params")] == [
        getattr(keyed, n) for n in ("root", "system_params", "params")
    ]


def test_key_order_of_a_parameter_is_ignored() -> None:
    """A parameter's own key order is no content, that of a schema inside it is."""
    one = parse(chat("u", thinking={"type": "enabled", "budget_tokens": 9}))
    assert one.root == parse(chat("u", thinking={"budget_tokens": 9, "type": "enabled"})).root
    schemas = [{"a": 1, "b": 2}, {"b": 2, "a": 1}]
    roots = {
        parse(chat("u", response_format={"type": "json_schema", "json_schema": {"schema": s}})).root
        for s in schemas
    }
    assert len(roots) == 2


def test_images_and_citations_change_the_key() -> None:
    """An image anywhere keys the messages, citations key the system section; a second one changes nothing."""
    plain, image, cited = parse(chat("u")), parse(chat("u", IMAGE)), parse(chat("u", CITED))
    assert (plain.system_params, plain.params) == (b"", b"")
    assert (image.system_params, bool(image.params)) == (b"", True)
    assert (bool(cited.system_params), cited.params) == (True, b"")
    assert parse(chat("u", IMAGE, IMAGE)).params == image.params


# -- unreadable bodies ----------------------------------------------------------------------------

USER = {"role": "user", "content": "u"}
BAD: list[tuple[Any, str]] = [
    (None, "not_a_mapping"), ([], "not_a_mapping"), ("body", "not_a_mapping"), (b"{}", "not_a_mapping"),
    ({}, "no_messages"), ({"model": "m"}, "no_messages"), (chat(), "no_messages"),
    ({"model": "m", "messages": None}, "no_messages"), ({"model": "m", "messages": "hello"}, "no_messages"),
    ({"model": "m", "messages": {"role": "user"}}, "no_messages"), ({"model": "m", "messages": iter([USER])}, "no_messages"),
    ({"messages": [USER]}, "bad_model"), ({"model": 5, "messages": [USER]}, "bad_model"),
    ({"model": None, "messages": [USER]}, "bad_model"),
    (chat(USER, tools={"a": 1}), "bad_tools"), (chat(USER, tools="f"), "bad_tools"), (chat(USER, tools=[None]), "bad_tools"),
    (chat(7), "bad_message"), (chat({"role": "user", "content": 7}), "bad_message"),
    (chat({"role": "system", "content": []}), "no_content"),
    (chat({"role": "user", "content": "\ud800"}), "not_json"), (chat({"role": "user", "content": [{"x": float("nan")}]}), "not_json"),
    (chat(USER, temperature=float("nan")), "not_json"), (chat(USER, top_p=float("inf")), "not_json"),
    (chat(USER, thinking={"budget_tokens": float("inf")}), "not_json"), (chat(USER, tool_choice={1: 2}), "not_json"),
    (chat({"role": "user", "content": "u", "seed": 2**70}), "not_json"), (chat({"role": "user", "content": "u", 1: 2}), "not_json"),
    (chat(MappingProxyType(USER)), "not_json"),
]  # fmt: skip
BAD_NATIVE: list[tuple[Any, str]] = [
    ({"model": "m", "messages": [USER], "system": {"type": "text"}}, "bad_system"),
    ({"model": "m", "messages": [USER], "system": 5}, "bad_system"),
    ({"model": "m", "messages": [USER], "system": ["s"]}, "bad_system"),
    ({"model": "m", "messages": [USER], "system": [None]}, "bad_message"),
    ({"model": "m", "messages": [{"role": "user", "content": None}]}, "bad_message"),
]


@pytest.mark.parametrize(
    ("body", "reason", "wire"),
    [(*case, "chat") for case in BAD] + [(*case, "messages") for case in BAD_NATIVE],
)
def test_unreadable_body_is_refused_with_a_reason(body: Any, reason: str, wire: WireFormat) -> None:
    """A body that is no chat request is refused with a short reason."""
    with pytest.raises(BodyError) as caught:
        parse(body, wire=wire)
    assert caught.value.reason == reason


def test_body_may_be_any_mapping_with_tuples() -> None:
    """A body need not be a dict, nor its lists lists."""
    body = MappingProxyType(
        {"model": "m", "messages": (USER, {"role": "assistant", "content": (TEXT,)}), "tools": ()}
    )
    assert paths(parse(body)) == ["messages.0.content", "messages.1.content.0"]


# -- the memo -------------------------------------------------------------------------------------


def test_known_message_gives_the_same_blocks() -> None:
    """A message that is read again, in another body or place, gives the very same blocks."""
    parser = Parser()
    one = parser.parse(chat("u", "a"), KEPT)
    parser.learn("", one)
    two = parser.parse(copy.deepcopy(chat("s", "u", "a", "u2")), KEPT)
    assert two.blocks[1] is one.blocks[0]
    assert two.blocks[2] is one.blocks[1]


def test_wire_formats_share_no_memo_entry() -> None:
    """The same bytes are read by the wire format of their request."""
    parser = Parser()
    body = {"model": "m", "messages": [{"role": "tool", "tool_call_id": "1", "content": "a"}]}
    assert [str(parser.parse(body, KEPT, wire).blocks[0].kind) for wire in ("chat", "messages")] == [
        "tool_result",
        "text",
    ]


def test_memo_of_a_request_that_was_not_accepted_stays_empty() -> None:
    """Reading alone leaves nothing behind: a request without a valid credential can't fill the memo."""
    parser = Parser()
    parser.parse(chat("u", "a"), KEPT, namespace="evil")
    assert len(parser._memo) == 0


def test_memo_of_two_namespaces_shares_no_item() -> None:
    """A message that one tenant sent is read anew for another tenant."""
    parser = Parser()
    one = parser.parse(chat("u"), KEPT, namespace="one")
    parser.learn("one", one)
    other = parser.parse(chat("u"), KEPT, namespace="other")
    assert other.blocks[0] is not one.blocks[0]
    assert other.blocks[0].digest != one.blocks[0].digest


def test_memo_hashes_of_two_processes_differ() -> None:
    """The hashes of the memo follow from a random key, so that no collision can be prepared."""
    one, other = (Parser(keys=module.ContentKeys(memo=key)) for key in (b"one", b"other"))
    hashes = [parser.parse(chat("u"), KEPT).new_items[0][0] for parser in (one, other)]
    assert hashes[0] != hashes[1]


def test_memo_of_a_flooding_namespace_evicts_only_its_own_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memo keeps its limit, and a tenant below its fair share loses nothing to another."""
    monkeypatch.setattr(module, "_MEMO_LIMIT", 10)
    parser = Parser()
    parser.learn("victim", parser.parse(chat("u", "a"), KEPT, namespace="victim"))
    for number in range(50):
        body = chat(*(f"u{number}.{turn}" for turn in range(3)))
        parsed = parser.parse(body, KEPT, namespace="flood")
        parser.learn("flood", parsed)
        assert len(parser._memo) <= 10
    assert not parser.parse(chat("u", "a"), KEPT, namespace="victim").new_items


def test_memo_holds_no_text() -> None:
    """The memo holds no piece of a message's text."""
    parser = Parser()
    parser.learn("", parser.parse(chat("u secret words", tools=[{"function": {"name": "secret"}}]), KEPT))
    assert len(parser._memo) == 2
    assert "secret" not in repr(parser._memo.read(""))


# -- bounds ---------------------------------------------------------------------------------------

_MANY = [{"role": "user", "content": f"{number}"} for number in range(module.MOST_ITEMS + 1)]
_PARTS = [{"type": "text", "text": f"{number}"} for number in range(2_001)]


@pytest.mark.parametrize(
    ("reason", "messages"),
    [
        ("too_many_items", _MANY),
        ("too_many_parts", [{"role": "user", "content": _PARTS}]),
        ("too_many_parts", [{"role": "user", "content": [{"type": "tool_result", "content": _PARTS}]}]),
        ("too_many_parts", [{"role": "assistant", "tool_calls": [{"id": "1"}] * 2_001}]),
        ("too_many_blocks", [{"role": "user", "content": _PARTS[:2_000]}] * 11),
    ],
)
def test_body_above_a_bound_is_refused_with_its_reason(reason: str, messages: list[Any]) -> None:
    """A body that is too large to read is no chat request for cachemw."""
    with pytest.raises(BodyError, match=reason):
        Parser().parse({"model": "m", "messages": messages}, KEPT)


def test_steps_of_a_long_body_pause_between_slices() -> None:
    """Reading pauses often enough for an event loop: after every 128 new items, and after every MiB."""
    parser = Parser()
    for messages, least in ((_MANY[:2_000], 15), ([{"role": "user", "content": "a" * 4_096}] * 2_000, 7)):
        steps = parser.steps({"model": "m", "messages": messages}, KEPT, "chat", "")
        assert sum(1 for _ in steps) >= least
    assert sum(1 for _ in parser.steps(chat("u", "a"), KEPT, "chat", "")) == 0


@settings(max_examples=150, deadline=None)
@given(bodies())
def test_path_of_any_block_leads_to_it(drawn: tuple[WireFormat, Body]) -> None:
    """Each markable block's path is unique and ends at a string, or at an object that holds its marker."""
    wire, body = drawn
    for model in (KEPT, MID, STRIPPED):
        parsed = parse(body, model, wire)
        markable = [index for index, block in enumerate(parsed.blocks) if block.markable]
        found = [parsed.path(index) for index in markable]
        assert len(set(found)) == len(found)
        for index, path in zip(markable, found, strict=True):
            node: Any = body
            for key in path:
                node = node[key]
            assert isinstance(node, (str, Mapping))
            if isinstance(node, Mapping) and node.get("cache_control"):
                assert parsed.blocks[index].marker


@settings(max_examples=100, deadline=None)
@given(bodies())
def test_parsing_any_body_changes_nothing(drawn: tuple[WireFormat, Body]) -> None:
    """A body is only read, and reads the same twice, with a warm memo or a cold one."""
    wire, body = drawn
    before, parser = copy.deepcopy(body), Parser()
    first = parser.parse(body, KEPT, wire)
    assert first == parser.parse(body, KEPT, wire) == parse(before, wire=wire)
    assert body == before
    assert first.client_marker_count == _count_markers(body)


def _count_markers(body: Body) -> int:
    """Count the markers by their place alone."""

    def inside(node: Any, stop: Callable[[str], bool]) -> int:
        if isinstance(node, list):
            return sum(inside(item, stop) for item in node)
        if not isinstance(node, dict):
            return 0
        own = node.get("cache_control") is not None
        return own + sum(inside(value, stop) for key, value in node.items() if not stop(key))

    data = ("cache_control", "parameters", "input_schema", "input", "source", "image_url", "summary")
    sections = {key: body.get(key) for key in ("cache_control", "messages", "tools", "system")}
    return inside(sections, lambda key: key in data)
