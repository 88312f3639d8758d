"""Equality of requests: the canonical form, and the last check of a changed request.

Contains: `canonical`, which defines equality, and `same_structure`, a cheap check of each outgoing request.
Must not depend on: how breakpoints are chosen or inserted, so that a fault there cannot hide itself.

`same_structure` looks only at copied parts: a value that both requests share is equal to itself. It compares
keys, lengths and types, and the lengths of texts that an opt-in may split, so it costs little beside parsing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachemw.core.request.canonical_json import Json
from cachemw.core.request.markers import strip
from cachemw.core.rules.types import MarkerKey

_MAY_BE_ADDED = frozenset({"cache_control", "prompt_cache_breakpoint", "prompt_cache_key"})
_TEXT_FIELDS = frozenset({"type", "text"}) | _MAY_BE_ADDED


def canonical(body: Json, marker_key: MarkerKey = "cache_control") -> Json:
    """Return the form in which two bodies that state the same request are equal.

    Markers are dropped, and a string content becomes its one-part list. Two bodies are the same request
    exactly if their canonical forms are equal. An empty `system` string stays as it is: it means no system
    prompt, while its one-part list is a blank text block, which providers refuse.
    """
    bare = dict(strip(body, marker_key))
    if isinstance(bare.get("system"), str) and bare["system"]:
        bare["system"] = [{"type": "text", "text": bare["system"]}]
    messages = bare.get("messages")
    if isinstance(messages, (list, tuple)):
        bare["messages"] = [_listed(message) for message in messages]
    return bare


def _listed(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, (list, tuple)):
        return {**message, "content": [_listed(part) for part in content]}
    return message


def same_structure(came: Json, leaves: Json, *, split_text: bool = False, sort_tools: bool = False) -> bool:
    """Return True if `leaves` has the structure of `came` but for added markers.

    A string content may have become a list of its one text part. With `split_text` a text may have become
    several text parts of the same length in total; with `sort_tools` the tools may stand in another order.
    """
    if came is leaves:
        return True
    before, after = dict(came), dict(leaves)
    if sort_tools and _named(before.get("tools")) == _named(after.get("tools")):
        before.pop("tools", None)
        after.pop("tools", None)
    return _same(before, after, split_text)


def _named(tools: Any) -> list[str] | None:
    if not isinstance(tools, (list, tuple)):
        return None
    return sorted(_name(tool) for tool in tools)


def _name(tool: Any) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    holder = function if isinstance(function, Mapping) else tool
    return repr(holder.get("name")) if isinstance(holder, Mapping) else ""


def _same(came: Any, leaves: Any, split_text: bool) -> bool:
    if came is leaves:
        return True
    if isinstance(came, Mapping):
        if not isinstance(leaves, Mapping) or not came.keys() <= leaves.keys():
            return False
        if len(leaves) > len(came) and not leaves.keys() - came.keys() <= _MAY_BE_ADDED:
            return False
        return all(
            _same_content(value, leaves[key], split_text)
            if key in ("content", "system")
            else _same(value, leaves[key], split_text)
            for key, value in came.items()
            if value is not leaves[key] and not (value is None and key in _MAY_BE_ADDED)
        )
    if isinstance(came, (list, tuple)):
        if not isinstance(leaves, (list, tuple)) or len(leaves) != len(came):
            return False
        return all(
            one is other or _same(one, other, split_text) for one, other in zip(came, leaves, strict=True)
        )
    return type(came) is type(leaves) and bool(came == leaves)


def _same_content(came: Any, leaves: Any, split_text: bool) -> bool:
    if isinstance(came, str) and isinstance(leaves, (list, tuple)):
        return (split_text or len(leaves) == 1) and _joins(leaves, came)
    if not split_text or not isinstance(came, (list, tuple)) or not isinstance(leaves, (list, tuple)):
        return _same(came, leaves, split_text)
    at = 0
    for part in came:
        if at < len(leaves) and _same(part, leaves[at], split_text):
            at += 1
            continue
        start, size = at, len(part["text"]) if _is_text(part) else -1
        while at < len(leaves) and _is_text(leaves[at]) and size > 0:
            size -= len(leaves[at]["text"])
            at += 1
        if size != 0 or at == start:
            return False
    return at == len(leaves)


def _joins(parts: Sequence[Any], text: str) -> bool:
    """Return True if text parts, without fields of their own, add up to the length of a text."""
    if not all(_is_text(part) for part in parts):
        return False
    return (
        parts[0]["text"] is text if len(parts) == 1 else sum(len(part["text"]) for part in parts) == len(text)
    )


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and part.keys() <= _TEXT_FIELDS
    )
