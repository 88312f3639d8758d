"""Types of the rules: what a provider, a model and its prices are.

Contains: the values that rows are made of. Must not depend on: rows, settings, requests.
Tokens are `int`, money is `Decimal` USD per million tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Literal

Ttl = Literal["5m", "1h"]
MarkPolicy = Literal["on", "off", "learn"]
MarkerKey = Literal["cache_control", "prompt_cache_breakpoint"]
Number = int | float | Decimal
TTL_SECONDS: Mapping[Ttl, int] = {"5m": 300, "1h": 3600}


class Kind(StrEnum):
    """What a block is. `OPAQUE` is whatever we don't know: hashed, counted, never marked."""

    TOOL = "tool_definition"
    TEXT = "text"
    IMAGE = "image"
    DOCUMENT = "document"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    OPAQUE = "opaque"


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider's wire rules. `kinds` says which blocks may carry a breakpoint.

    `hosts` are domains, subdomains included; `paths` identify the provider on any other host.
    `within` names the provider of which this is the part that `paths` tell on its hosts.
    `ttls` are those it documents. `word` is what a marker is called there. `implicit`: one of the markers
    is the provider's own, at the end of each request. `lives`: seconds that an entry of each TTL lives.
    `sticky`: it keeps to one backend by what the opening messages look like.
    """

    name: str
    hosts: tuple[str, ...]
    ttls: tuple[Ttl, ...]
    kinds: Mapping[Kind, MarkPolicy]
    max_markers: int = 4
    lookback: int = 20
    paths: tuple[str, ...] = ()
    parent_provider: str = ""
    marker_key: MarkerKey = "cache_control"
    adds_own_breakpoint: bool = False
    ttl_seconds: Mapping[Ttl, int] = field(default_factory=lambda: TTL_SECONDS)
    sticky_routing: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens of each kind, from `source` as of `date` (ISO)."""

    input: Decimal
    write_5m: Decimal
    write_1h: Decimal
    read: Decimal
    output: Decimal
    source: str
    date: str


def usd(numbers: str, source: str = "Anthropic, prompt caching page", date: str = "2026-08-21") -> Prices:
    """Return prices from five numbers: uncached input, 5m write, 1h write, cache read, output."""
    plain, write_5m, write_1h, read, output = map(Decimal, numbers.split())
    return Prices(plain, write_5m, write_1h, read, output, source, date)


@dataclass(frozen=True, slots=True)
class Model:
    """One model's caching rules, whatever provider serves it.

    `minimum`: fewest tokens of a prefix, tools and system included, that are cached at all.
    `long`: above this many input tokens, `long_prices` hold for the whole request.
    `thinking`: "kept", or "stripped" where only the turns since the last user message keep theirs.
    `tokenizer`: "old" (up to Opus 4.6, Sonnet 4.6, Haiku 4.5) or "new" (~30 % more tokens), or
    "openai" for all others. `caching`: "explicit" takes breakpoints, "automatic" needs none, "none" has none.
    `hints`: it caches by itself, and yet takes breakpoints of OpenAI's sort.
    `mid_system`: whether a system message after the first user message keeps its place.
    """

    name: str
    minimum: int
    prices: Prices | None
    thinking: Literal["kept", "stripped"] = "kept"
    tokenizer: Literal["old", "new", "openai"] = "new"
    caching: Literal["explicit", "automatic", "none"] = "explicit"
    hints: bool = False
    mid_system: bool = False
    long: int | None = None
    long_prices: Prices | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    """A provider's and a model's rows with the user's settings laid over them."""

    provider: Provider
    model: Model
    kinds: Mapping[Kind, MarkPolicy]
    ttl: Literal["5m", "1h", "auto"]
    minimum: int
    prices: Prices | None
