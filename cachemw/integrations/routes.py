"""Which HTTP requests are chat requests, in which wire shape, and to whom.

Lives here: paths and what they tell. Must not know: bodies, clients, how anything is sent.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from cachemw.core.blocks import Wire
from cachemw.core.providers import find_provider

_CHAT = re.compile(r"(?:^|/)chat/completions/?$")
# Neither /v1/messages/count_tokens nor /v1/messages/batches.
_MESSAGES = re.compile(r"(?:^|/)v1/messages/?$")
_INVOCATIONS = re.compile(r"(?:^|/)([^/?#]+)/invocations/?$")


class Route(NamedTuple):
    """The shape of what is sent there, and the model where the path names it (Databricks' invocations)."""

    wire: Wire
    model: str | None = None


@lru_cache(maxsize=256)
def find_route(method: str, url: str) -> Route | None:
    """Return the route of a request to a URL or a path; None where it is no chat request."""
    if method.upper() != "POST":
        return None
    path, *_ = re.split("[?#]", url, maxsplit=1)
    if _CHAT.search(path):
        return Route("chat")
    if _MESSAGES.search(path):
        return Route("messages")
    invoked = _INVOCATIONS.search(path)
    return None if invoked is None else Route("chat", unquote(invoked[1]))


@lru_cache(maxsize=256)
def provider_at(url: str) -> str | None:
    """Return the name of the provider that a URL belongs to, None where nothing tells."""
    found = find_provider(url)
    return None if found is None else found.name
