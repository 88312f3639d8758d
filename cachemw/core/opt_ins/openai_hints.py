"""OpenAI's hints, the opt-in `openai_hints`: a `prompt_cache_key`, and breakpoints of OpenAI's own sort.

Lives here: which requests go under one key, how a request is read where OpenAI sets a breakpoint itself, and
the equality that then holds. Must not know: stores, how breakpoints are chosen.

OpenAI sends requests to a machine by the start of the prompt together with the key, and those of one key above
some fifteen a minute to further machines, where nothing is cached yet (prompt caching guide, October 2026). So
what shares its tools and system prompt shares a key, and a busy one has several, each for whole conversations.
From GPT-5.6 on a breakpoint of OpenAI's own ends each request, and nothing shorter is found than what ends at a
breakpoint of this request and of an earlier one: ours stand on what is shared. They cost nothing, since what is
up to OpenAI's own is written anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cachemw.core.fair_table import FairTable
from cachemw.core.request import equality
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.rules.types import MarkerKey

KEY = "prompt_cache_key"
BREAKPOINT: MarkerKey = "prompt_cache_breakpoint"
# A head that has the time in it would go to another machine with each minute. What came so often over so many
# seconds is none such, nor what came so often at all that one miss more is nothing.
_FAMILIAR, _FOR, _ANYHOW = 16, 600.0, 1000
_BUSY = 12.0  # requests a minute of one key, under the fifteen
_MOST = 64
_REMEMBERED = 10_000


@dataclass(slots=True)
class _Pace:
    """How often a head was seen at a time (seconds), and among how many keys its conversations are spread."""

    first: float
    since: float
    seen: int
    ways: int = 1


class PromptCacheKeys:
    """Name the requests that should meet on one machine. Not thread-safe.

    Workers that share a store and a secret agree: what a key is made of, and how often a head was seen, is the
    same for all.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.blake2b(secret, digest_size=32).digest()
        self._paces: FairTable[bytes, _Pace] = FairTable(_REMEMBERED)

    def key(self, namespace: str, head: bytes, trunk: bytes, seen: int, now: float) -> str | None:
        """Return the key of a request, None where its head is not familiar yet.

        `head` and `trunk` are digests: of tools and system, and of these through the first message. `seen` is
        how often the head came, over all workers, before `now` (seconds).
        """
        pace = self._paces.read(namespace).get(head)
        known_for = 0.0 if pace is None else now - pace.first
        if seen < _FAMILIAR or (known_for < _FOR and seen < _ANYHOW):
            return None
        ways = 1 if pace is None else _ways(pace, seen, now)
        share = int.from_bytes(trunk[:4]) % ways
        named = hashlib.blake2b(head + share.to_bytes(2), key=self._secret, digest_size=16)
        return f"cachemw-{named.hexdigest()}"

    def learn(self, namespace: str, head: bytes, seen: int, now: float) -> None:
        """Learn how often a head comes from a request that the provider has accepted."""
        pace = self._paces.read(namespace).get(head) or _Pace(now, now, seen)
        ways = _ways(pace, seen, now)
        if now - pace.since >= 60:
            pace.since, pace.seen, pace.ways = now, seen, ways
        self._paces.put(namespace, [(head, pace)])


def _ways(pace: _Pace, seen: int, now: float) -> int:
    """Return among how many keys a head is spread by now.

    The number is a power of two: doubling it moves only half of the conversations.
    """
    ways, minutes = pace.ways, (now - pace.since) / 60
    if minutes >= 1:
        rate = max(0, seen - pace.seen) / minutes
        while ways < _MOST and rate > _BUSY * ways:
            ways *= 2
        while ways > 1 and rate < _BUSY * ways / 4:
            ways //= 2
    return ways


def with_automatic_breakpoint(parsed: ParsedRequest, body: Json, most: int) -> ParsedRequest:
    """Return a parsed request with the breakpoint that OpenAI sets itself, and without blocks that take none.

    OpenAI's own breakpoint counts as the client's, at the end of the request. Parts that an assistant said take none
    (OpenAI's list of part types; langchain4j 1.21, 2026). A client that sets breakpoints or their options itself has
    decided everything, so all `most` slots count as taken.
    """
    options = body.get("prompt_cache_options")
    explicit = isinstance(options, Mapping) and options.get("mode") == "explicit"
    if explicit or _marked(body):
        return replace(parsed, client_marker_count=most)
    blocks = [
        block._replace(markable=False, marker=None)
        if block.role == "assistant"
        else block._replace(marker=None)
        for block in parsed.blocks
    ]
    return replace(parsed, automatic_marker="5m", client_marker_count=1, blocks=blocks)


def _marked(body: Json) -> bool:
    contents = [message.get("content") for message in body["messages"] if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    return any(isinstance(part, Mapping) and part.get(BREAKPOINT) is not None for part in parts)


def canonical(body: Json) -> Json:
    """Return the form in which two bodies are equal that differ in hints alone.

    A key and breakpoints are dropped and a string content is its one-part list; `cache_control` stays.
    """
    bare: dict[str, Any] = dict(equality.canonical(body, BREAKPOINT))
    bare.pop(KEY, None)
    return bare
