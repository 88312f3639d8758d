"""Turn the bytes of a fuzzer into values and request bodies.

Contains: `Source`, which reads choices off bytes. The same bytes always give the same value, and each byte
decides one thing, so that a fuzzer that changes a byte changes one choice. Must not depend on: any fuzzer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import orjson

_Option = TypeVar("_Option")

PNG = "iVBORw0KGgoAAAANSUhEUgAABA0AAADfCAI="
LONG = "The quick brown fox jumps over the lazy dog, and 12 others watch.\n" * 40
TEXTS = (
    "", " ", "Hello.", "\n\t", "\u00a0", "naïve ☕ 😀", "\ud800", "a\x00b\r\n", '{"a": 1}', LONG, LONG + "Today.", LONG * 3,
    "text", "5m", "1h", "ephemeral", "https://a.com/x.png", f"data:image/png;base64,{PNG}", "data:;base64,", PNG,
)  # fmt: skip
KEYS = (
    "type", "text", "content", "role", "cache_control", "ttl", "name", "function", "input", "arguments", "id", "source",
    "data", "image_url", "url", "tool_calls", "tool_use_id", "citations", "enabled", "thinking", "usage", "prompt_tokens",
    "input_tokens", "output_tokens", "completion_tokens", "total_tokens", "cache_read_input_tokens", "inputTokens",
    "cache_creation_input_tokens", "cache_creation", "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens",
    "prompt_tokens_details", "input_tokens_details", "cached_tokens", "cache_write_tokens", "cacheDetails",
    "cacheReadInputTokens", "cacheWriteInputTokens", "prompt_cache_hit_tokens", "usageMetadata", "promptTokenCount",
    "cachedContentTokenCount", "message", "response", "model", "description", "parameters", "",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 5, 100, 5000, 10**12, 10**12 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400, 0.0, -0.0, 0.5, 4000.0,
    1e300, 5e-324, math.nan, math.inf, -math.inf,
)  # fmt: skip
ROLES = ("user", "assistant", "system", "developer", "tool", "function", "", "User")
PARTS = (
    "text", "image_url", "image", "tool_use", "server_tool_use", "tool_result", "thinking", "reasoning",
    "redacted_thinking", "document", "search_result", "input_audio", "",
)  # fmt: skip
MODELS = ("claude-sonnet-4-6", "databricks-claude-opus-4-1", "claude-haiku-4-5", "gpt-5.6", "")


class Source:
    """Read choices off bytes; after the last byte every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        """Return True if every byte was read."""
        return self._at >= len(self._data)

    def byte(self) -> int:
        """Return the next byte."""
        self._at += 1
        return 0 if self._at > len(self._data) else self._data[self._at - 1]

    def take(self, count: int) -> bytes:
        """Return `count` bytes, or fewer at the end."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        """Return the bytes that were not read."""
        return self.take(len(self._data))

    def pick(self, options: Sequence[_Option]) -> _Option:
        """Return one of the options."""
        return options[self.byte() % len(options)]

    def rarely(self) -> bool:
        """Return True for one byte of sixteen."""
        return self.byte() % 16 == 15

    def text(self) -> str:
        """Return an interesting text, or one of the bytes that follow."""
        kind = self.byte()
        if kind < 192:
            return TEXTS[kind % len(TEXTS)]
        return self.take(kind - 192).decode("latin-1")

    def number(self) -> float:
        """Return a small number, or one at some limit."""
        kind = self.byte()
        return NUMBERS[kind % len(NUMBERS)] if kind < 128 else kind - 128

    def value(self, depth: int = 6) -> Any:
        """Return any value: mostly JSON, sometimes an object that only the caller of an SDK can pass."""
        kind = self.byte() % 16
        if depth == 0 or kind < 4:
            return self.pick((None, True, False, {}, [], "", 0))
        if kind < 7:
            return self.text()
        if kind < 9:
            return self.number()
        if kind < 13:
            return {self.pick(KEYS): self.value(depth - 1) for _ in range(self.byte() % 6)}
        values = [self.value(depth - 1) for _ in range(self.byte() % 5)]
        if kind == 13:
            return tuple(values)
        return _nested(values, self.byte() * 2) if kind == 14 and self.rarely() else values

    def body(self) -> Any:
        """Return a request body: JSON as it stands if the bytes are some, else made of choices."""
        if self._data[:1] == b"{":
            try:
                return orjson.loads(self._data)
            except orjson.JSONDecodeError:
                self._at = 1
        body: dict[str, Any] = {"model": self.pick(MODELS)}
        body["messages"] = self._some(self._message, 6)
        if self.byte() % 2:
            body["tools"] = self._some(self._tool, 4)
        if self.byte() % 4 == 1:
            body["system"] = self._content()
        while not self.ended and self.rarely():
            body[self.pick((*KEYS, "tool_choice", "thinking", "output_config", "response_format"))] = (
                self.value()
            )
        return body

    def _some(self, make: Any, most: int) -> Any:
        if self.rarely():
            return self.value()
        made = [make() for _ in range(1 + self.byte() % most)]
        return tuple(made) if self.rarely() else made

    def _message(self) -> Any:
        if self.rarely():
            return self.value()
        message: dict[str, Any] = {"role": self.pick(ROLES), "content": self._content()}
        if self.byte() % 4 == 1:
            message["tool_calls"] = self._some(self._call, 3)
        return self._marked(message)

    def _content(self, depth: int = 2) -> Any:
        kind = self.byte() % 8
        if kind < 3:
            return self.text()
        if kind == 3:
            return self.value()
        return [self._part(depth) for _ in range(self.byte() % 5)]

    def _part(self, depth: int) -> Any:
        if self.rarely():
            return self.value()
        kind = self.pick(PARTS)
        part: dict[str, Any] = {"type": kind}
        if kind == "text":
            part["text"] = self.text()
        elif kind == "image_url":
            part["image_url"] = {"url": self.text()} if self.byte() % 4 else self.value()
        elif kind in ("image", "document"):
            part["source"] = {"type": "base64", "data": self.text()} if self.byte() % 4 else self.value()
            part["citations"] = {"enabled": self.pick((True, False, 1, None))}
        elif kind == "tool_result":
            part["content"] = self._content(depth - 1) if depth else self.text()
        else:
            part[self.pick(KEYS)] = self.value()
        return self._marked(part)

    def _tool(self) -> Any:
        if self.rarely():
            return self.value()
        inner: dict[str, Any] = {"name": self.text(), "parameters": self.value()}
        if self.byte() % 4 == 0:
            return self._marked(inner)
        return self._marked({"type": "function", "function": self._marked(inner)})

    def _call(self) -> Any:
        if self.rarely():
            return self.value()
        return self._marked({"id": self.text(), "function": self._marked({"arguments": self.text()})})

    def _marked(self, holder: dict[str, Any]) -> dict[str, Any]:
        kind = self.byte() % 16
        if kind < 11:
            return holder
        if kind == 11:
            return {**holder, self.pick(KEYS): self.value()}
        marker = ({"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, {}, self.text())[kind - 12]
        return {"cache_control": marker, **holder} if kind % 2 else {**holder, "cache_control": marker}


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value
