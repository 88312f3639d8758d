"""The 400s of the provider, word for word."""

from __future__ import annotations

from typing import Any

import pytest

from cachemw.core.rules.types import Model
from cachemw.simulation.anthropic_form import Wire
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache, Ticket
from tests.simulation.test_anthropic_form import HIDDEN, IMAGE, THOUGHT, call, text, tool, user

Body = dict[str, Any]
MODEL = Model("claude-test", 0, None)
M: Body = {"cache_control": {"type": "ephemeral"}}
HOUR: Body = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


def begin(body: Body, wire: Wire = "chat", model: Model = MODEL, **options: Any) -> Ticket:
    """Send a body to a fresh provider."""
    return ProviderCache(model, Options(**options)).begin(body, 0, wire)


def assistant(*content: Any, **rest: Any) -> Body:
    """Return an assistant message of parts."""
    return {"role": "assistant", "content": list(content), **rest}


def result(*content: Any) -> Body:
    """Return a tool message of parts."""
    return {"role": "tool", "tool_call_id": "a", "content": list(content)}


URL: Body = {"type": "image_url", "image_url": {"url": "https://example.com/lamp.png"}}
EXTRA = "Extra inputs are not permitted"
BLANK = "cache_control cannot be set for empty text blocks"

REFUSED: list[tuple[str, Body, dict[str, Any]]] = [
    (
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        {"messages": [user(*[text("a", **M)] * 5)]},
        {},
    ),
    (f"messages.0.content.1.text: {BLANK}", {"messages": [user(text("a"), text(" \n", **M))]}, {}),
    (f"system.0: {BLANK}", {"messages": [{"role": "system", "content": [text("\t", **M)]}, user("a")]}, {}),
    (
        f"messages.0.content.0.tool_result.content.0.text: {BLANK}",
        {"messages": [result(text(" ", **M))]},
        {},
    ),
    (
        f"messages.0.content.0.tool_result.content.0.text.cache_control: {EXTRA}",
        {"messages": [result(text("a", **M), text("b"))]},
        {},
    ),
    (
        "messages.0.content.1.text.cache_control.ttl: a ttl='1h' cache_control block must not come after a "
        "ttl='5m' cache_control block. Note that blocks are processed in the following order: "
        "`tools`, `system`, `messages`.",
        {"messages": [user(text("a", **M), text("b", **HOUR))]},
        {},
    ),
    (
        "system.0.cache_control.ttl: a ttl='1h' cache_control block must not come after a "
        "ttl='5m' cache_control block. Note that blocks are processed in the following order: "
        "`tools`, `system`, `messages`.",
        {
            "messages": [{"role": "system", "content": [text("a", **HOUR)]}, user("a")],
            "tools": [{**tool("look"), **M}],
        },
        {},
    ),
    (
        f"messages.1.content.0.thinking.cache_control: {EXTRA}",
        {"messages": [user("a"), assistant({**THOUGHT, **M}, text("b"))]},
        {},
    ),
    (
        f"messages.1.content.0.redacted_thinking.cache_control: {EXTRA}",
        {"messages": [user("a"), assistant({**HIDDEN, **M}, text("b"))]},
        {},
    ),
    (
        f"messages.0.content.1.text.cache_control.ephemeral.ttl: {EXTRA}",
        {"messages": [user(text("a"), text("b", **HOUR))]},
        {"supports_1h": False},
    ),
    (
        f"system.1.cache_control.ephemeral.scope: {EXTRA}",
        {
            "messages": [
                {
                    "role": "system",
                    "content": [text("a"), text("b", cache_control={"type": "ephemeral", "scope": 1})],
                },
                user("a"),
            ]
        },
        {},
    ),
    (
        "messages.0.content.0.text.cache_control.ephemeral.ttl: Input should be '5m' or '1h'",
        {"messages": [user(text("a", cache_control={"type": "ephemeral", "ttl": "2h"}))]},
        {},
    ),
    (
        "messages.0.content.0.text.cache_control.type: Input should be 'ephemeral'",
        {"messages": [user(text("a", cache_control={"type": "lasting"}))]},
        {},
    ),
    (
        "messages.0.content.0.text.cache_control: Input should be a valid dictionary",
        {"messages": [user(text("a", cache_control="ephemeral"))]},
        {},
    ),
    (f"messages.0.content.0.odd.cache_control: {EXTRA}", {"messages": [user({"type": "odd", **M})]}, {}),
    (
        f"tools.1.cache_control: {EXTRA}",
        {"messages": [user("a")], "tools": [tool("look"), {**tool("buy"), **M}]},
        {"tool_markers": False},
    ),
    (
        f"messages.0.content.0.tool_result.cache_control: {EXTRA}",
        {"messages": [result(text("a", **M))]},
        {"tool_result_markers": False},
    ),
    (
        "role 'system' is not supported on this model",
        {"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]},
        {"mid_system": "refuse"},
    ),
    (
        'tool_choice: type "tool" and "any" are not supported for this model.',
        {"messages": [user("a")], "tool_choice": "required"},
        {"model": Model("claude-opus-5-5", 0, None)},
    ),
    ("cache_control: Extra inputs are not permitted", {"messages": [user("a")], **M}, {}),
    ("messages.0.content.0.image.source.type: Input should be 'base64'", {"messages": [user(URL)]}, {}),
    (
        f"tools.0.strict: {EXTRA}",
        {
            "messages": [user("a")],
            "tools": [{"type": "function", "function": {**tool("look")["function"], "strict": False}}],
        },
        {},
    ),
    (f"messages.0.name: {EXTRA}", {"messages": [user("a", name="Ann")]}, {}),
    ("messages: text content blocks must be non-empty", {"messages": [user(text(""))]}, {}),
    ("messages: text content blocks must be non-empty", {"messages": [user("")]}, {"provider": "anthropic"}),
    (
        "messages.1: all messages must have non-empty content except for the optional final assistant message",
        {"messages": [user("a"), {"role": "assistant", "content": None}]},
        {},
    ),
    ("messages: Field required", {"model": "x"}, {}),
    ("messages: Input should be a valid list", {"messages": "hello"}, {}),
    ("messages.0: Input should be a valid dictionary", {"messages": ["hello"]}, {}),
    (
        "messages.0.role: Input should be 'system', 'user', 'assistant' or 'tool'",
        {"messages": [{"role": "robot", "content": "a"}]},
        {},
    ),
    ("messages.0.content: Field required", {"messages": [{"role": "user", "content": None}]}, {}),
    ("messages.0.content: Input should be a valid list", {"messages": [user(7, 8) | {"content": 7}]}, {}),
    (
        "messages.0.content.0.text.text: Input should be a valid string",
        {"messages": [user({"type": "text", "text": 7})]},
        {},
    ),
    ("tools: Input should be a valid list", {"messages": [user("a")], "tools": {"look": 1}}, {}),
    ("The request body is not valid JSON", {"messages": [user("\ud800")]}, {}),
]


@pytest.mark.parametrize(("message", "body", "options"), REFUSED)
def test_refusal_has_the_text_of_the_provider(message: str, body: Body, options: dict[str, Any]) -> None:
    """Each condition has its exact text and status 400."""
    with pytest.raises(Refused) as refused:
        begin(body, **options)
    assert (refused.value.status, refused.value.message) == (400, message)


ACCEPTED: list[tuple[str, Body, dict[str, Any], list[str]]] = [
    ("four markers", {"messages": [user(*[text("a", **M)] * 4)]}, {}, ["text"] * 4),
    ("an image", {"messages": [user(text("a"), {**IMAGE, **M})]}, {}, ["image"]),
    (
        "a call, and a result on its last part",
        {"messages": [user("a"), assistant(tool_calls=[call(1, **M)]), result(text("a"), text("b", **M))]},
        {},
        ["tool_use", "tool_result"],
    ),
    ("a definition", {"messages": [user("a")], "tools": [{**tool("look"), **M}]}, {}, ["custom"]),
    (
        "a definition, inside its function",
        {
            "messages": [user("a")],
            "tools": [{"type": "function", "function": {**tool("look")["function"], **M}}],
        },
        {},
        ["custom"],
    ),
    (
        "thinking, where that reading is chosen",
        {"messages": [user("a"), assistant({**THOUGHT, **M}, text("b"))]},
        {"reasoning_markers": True},
        ["thinking"],
    ),
    ("an hour, then five minutes", {"messages": [user(text("a", **HOUR), text("b", **M))]}, {}, ["text"] * 2),
    ("an empty marker", {"messages": [user(text("a", cache_control=None))]}, {}, []),
    ("a marker beside a string is none", {"messages": [user("a", **M)]}, {}, []),
    (
        "a marker inside a call's function is none",
        {
            "messages": [
                user("a"),
                assistant(tool_calls=[{"id": "a", "function": {"name": "n", "arguments": "{}", **M}}]),
            ]
        },
        {},
        [],
    ),
    ("an image URL elsewhere", {"messages": [user({**URL, **M})]}, {"provider": "openrouter"}, ["image"]),
    ("a strict tool elsewhere", {"messages": [user("a", name="Ann")]}, {"provider": "openrouter"}, []),
    ("a blank text", {"messages": [user(text(" "))]}, {}, []),
    ("an unknown part", {"messages": [user({"type": "odd", "data": [1]}, text("a", **M))]}, {}, ["text"]),
]


@pytest.mark.parametrize(("name", "body", "options", "marked"), ACCEPTED, ids=[case[0] for case in ACCEPTED])
def test_marked_blocks_write_entries(
    name: str, body: Body, options: dict[str, Any], marked: list[str]
) -> None:
    """Each type of block takes a marker, and every marker after the hit writes an entry."""
    ticket = begin(body, minimum=0, **options)
    assert [p.type for p in ticket.request.positions if p.marker] == marked
    assert len(ticket.writes) == len(marked)


def test_automatic_marker_takes_the_last_eligible_block() -> None:
    """A top-level marker skips thinking and blank texts, and adds nothing if the last block has its own."""
    thought = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    messages = [user(text("a"), text("b")), assistant(text(" "), thought)]
    ticket = begin({"messages": messages, **M}, "messages", provider="anthropic")
    assert [p.place for p in ticket.request.positions if p.marker] == [("messages", 0, "content", 1)]
    ticket = begin({"messages": [user(text("a", **M))], **M}, "messages", provider="anthropic")
    assert len(ticket.writes) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": [user(text("a", **M))], **HOUR}, "cache_control: ttl='1h' conflicts with ttl='5m'"),
        ({"messages": [user(*[text("a", **M)] * 4, text("b"))], **M}, "A maximum of 4 blocks"),
    ],
)
def test_conflicting_automatic_marker_is_refused(body: Body, message: str) -> None:
    """Another TTL on the last block, or no free slot, is a 400."""
    with pytest.raises(Refused, match=message):
        begin(body, "messages", provider="anthropic")


def test_late_system_message_on_the_messages_wire_follows_model_and_option() -> None:
    """Refused by unaware models, kept by others, hoisted by option."""
    body = {"system": "a", "messages": [user("b"), {"role": "system", "content": "c"}]}
    with pytest.raises(Refused, match="role 'system' is not supported on this model"):
        begin(body, "messages")
    knows = Model("claude-knows", 0, None, mid_system=True)
    assert [p.role for p in begin(body, "messages", knows).request.positions] == ["system", "user", "system"]
    hoisted = begin(body, "messages", mid_system="hoist").request.positions
    assert [p.role for p in hoisted] == ["system", "system", "user"]


def test_unknown_role_on_the_messages_wire_is_refused() -> None:
    """A role of the other wire is a 400, and so is a message without blocks."""
    with pytest.raises(Refused, match=r"messages.0.role: Input should be 'user' or 'assistant'"):
        begin({"messages": [{"role": "tool", "content": "a"}]}, "messages")
    with pytest.raises(Refused, match=r"messages.0: all messages must have non-empty content"):
        begin({"messages": [{"role": "user", "content": []}]}, "messages")
