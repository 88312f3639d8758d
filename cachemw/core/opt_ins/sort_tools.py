"""Send tool definitions in one order: the opt-in `sort_tools`.

Contains: the order, the lists that stay as they are, and the equality that then holds. Must not depend on:
blocks, plans, stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from cachemw.core.request.canonical_json import Json
from cachemw.core.request.equality import canonical


def sort_tools(body: Json) -> Json:
    """Return the body with its tools sorted by name, and all keys inside them, or the body itself.

    A list stays as it is if one of its tools has a marker of the client, since a marker covers the tools
    before it. It also stays if JSON would not carry it unchanged, for example a NaN or a tuple in a schema.
    """
    tools = body.get("tools")
    if not isinstance(tools, (list, tuple)) or not all(isinstance(tool, Mapping) for tool in tools):
        return body
    try:
        ordered = [orjson.dumps(tool, option=orjson.OPT_SORT_KEYS) for tool in tools]
        as_came = [orjson.dumps(tool) for tool in tools]
    except (TypeError, ValueError, RecursionError):
        return body
    order = sorted(range(len(tools)), key=lambda index: (_name(tools[index]), ordered[index]))
    if (ordered == as_came and order == list(range(len(tools)))) or any(map(_marked, tools)):
        return body
    fresh = [orjson.loads(raw) for raw in ordered]
    return {**body, "tools": [fresh[index] for index in order]} if fresh == list(tools) else body


def _name(tool: Json) -> str:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name")
    return name if isinstance(name, str) else ""


def _marked(tool: Json) -> bool:
    function = tool.get("function")
    return "cache_control" in tool or (isinstance(function, Mapping) and "cache_control" in function)


def unordered(body: Json) -> Json:
    """Return the canonical form of a body: equal for bodies that differ only in the order of tools and keys."""
    bare: dict[str, Any] = dict(canonical(body))
    if isinstance(bare.get("tools"), (list, tuple)):
        bare["tools"] = sorted(orjson.dumps(tool, option=orjson.OPT_SORT_KEYS) for tool in bare["tools"])
    return bare
