"""Check that an outgoing request equals the incoming one except for markers.

Contains: a check that is independent of the code that places markers. Must not depend on: that code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

_MARKER = "cache_control"
Json = Mapping[str, Any]


def same_request(came: Json, left: Json, *, split_text: bool = False, sort_tools: bool = False) -> bool:
    """Return True if two chat bodies are equal except for markers; a string equals its one-part list.

    With `split_text`, adjacent text parts that join to the same string are equal. With `sort_tools`, the
    tools and the keys inside them may stand in another order.
    """
    if came is left:
        return True
    if not _equal(_bare(came, "tools", "messages"), _bare(left, "tools", "messages")):
        return False
    if not _same_tools(came.get("tools"), left.get("tools"), sort_tools):
        return False
    before, after = came.get("messages"), left.get("messages")
    if before is None or after is None or len(before) != len(after):
        return before is after
    return all(
        one is two or _same_message(one, two, split_text) for one, two in zip(before, after, strict=True)
    )


def _same_message(came: Json, left: Json, split_text: bool) -> bool:
    if not _equal(_bare(came, "content", "tool_calls"), _bare(left, "content", "tool_calls")):
        return False
    calls = [[_bare(call) for call in message.get("tool_calls") or ()] for message in (came, left)]
    contents = [_parts(message.get("content"), split_text) for message in (came, left)]
    return _equal(*calls) and _equal(*contents)


def _parts(content: Any, joined: bool) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        return content
    parts = [_bare(part) if isinstance(part, Mapping) else part for part in content]
    if not joined:
        return parts
    found: list[Any] = []
    for part in parts:
        if found and _is_text(part) and _is_text(found[-1]):
            found[-1] = {"type": "text", "text": found[-1]["text"] + part["text"]}
        else:
            found.append(part)
    return found


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.keys() == {"type", "text"}


def _same_tools(came: Sequence[Json] | None, left: Sequence[Json] | None, sort: bool) -> bool:
    if came is left:
        return True
    if came is None or left is None or len(came) != len(left):
        return False
    if sort:
        return sorted(_dump(tool) for tool in came) == sorted(_dump(tool) for tool in left)
    # The order of keys in a schema is content: providers compare bytes.
    return all(
        one is two or json.dumps(_bare_tool(one)) == json.dumps(_bare_tool(two))
        for one, two in zip(came, left, strict=True)
    )


def _dump(tool: Json) -> str:
    return json.dumps(_bare_tool(tool), sort_keys=True)


def _bare_tool(tool: Json) -> Json:
    function = tool.get("function")
    bare = _bare(tool)
    return {**bare, "function": _bare(function)} if isinstance(function, Mapping) else bare


def _bare(value: Json, *without: str) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if key != _MARKER and key not in without}


def _equal(one: Any, two: Any) -> bool:
    return one is two or bool(one == two)
