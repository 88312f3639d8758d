"""All known models by name, those that take breakpoints and those that cache by themselves.

Contains: the table of models. Must not depend on: providers, settings, requests. Claude models have their
rows in `claude_models`, all others in `automatic_models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cachemw.core.rules import automatic_models, claude_models
from cachemw.core.rules.types import Model, Prices, usd

OTHER = Model("other", 0, None, tokenizer="openai", caching="automatic")


def _automatic(row: automatic_models.AutomaticModel) -> Model:
    """Return the row of a model that caches automatically: one write price stands in both columns."""
    short, long = (_spread(prices) if prices else None for prices in (row.prices, row.long_prices))
    minimum = automatic_minimum(row.name)
    return replace(
        OTHER, name=row.name, minimum=minimum, prices=short, hints=row.hints, long=row.long, long_prices=long
    )


def _spread(prices: str) -> Prices:
    plain, written, read, output = prices.split()
    return usd(f"{plain} {written} {written} {read} {output}", automatic_models.SOURCE, automatic_models.DATE)


def automatic_minimum(name: str) -> int:
    """Return the minimum of the longest family name that a name begins with, or else OpenAI's."""
    families = [family for family in automatic_models.MINIMUMS if name.startswith(family)]
    return automatic_models.MINIMUMS[max(families, key=len, default="gpt")]


MODELS: Mapping[str, Model] = {
    row.name: row
    for row in (*claude_models.ROWS, claude_models.SAFE, *map(_automatic, automatic_models.ROWS))
}
