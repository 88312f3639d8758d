"""OpenAI's hints, the opt-in `openai_hints`: a `prompt_cache_key`, and OpenAI's form of breakpoints.

Contains: the requests that share a key, the reading of a request to which OpenAI adds a breakpoint, and the
equality that then holds. Must not depend on: stores, the choice of breakpoints.

OpenAI routes a request to a machine by the start of its prompt and by the key. Above about 15 requests a
minute the requests of one key spill over to further machines without a cached entry (prompt caching guide,
October 2026). So requests with the same tools and system prompt share a key, and a busy key is spread over
several, each for whole conversations. From GPT-5.6 on OpenAI ends each request with a breakpoint of its own.
A shorter prefix is found only if a breakpoint of this request and of an earlier one stands there, so cachemw
marks shared prefixes. These breakpoints cost nothing, since OpenAI writes everything up to its own anyway.
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
from cachemw.core.tuning import CACHE_KEYS

KEY = "prompt_cache_key"
BREAKPOINT: MarkerKey = "prompt_cache_breakpoint"
_REMEMBERED = 10_000  # shared prefixes in memory, over all namespaces


@dataclass(slots=True)
class _Pace:
    """The arrivals of a shared prefix at a time (seconds), and the number of keys for its conversations."""

    first: float
    since: float
    arrivals: int
    keys: int = 1


class PromptCacheKeys:
    """Give requests that should meet on one machine the same key. Not thread-safe.

    Workers that share a store and a secret choose equal keys, since they use equal hashes and equal arrival
    counts.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = hashlib.blake2b(secret, digest_size=32).digest()
        self._paces: FairTable[bytes, _Pace] = FairTable(_REMEMBERED)

    def key(
        self, namespace: str, shared: bytes, conversation: bytes, arrivals: int, now: float
    ) -> str | None:
        """Return the key of a request, None if its shared prefix is not familiar yet.

        A shared prefix with the time in it would go to another machine every minute. So it must have arrived
        several times over some minutes, or so often that one more miss costs nothing.

        Args:
            namespace: the tenant.
            shared: the hash of tools and system.
            conversation: the hash of tools, system and the first message.
            arrivals: the earlier requests with this shared prefix, over all workers.
            now: the time in seconds.
        """
        pace = self._paces.read(namespace).get(shared)
        known_for = 0.0 if pace is None else now - pace.first
        if arrivals < CACHE_KEYS.familiar_arrivals or (
            known_for < CACHE_KEYS.familiar_seconds and arrivals < CACHE_KEYS.sure_arrivals
        ):
            return None
        keys = 1 if pace is None else _number_of_keys(pace, arrivals, now)
        share = int.from_bytes(conversation[:4]) % keys
        named = hashlib.blake2b(shared + share.to_bytes(2), key=self._secret, digest_size=16)
        return f"cachemw-{named.hexdigest()}"

    def learn(self, namespace: str, shared: bytes, arrivals: int, now: float) -> None:
        """Learn the rate of a shared prefix from a request that the provider has accepted."""
        pace = self._paces.read(namespace).get(shared) or _Pace(now, now, arrivals)
        keys = _number_of_keys(pace, arrivals, now)
        if now - pace.since >= 60:
            pace.since, pace.arrivals, pace.keys = now, arrivals, keys
        self._paces.put(namespace, [(shared, pace)])


def _number_of_keys(pace: _Pace, arrivals: int, now: float) -> int:
    """Return the number of keys over which a shared prefix is spread by now.

    The number is a power of two: doubling it moves only half of the conversations.
    """
    keys, minutes, busy = pace.keys, (now - pace.since) / 60, CACHE_KEYS.busy_per_minute
    if minutes >= 1:
        rate = max(0, arrivals - pace.arrivals) / minutes
        while keys < CACHE_KEYS.max_keys and rate > busy * keys:
            keys *= 2
        while keys > 1 and rate < busy * keys / 4:
            keys //= 2
    return keys


def with_automatic_breakpoint(parsed: ParsedRequest, body: Json, most: int) -> ParsedRequest:
    """Return a parsed request with the breakpoint that OpenAI sets itself, and without blocks that take none.

    OpenAI's own breakpoint counts as the client's, at the end of the request. Parts of assistant messages
    take none (OpenAI's list of part types; langchain4j 1.21, 2026). A client that sets breakpoints or their
    options itself has decided everything, so all `most` slots count as taken.
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
    """Return the canonical form of a body, in which bodies that differ only in hints are equal.

    A key and breakpoints are dropped, and a string content becomes its one-part list; `cache_control` stays.
    """
    bare: dict[str, Any] = dict(equality.canonical(body, BREAKPOINT))
    bare.pop(KEY, None)
    return bare
