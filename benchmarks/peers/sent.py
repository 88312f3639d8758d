"""Carry the markers of a request that a peer sends back onto the blocks of its input body.

Contains: the recognition of a block in a request of OpenAI's or Anthropic's shape. Must not depend on: any
peer. Runs beside the packages, so it imports nothing but the standard library.

If a package keeps a body's content, its marker stays at its place, even if the provider will refuse it there. If a
package changes the content (joins parts of a tool result, moves an image out of it, adds a note), the marker goes
to the nearest block of the body that can carry it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from skeleton import Block, Mark, Path, Skeleton, Ttl

_STAND_IN = re.compile(r"block-(\d+)-here")
_BLANK = re.compile(r"\t( +)\t")
_THINKING = ("reasoning", "thinking", "redacted_thinking")


class _Sent(NamedTuple):
    """A block as the peer sends it. `number` is None if `words` name no block of the body."""

    number: int | None
    words: str
    control: Mapping[str, Any] | None
    thinking: bool = False


def marks(skeleton: Skeleton, request: Mapping[str, Any]) -> list[Mark]:
    """Return (path in the body, TTL) of each marker in a request made from a skeleton's body.

    A marker at the top of a request goes to Anthropic's place for it: the last block that can carry one.
    """
    found: dict[Path, Ttl] = {}
    blocks, before, last = skeleton.blocks, -1, None
    for block in _sent(skeleton, request):
        number = _number(blocks, block, before)
        if block.number is not None or not block.words:
            before = number
        if block.control is not None:
            found[blocks[number].path] = _ttl(block.control)
        if block.words.strip() and not block.thinking:
            last = number
    top = request.get("cache_control")
    if top is not None and last is not None:
        found.setdefault(blocks[last].path, _ttl(top))
    return list(found.items())


def _number(blocks: Sequence[Block], block: _Sent, before: int) -> int:
    """Return the number of the body's block that a block is, or follows. `before` are the blocks sent before it."""
    if block.number is None:
        empty = (number for number in range(before + 1, len(blocks)) if blocks[number].empty)
        return next(empty, before) if not block.words else _carrier(blocks, max(before, 0))
    moved = blocks[block.number].inner and block.words.strip()
    return _carrier(blocks, block.number) if moved else block.number


def _carrier(blocks: Sequence[Block], number: int) -> int:
    """Return the block that carries a marker of this one: a tool result's last, or the nearest before."""
    message = blocks[number].path[:2]
    while blocks[number].inner and number + 1 < len(blocks) and blocks[number + 1].path[:2] == message:
        number += 1
    while number > 0 and not blocks[number].carries:
        number -= 1
    return number


def _sent(skeleton: Skeleton, request: Mapping[str, Any]) -> Iterator[_Sent]:
    """Yield the blocks of a request in its own order. A tool result is one block, however many parts it has."""
    for tool in request.get("tools") or ():
        function = tool.get("function", tool)
        yield _named(function["name"], tool.get("cache_control") or function.get("cache_control"))
    for part in _parts(request.get("system")):
        yield _part(skeleton, part)
    for message in request["messages"]:
        parts = _parts(message.get("content"))
        if message["role"] == "tool":
            yield _result(skeleton, message["tool_call_id"], parts, None)
        else:
            yield from (_part(skeleton, part) for part in parts)
        for call in message.get("tool_calls") or ():
            yield _named(call["id"], call.get("cache_control"))


def _part(skeleton: Skeleton, part: Mapping[str, Any]) -> _Sent:
    control = part.get("cache_control")
    if part["type"] == "tool_result":
        return _result(skeleton, part["tool_use_id"], _parts(part.get("content")), control)
    return _named(_words(part), control)._replace(thinking=part["type"] in _THINKING)


def _result(skeleton: Skeleton, answered: str, parts: list[Any], control: Any) -> _Sent:
    """Return a tool result. Its own marker is on no text; a marker of a part is on the text of that part."""
    words = answered
    for part in parts:
        if part.get("cache_control") is not None:
            control, words = part["cache_control"], _words(part)
    return _Sent(skeleton.results[answered], words, control)


def _named(words: str, control: Any) -> _Sent:
    """Return a block by the last stand-in in it, or by the last blank one if it is all blank."""
    if found := _STAND_IN.findall(words):
        return _Sent(int(found[-1]), words, control)
    blank = _BLANK.findall(words)
    return _Sent(len(blank[-1]) - 1 if blank else None, words, control)


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def _words(part: Mapping[str, Any]) -> str:
    match part:
        case {"type": "text", "text": str(words)} | {"type": "tool_use", "id": str(words)}:
            return words
        case {"type": "thinking", "thinking": str(words)} | {"type": "redacted_thinking", "data": str(words)}:
            return words
        case {"type": "reasoning", "summary": [{"text": str(words)} | {"data": str(words)}]}:
            return words
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return base64.b64decode(url.partition(",")[2]).decode()
        case {"type": "image", "source": {"data": str(data)}}:
            return base64.b64decode(data).decode()
    return ""


def _ttl(control: Mapping[str, Any]) -> Ttl:
    return "1h" if control.get("ttl") == "1h" else "5m"
