"""Tool definitions in one order, whatever order they came in: the opt-in `sort_tools`.

Lives here: the order, and which lists are left alone. Must not know: blocks, plans, stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from cachemw.core.wire import Json


def sort_tools(body: Json) -> Json:
    """Return the body with its tools by name and the keys inside them sorted; the body itself if they are.

    Left alone: tools of which one has a marker of the client's, since a marker covers what stands before
    it, and what is no list of JSON objects.
    """
    tools = body.get("tools")
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        return body
    try:
        dumped = [orjson.dumps(tool, option=orjson.OPT_SORT_KEYS) for tool in tools]
        came = [orjson.dumps(tool) for tool in tools]
    except (TypeError, ValueError, RecursionError):
        return body
    order = sorted(range(len(tools)), key=lambda index: (_name(tools[index]), dumped[index]))
    if dumped == came and order == list(range(len(tools))):
        return body
    if any(_marked(tool) for tool in tools):
        return body
    fresh: list[Any] = [
        tool if raw == was else orjson.loads(raw) for tool, raw, was in zip(tools, dumped, came, strict=True)
    ]
    # What JSON does not carry as it is (NaN, tuples, foreign objects) would leave as something else.
    if fresh != list(tools):
        return body
    return {**body, "tools": [fresh[index] for index in order]}


def _name(tool: Json) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    return name if isinstance(name, str) else ""


def _marked(tool: Json) -> bool:
    function = tool.get("function")
    return "cache_control" in tool or (isinstance(function, Mapping) and "cache_control" in function)
