"""Ways to place breakpoints that are compared: none, by position as others do it, and cachemw.

Lives here: what each makes of a request before it is given to the client. Must not know: how a request
is sent or billed.
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
    """A way to place breakpoints; `mode` is the middleware's, which only counts usage when it is off."""

    name: str
    mode: Literal["optimize", "off"]
    prepare: Callable[[Json], Json]


def positional(body: Json) -> Json:
    """Return the body with breakpoints at the end of the system section and of the last message.

    This is the default of several gateways and frameworks. It stands down where the client has set
    markers, and leaves out what a provider refuses: blank texts, and blocks that take none.
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
    """Return the path inside a content to what carries its marker; () is a string as a whole."""
    if isinstance(content, str):
        return () if content.strip() else None
    parts = content or ()
    return next(((index,) for index in reversed(range(len(parts))) if _markable(parts[index])), None)


def _markable(part: Mapping[str, Any]) -> bool:
    if part.get("type") == "image_url":
        return True
    text = part.get("text")
    return part.get("type") == "text" and isinstance(text, str) and bool(text.strip())


def _as_it_is(body: Json) -> Json:
    return body


POLICIES = (
    Policy("no caching", "off", markers.strip),
    Policy("positional", "off", positional),
    Policy("cachemw", "optimize", _as_it_is),
)
