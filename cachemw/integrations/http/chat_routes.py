"""The routes of chat requests: their wire format, and the provider behind a URL.

Contains: paths and hosts. Must not depend on: bodies, clients, how anything is sent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from cachemw.core.request.parser import WireFormat
from cachemw.core.rules.lookup import provider_of

# Clients choose URLs: a longer one is cut before it is searched for a provider, and kept in the memo.
_LONGEST = 1_024


class Route(NamedTuple):
    """The wire format of a route, and the model if the path names it (Databricks' invocations)."""

    wire: WireFormat
    model: str | None = None


def find_route(method: str, url: str) -> Route | None:
    """Return the route of a request to a URL or a path, or None if it is no chat request."""
    if method.upper() != "POST":
        return None
    path = url.partition("?")[0].partition("#")[0]
    head, _, last = path.removesuffix("/").rpartition("/")
    parent = head.rpartition("/")[2]
    if (parent, last) == ("chat", "completions"):
        return Route("chat")
    if (parent, last) == ("v1", "messages"):  # neither /v1/messages/count_tokens nor /v1/messages/batches
        return Route("messages")
    return Route("chat", unquote(parent)) if parent and last == "invocations" else None


def provider_at(url: str) -> str | None:
    """Return the name of the provider that a URL belongs to, or None if the URL identifies none."""
    return _provider_at(url.partition("?")[0][:_LONGEST])


_provider_at = lru_cache(maxsize=256)(provider_of)
