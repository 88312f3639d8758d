"""The three compared ways to place breakpoints: none, by position, and cachemw.

Contains: the change that each policy makes to a request before the client gets it. Must not depend on: how
a request is sent or billed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cachemw.core.request import markers
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.message_blocks import Path

_SYSTEM = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Policy:
    """A way to place breakpoints; `mode` is the middleware's. In mode "off" it only counts usage."""

    name: str
    mode: Literal["optimize", "off"]
    prepare: Callable[[Json], Json]


def positional(body: Json) -> Json:
    """Return the body with breakpoints at the end of the system section and of the last message.

    This is the default of several gateways and frameworks. It adds nothing if the client has set markers,
    and skips blocks that a provider refuses to mark, such as blank texts.
    """
    if markers.strip(body) != body:
        return body
    return markers.insert(body, [(path, "5m") for path in _ends(body["messages"])])


def _ends(messages: Sequence[Mapping[str, Any]]) -> Iterator[Path]:
    leading = next((i for i, message in enumerate(messages) if message["role"] not in _SYSTEM), len(messages))
    for index in sorted({leading - 1, len(messages) - 1} - {-1}):
        if (inner := _last_markable(messages[index].get("content"))) is not None:
            yield ("messages", index, "content", *inner)


def _last_markable(content: Any) -> Path | None:
    """Return the path from a content to its last block that takes a marker; () stands for a string."""
    if isinstance(content, str):
        return () if content.strip() else None
    parts = content or ()
    return next(((index,) for index in reversed(range(len(parts))) if _markable(parts[index])), None)


def _markable(part: Mapping[str, Any]) -> bool:
    if part.get("type") == "image_url":
        return True
    text = part.get("text")
    return part.get("type") == "text" and isinstance(text, str) and bool(text.strip())


def _unchanged(body: Json) -> Json:
    return body


POLICIES = (
    Policy("no caching", "off", markers.strip),
    Policy("positional", "off", positional),
    Policy("cachemw", "optimize", _unchanged),
)
