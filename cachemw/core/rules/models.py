"""What models do, as data: minimums, prices, thinking, tokenizer; and how a name finds its row.

Lives here: one row for each known model, and the reading of every spelling of a model's name. Must
not know: providers, settings, requests. A new model is a new row. Prices carry their source and date;
those of the other columns stand above the table. Money is `Decimal` USD per million tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from cachemw.core.rules import automatic_models


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


def _usd(numbers: str, source: str = "Anthropic, prompt caching page", date: str = "2026-08-21") -> Prices:
    plain, write_5m, write_1h, read, output = map(Decimal, numbers.split())
    return Prices(plain, write_5m, write_1h, read, output, source, date)


# Read 0.05x and 0.025x on the newest models: the model pages of October 2026 say the same.
_NEWER = ("genai-prices 0.2.3", "2026-11-24")
_FABLE_5_1 = _usd("10 12.5 20 0.25 50", *_NEWER)
_FABLE_5_2 = _usd("8 10 16 0.20 40", *_NEWER)
_FABLE_5 = _usd("10 12.5 20 1.00 50")
_OPUS_5_5 = _usd("4 5 8 0.20 20", *_NEWER)
_OPUS_4_5 = _usd("5 6.25 10 0.50 25")
_OPUS_4 = _usd("15 18.75 30 1.50 75")
_SONNET_5_5 = _usd("2 2.5 4 0.10 10", *_NEWER)
_SONNET_5 = _usd("2 2.5 4 0.20 10")
_SONNET_4 = _usd("3 3.75 6 0.30 15")
_HAIKU_5_5 = _usd("0.10 0.125 0.20 0.01 0.50", "Anthropic, Haiku 5.5 page", "2026-10-07")
_HAIKU_5_5_LONG = _usd("0.50 0.625 1.00 0.05 2.50", "Anthropic, Haiku 5.5 page", "2026-10-07")

# What an unknown Claude is taken for: the highest minimum known, no price.
SAFE = Model("claude", 4096, None)

# Minimums: Anthropic's prompt caching page, 2026-08-21, and its revisions to 2026-10-02. Haiku 5.5 from
# LiteLLM 1.109.3; the 5.2 models are taken for their predecessors (nothing found); Mythos Preview keeps
# the page's 2048 where LiteLLM says 512; Sonnet 3.7 and Haiku 3 from Anthropic's skills repository,
# 2026-07-01. Thinking: the same page; Haiku 5.5 because it says "Haiku through 4.5" are stripped.
# Tokenizer: Anthropic's pricing page, 2026-08-21. Mid-list system messages: the page of that name,
# 2026-08-21 (Opus 4.8, Opus 5, Fable 5, Mythos 5, not Sonnet 5) and LangChain's model profiles,
# 2026-10-20, for the 5.1 and 5.5 models. Unlisted is False: hoisting is the reading that predicts less.
_CLAUDE = (
    Model("claude-fable-5-2", 512, _FABLE_5_2),
    Model("claude-mythos-5-2", 512, _FABLE_5_2),
    Model("claude-fable-5-1", 512, _FABLE_5_1, mid_system=True),
    Model("claude-mythos-5-1", 512, _FABLE_5_1, mid_system=True),
    Model("claude-fable-5", 512, _FABLE_5, mid_system=True),
    Model("claude-mythos-5", 512, _FABLE_5, mid_system=True),
    Model("claude-mythos-preview", 2048, None),
    Model("claude-opus-5-5", 512, _OPUS_5_5, mid_system=True),
    Model("claude-opus-5", 512, _OPUS_4_5, mid_system=True),
    Model("claude-opus-4-8", 1024, _OPUS_4_5, mid_system=True),
    Model("claude-opus-4-7", 2048, _OPUS_4_5),
    Model("claude-opus-4-6", 4096, _OPUS_4_5, tokenizer="old"),
    Model("claude-opus-4-5", 4096, _OPUS_4_5, tokenizer="old"),
    Model("claude-opus-4-1", 1024, _OPUS_4, "stripped", "old"),
    Model("claude-opus-4", 1024, _OPUS_4, "stripped", "old"),
    Model("claude-sonnet-5-5", 512, _SONNET_5_5, mid_system=True),
    Model("claude-sonnet-5", 1024, _SONNET_5),
    Model("claude-sonnet-4-6", 1024, _SONNET_4, tokenizer="old"),
    Model("claude-sonnet-4-5", 1024, _SONNET_4, "stripped", "old"),
    Model("claude-sonnet-4", 1024, _SONNET_4, "stripped", "old"),
    Model("claude-sonnet-3-7", 1024, _usd("3 3.75 6 0.30 15", *_NEWER), "stripped", "old"),
    Model("claude-haiku-5-5", 512, _HAIKU_5_5, mid_system=True, long=100_000, long_prices=_HAIKU_5_5_LONG),
    Model("claude-haiku-4-5", 4096, _usd("1 1.25 2 0.10 5"), "stripped", "old"),
    Model("claude-haiku-3-5", 2048, _usd("0.8 1 1.6 0.08 4"), "stripped", "old"),
    Model("claude-haiku-3", 2048, _usd("0.25 0.3 0.5 0.03 1.25", *_NEWER), "stripped", "old"),
)

_OTHER = Model("other", 0, None, tokenizer="openai", caching="automatic")


def _automatic(row: automatic_models.AutomaticModel) -> Model:
    """Return the row of a model that caches by itself: one price of writing stands in both columns."""
    short, long = (_spread(prices) if prices else None for prices in (row.prices, row.long_prices))
    minimum = _minimum(row.name)
    return replace(
        _OTHER, name=row.name, minimum=minimum, prices=short, hints=row.hints, long=row.long, long_prices=long
    )


def _spread(prices: str) -> Prices:
    plain, written, read, output = prices.split()
    return _usd(
        f"{plain} {written} {written} {read} {output}", automatic_models.SOURCE, automatic_models.DATE
    )


def _minimum(name: str) -> int:
    """Return the minimum of the longest family that a name begins with; OpenAI's for what it calls otherwise."""
    families = [family for family in automatic_models.MINIMUMS if name.startswith(family)]
    return automatic_models.MINIMUMS[max(families, key=len, default="gpt")]


MODELS: Mapping[str, Model] = {
    row.name: row for row in (*_CLAUDE, SAFE, *map(_automatic, automatic_models.ROWS))
}

_FAMILY = "opus|sonnet|haiku|fable|mythos"
_NUMBER = r"\d{1,2}(?:[.-]\d{1,2})?"
_CLAUDE_NAME = re.compile(
    rf"claude-(?:(?P<family>{_FAMILY})-(?P<version>{_NUMBER}|preview)"
    rf"|(?P<before>{_NUMBER})-(?P<after>{_FAMILY}))"
    r"(?:[-@](?:\d{8}|latest|default))?(?:-v\d+(?::\d+)?)?(?P<variant>:[a-z]+)?"
)
# Models without a row that cache by themselves; those among them that take breakpoints of OpenAI's sort.
_AUTOMATIC = re.compile(
    r"(?:chatgpt-4o|gpt-(?:4o|4\.1|[5-9])|o[1-9]|gemini-(?:2\.5|[3-9])|deepseek-(?:chat|reasoner|flash|v\d))(?![a-z0-9])"
)
_HINTED = re.compile(r"gpt-(?:5\.[6-9]|[6-9])(?!\d)")
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_DASHED = re.compile(r"^((?:gpt|gemini)-\d|deepseek-v\d)-(\d)(?=-|$)")
_UNCACHED = re.compile(r"claude-(?:v?[12]|instant)(?![0-9])")
_ALIAS = re.compile(r"(?:databricks-|system\.ai\.)")
_ROUTE = re.compile(r"(?:databricks-|system\.ai\.|(?:[a-z-]+\.)?anthropic\.)")


def find_model(name: str) -> Model | None:
    """Return the row of a model by any spelling of its name, or None where nothing identifies it.

    A Claude without a row gets the safe one; a model of OpenAI, Gemini or DeepSeek without a row is known to
    cache by itself, at no known price. Both are found under `model_key(name)`.
    """
    bare, variant = _bare(name)
    row = MODELS.get(bare)
    if row is not None:
        return row
    whole = bare + variant
    if "claude" in whole:
        caching: Literal["explicit", "none"] = "none" if _UNCACHED.match(whole) else "explicit"
        return replace(SAFE, name=model_key(name), caching=caching)
    if _AUTOMATIC.match(bare):
        hints = _HINTED.match(bare) is not None
        return replace(_OTHER, name=model_key(name), minimum=_minimum(bare), hints=hints)
    return None


def model_key(name: str) -> str:
    """Return the name under which prefixes are hashed: equal for spellings of one model, else not.

    A variant that a router serves apart (`...:thinking`) keeps its suffix. A name without a row is
    lower-cased and loses `databricks-` or `system.ai.`, which Databricks reads as the same service.
    """
    bare, variant = _bare(name)
    if bare in MODELS:
        return bare + variant
    lowered = name.strip().lower()
    return lowered[found.end() :] if (found := _ALIAS.match(lowered)) else lowered


def _bare(name: str) -> tuple[str, str]:
    """Return a name without route, date and revision, as the rows write it, and its variant suffix."""
    last = name.strip().lower().rpartition("/")[2]
    if found := _ROUTE.match(last):
        last = last[found.end() :]
    parts = _CLAUDE_NAME.fullmatch(last)
    if parts is None:
        plain = _DASHED.sub(r"\1.\2", _DATED.sub("", last))
        return automatic_models.ALIASES.get(plain, plain), ""
    family = parts["family"] or parts["after"]
    version = (parts["version"] or parts["before"]).replace(".", "-").removesuffix("-0")
    return f"claude-{family}-{version}", parts["variant"] or ""
