"""The reading of one tool, system block or message of each wire format as blocks.

Contains: the formats of OpenAI chat bodies and Anthropic Messages bodies, which fields are content, and the
place of a marker. Must not depend on: the request around it, stores, prices, plans.

Key order and empty fields of an envelope (role, type, id, function) are not content. Inside a tool's schema
or a call's input they are. The `arguments` of a call are hashed as the string they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

from xxhash import xxh3_128_digest

from cachemw.core.hash_types import BlockDigest
from cachemw.core.request.canonical_json import Json, canonical_json
from cachemw.core.request.tokens import Counter, estimate, image_size
from cachemw.core.rules.types import Kind, Ttl
from cachemw.errors import BodyError

Path: TypeAlias = tuple[str | int, ...]

_REASONING = ("reasoning", "thinking", "redacted_thinking")
_DOCUMENTS = ("document", "search_result")
_IMAGES = ("image_url", "image")
_EMPTY = {"text": "", "type": "text"}
MOST_PARTS = 2_000
"""Limit of parts of one message, or of one tool result in it: more take too much time at once."""
_digest = cast("Callable[[bytes, int], BlockDigest]", xxh3_128_digest)


class ReadingContext(NamedTuple):
    """The way to read values: `seed` keys the digests of blocks; `counter` counts tokens exactly."""

    seed: int = 0
    counter: Counter | None = None


class Block(NamedTuple):
    """One block, without its place: the same message read again gives the very same objects.

    `marker_path` leads from the tool or message that holds the block to the place of a marker. `digest`
    covers the content without markers (16 bytes). `size` is an estimate, see `tokens`. `markable` is True if
    the block's own form allows a marker (no blank text, no image URL).
    """

    role: str
    kind: Kind
    marker_path: Path
    digest: BlockDigest
    size: float
    markable: bool
    marker: Ttl | None


class ParsedMessage(NamedTuple):
    """The content of one tool, system block or message.

    `starts_user_turn` is True at a new turn of the user, before which thinking may be stripped. `has_image`
    and `has_citations` are True if it holds an image, or a document that asks for citations.
    `client_marker_count` counts the client's markers in it, with those that stand on no block.
    """

    role: str
    blocks: tuple[Block, ...]
    starts_user_turn: bool
    has_image: bool
    has_citations: bool
    client_marker_count: int


def marker_ttl(holder: Json) -> Ttl | None:
    """Return the TTL of the client's marker on an object, None if it has none."""
    control = holder.get("cache_control")
    if control is None:
        return None
    return "1h" if isinstance(control, Mapping) and control.get("ttl") == "1h" else "5m"


def envelope(value: Json, *drop: str) -> dict[str, Any]:
    """Return an object without markers and empty fields, its own keys sorted."""
    return {
        key: value[key]
        for key in sorted(value)
        if key != "cache_control" and key not in drop and value[key] is not None
    }


def _block(
    role: str,
    kind: Kind,
    sub: Path,
    content: bytes,
    size: float,
    markable: bool,
    marker: Ttl | None,
    seed: int,
) -> Block:
    digest = _digest(b"%b\x00%b\x00%b" % (role.encode(), kind.encode(), content), seed)
    return Block(role, kind, sub, digest, size, markable, marker)


def _text(role: str, sub: Path, text: str, rest: Json, reading: ReadingContext, marker: Ttl | None) -> Block:
    raw = text.encode()
    size = float(reading.counter(text)) if reading.counter else estimate(Kind.TEXT, len(raw))
    block = _block(role, Kind.TEXT, sub, raw, size, bool(text.strip()), marker, reading.seed)
    return _with(block, b"part", rest, reading.seed) if rest else block


def _with(block: Block, place: bytes, rest: Json, seed: int) -> Block:
    """Return the block with a digest that also covers the other fields of its part or message."""
    return block._replace(digest=_digest(block.digest + place + canonical_json(rest, ordered=False), seed))


def _json(
    role: str, kind: Kind, sub: Path, value: Any, reading: ReadingContext, marker: Ttl | None,
    markable: bool = True,
) -> Block:  # fmt: skip
    raw = canonical_json(value, ordered=kind in (Kind.TOOL, Kind.TOOL_CALL))
    size = float(reading.counter(raw.decode())) if reading.counter else estimate(kind, len(raw))
    return _block(role, kind, sub, raw, size, markable, marker, reading.seed)


def tool(tool: Any, reading: ReadingContext) -> ParsedMessage:
    """Read one tool definition of either wire format."""
    if not isinstance(tool, Mapping):
        raise BodyError("bad_tools")
    function = tool.get("function")
    value = envelope(tool, "function")
    marker, inner = marker_ttl(tool), None
    if isinstance(function, Mapping):
        value["function"] = envelope(function)
        inner = marker_ttl(function)
    block = _json("tool", Kind.TOOL, (), value, reading, marker or inner)
    return _item("tool", [block], unplaced_markers=int(marker is not None and inner is not None))


def system_block(value: Any, reading: ReadingContext) -> ParsedMessage:
    """Read one entry of the Messages API's `system`; a string is the whole field."""
    if isinstance(value, str):
        return _item("system", [_text("system", (), value, {}, reading, None)])
    return _item("system", [_part("system", (), value, reading)])


def chat_message(message: Any, reading: ReadingContext) -> ParsedMessage:
    """Read one message of an OpenAI chat body."""
    role, content = _role(message)
    provider_role = {"developer": "system", "tool": "user", "function": "user"}.get(role, role)
    blocks: list[Block] = []
    if role == "tool":
        blocks.append(_chat_result(message, content, reading))
    elif isinstance(content, str):
        if content or not message.get("tool_calls"):
            blocks.append(_text(provider_role, ("content",), content, {}, reading, None))
    elif isinstance(content, (list, tuple)):
        # Beside tool calls an empty text is no block, in either spelling.
        calling = bool(message.get("tool_calls"))
        blocks += [
            _part(provider_role, ("content", index), part, reading)
            for index, part in enumerate(content)
            if not (calling and isinstance(part, Mapping) and envelope(part) == _EMPTY)
        ]
    elif content is not None:
        raise BodyError("bad_message")
    loose = _unplaced_markers(content, blocks, whole=role == "tool")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, (list, tuple)):
        raise BodyError("bad_message")
    _bounded(calls)
    for index, call in enumerate(calls):
        if not isinstance(call, Mapping):
            raise BodyError("bad_message")
        value, function = envelope(call), call.get("function")
        if isinstance(function, Mapping):
            value["function"] = envelope(function)
            loose += marker_ttl(function) is not None
        sub = ("tool_calls", index)
        blocks.append(_json(provider_role, Kind.TOOL_CALL, sub, value, reading, marker_ttl(call)))
    extra = envelope(message, "role", "content", "tool_calls", "tool_call_id")
    return _finish(provider_role, blocks, extra, message, loose, reading)


def _chat_result(message: Json, content: Any, reading: ReadingContext) -> Block:
    """Read a `role: tool` message as the one tool_result block that it becomes."""
    sub: Path = ("content",)
    markable = isinstance(content, str) and bool(content.strip())
    if isinstance(content, (list, tuple)):
        if not all(isinstance(part, Mapping) for part in content):
            raise BodyError("bad_message")
        if content:
            sub = ("content", len(content) - 1)
            markable = _part_markable(content[-1])
    elif content is not None and not isinstance(content, str):
        raise BodyError("bad_message")
    value = [message.get("tool_call_id"), _held(content) or []]
    return _json("user", Kind.TOOL_RESULT, sub, value, reading, _tool_result_marker(content), markable)


def _held(content: Any) -> Any:
    """Return the content of a tool result without markers; a string is one text part."""
    if isinstance(content, str):
        return [{"text": content, "type": "text"}]
    if isinstance(content, (list, tuple)):
        return [envelope(part) if isinstance(part, Mapping) else part for part in content]
    return content


def _tool_result_marker(content: Any) -> Ttl | None:
    """Return the marker on the last part inside a tool result, which counts for the result."""
    last = content[-1] if isinstance(content, (list, tuple)) and content else None
    return marker_ttl(last) if isinstance(last, Mapping) else None


def _unplaced_markers(content: Any, blocks: list[Block], *, whole: bool = False) -> int:
    """Count the markers in a content that stand on no block: those inside tool results, unless they count for it.

    `whole` is True if the content as such is one tool result.
    """
    if not isinstance(content, (list, tuple)):
        return 0
    here = sum(isinstance(part, Mapping) and marker_ttl(part) is not None for part in content)
    inside = 0 if whole else sum(_inside(part) for part in content)
    return here + inside - sum(block.marker is not None for block in blocks)


def _inside(part: Any) -> int:
    inner = part.get("content") if isinstance(part, Mapping) and part.get("type") == "tool_result" else None
    return _unplaced_markers(inner, [], whole=True)


def native_message(message: Any, reading: ReadingContext) -> ParsedMessage:
    """Read one message of an Anthropic Messages body."""
    role, content = _role(message)
    if isinstance(content, str):
        blocks = [_text(role, ("content",), content, {}, reading, None)]
    elif isinstance(content, (list, tuple)):
        blocks = [_part(role, ("content", index), part, reading) for index, part in enumerate(content)]
    else:
        raise BodyError("bad_message")
    return _finish(
        role,
        blocks,
        envelope(message, "role", "content"),
        message,
        _unplaced_markers(content, blocks),
        reading,
    )


def _role(message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BodyError("bad_message")
    content = message.get("content")
    _bounded(content)
    return message["role"], content


def _bounded(parts: Any) -> None:
    """Raise `BodyError("too_many_parts")` for a list with more than `MOST_PARTS` parts."""
    if isinstance(parts, (list, tuple)) and len(parts) > MOST_PARTS:
        raise BodyError("too_many_parts")


def _finish(
    role: str, blocks: list[Block], extra: Json, message: Json, unplaced_markers: int, reading: ReadingContext
) -> ParsedMessage:
    """Add the fields of a message beside its content to the digest of its first block."""
    if blocks and extra:
        blocks[0] = _with(blocks[0], b"message", extra, reading.seed)
    elif extra or (not blocks and role != "system"):  # an empty system message leaves nothing in a prompt
        blocks = [_json(role, Kind.OPAQUE, (), extra, reading._replace(counter=None), None, markable=False)]
    own = marker_ttl(message)
    if own and blocks and blocks[-1].marker is None:
        blocks[-1] = blocks[-1]._replace(marker=own)
    elif own:
        unplaced_markers += 1
    content = message.get("content")
    return _item(role, blocks, content if isinstance(content, (list, tuple)) else (), unplaced_markers)


def _item(
    role: str, blocks: list[Block], parts: Sequence[Any] = (), unplaced_markers: int = 0
) -> ParsedMessage:
    turn = role == "user" and not all(block.kind is Kind.TOOL_RESULT for block in blocks)
    image, cited = _facts(parts)
    owned = unplaced_markers + sum(block.marker is not None for block in blocks)
    return ParsedMessage(role, tuple(blocks), turn, image, cited, owned)


def _facts(parts: Sequence[Any]) -> tuple[bool, bool]:
    """Return if parts, or parts in a tool result among them, hold an image, and if they ask for citations."""
    image = cited = False
    for part in parts:
        if not isinstance(part, Mapping):
            continue
        kind, inner, citations = part.get("type"), part.get("content"), part.get("citations")
        if kind == "tool_result" and isinstance(inner, (list, tuple)):
            inner_image, inner_cited = _facts(inner)
            image, cited = image or inner_image, cited or inner_cited
        image = image or kind in _IMAGES
        if kind in _DOCUMENTS and isinstance(citations, Mapping):
            cited = cited or citations.get("enabled") is True
    return image, cited


def _part(role: str, sub: Path, part: Any, reading: ReadingContext) -> Block:
    """Read one content part of either wire format."""
    if not isinstance(part, Mapping):
        raise BodyError("bad_message")
    kind, marker = part.get("type"), marker_ttl(part)
    if kind == "text" and isinstance(part.get("text"), str):
        return _text(role, sub, part["text"], envelope(part, "type", "text"), reading, marker)
    value = envelope(part)
    if kind in _IMAGES:
        data = _image_data(part)
        content = canonical_json(value, ordered=False)
        size = image_size(data) if data else image_size("")
        return _block(role, Kind.IMAGE, sub, content, size, data is not None, marker, reading.seed)
    if kind in ("tool_use", "server_tool_use"):
        return _json(role, Kind.TOOL_CALL, sub, value, reading, marker)
    if kind == "tool_result":
        inner = part.get("content")
        _bounded(inner)
        if inner is not None:
            value["content"] = _held(inner)
        return _json(role, Kind.TOOL_RESULT, sub, value, reading, marker or _tool_result_marker(inner))
    if kind in _REASONING:
        return _json(role, Kind.REASONING, sub, value, reading, marker)
    if kind in _DOCUMENTS:
        return _json(role, Kind.DOCUMENT, sub, value, reading, marker)
    return _json(role, Kind.OPAQUE, sub, value, reading, marker, markable=False)


def _part_markable(part: Json) -> bool:
    if part.get("type") == "text":
        return isinstance(part.get("text"), str) and bool(part["text"].strip())
    return part.get("type") in _IMAGES and _image_data(part) is not None


def _image_data(part: Json) -> str | None:
    """Return an image's base64 text, None if it is only a URL."""
    source = part.get("source")
    if isinstance(source, Mapping):
        data = source.get("data")
        return data if source.get("type") == "base64" and isinstance(data, str) else None
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str) or not url.startswith("data:") or ";base64," not in url[:64]:
        return None
    return url.partition(";base64,")[2] or None
