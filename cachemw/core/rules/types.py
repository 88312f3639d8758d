"""Types of the rules: provider, model, prices.

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
    """The kind of a block. `OPAQUE` stands for unknown kinds: hashed, counted, never marked."""

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

    `hosts` are domains, subdomains included; `paths` identify the provider on any other host. A row with a
    `parent_provider` is a part of that provider: on its hosts, `paths` identify the part. `ttls` are the
    documented ones. `marker_key` is the key of a marker in a body. With `adds_own_breakpoint` one of the
    markers is the provider's own, at the end of each request. `ttl_seconds` is the time for which an entry of
    each TTL is cached. With `sticky_routing` the provider chooses the backend of a conversation by its
    opening messages.
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
    """Return prices from five numbers: uncached, 5m write, 1h write, read, output."""
    plain, write_5m, write_1h, read, output = map(Decimal, numbers.split())
    return Prices(plain, write_5m, write_1h, read, output, source, date)


@dataclass(frozen=True, slots=True)
class Model:
    """One model's caching rules at any provider.

    `minimum` is the smallest number of tokens of a cached prefix, tools and system included. Above `long`
    input tokens `long_prices` hold for the whole request. `thinking` is "kept", or "stripped" if only the
    turns since the last user message keep their thinking. `tokenizer` is "old" (up to Opus 4.6, Sonnet 4.6,
    Haiku 4.5), "new" (about 30 % more tokens), or "openai" for all other models. `caching` is "explicit" with
    breakpoints, "automatic" without, or "none". With `hints` the model caches automatically and also takes
    breakpoints in OpenAI's form. With `mid_system` a system message after the first user message keeps its
    place.
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
    """The rows of a provider and a model, overridden by the user's settings."""

    provider: Provider
    model: Model
    kinds: Mapping[Kind, MarkPolicy]
    ttl: Literal["5m", "1h", "auto"]
    minimum: int
    prices: Prices | None
