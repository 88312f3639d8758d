"""Every form of a tool, system block or message: its blocks, their paths and their content."""

from __future__ import annotations

import base64
import enum
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.request.canonical_json import canonical_json
from cachemw.core.request.message_blocks import (
    Block,
    ParsedMessage,
    ReadingContext,
    chat_message,
    native_message,
    system_block,
    tool,
)
from cachemw.core.rules.types import Kind
from cachemw.errors import BodyError
from tests.bodies import PNG

MARK = {"type": "ephemeral"}
HOUR = {"type": "ephemeral", "ttl": "1h"}
DATA = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
URL = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
SAID = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking...", "signature": "s"}]}
HIDDEN = {"type": "reasoning", "summary": [{"type": "summary_encrypted_text", "data": "b64"}]}
CALL = {
    "type": "function",
    "id": "123",
    "function": {"name": "get_weather", "arguments": '{"location":"New York, NY"}'},
}


def chat(message: Any) -> ParsedMessage:
    """Read a chat message."""
    return chat_message(message, ReadingContext())


def native(message: Any) -> ParsedMessage:
    """Read an Anthropic message."""
    return native_message(message, ReadingContext())


def part(value: Any) -> Block:
    """Return the block of one part of a user message."""
    return native({"role": "user", "content": [value]}).blocks[0]


def shapes(item: ParsedMessage) -> list[tuple[str, str, tuple[str | int, ...], bool, str | None]]:
    """Return (role, kind, path inside the message, markable, marker) of each block."""
    return [(b.role, str(b.kind), b.marker_path, b.markable, b.marker) for b in item.blocks]


C = ("content",)
CHAT: list[tuple[str, Any, list[tuple[str, str, tuple[str | int, ...], bool, str | None]]]] = [
    ("string", {"role": "user", "content": "Hi."}, [("user", "text", C, True, None)]),
    ("marked text", {"role": "user", "content": [{"type": "text", "text": "Hi.", "cache_control": MARK}]},
     [("user", "text", (*C, 0), True, "5m")]),
    ("two texts", {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": HOUR}]},
     [("user", "text", (*C, 0), True, None), ("user", "text", (*C, 1), True, "1h")]),
    ("system", {"role": "system", "content": "Be kind."}, [("system", "text", C, True, None)]),
    ("developer", {"role": "developer", "content": "Be kind."}, [("system", "text", C, True, None)]),
    ("empty system", {"role": "system", "content": []}, []),
    ("empty string", {"role": "user", "content": ""}, [("user", "text", C, False, None)]),
    ("blank text", {"role": "user", "content": [{"type": "text", "text": " \n"}]}, [("user", "text", (*C, 0), False, None)]),
    ("no-break space", {"role": "user", "content": "\u00a0\u3000"}, [("user", "text", C, False, None)]),
    ("image as data", {"role": "user", "content": [{"type": "text", "text": "What?"}, {**DATA, "cache_control": MARK}]},
     [("user", "text", (*C, 0), True, None), ("user", "image", (*C, 1), True, "5m")]),
    ("image by URL", {"role": "user", "content": [URL]}, [("user", "image", (*C, 0), False, None)]),
    ("image without data", {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]},
     [("user", "image", (*C, 0), False, None)]),
    ("image as a string", {"role": "user", "content": [{"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}]},
     [("user", "image", (*C, 0), True, None)]),
    ("image of nothing", {"role": "user", "content": [{"type": "image_url"}]}, [("user", "image", (*C, 0), False, None)]),
    ("reasoning", {"role": "assistant", "content": [SAID, HIDDEN, {"type": "text", "text": "So."}]},
     [("assistant", "reasoning", (*C, 0), True, None), ("assistant", "reasoning", (*C, 1), True, None),
      ("assistant", "text", (*C, 2), True, None)]),
    ("text and a call", {"role": "assistant", "content": "Ok.", "tool_calls": [{**CALL, "cache_control": MARK}]},
     [("assistant", "text", C, True, None), ("assistant", "tool_call", ("tool_calls", 0), True, "5m")]),
    ("calls only", {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
     [("assistant", "tool_call", ("tool_calls", 0), True, None), ("assistant", "tool_call", ("tool_calls", 1), True, None)]),
    ("calls beside nothing", {"role": "assistant", "content": "", "tool_calls": [CALL]},
     [("assistant", "tool_call", ("tool_calls", 0), True, None)]),
    ("calls beside a blank", {"role": "assistant", "content": " ", "tool_calls": [CALL]},
     [("assistant", "text", C, False, None), ("assistant", "tool_call", ("tool_calls", 0), True, None)]),
    ("no content", {"role": "assistant", "content": None}, [("assistant", "opaque", (), False, None)]),
    ("refusal only", {"role": "assistant", "content": None, "refusal": "No."}, [("assistant", "opaque", (), False, None)]),
    ("result", {"role": "tool", "tool_call_id": "123", "content": "11 degrees"}, [("user", "tool_result", C, True, None)]),
    ("blank result", {"role": "tool", "tool_call_id": "123", "content": " "}, [("user", "tool_result", C, False, None)]),
    ("result of nothing", {"role": "tool", "tool_call_id": "123", "content": None}, [("user", "tool_result", C, False, None)]),
    ("result of no parts", {"role": "tool", "tool_call_id": "123", "content": []}, [("user", "tool_result", C, False, None)]),
    ("result of parts", {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": HOUR}]},
     [("user", "tool_result", (*C, 1), True, "1h")]),
    ("result ends blank", {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": ""}]},
     [("user", "tool_result", (*C, 1), False, None)]),
    ("result ends with a URL", {"role": "tool", "tool_call_id": "1", "content": [URL]}, [("user", "tool_result", (*C, 0), False, None)]),
    ("result ends with an image", {"role": "tool", "tool_call_id": "1", "content": [DATA]}, [("user", "tool_result", (*C, 0), True, None)]),
    ("function", {"role": "function", "name": "f", "content": "11"}, [("user", "text", C, True, None)]),
    ("unknown part", {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, [("user", "opaque", (*C, 0), False, None)]),
    ("text that is none", {"role": "user", "content": [{"type": "text", "text": None}]}, [("user", "opaque", (*C, 0), False, None)]),
    ("type that is none", {"role": "user", "content": [{"type": ["text"], "text": "a"}]}, [("user", "opaque", (*C, 0), False, None)]),
    ("empty part", {"role": "user", "content": [{}]}, [("user", "opaque", (*C, 0), False, None)]),
    ("marker on the message", {"role": "user", "content": "Hi.", "cache_control": MARK}, [("user", "text", C, True, "5m")]),
    ("marker that is none", {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": None}]},
     [("user", "text", (*C, 0), True, None)]),
    ("marker that is odd", {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": True}]},
     [("user", "text", (*C, 0), True, "5m")]),
]  # fmt: skip

NATIVE: list[tuple[str, Any, list[tuple[str, str, tuple[str | int, ...], bool, str | None]]]] = [
    ("string", {"role": "user", "content": "Hi."}, [("user", "text", C, True, None)]),
    ("no parts", {"role": "assistant", "content": []}, [("assistant", "opaque", (), False, None)]),
    ("thinking", {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "x"}]},
     [("assistant", "reasoning", (*C, 0), True, None), ("assistant", "reasoning", (*C, 1), True, None)]),
    ("call", {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}, "cache_control": MARK}]},
     [("assistant", "tool_call", (*C, 0), True, "5m")]),
    ("server call", {"role": "assistant", "content": [{"type": "server_tool_use", "id": "1", "name": "web_search", "input": {}}]},
     [("assistant", "tool_call", (*C, 0), True, None)]),
    ("result", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "11"}]},
     [("user", "tool_result", (*C, 0), True, None)]),
    ("marked result", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "11", "cache_control": HOUR}]},
     [("user", "tool_result", (*C, 0), True, "1h")]),
    ("result marked inside", {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a", "cache_control": HOUR}]}]},
     [("user", "tool_result", (*C, 0), True, "1h")]),
    ("image", {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]},
     [("user", "image", (*C, 0), True, None)]),
    ("image by URL", {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://example.com"}}]},
     [("user", "image", (*C, 0), False, None)]),
    ("documents", {"role": "user", "content": [{"type": "document", "source": {}}, {"type": "search_result", "content": []}]},
     [("user", "document", (*C, 0), True, None), ("user", "document", (*C, 1), True, None)]),
    ("late system", {"role": "system", "content": "Now rhyme."}, [("system", "text", C, True, None)]),
]  # fmt: skip


@pytest.mark.parametrize(("message", "expected"), [case[1:] for case in CHAT], ids=[case[0] for case in CHAT])
def test_chat_message_is_read_as_its_blocks(message: Any, expected: Any) -> None:
    """Each form of a chat message is read as the blocks that the provider makes of it."""
    assert shapes(chat(message)) == expected


@pytest.mark.parametrize(
    ("message", "expected"), [case[1:] for case in NATIVE], ids=[case[0] for case in NATIVE]
)
def test_native_message_is_one_block_a_part(message: Any, expected: Any) -> None:
    """Each form of an Anthropic message is one block a part."""
    assert shapes(native(message)) == expected


@pytest.mark.parametrize(
    ("definition", "marker"),
    [
        ({"type": "function", "function": {"name": "f", "parameters": {}}}, None),
        ({"type": "function", "function": {"name": "f"}, "cache_control": MARK}, "5m"),
        ({"type": "function", "function": {"name": "f", "cache_control": HOUR}}, "1h"),
        ({"name": "f", "input_schema": {}, "cache_control": HOUR}, "1h"),
        ({"type": "web_search_20250305", "name": "web_search"}, None),
        (
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"properties": {"cache_control": {}}}},
            },
            None,
        ),
    ],
)
def test_tool_is_one_block(definition: Any, marker: str | None) -> None:
    """A tool of either wire format is one block; its marker may stand beside or inside `function`."""
    assert shapes(tool(definition, ReadingContext())) == [("tool", "tool_definition", (), True, marker)]


def test_native_system_is_a_string_or_blocks() -> None:
    """The Messages API's system is a string or text blocks."""
    assert shapes(system_block("Be kind.", ReadingContext())) == [("system", "text", (), True, None)]
    marked = {"type": "text", "text": "Be kind.", "cache_control": MARK}
    assert shapes(system_block(marked, ReadingContext())) == [("system", "text", (), True, "5m")]
    assert (
        system_block(marked, ReadingContext()).blocks[0].digest
        == system_block("Be kind.", ReadingContext()).blocks[0].digest
    )


BAD: list[tuple[Callable[[Any], ParsedMessage], Any, str]] = [
    (chat, "Hi.", "bad_message"),
    (chat, {}, "bad_message"),
    (chat, {"role": None, "content": "a"}, "bad_message"),
    (chat, {"role": "user", "content": 5}, "bad_message"),
    (chat, {"role": "user", "content": {"type": "text"}}, "bad_message"),
    (chat, {"role": "user", "content": ["a"]}, "bad_message"),
    (chat, {"role": "user", "content": [None]}, "bad_message"),
    (chat, {"role": "assistant", "tool_calls": "x"}, "bad_message"),
    (chat, {"role": "assistant", "tool_calls": [None]}, "bad_message"),
    (chat, {"role": "tool", "content": ["a"]}, "bad_message"),
    (chat, {"role": "tool", "content": 5}, "bad_message"),
    (native, {"role": "user", "content": None}, "bad_message"),
    (native, {"role": "user"}, "bad_message"),
    (native, {"role": "user", "content": [3]}, "bad_message"),
    (lambda value: tool(value, ReadingContext()), "f", "bad_tools"),
    (lambda value: system_block(value, ReadingContext()), 7, "bad_message"),
]


@pytest.mark.parametrize(("read", "value", "reason"), BAD)
def test_malformed_message_is_refused_with_a_reason(
    read: Callable[[Any], ParsedMessage], value: Any, reason: str
) -> None:
    """A malformed message is refused with a reason that holds no part of it."""
    with pytest.raises(BodyError) as caught:
        read(value)
    assert (caught.value.reason, str(caught.value)) == (reason, reason)


# -- content --------------------------------------------------------------------------------------

EQUAL: list[tuple[str, Callable[[Any], ParsedMessage], Any, Any]] = [
    ("string or part", chat, {"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}),
    ("marker", chat, {"role": "user", "content": "a"}, {"role": "user", "content": [{"text": "a", "type": "text", "cache_control": HOUR}]}),
    ("marker on the message", chat, {"role": "user", "content": "a"}, {"content": "a", "role": "user", "cache_control": MARK}),
    ("system or developer", chat, {"role": "system", "content": "a"}, {"role": "developer", "content": "a"}),
    ("empty fields", chat, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "a", "refusal": None, "tool_calls": None}),
    ("empty fields of a part", native, {"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "a", "citations": None}]}),
    ("nothing beside a call", chat, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "assistant", "content": None, "tool_calls": [CALL]}),
    ("order in a call's envelope", chat, {"role": "assistant", "tool_calls": [CALL]},
     {"role": "assistant", "tool_calls": [{**dict(reversed(CALL.items())), "function": dict(reversed(CALL["function"].items()))}]}),  # type: ignore[attr-defined]
    ("markers of a call", chat, {"role": "assistant", "tool_calls": [CALL]},
     {"role": "assistant", "tool_calls": [{**CALL, "cache_control": MARK, "function": {**CALL["function"], "cache_control": MARK}}]}),  # type: ignore[dict-item]
    ("string or part in a result", chat, {"role": "tool", "tool_call_id": "1", "content": "a"},
     {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "a"}]}),
    ("nothing in a result", chat, {"role": "tool", "tool_call_id": "1", "content": None}, {"role": "tool", "tool_call_id": "1", "content": []}),
    ("string or part in a native result", native, {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "a"}]},
     {"role": "user", "content": [{"tool_use_id": "1", "type": "tool_result", "content": [{"text": "a", "type": "text", "cache_control": MARK}]}]}),
    ("order in an image", chat, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
     {"role": "user", "content": [{"image_url": {"detail": "low", "url": "u"}, "type": "image_url"}]}),
    ("order in reasoning", chat, {"role": "assistant", "content": [SAID]},
     {"role": "assistant", "content": [{"summary": [{"signature": "s", "text": "Thinking...", "type": "summary_text"}], "type": "reasoning"}]}),
    ("order in a tool's envelope", lambda value: tool(value, ReadingContext()), {"type": "function", "function": {"name": "f", "description": "d"}},
     {"function": {"description": "d", "name": "f", "strict": None}, "type": "function", "cache_control": MARK}),
]  # fmt: skip

DIFFERENT: list[tuple[str, Callable[[Any], ParsedMessage], Any, Any]] = [
    ("a byte", chat, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}),
    ("white space", chat, {"role": "user", "content": "a"}, {"role": "user", "content": "a "}),
    ("form of a letter", chat, {"role": "user", "content": "\u00e9"}, {"role": "user", "content": "e\u0301"}),
    ("the role", chat, {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}),
    ("a field of a part", chat, {"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}),
    ("a field of the message", chat, {"role": "user", "content": "a"}, {"role": "user", "content": "a", "name": "Ann"}),
    ("a field's place", chat, {"role": "user", "content": "a", "x": 1}, {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}),
    ("text like a field", chat, {"role": "user", "content": 'a\x00{"x":1}'}, {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}),
    ("order in a schema", lambda value: tool(value, ReadingContext()), {"function": {"parameters": {"a": 1, "b": 2}}}, {"function": {"parameters": {"b": 2, "a": 1}}}),
    ("a schema's property", lambda value: tool(value, ReadingContext()), {"function": {"parameters": {"cache_control": {}}}}, {"function": {"parameters": {}}}),
    ("an empty field of a schema", lambda value: tool(value, ReadingContext()), {"function": {"parameters": {"default": None}}}, {"function": {"parameters": {}}}),
    ("order in a native schema", lambda value: tool(value, ReadingContext()), {"name": "f", "input_schema": {"a": 1, "b": 2}}, {"name": "f", "input_schema": {"b": 2, "a": 1}}),
    ("order in a native call's input", native, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {"a": 1, "b": 2}}]},
     {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {"b": 2, "a": 1}}]}),
    ("a call's input", native, {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {"cache_control": 1}}]},
     {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "input": {}}]}),
    ("spelling of arguments", chat, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": '{"a":1}'}}]},
     {"role": "assistant", "tool_calls": [{"id": "1", "function": {"arguments": '{"a": 1}'}}]}),
    ("a call's id", chat, {"role": "assistant", "tool_calls": [{"id": "1", "function": {}}]}, {"role": "assistant", "tool_calls": [{"id": "2", "function": {}}]}),
    ("a result's call", chat, {"role": "tool", "tool_call_id": "1", "content": "a"}, {"role": "tool", "tool_call_id": "2", "content": "a"}),
    ("a result and a text", chat, {"role": "tool", "tool_call_id": "1", "content": "a"}, {"role": "user", "content": "a"}),
    ("an image's detail", chat, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
     {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "high"}}]}),
    ("a number's type", lambda value: tool(value, ReadingContext()), {"function": {"parameters": {"a": 1}}}, {"function": {"parameters": {"a": 1.0}}}),
]  # fmt: skip


def digests(item: ParsedMessage) -> list[bytes]:
    """Return the digest of each block."""
    return [block.digest for block in item.blocks]


@pytest.mark.parametrize(
    ("read", "one", "other"), [case[1:] for case in EQUAL], ids=[case[0] for case in EQUAL]
)
def test_equal_content_has_equal_digests(read: Callable[[Any], ParsedMessage], one: Any, other: Any) -> None:
    """Messages with equal content have equal digests."""
    assert digests(read(one)) == digests(read(other))


@pytest.mark.parametrize(
    ("read", "one", "other"), [case[1:] for case in DIFFERENT], ids=[case[0] for case in DIFFERENT]
)
def test_different_content_has_different_digests(
    read: Callable[[Any], ParsedMessage], one: Any, other: Any
) -> None:
    """Contents that the provider could distinguish have different digests."""
    assert digests(read(one)) != digests(read(other))


@given(st.lists(st.text(max_size=6), min_size=2, max_size=5))
def test_texts_have_one_digest_only_if_equal(texts: list[str]) -> None:
    """Two texts have one digest only if they are equal."""
    try:
        found = [chat({"role": "user", "content": text}).blocks[0].digest for text in texts]
    except UnicodeEncodeError:
        return  # surrogates never get here: `dump` refuses them
    assert len(set(found)) == len(set(texts))


# -- the client's markers, images, citations, turns -----------------------------------------------

T, M = {"type": "text", "text": "a"}, {"type": "text", "text": "a", "cache_control": MARK}
OWNED: list[tuple[str, ParsedMessage, int]] = [
    ("none", chat({"role": "user", "content": [T]}), 0),
    ("two parts", chat({"role": "user", "content": [M, T, M]}), 2),
    ("message and part", chat({"role": "user", "content": [M], "cache_control": MARK}), 2),
    ("message only", chat({"role": "user", "content": [T], "cache_control": MARK}), 1),
    ("message without blocks", chat({"role": "system", "content": [], "cache_control": MARK}), 1),
    ("calls", chat({"role": "assistant", "tool_calls": [{**CALL, "cache_control": MARK}, CALL]}), 1),
    ("inside a call", chat({"role": "assistant", "tool_calls": [{"function": {"name": "f", "cache_control": MARK}}]}), 1),
    ("last part of a result", chat({"role": "tool", "content": [T, M]}), 1),
    ("first part of a result", chat({"role": "tool", "content": [M, T]}), 1),
    ("all parts of a result", chat({"role": "tool", "content": [M, M]}), 2),
    ("result and its message", chat({"role": "tool", "content": [M], "cache_control": MARK}), 2),
    ("native result", native({"role": "user", "content": [{"type": "tool_result", "content": [M, M]}, M]}), 3),
    ("native result twice", native({"role": "user", "content": [{"type": "tool_result", "content": [M], "cache_control": MARK}]}), 2),
    ("result as a chat part", chat({"role": "user", "content": [{"type": "tool_result", "content": [M, T]}]}), 1),
    ("arguments", chat({"role": "assistant", "tool_calls": [{"function": {"arguments": '{"cache_control": 1}'}}]}), 0),
    ("native input", native({"role": "assistant", "content": [{"type": "tool_use", "input": {"cache_control": MARK}}]}), 0),
    ("tool and its function", tool({"function": {"name": "f", "cache_control": MARK}, "cache_control": MARK}, ReadingContext()), 2),
    ("schema", tool({"function": {"parameters": {"cache_control": MARK}}}, ReadingContext()), 0),
    ("an image's own", chat({"role": "user", "content": [{**DATA, "cache_control": MARK}, {"type": "x", "cache_control": MARK}]}), 2),
]  # fmt: skip


@pytest.mark.parametrize(("item", "count"), [case[1:] for case in OWNED], ids=[case[0] for case in OWNED])
def test_client_markers_are_counted_anywhere(item: ParsedMessage, count: int) -> None:
    """Every marker of the client takes a slot at any place; a property of that name is no marker."""
    assert item.client_marker_count == count


def test_image_is_found_in_tool_results_too() -> None:
    """An image anywhere, also in a tool result, changes the key of the messages."""
    assert not chat({"role": "user", "content": "a"}).has_image
    assert chat({"role": "user", "content": [URL]}).has_image
    assert chat({"role": "tool", "content": [T, DATA]}).has_image
    inner = {"type": "tool_result", "content": [{"type": "image", "source": {}}]}
    assert native({"role": "user", "content": [inner]}).has_image


def test_citations_are_found_on_documents_only() -> None:
    """A document asks for citations; citations in an answer, or an empty field, do not."""
    document = {"type": "document", "source": {}, "citations": {"enabled": True}}
    assert native({"role": "user", "content": [document]}).has_citations
    assert native(
        {
            "role": "user",
            "content": [{"type": "tool_result", "content": [{**document, "type": "search_result"}]}],
        }
    ).has_citations
    for value in (None, {"enabled": False}, [{"cited_text": "a"}]):
        assert not native({"role": "user", "content": [{**document, "citations": value}]}).has_citations
    assert not native({"role": "assistant", "content": [{**T, "citations": {"enabled": True}}]}).has_citations


@pytest.mark.parametrize(
    ("item", "turn"),
    [
        (chat({"role": "user", "content": "a"}), True),
        (chat({"role": "assistant", "content": "a"}), False),
        (chat({"role": "tool", "content": "a"}), False),
        (chat({"role": "system", "content": "a"}), False),
        (chat({"role": "user", "content": [{"type": "tool_result", "content": "a"}]}), False),
        (native({"role": "user", "content": [{"type": "tool_result", "content": "a"}]}), False),
        (native({"role": "user", "content": [{"type": "tool_result", "content": "a"}, T]}), True),
    ],
)
def test_user_message_starts_a_turn(item: ParsedMessage, turn: bool) -> None:
    """A user message starts a turn unless it holds only tool results."""
    assert item.starts_user_turn is turn


# -- sizes and bytes ------------------------------------------------------------------------------


def test_size_grows_with_bytes() -> None:
    """The size of a text follows its UTF-8 bytes; JSON kinds count their envelope too."""
    sizes = [part({"type": "text", "text": text}).size for text in ("a", "aa", "éé", "a" * 100)]
    assert sizes == sorted(sizes)
    assert sizes[1] * 2 == sizes[2]
    call = chat({"role": "assistant", "tool_calls": [CALL]}).blocks[0]
    assert call.size > part({"type": "text", "text": "get_weather"}).size


def test_size_of_an_image_follows_its_pixels() -> None:
    """A tiny image is tiny; an unreadable one counts as the largest."""
    tiny = part({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}})
    unread = part({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}})
    assert tiny.size < 1 < unread.size == 1600


def test_size_with_a_counter_is_its_count() -> None:
    """If a counter is given, sizes are its counts."""
    reading = ReadingContext(counter=len)
    assert chat_message({"role": "user", "content": "four"}, reading).blocks[0].size == 4
    call = chat_message({"role": "assistant", "tool_calls": [{"id": "1"}]}, reading).blocks[0]
    assert call.size == len('{"id":"1"}')


class Word(str, enum.Enum):  # noqa: UP042 - what users have
    USER = "user"


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), -float("inf"), [1.0, {"a": [float("nan")]}], "\ud800", {"\udfff": 1}, 2**64, -(2**63) - 1,
        {1: 2}, {None: 1}, b"x", object(), {1, 2}, MappingProxyType({}), [0.5] * 40 + [None, float("nan")],
        {"a": [None] * 30, "b": float("nan")}, {"text": "null", "list": [0.1] * 30, "x": float("-inf")},
    ],
)  # fmt: skip
def test_values_that_json_cannot_carry_are_refused(value: Any) -> None:
    """Lone surrogates, NaN at any depth, integers over 64 bits and foreign objects are refused."""
    with pytest.raises(BodyError, match="not_json"):
        canonical_json(value)


def test_deep_nesting_and_loops_are_refused() -> None:
    """Ten thousand levels and a list inside itself are refused, not followed."""
    deep: Any = "a"
    for _ in range(10_000):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    for value in (deep, loop):
        with pytest.raises(BodyError, match="not_json"):
            canonical_json(value)


def test_values_that_json_carries_are_accepted() -> None:
    """A null is no NaN, and every value that the serialiser accepts is accepted."""
    assert canonical_json({"a": [None] * 40, "b": (1.5, True), "c": Word.USER}) == b'{"a":[' + b",".join([b"null"] * 40) + b'],"b":[1.5,true],"c":"user"}'  # fmt: skip
    assert canonical_json(None) == b"null"
    assert canonical_json({"b": 1, "a": 2}) == b'{"b":1,"a":2}'
    assert canonical_json({"b": 1, "a": 2}, ordered=False) == b'{"a":2,"b":1}'
    assert canonical_json(2**64 - 1) == b"18446744073709551615"


@given(st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.just("null") | st.text("ab", max_size=3),
                    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=4), max_leaves=60))  # fmt: skip
def test_any_value_passes_only_if_its_floats_are_finite(value: Any) -> None:
    """A value passes exactly if no float in it is NaN or infinite."""
    finite = "NaN" not in (text := json.dumps(value)) and "Infinity" not in text
    try:
        canonical_json(value)
    except BodyError:
        assert not finite
    else:
        assert finite


def test_image_data_is_decoded_at_its_head_only() -> None:
    """A huge image costs no more than its head."""
    data = PNG[:-4] + base64.b64encode(b"\0" * 9_000_000).decode()
    block = part({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    assert block.kind is Kind.IMAGE
    assert block.size < 1
