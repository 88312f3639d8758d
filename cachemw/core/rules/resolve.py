"""The rules for one model at one provider: their rows, overridden by the user's settings.

Contains: the checks of every setting about providers, models and prices. Must not depend on: requests,
stores, time.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any, Literal

from cachemw.core.rules.model_names import find_model, model_key
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.providers import PROVIDERS
from cachemw.core.rules.types import Kind, MarkPolicy, Number, Prices, Rules
from cachemw.errors import ConfigError


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
    """Return the rules for one model at one provider, or None if nothing identifies the model.

    `models` maps a name or a pattern to a known model's name and is asked first. `prices` holds for
    the model of that name, in any spelling, and for all prompt lengths. Raises `ConfigError` like `check`.
    """
    one_of("provider", provider, PROVIDERS)
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
    """Return True if requests to this model at this provider may leave with added markers.

    `hints` is True if OpenAI's hints may be used; only models that cache automatically take them.
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
    one_of("provider", provider, (*PROVIDERS, "auto"))
    for name, target in models.items():
        row = find_model(target)
        # A Claude or GPT without a row is no useful target: it is a misspelling, or its own name serves.
        if row is None or (row.name not in MODELS and row.caching != "automatic"):
            one_of(f"models[{name!r}]", target, MODELS)
    for kind, mark in mark_kinds.items():
        one_of("a key of mark_kinds", kind, [known.value for known in Kind if known is not Kind.OPAQUE])
        one_of(f"mark_kinds[{str(kind)!r}]", mark, ("on", "off", "learn"))
    if ttl is not None:
        one_of("ttl", ttl, ("5m", "1h", "auto"))
    if minimum is not None and minimum < 0:
        raise ConfigError(f"min_tokens is {minimum!r}; allowed: a number of tokens from 0")
    for name, price in prices.items():
        _prices(name, price)


def relative_prices(prices: Prices | None) -> tuple[float, float, float]:
    """Return the prices of a 5m write, a 1h write and a read, relative to an uncached token.

    Without known prices they are Anthropic's usual 1.25, 2 and 0.1. If uncached tokens are free, a read costs
    1 and saves nothing.
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
        one_of(f"a key of {setting}", key, _PRICE_KEYS)
    missing = [key for key in _PRICE_KEYS if key not in price]
    if missing:
        raise ConfigError(f"{setting} lacks {', '.join(missing)}; needed: {', '.join(_PRICE_KEYS)}")
    plain, write_5m, write_1h, read, output = (
        _amount(f"{setting}[{key!r}]", price[key]) for key in _PRICE_KEYS
    )
    return Prices(plain, write_5m, write_1h, read, output, source="settings", date="")


def _amount(setting: str, value: object) -> Decimal:
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        # Converted through its text, 0.3 is three tenths and not the nearest binary fraction.
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


def one_of(setting: str, value: object, allowed: Iterable[str]) -> None:
    """Raise `ConfigError` with the allowed values, and the nearest one, if `value` is none of them."""
    names = sorted(allowed)
    if value in names:
        return
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ConfigError(f"{setting} is {value!r}; allowed: {', '.join(names)}{hint}")
