"""Write markers into a body without changing the caller's objects, and remove them.

Contains: path copy, and every place where a marker may stand. Must not depend on: the choice of breakpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cachemw.core.request.canonical_json import Json
from cachemw.core.request.message_blocks import Path
from cachemw.core.rules.types import MarkerKey, Ttl
from cachemw.errors import BodyError

_INNER = ("content", "tool_calls", "function")
# The fields in which a string equals a list of one text part.
_TEXT_HOLDERS = ("content", "system")


def marker_value(ttl: Ttl) -> dict[str, str]:
    """Return a `cache_control` value; everywhere a marker without a TTL means 5m."""
    return {"type": "ephemeral", "ttl": "1h"} if ttl == "1h" else {"type": "ephemeral"}


def insert(body: Json, places: Iterable[tuple[Path, Ttl]], marker_key: MarkerKey = "cache_control") -> Json:
    """Return the body with a marker, called `marker_key`, at each path; the body itself if there is no path.

    Only the dictionaries and lists on the way to a marker are copied; everything else is shared with the
    caller's body. A string at the end of a path becomes a list of one text part.

    Raises `BodyError("bad_path")` for a path that does not fit the body: a path is made for one body and must
    not be written into another.
    """
    root: dict[str, Any] | None = None
    fresh: dict[Path, Any] = {}
    for path, ttl in places:
        if root is None:
            root = fresh[()] = dict(body)
        node: Any = root
        for depth in range(1, len(path)):
            here = path[:depth]
            if here not in fresh:
                fresh[here] = node[path[depth - 1]] = _copy(_at(node, path[depth - 1]))
            node = fresh[here]
        last, control = path[-1], marker_value(ttl) if marker_key == "cache_control" else {"mode": "explicit"}
        target = _at(node, last)
        if isinstance(target, str) and last in _TEXT_HOLDERS:
            node[last] = [{"type": "text", "text": target, marker_key: control}]
        elif isinstance(target, Mapping):
            node[last] = {**target, marker_key: control}
        else:
            raise BodyError("bad_path")
    return body if root is None else root


def _at(node: Any, key: str | int) -> Any:
    """Return the value under a key or index. Raises `BodyError` if there is none."""
    fits = isinstance(node, dict) if isinstance(key, str) else isinstance(node, list) and key >= 0
    try:
        if fits:
            return node[key]
    except LookupError:
        pass
    raise BodyError("bad_path")


def _copy(node: Any) -> Any:
    if isinstance(node, Mapping):
        return dict(node)
    if isinstance(node, (list, tuple)):
        return list(node)
    raise BodyError("bad_path")


def strip(body: Json, marker_key: MarkerKey = "cache_control") -> Json:
    """Return the body without any marker, the client's own included; the caller's body stays as it is."""
    return {
        key: [_strip(item, marker_key) for item in value]
        if key in ("tools", "system", "messages") and isinstance(value, (list, tuple))
        else value
        for key, value in body.items()
        if key != marker_key
    }


def _strip(node: Any, marker_key: MarkerKey) -> Any:
    if not isinstance(node, Mapping):
        return node
    bare = {key: value for key, value in node.items() if key != marker_key}
    for key in _INNER:
        inner = bare.get(key)
        if isinstance(inner, (list, tuple)):
            bare[key] = [_strip(item, marker_key) for item in inner]
        elif isinstance(inner, Mapping):
            bare[key] = {k: v for k, v in inner.items() if k != marker_key}
    return bare
