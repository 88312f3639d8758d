"""Compare request bodies by digest: a body that left the proxy with the body that a client sent.

Contains: a comparison that is independent of the code that places breakpoints. Must not depend on: the proxy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

_MARKER = "cache_control"


def digest(raw: bytes) -> str:
    """Return a digest of a request body without its breakpoints; of the bytes where it is no JSON object.

    A string content equals a list with one text block, since a breakpoint needs the list. Everything else counts,
    the order of keys included.
    """
    body = _object(raw)
    plain = raw if body is None else json.dumps(_stripped(body)).encode()
    return hashlib.sha256(plain).hexdigest()[:24]


def breakpoints(raw: bytes) -> list[str]:
    """Return where the breakpoints of a body are, as in `messages.3.content.0:5m`."""
    body = _object(raw)
    return [] if body is None else list(_found(body, ""))


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _stripped(body: Mapping[str, Any]) -> dict[str, Any]:
    stripped = dict(body)
    for name, strip in (("tools", _tool), ("messages", _message)):
        if isinstance(body.get(name), list):
            stripped[name] = [strip(part) for part in body[name]]
    if "system" in body:
        stripped["system"] = _content(body["system"])
    return stripped


def _tool(tool: Any) -> Any:
    bare = _block(tool)
    if isinstance(bare, dict) and "function" in bare:
        bare["function"] = _block(bare["function"])
    return bare


def _message(message: Any) -> Any:
    bare = _block(message)
    if isinstance(bare, dict):
        if "content" in bare:
            bare["content"] = _content(bare["content"])
        if isinstance(bare.get("tool_calls"), list):
            bare["tool_calls"] = [_block(call) for call in bare["tool_calls"]]
    return bare


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return content
    blocks = [_block(block) for block in content]
    for block in blocks:
        if isinstance(block, dict) and block.get("type") == "tool_result" and "content" in block:
            block["content"] = _content(block["content"])
    return blocks


def _block(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != _MARKER} if isinstance(value, dict) else value


def _found(value: Any, place: str) -> Iterator[str]:
    if isinstance(value, dict):
        marker = value.get(_MARKER)
        if isinstance(marker, dict):
            yield f"{place}:{marker.get('ttl', '5m')}"
        for key, inner in value.items():
            yield from _found(inner, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _found(inner, f"{place}.{index}")
