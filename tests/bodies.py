"""Random request bodies of both wire formats, and changed copies of them, as hypothesis strategies.

A provider would accept most of them. Some are odd on purpose: blank texts, missing contents, unknown parts, markers in
strange places. `broken` makes any body odder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

Wire = Literal["chat", "messages"]
Body = dict[str, Any]
Path = tuple[str | int, ...]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PARAGRAPH = "The quick brown fox jumps over the lazy dog while 12 others watch. " * 12

TEXTS = st.sampled_from([
    "Hello.", "What is the weather in New York?", "Look it up, then answer in one word.", PARAGRAPH,
    PARAGRAPH * 3, "naïve café ☕ 你好 😀", '{"cache_control": {"type": "ephemeral"}}', "a\x00b\u2028c", "x", "42",
])  # fmt: skip
ODD_TEXTS = st.sampled_from(["", " ", "\n\t ", "\u00a0", "\u3000\u2003"])
MODELS = st.sampled_from([
    "databricks-claude-sonnet-4-5", "system.ai.claude-opus-4-8", "databricks-claude-haiku-4-5",
    "claude-sonnet-5", "claude-opus-5", "databricks-claude-opus-4-1",
])  # fmt: skip
EPHEMERAL = {"type": "ephemeral"}
_MARKERS = {
    "never": st.none(),
    "rarely": st.sampled_from([None] * 7 + [EPHEMERAL]),
    "often": st.sampled_from([None, EPHEMERAL, {"type": "ephemeral", "ttl": "5m"}]),
    "hour": st.sampled_from([None, None, {"type": "ephemeral", "ttl": "1h"}]),
    "mixed": st.sampled_from([None, None, None, EPHEMERAL, {"type": "ephemeral", "ttl": "1h"}]),
}
_SCHEMAS = st.sampled_from([
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"city": {"type": "string", "description": PARAGRAPH}}, "required": ["city"]},
    {"type": "object", "properties": {"cache_control": {"type": "object", "description": "Not a marker."}}},
    {"type": "object", "properties": {"depth": {"type": "integer", "default": None}, "ratio": {"maximum": 0.5}}},
])  # fmt: skip
_ARGUMENTS = st.sampled_from([
    "{}", '{"location":"New York, NY"}', '{"cache_control": {"type": "ephemeral"}}', '{"b":1,"a":2}', "not json",
])  # fmt: skip
_INPUTS = st.sampled_from(
    [{}, {"location": "New York, NY"}, {"cache_control": {"type": "ephemeral"}}, {"b": 1, "a": [2.5, None]}]
)
_DATA_IMAGE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
_URL_IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png", "detail": "low"}}
_REASONING = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Thinking...", "signature": "s1"}]},
    {"type": "reasoning", "summary": [{"type": "summary_encrypted_text", "data": "b64"}]},
]
_THINKING = [
    {"type": "thinking", "thinking": "Hm.", "signature": "s1"},
    {"type": "redacted_thinking", "data": "b64"},
]
_NATIVE_IMAGES = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
    {"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}},
]
_DOCUMENTS = [
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": PARAGRAPH}},
    {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "x"},
     "citations": {"enabled": True}},
]  # fmt: skip
_UNKNOWN = [
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "video", "id": 7},
    {},
]


class _Draw:
    """The parameters of one body: the rate of markers, their highest number, and its oddness."""

    def __init__(self, draw: DrawFn, odd: bool) -> None:
        self.draw = draw
        self.odd = odd
        self.marker = _MARKERS[draw(st.sampled_from(sorted(_MARKERS)))]
        self.left = draw(st.sampled_from([1, 2, 3, 4, 9 if odd else 4]))
        self.short = False

    def few(self, most: int) -> range:
        return range(self.draw(st.integers(0, most)))

    def chance(self, one_in: int) -> bool:
        return self.draw(st.integers(1, one_in)) == one_in

    def one(self, options: list[Any]) -> Any:
        return copy.deepcopy(self.draw(st.sampled_from(options)))

    def text(self) -> str:
        return self.draw(ODD_TEXTS if self.odd and self.chance(8) else TEXTS)

    def marked(self, holder: Body) -> Body:
        """Add a marker now and then; an odd body may have one anywhere, and 1h after 5m."""
        control = self.draw(self.marker) if self.left else None
        if control is None:
            return holder
        kind = holder.get("type")
        blank = kind == "text" and not str(holder.get("text")).strip()
        late = self.short and control.get("ttl") == "1h"
        if self.odd or not (blank or late or kind in ("reasoning", "thinking", "redacted_thinking")):
            holder["cache_control"] = dict(control)
            self.left -= 1
            self.short = control.get("ttl") != "1h"
        return holder

    def text_part(self) -> Body:
        part: Body = {"type": "text", "text": self.text()}
        if self.chance(8):
            part["citations"] = None
        return self.marked(part)

    def parts(self, special: list[Any]) -> list[Body]:
        parts = [self.text_part() for _ in range(self.draw(st.sampled_from([1, 1, 1, 2, 3, 9])))]
        if special and self.chance(3):
            chosen = self.one(special)
            at = self.draw(st.integers(0, len(parts)))
            reasoning = chosen.get("type") in ("reasoning", "thinking", "redacted_thinking")
            parts.insert(at, chosen if reasoning and not self.odd else self.marked(chosen))
        return parts

    def content(self, special: list[Any]) -> Any:
        """Return a string or parts."""
        return self.text() if self.chance(2) else self.parts(special)


def _chat_tool(d: _Draw, number: int) -> Body:
    function: Body = {
        "name": f"tool_{number}",
        "description": d.text(),
        "parameters": copy.deepcopy(d.draw(_SCHEMAS)),
    }
    if d.chance(6):
        return {"type": "function", "function": d.marked(function)}
    return d.marked({"type": "function", "function": function})


def _chat_turn(d: _Draw, counter: Iterator[int]) -> Iterator[Body]:
    """Yield an answer, its tool rounds, and the messages after it."""
    unknown = _UNKNOWN if d.odd else []
    while d.chance(2):
        width = d.draw(st.sampled_from([1, 1, 2, 3, 24]))
        calls = []
        for _ in range(width):
            function = {"name": "tool_0", "arguments": d.draw(_ARGUMENTS)}
            calls.append(d.marked({"id": f"call_{next(counter)}", "type": "function", "function": function}))
        said: Body = {
            "role": "assistant",
            "content": d.one([None, "", " ", "Let me look."]),
            "tool_calls": calls,
        }
        if d.chance(4):
            said["content"] = d.parts(_REASONING)
        if not d.odd:
            said["content"] = said["content"] or None
        yield said
        for call in calls:
            result: Body = {"role": "tool", "tool_call_id": call["id"], "content": d.text() or "x"}
            if d.chance(3):
                result["content"] = [{"type": "text", "text": d.text()} for _ in d.few(3)] or "done"
                if result["content"] != "done":
                    d.marked(result["content"][-1])
                    if d.odd and d.chance(4):
                        d.marked(result["content"][0])
            if d.chance(12):
                result["content"] = [d.marked(copy.deepcopy(_DATA_IMAGE))]
            yield result
    answer: Body = {"role": "assistant", "content": d.content(_REASONING + unknown)}
    if d.chance(5):
        answer |= d.one([{"refusal": None}, {"name": "bot"}, {"audio": None, "annotations": []}])
    if d.odd and d.chance(8):
        answer["content"] = None
    yield d.marked(answer) if d.odd and d.chance(6) else answer
    if d.chance(6):
        yield {"role": "system", "content": d.content([])}


@st.composite
def chat_bodies(draw: DrawFn, odd: bool = True) -> Body:
    """Draw an OpenAI chat body: every shape of the Databricks document, and stranger ones if `odd`."""
    d = _Draw(draw, odd and draw(st.booleans()))
    counter = iter(range(10_000))
    body: Body = {"model": draw(MODELS), "messages": []}
    messages = body["messages"]
    if tools := [_chat_tool(d, number) for number in d.few(3)]:
        body["tools"] = tools
    for _ in d.few(2):
        messages.append({"role": d.one(["system", "system", "developer"]), "content": d.content([])})
    special = [_DATA_IMAGE] + ([_URL_IMAGE, *_UNKNOWN] if d.odd else [])
    for _ in range(draw(st.integers(0, 3))):
        messages.append({"role": "user", "content": d.content(special)})
        messages += _chat_turn(d, counter)
    if not messages or d.chance(2):
        messages.append({"role": "user", "content": d.content(special)})
    if d.chance(4):
        body |= d.one(_CHAT_PARAMETERS)
    if d.chance(3):
        body |= d.one(
            [{"temperature": 0.2, "max_tokens": 64}, {"stream": True}, {"user": "u", "metadata": {"k": "v"}}]
        )
    if d.odd and d.chance(12):
        body["cache_control"] = dict(d.one([EPHEMERAL, {"type": "ephemeral", "ttl": "1h"}]))
    return _shared(d, body)


_CHAT_PARAMETERS: list[Body] = [
    {"tool_choice": "auto"}, {"tool_choice": {"type": "function", "function": {"name": "tool_0"}}},
    {"parallel_tool_calls": False}, {"reasoning_effort": "low"}, {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    {"response_format": {"type": "json_object"}}, {"output_config": {"effort": "high"}},
    {"output_config": {"effort": "low"}}, {"web_search_options": {}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"cache_control": {}}}}},
]  # fmt: skip


def _native_tool(d: _Draw, number: int) -> Body:
    return d.marked(
        {"name": f"tool_{number}", "description": d.text(), "input_schema": copy.deepcopy(d.draw(_SCHEMAS))}
    )


def _native_turn(d: _Draw, counter: Iterator[int]) -> Iterator[Body]:
    while d.chance(2):
        calls = [
            d.marked(
                {
                    "type": "tool_use",
                    "id": f"toolu_{next(counter)}",
                    "name": "tool_0",
                    "input": copy.deepcopy(d.draw(_INPUTS)),
                }
            )
            for _ in range(d.draw(st.sampled_from([1, 1, 2, 24])))
        ]
        yield {"role": "assistant", "content": [*(d.one([[], [_THINKING[0]]])), *calls]}
        results = []
        for call in calls:
            inner = d.one(
                [d.text(), None, [{"type": "text", "text": d.text() or "x"}], [_NATIVE_IMAGES[0]], []]
            )
            result = d.marked({"type": "tool_result", "tool_use_id": call["id"], "content": inner})
            if isinstance(inner, list) and inner and d.chance(4):
                d.marked(inner[-1])
            results.append(result)
        yield {"role": "user", "content": results + ([d.text_part()] if d.chance(6) else [])}
    yield {"role": "assistant", "content": d.content(_THINKING + (_UNKNOWN if d.odd else []))}


@st.composite
def messages_bodies(draw: DrawFn, odd: bool = True) -> Body:
    """Draw an Anthropic Messages body, with strange shapes if `odd`."""
    d = _Draw(draw, odd and draw(st.booleans()))
    counter = iter(range(10_000))
    body: Body = {"model": draw(MODELS), "max_tokens": 64, "messages": []}
    messages = body["messages"]
    if tools := [_native_tool(d, number) for number in d.few(3)]:
        body["tools"] = tools
    if d.chance(2):
        body["system"] = d.text() if d.chance(2) else d.parts([])
    special = _NATIVE_IMAGES[:1] + _DOCUMENTS + (_NATIVE_IMAGES + _UNKNOWN if d.odd else [])
    for _ in range(draw(st.integers(0, 3))):
        messages.append({"role": "user", "content": d.content(special)})
        messages += _native_turn(d, counter)
    if not messages or d.chance(2):
        messages.append({"role": "user", "content": d.content(special)})
    if d.chance(4):
        body |= d.one([
            {"tool_choice": {"type": "auto"}}, {"tool_choice": {"type": "tool", "name": "tool_0"}},
            {"thinking": {"type": "enabled", "budget_tokens": 1024}}, {"speed": "fast"},
            {"output_config": {"effort": "high"}}, {"output_config": {"effort": "low", "format": {"type": "json_schema"}}},
        ])  # fmt: skip
    if d.chance(8):
        body["cache_control"] = dict(d.one([EPHEMERAL, {"type": "ephemeral", "ttl": "1h"}]))
    return _shared(d, body)


def _shared(d: _Draw, body: Body) -> Body:
    """Now and then put the very same object in two places, as callers do."""
    messages = body["messages"]
    if len(messages) > 2 and d.chance(6):
        first = next(m for m in messages if m["role"] == messages[-1]["role"])
        messages.append(first)
    lists = [
        m["content"]
        for m in messages
        if isinstance(m.get("content"), list) and m["role"] in ("user", "system")
    ]
    if lists and d.chance(6):
        chosen = d.draw(st.sampled_from(range(len(lists))))
        lists[chosen].append(lists[chosen][0])
    return body


def bodies(odd: bool = True) -> SearchStrategy[tuple[Wire, Body]]:
    """Draw a wire and a body of it; two in three are chat bodies."""
    chat = chat_bodies(odd).map(lambda body: ("chat", body))
    return st.one_of(chat, chat, messages_bodies(odd).map(lambda body: ("messages", body)))


# -- changed copies -------------------------------------------------------------------------------


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every node of a body with its path, the root first."""
    yield path, node
    pairs: Any = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield from walk(value, (*path, key))


def replaced(body: Body, path: Path, value: Any) -> Body:
    """Return a deep copy with one node replaced."""
    result = copy.deepcopy(body)
    if not path:
        return value  # type: ignore[no-any-return]
    node: Any = result
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return result


_ODD_VALUES: list[Any] = [
    None, "", " ", 0, -1, 2**70, 1.5, float("nan"), float("inf"), True, [], {}, [[]], [None], {"type": ["text"]},
    {"type": None}, {"role": 3}, "\ud800", {1: 2}, ("a", "b"), b"bytes", object, {"cache_control": "x"},
    {"type": "text", "text": None}, {"type": "text"}, [{"type": "text", "text": "a"}], 10**400,
]  # fmt: skip


@st.composite
def broken(draw: DrawFn) -> tuple[Wire, Any]:
    """Draw a body with a node or two replaced by something that may not stand there."""
    wire, body = draw(bodies())
    for _ in range(draw(st.integers(1, 2))):
        paths = [path for path, _ in walk(body)]
        body = replaced(body, draw(st.sampled_from(paths)), draw(st.sampled_from(_ODD_VALUES)))
        if not isinstance(body, dict):
            break
    return wire, body


def _texts(body: Body, wire: Wire) -> list[Path]:
    """Return the paths of strings that are content."""
    sections = ("messages", "tools") + (("system",) if wire == "messages" else ())
    return [
        path
        for path, node in walk(body)
        if isinstance(node, str) and path[0] in sections and path[-1] in ("content", "text", "arguments", "description", "thinking")
    ]  # fmt: skip


def _containers(body: Body) -> list[Path]:
    return [path for path, node in walk(body) if isinstance(node, dict)]


def unmarked(body: Body) -> Body:
    """Return a deep copy without the markers that stand on messages, parts, calls and tools."""
    result = copy.deepcopy(body)
    for path, node in list(walk(result)):
        schema = any(key in ("parameters", "input_schema", "input", "response_format") for key in path)
        if isinstance(node, dict) and not schema:
            node.pop("cache_control", None)
    return result


def listed(body: Body) -> Body:
    """Return a deep copy with every string content as a list of one text part."""
    result = copy.deepcopy(body)
    for message in result["messages"]:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    if isinstance(result.get("system"), str) and result["system"]:
        result["system"] = [{"type": "text", "text": result["system"]}]
    return result


_ENVELOPES = (
    "messages",
    "content",
    "tool_calls",
    "function",
    "system",
    "tools",
    "image_url",
    "source",
    "summary",
)


def reordered(body: Body) -> Body:
    """Return a deep copy with reversed keys in every envelope; schemas and input keep their order."""

    def turn(node: Any, at: Path) -> Any:
        if isinstance(node, list):
            return [turn(item, at) for item in node]
        if not isinstance(node, dict):
            return node
        return {
            key: turn(value, (*at, key)) if key in _ENVELOPES else value
            for key, value in reversed(node.items())
        }

    return turn(copy.deepcopy(body), ())  # type: ignore[no-any-return]


def with_nones(body: Body) -> Body:
    """Return a deep copy with fields that are None on every message, part, call and tool."""
    result = copy.deepcopy(body)
    holders: list[Any] = [*result["messages"], *(result.get("tools") or ())]
    for message in result["messages"]:
        holders += message.get("tool_calls") or ()
        holders += message["content"] if isinstance(message.get("content"), list) else ()
    for holder in holders:
        holder["annotations_"] = None
    return result


SAME: list[Callable[[Body], Body]] = [copy.deepcopy, unmarked, listed, reordered, with_nones]


@st.composite
def pairs(draw: DrawFn) -> tuple[Wire, Body, Body]:
    """Draw a body and a changed copy: the same in other words, or different somewhere."""
    wire, body = draw(bodies())
    other = draw(st.sampled_from(SAME))(body)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        other = draw(st.sampled_from(_CHANGES))(draw, wire, other)
    return wire, body, other


def _change_text(draw: DrawFn, wire: Wire, body: Body) -> Body:
    paths = _texts(body, wire)
    if not paths:
        return body
    path = draw(st.sampled_from(paths))
    node: Any = body
    for key in path:
        node = node[key]
    return replaced(
        body, path, draw(st.sampled_from([f"{node}.", node[:-1], f" {node}", node.upper() + "!"]))
    )


def _change_parameter(draw: DrawFn, wire: Wire, body: Body) -> Body:
    name, value = draw(st.sampled_from([
        ("tool_choice", "none"), ("thinking", {"type": "disabled"}), ("output_config", {"effort": "high"}),
        ("output_config", {"effort": "max"}), ("response_format", {"type": "text"}), ("parallel_tool_calls", True),
        ("temperature", 0.9), ("speed", "fast"), ("web_search_options", {"search_context_size": "low"}),
        ("tools", None), ("reasoning_effort", "medium"), ("user", "someone"),
    ]))  # fmt: skip
    other = copy.deepcopy(body)
    if body.get(name) is not None and draw(st.booleans()):
        del other[name]
    else:
        other[name] = value
    return other


def _change_list(draw: DrawFn, wire: Wire, body: Body) -> Body:
    """Take out, repeat or turn round the entries of one list of messages, tools or parts."""
    lists = [
        path for path, node in walk(body)
        if isinstance(node, list) and node and path[-1] in ("messages", "tools", "content", "tool_calls", "system")
    ]  # fmt: skip
    path = draw(st.sampled_from(lists))
    node: Any = body
    for key in path:
        node = node[key]
    at = draw(st.integers(0, len(node) - 1))
    changed = draw(
        st.sampled_from([[*node[:at], *node[at + 1 :]], node[: at + 1], node[::-1], [*node, node[at]]])
    )
    return replaced(body, path, copy.deepcopy(changed)) if changed or path[-1] != "messages" else body


def _add_image(draw: DrawFn, wire: Wire, body: Body) -> Body:
    other = copy.deepcopy(body)
    part = copy.deepcopy(_DATA_IMAGE if wire == "chat" else _NATIVE_IMAGES[0])
    other["messages"].append({"role": "user", "content": [{"type": "text", "text": "See."}, part]})
    return other


_CHANGES: list[Callable[[DrawFn, Wire, Body], Body]] = [
    _change_text,
    _change_text,
    _change_parameter,
    _change_list,
    _add_image,
]
