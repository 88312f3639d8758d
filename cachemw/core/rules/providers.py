"""What providers do, as data, and the user's settings laid over it.

Lives here: hosts, TTLs, marker limits and markable kinds of each provider, the rules that hold for
one model at one provider, and the checks of every setting about them. Must not know: requests,
stores, time. A new provider is a new row, never a new branch. Models have their rows in
`core.models`. Tokens are `int`, money is `Decimal` USD per million tokens.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Literal
from urllib.parse import urlsplit

from cachemw.core.rules.models import MODELS, Model, Prices, find_model, model_key
from cachemw.errors import ConfigError

__all__ = [
    "MODELS",
    "PROVIDERS",
    "TTL_SECONDS",
    "Kind",
    "MarkPolicy",
    "MarkerKey",
    "Model",
    "Prices",
    "Provider",
    "Rules",
    "Ttl",
    "check",
    "find_model",
    "find_provider",
    "model_key",
    "relative_prices",
    "resolve",
    "takes_breakpoints",
]

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
class Rules:
    """A provider's and a model's rows with the user's settings laid over them."""

    provider: Provider
    model: Model
    kinds: Mapping[Kind, MarkPolicy]
    ttl: Literal["5m", "1h", "auto"]
    minimum: int
    prices: Prices | None


def _kinds(on: tuple[Kind, ...] = (), learn: tuple[Kind, ...] = ()) -> Mapping[Kind, MarkPolicy]:
    return {kind: "on" if kind in on else "learn" if kind in learn else "off" for kind in Kind}


_ROWS = (
    # Databricks, "Query foundation models", 2026: text, images, tool calls, results and definitions take
    # markers. It lists thinking too, which Anthropic refuses; it says nothing of documents or 1h.
    # Hosts: databricks-sdk 0.162.0. Paths: the same page, for workspaces behind a name of their own.
    Provider(
        "databricks",
        hosts=(
            "databricks.com",
            "azuredatabricks.net",
            "cloud.databricks.us",
            "databricks.azure.us",
            "databricks.azure.cn",
        ),
        ttls=("5m",),
        kinds=_kinds(
            on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL), learn=(Kind.REASONING,)
        ),
        paths=("/serving-endpoints/", "/ai-gateway/"),
    ),
    # Anthropic, prompt caching page, 2026-08-21: thinking blocks take no marker (a 400).
    Provider(
        "anthropic",
        hosts=("api.anthropic.com",),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.DOCUMENT, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL)),
    ),
    # Anthropic, OpenAI SDK compatibility page, 2026-08-21: its endpoint in OpenAI format ignores markers.
    Provider(
        "anthropic-openai",
        hosts=(),
        ttls=(),
        kinds=_kinds(),
        max_markers=0,
        paths=("/chat/completions/",),
        parent_provider="anthropic",
    ),
    # OpenRouter, prompt caching guide, mid-2026: text parts, both TTLs, never at the top of a body, which
    # keeps to one of Claude's hosts. Its client libraries and pydantic-ai 2.68.0 (run, November 2026) mark
    # tool definitions, and the text parts of tool results; as LiteLLM 1.108.7 (run) they pass. A marker on
    # a `role: tool` message itself makes a request hang (hermes-agent #2362, March 2026): never there. Of
    # images and calls nothing is said. The same guide: a conversation stays with the backend that served
    # it, known by its first system and its first other message.
    Provider(
        "openrouter",
        hosts=("openrouter.ai",),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.TOOL_RESULT, Kind.TOOL)),
        sticky_routing=True,
    ),
    # LiteLLM 1.108.7 and 1.109.3, run: markers on parts, calls and results reach Claude with their TTL;
    # those on definitions do too, but for its databricks route, which drops them.
    Provider(
        "litellm",
        hosts=(),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL)),
    ),
    # LiteLLM 1.108.7, run 2026-11-24: its databricks route builds tool definitions anew, without their
    # markers, and a hook can't send again what was refused, so nothing is tried. For the rest Databricks'
    # row holds. Only LiteLLM's hook names it: no URL tells the route.
    Provider(
        "litellm-databricks",
        hosts=(),
        ttls=("5m",),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT)),
    ),
    # OpenAI, prompt caching guide, October 2026, and openai 3.57.0: caching is automatic; `cache_control` is
    # not its word. From GPT-5.6 on it takes breakpoints of its own sort, four a request with the one that it
    # sets itself, on text and image parts of any message but an assistant's; what is written lives at least
    # 30 minutes, its only TTL. What is found how far back is stated in two ways: 20 blocks is less than either.
    Provider(
        "openai",
        hosts=("api.openai.com", "openai.azure.com"),
        ttls=("5m",),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_RESULT)),
        marker_key="prompt_cache_breakpoint",
        adds_own_breakpoint=True,
        ttl_seconds={"5m": 1800, "1h": 1800},
    ),
    # Google, context caching page, mid-2026: implicit since Gemini 2.5, nothing to mark in OpenAI's format.
    Provider(
        "gemini",
        hosts=("generativelanguage.googleapis.com", "aiplatform.googleapis.com"),
        ttls=(),
        kinds=_kinds(),
        max_markers=0,
    ),
    # DeepSeek, context caching page, 2024-08-02: automatic, nothing to mark.
    Provider("deepseek", hosts=("api.deepseek.com",), ttls=(), kinds=_kinds(), max_markers=0),
)
PROVIDERS: Mapping[str, Provider] = {row.name: row for row in _ROWS}


def find_provider(base_url: str) -> Provider | None:
    """Return the provider that a URL belongs to, by its host, else by its path."""
    try:
        url = urlsplit(base_url if "//" in base_url else f"//{base_url}")
        host, path = url.hostname or "", f"{url.path}/"
    except ValueError:
        return None
    for row in _ROWS:
        if any(host == domain or host.endswith(f".{domain}") for domain in row.hosts):
            return _by_path(path, within=row.name) or row
    return _by_path(path)


def _by_path(path: str, within: str = "") -> Provider | None:
    rows = (row for row in _ROWS if row.parent_provider == within)
    return next((row for row in rows if any(part in path for part in row.paths)), None)


def resolve(
    provider: str,
    model: str,
    *,
    models: Mapping[str, str] = {},
    mark_kinds: Mapping[str, MarkPolicy] = {},
    ttl: Literal["5m", "1h", "auto"] | None = None,
    minimum: int | None = None,
    prices: Mapping[str, Mapping[str, Number]] = {},
) -> Rules | None:
    """Return the rules for one model at one provider, or None where nothing identifies the model.

    `models` maps a name or a pattern to a known model's name and is asked first. `prices` holds for
    the model of that name, in any spelling, and for all prompt lengths. Raises `ConfigError` like `check`.
    """
    _one_of("provider", provider, PROVIDERS)
    check(provider, models=models, mark_kinds=mark_kinds, ttl=ttl, minimum=minimum, prices=prices)
    row = find_model(_mapped(model, models))
    if row is None:
        return None
    given = {model_key(name): value for name, value in prices.items()}
    override = given.get(model_key(model)) or given.get(row.name)
    if override:
        row = replace(row, prices=_prices(model, override), long=None, long_prices=None)
    found = PROVIDERS[provider]
    return Rules(
        provider=found,
        model=row,
        kinds={**found.kinds, **{Kind(kind): mark for kind, mark in mark_kinds.items()}},
        ttl="5m" if found.adds_own_breakpoint else ttl or "5m",
        minimum=row.minimum if minimum is None else minimum,
        prices=row.prices,
    )


def takes_breakpoints(rules: Rules, hints: bool) -> bool:
    """Say whether requests to this model at this provider may leave with anything of ours.

    `hints`: whether OpenAI's may be used, on models that cache by themselves; no others take those.
    """
    if rules.provider.marker_key == "cache_control":
        return rules.model.caching == "explicit" and rules.provider.max_markers > 0
    return hints and rules.model.caching == "automatic"


def check(
    provider: str,
    *,
    models: Mapping[str, str] = {},
    mark_kinds: Mapping[str, str] = {},
    ttl: str | None = None,
    minimum: int | None = None,
    prices: Mapping[str, Mapping[str, Any]] = {},
) -> None:
    """Raise `ConfigError` if a setting about providers, models or prices is wrong.

    Unlike in `resolve`, the provider may be "auto" here.
    """
    _one_of("provider", provider, (*PROVIDERS, "auto"))
    for name, target in models.items():
        row = find_model(target)
        # A Claude or GPT that has no row is no help as a target: it is a slip, or its own name serves.
        if row is None or (row.name not in MODELS and row.caching != "automatic"):
            _one_of(f"models[{name!r}]", target, MODELS)
    for kind, mark in mark_kinds.items():
        _one_of("a key of mark_kinds", kind, [known.value for known in Kind if known is not Kind.OPAQUE])
        _one_of(f"mark_kinds[{str(kind)!r}]", mark, ("on", "off", "learn"))
    if ttl is not None:
        _one_of("ttl", ttl, ("5m", "1h", "auto"))
    if minimum is not None and minimum < 0:
        raise ConfigError(f"min_tokens is {minimum!r}; allowed: a number of tokens from 0")
    for name, price in prices.items():
        _prices(name, price)


def relative_prices(prices: Prices | None) -> tuple[float, float, float]:
    """Return what a token written for 5m, written for 1h and read costs, where a plain one costs 1.

    Without a price: Anthropic's usual 1.25, 2 and 0.1. Where plain tokens are free a read saves nothing: 1.
    """
    if prices is None:
        return 1.25, 2.0, 0.1
    if not prices.input:
        return 1.25, 2.0, 1.0
    return (
        float(prices.write_5m / prices.input),
        float(prices.write_1h / prices.input),
        float(prices.read / prices.input),
    )


_PRICE_KEYS = ("input", "write_5m", "write_1h", "read", "output")


def _prices(name: str, price: Mapping[str, Any]) -> Prices:
    setting = f"prices[{name!r}]"
    for key in price:
        _one_of(f"a key of {setting}", key, _PRICE_KEYS)
    missing = [key for key in _PRICE_KEYS if key not in price]
    if missing:
        raise ConfigError(f"{setting} lacks {', '.join(missing)}; needed: {', '.join(_PRICE_KEYS)}")
    plain, write_5m, write_1h, read, output = (
        _amount(f"{setting}[{key!r}]", price[key]) for key in _PRICE_KEYS
    )
    return Prices(plain, write_5m, write_1h, read, output, source="settings", date="")


def _amount(setting: str, value: object) -> Decimal:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        # By way of its text, 0.3 is three tenths and not the nearest binary fraction.
        amount = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if amount.is_finite() and amount >= 0:
            return amount
    raise ConfigError(f"{setting} is {value!r}; allowed: USD per million tokens, finite, from 0")


def _mapped(model: str, models: Mapping[str, str]) -> str:
    lowered = {name.lower(): target for name, target in models.items()}
    name = model.strip().lower()
    if name in lowered:
        return lowered[name]
    return next((target for pattern, target in lowered.items() if fnmatchcase(name, pattern)), model)


def _one_of(setting: str, value: object, allowed: Iterable[str]) -> None:
    names = sorted(allowed)
    if value in names:
        return
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{setting} is {value!r}; allowed: {', '.join(names)}{hint}")
