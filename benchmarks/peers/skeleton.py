"""Replace the texts of a chat body by stand-ins, and keep the structure by which peers place markers.

Contains: the reduction, and the list of the body's blocks that the stand-ins name. Runs on both sides,
so it imports nothing but the standard library. Must not depend on: any peer, or its use of a body.

A stand-in names its block, so a marker can be carried back (sent.py) although a package renames, joins, drops or
reorders blocks. Stand-ins also make bodies small. No package depends on the length of a text (by the sources of the
versions in requirements.txt; tests/benchmarks/test_peers.py holds it). The skeleton keeps all that packages depend on:
roles, the kinds and order of parts, the numbers of tools and calls, the call that a result answers, empty and blank
texts, and the client's own markers. One exception is known: pydantic-ai adds notes beside texts that imitate its own
`<pyai:...>` frames.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Path = tuple[str | int, ...]
Ttl = Literal["5m", "1h"]
Mark = tuple[Path, Ttl]


class Block(NamedTuple):
    """A block of a body: its path, and whether it is an empty text, is inside a tool result, can carry a marker.

    Thinking and blank texts can't carry one. Inside a tool result only the last part can.
    """

    path: Path
    empty: bool
    inner: bool
    carries: bool


class Skeleton:
    """A body's structure (`body`) and its `blocks`; `with_texts` keeps each text behind its stand-in.

    `results` maps each `tool_call_id` of the structure to the number of its result's last block, or of the
    block before an empty result. Raises `ValueError` on a part that is neither text, image nor
    reasoning.
    """

    def __init__(self, body: Mapping[str, Any], *, with_texts: bool = False) -> None:
        self.blocks: list[Block] = []
        self.results: dict[str, int] = {}
        self.body: dict[str, Any] = {}
        self._calls: dict[str, str] = {}
        self._with_texts = with_texts
        if body.get("tools"):
            self.body["tools"] = [self._tool(index) for index in range(len(body["tools"]))]
        self.body["messages"] = [
            self._message(index, message) for index, message in enumerate(body["messages"])
        ]

    def _add(self, path: Path, *, empty: bool = False, inner: bool = False, carries: bool = True) -> str:
        self.blocks.append(Block(path, empty, inner, carries))
        return f"block-{len(self.blocks) - 1}-here"

    def _tool(self, index: int) -> dict[str, Any]:
        name = self._add(("tools", index))
        function = {"name": name, "description": "d", "parameters": {"type": "object", "properties": {}}}
        return {"type": "function", "function": function}

    def _message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        path: Path = ("messages", index, "content")
        role, content = message["role"], message.get("content")
        inner = role == "tool"
        bare: dict[str, Any] = {"role": role, "content": content}
        if isinstance(content, str):
            bare["content"] = self._text(content, path, inner, last=True)
        elif content is not None:
            bare["content"] = [
                self._part(part, (*path, number), inner, last=number == len(content) - 1)
                for number, part in enumerate(content)
            ]
        if message.get("tool_calls"):
            bare["tool_calls"] = [
                self._call(call, ("messages", index, "tool_calls", number))
                for number, call in enumerate(message["tool_calls"])
            ]
        if inner:
            call_id = self._calls.get(str(message.get("tool_call_id")), f"unasked-{index}")
            bare["tool_call_id"] = call_id
            self.results[call_id] = len(self.blocks) - 1
        return _marked(bare, message)

    def _part(self, part: Mapping[str, Any], path: Path, inner: bool, last: bool) -> dict[str, Any]:
        kind = part.get("type")
        if kind == "text":
            return _marked({"type": kind, "text": self._text(part["text"], path, inner, last)}, part)
        if kind == "image_url":
            name = self._add(path, inner=inner, carries=last or not inner)
            url = f"data:image/png;base64,{base64.b64encode(name.encode()).decode()}"
            return _marked({"type": kind, "image_url": {"url": url}}, part)
        if kind == "reasoning":
            name = self._add(path, inner=inner, carries=False)
            hidden = (part.get("summary") or [{}])[0].get("type") == "summary_encrypted_text"
            summary = (
                {"type": "summary_encrypted_text", "data": name}
                if hidden
                else {"type": "summary_text", "text": name, "signature": "s"}
            )
            return _marked({"type": kind, "summary": [summary]}, part)
        raise ValueError(f"a part of type {kind!r} is not driven; allowed: text, image_url, reasoning")

    def _text(self, text: str, path: Path, inner: bool, last: bool) -> str:
        blank = not text.strip()
        name = self._add(path, empty=not text, inner=inner, carries=not blank and (last or not inner))
        if not text:
            return text
        if blank:
            return f"\t{' ' * len(self.blocks)}\t"  # still blank, and names its block
        return f"{name} {text}" if self._with_texts else name

    def _call(self, call: Mapping[str, Any], path: Path) -> dict[str, Any]:
        name = self._calls[str(call.get("id"))] = self._add(path)
        function = {"name": "called", "arguments": "{}"}
        return _marked({"id": name, "type": "function", "function": function}, call)


def _marked(bare: dict[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    control = original.get("cache_control")
    return bare if control is None else {**bare, "cache_control": control}
