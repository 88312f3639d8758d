"""How one tool, system block or message of each wire shape is read as blocks.

Lives here: the shapes of OpenAI chat bodies and Anthropic Messages bodies, what of them is content,
where a marker goes. Must not know: the request around it, stores, prices, plans.

Key order and empty fields of an envelope (role, type, id, function) are not content; inside a tool's
schema or a call's input they are, and a call's `arguments` are hashed as the string they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, NamedTuple, TypeAlias

import orjson
from xxhash import xxh3_128_digest

from cachemw.core.providers import Kind, Ttl
from cachemw.core.tokens import Counter, estimate, image_size
from cachemw.errors import BodyError

Path: TypeAlias = tuple[str | int, ...]
Json: TypeAlias = Mapping[str, Any]

_REASONING = {"reasoning", "thinking", "redacted_thinking"}
_DOCUMENTS = {"document", "search_result"}


class Block(NamedTuple):
    """One block, without its place: the same message read again gives the very same objects.

    `sub` is the path from the tool or message that holds it to where a marker would go; `digest`
    covers the content without markers (16 bytes); `size` is an estimate, see `core.tokens`;
    `markable` says that the block's own shape allows a marker (no blank text, no image URL).
    """

    role: str
    kind: Kind
    sub: Path
    digest: bytes
    size: float
    markable: bool
    marker: Ttl | None


class Item(NamedTuple):
    """What one tool, system block or message holds."""

    role: str
    blocks: tuple[Block, ...]
    turn: bool  # starts a new turn of the user: earlier thinking may be stripped
    image: bool
    loose: int  # the client's markers inside it that stand on no block of ours


def dump(value: Any) -> bytes:
    """Return JSON bytes of a value, keys in their own order.

    Raises `BodyError("not_json")` for what JSON can't carry: lone surrogates, NaN and infinities,
    integers over 64 bits, nesting deeper than about 250, foreign objects.
    """
    try:
        raw = orjson.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise BodyError("not_json") from None
    if b"null" in raw and not _finite(value):
        raise BodyError("not_json")
    return raw


def _finite(value: Any) -> bool:
    """Say whether every float is a number: the serialiser writes the others as null."""
    stack = [value]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            stack.extend(node.values())
        elif isinstance(node, (list, tuple)):
            stack.extend(node)
        elif isinstance(node, float) and not isfinite(node):
            return False
    return True


def marker_ttl(holder: Json) -> Ttl | None:
    """Return the TTL of the client's marker on an object, None where it has none."""
    control = holder.get("cache_control")
    if not isinstance(control, Mapping):
        return None
    return "1h" if control.get("ttl") == "1h" else "5m"


def envelope(value: Json, *drop: str) -> dict[str, Any]:
    """Return an object without markers and empty fields, its own keys sorted."""
    return {
        key: value[key]
        for key in sorted(value)
        if key != "cache_control" and key not in drop and value[key] is not None
    }


def _block(
    role: str, kind: Kind, sub: Path, content: bytes, size: float, markable: bool, marker: Ttl | None
) -> Block:
    digest = xxh3_128_digest(b"%b\x00%b\x00%b" % (role.encode(), kind.encode(), content))
    return Block(role, kind, sub, digest, size, markable, marker)


def _text(role: str, sub: Path, text: str, rest: Json, counter: Counter | None, marker: Ttl | None) -> Block:
    raw = text.encode()
    size = float(counter(text)) if counter else estimate(Kind.TEXT, len(raw))
    content = raw + b"\x00" + dump(rest) if rest else raw
    return _block(role, Kind.TEXT, sub, content, size, bool(text.strip()), marker)


def _json(
    role: str, kind: Kind, sub: Path, value: Any, counter: Counter | None, marker: Ttl | None,
    markable: bool = True,
) -> Block:  # fmt: skip
    raw = dump(value)
    size = float(counter(raw.decode())) if counter else estimate(kind, len(raw))
    return _block(role, kind, sub, raw, size, markable, marker)


def tool(tool: Any, counter: Counter | None) -> Item:
    if not isinstance(tool, Mapping):
        raise BodyError("bad_tools")
    function = tool.get("function")
    value = envelope(tool, "function")
    marker = marker_ttl(tool)
    if isinstance(function, Mapping):
        value["function"] = envelope(function)
        marker = marker or marker_ttl(function)
    return Item("tool", (_json("tool", Kind.TOOL, (), value, counter, marker),), False, False, 0)


def system_block(value: Any, counter: Counter | None) -> Item:
    """Read one entry of the Messages API's `system`; a plain string is the whole field."""
    if isinstance(value, str):
        return Item("system", (_text("system", (), value, {}, counter, None),), False, False, 0)
    return Item("system", (_part("system", (), value, counter),), False, False, 0)


def chat_message(message: Any, counter: Counter | None) -> Item:
    role, content = _role(message)
    provider_role = {"developer": "system", "tool": "user", "function": "user"}.get(role, role)
    blocks: list[Block] = []
    loose = 0
    if role == "tool":
        blocks.append(_chat_result(message, content, counter))
        loose = max(0, _count_markers(content) - 1)
    elif isinstance(content, str):
        if content or not message.get("tool_calls"):
            blocks.append(_text(provider_role, ("content",), content, {}, counter, None))
    elif isinstance(content, (list, tuple)):
        blocks += [_part(provider_role, ("content", i), part, counter) for i, part in enumerate(content)]
    elif content is not None:
        raise BodyError("bad_message")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, (list, tuple)):
        raise BodyError("bad_message")
    for index, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise BodyError("bad_message")
        value = envelope(call)
        if isinstance(call.get("function"), Mapping):
            value["function"] = envelope(call["function"])
        sub = ("tool_calls", index)
        blocks.append(_json(provider_role, Kind.TOOL_CALL, sub, value, counter, marker_ttl(call)))
    extra = envelope(message, "role", "content", "tool_calls", "tool_call_id")
    return _finish(provider_role, blocks, extra, message, role != "tool", loose)


def _chat_result(message: Json, content: Any, counter: Counter | None) -> Block:
    """Read a `role: tool` message as the one tool_result block that it becomes."""
    sub: Path = ("content",)
    marker = None
    markable = isinstance(content, str) and bool(content.strip())
    value: Any = content
    if isinstance(content, str):
        value = [{"text": content, "type": "text"}]
    elif isinstance(content, (list, tuple)):
        if not all(isinstance(part, Mapping) for part in content):
            raise BodyError("bad_message")
        value = [envelope(part) for part in content]
        if content:
            sub = ("content", len(content) - 1)
            marker = marker_ttl(content[-1])
            markable = _part_markable(content[-1])
    identity = message.get("tool_call_id")
    return _json("user", Kind.TOOL_RESULT, sub, [identity, value], counter, marker, markable)


def native_message(message: Any, counter: Counter | None) -> Item:
    role, content = _role(message)
    loose = 0
    if isinstance(content, str):
        blocks = [_text(role, ("content",), content, {}, counter, None)]
    elif isinstance(content, (list, tuple)):
        blocks = []
        for index, part in enumerate(content):
            blocks.append(_part(role, ("content", index), part, counter))
            if blocks[-1].kind is Kind.TOOL_RESULT:
                loose += _count_markers(part.get("content"))
    else:
        raise BodyError("bad_message")
    turn = not all(block.kind is Kind.TOOL_RESULT for block in blocks)
    return _finish(role, blocks, envelope(message, "role", "content"), message, turn, loose)


def _role(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BodyError("bad_message")
    return message["role"], message.get("content")


def _finish(role: str, blocks: list[Block], extra: Json, message: Json, turn: bool, loose: int) -> Item:
    """Fold what a message says beside its blocks into the first of them."""
    if not blocks:
        blocks = [_json(role, Kind.OPAQUE, (), extra, None, None, markable=False)]
    elif extra:
        first = blocks[0]
        blocks[0] = first._replace(digest=xxh3_128_digest(first.digest + dump(extra)))
    own = marker_ttl(message)
    if own and blocks[-1].marker is None:
        blocks[-1] = blocks[-1]._replace(marker=own)
    elif own:
        loose += 1
    image = any(block.kind is Kind.IMAGE for block in blocks)
    return Item(role, tuple(blocks), turn and role == "user", image, loose)


def _part(role: str, sub: Path, part: Any, counter: Counter | None) -> Block:
    """Read one content part of either wire shape."""
    if not isinstance(part, Mapping):
        raise BodyError("bad_message")
    kind, marker = part.get("type"), marker_ttl(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return _text(role, sub, part["text"], envelope(part, "type", "text"), counter, marker)
    value = envelope(part)
    if kind in ("image_url", "image"):
        data = _image_data(part)
        content = dump(value)
        size = image_size(data) if data else image_size("")
        return _block(role, Kind.IMAGE, sub, content, size, data is not None, marker)
    if kind == "tool_use" or kind == "server_tool_use":
        return _json(role, Kind.TOOL_CALL, sub, value, counter, marker)
    if kind == "tool_result":
        inner = part.get("content")
        if isinstance(inner, str):
            value["content"] = [{"text": inner, "type": "text"}]
        elif isinstance(inner, (list, tuple)):
            value["content"] = [envelope(x) if isinstance(x, Mapping) else x for x in inner]
        return _json(role, Kind.TOOL_RESULT, sub, value, counter, marker)
    if kind in _REASONING:
        return _json(role, Kind.REASONING, sub, value, counter, marker)
    if kind in _DOCUMENTS:
        return _json(role, Kind.DOCUMENT, sub, value, counter, marker)
    return _json(role, Kind.OPAQUE, sub, value, counter, marker, markable=False)


def _part_markable(part: Json) -> bool:
    if part.get("type") == "text":
        return isinstance(part.get("text"), str) and bool(part["text"].strip())
    return part.get("type") in ("image_url", "image") and _image_data(part) is not None


def _image_data(part: Json) -> str | None:
    """Return an image's base64 text, None where it is only a URL."""
    source = part.get("source")
    if isinstance(source, Mapping):
        data = source.get("data")
        return data if source.get("type") == "base64" and isinstance(data, str) else None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:64]:
        return None
    return url.partition(";base64,")[2] or None


def _count_markers(content: Any) -> int:
    if not isinstance(content, (list, tuple)):
        return 0
    return sum(isinstance(part, Mapping) and marker_ttl(part) is not None for part in content)
