"""The page of providers and models has the facts of the rows."""

from __future__ import annotations

from cachemw.core.rules.models import MODELS
from cachemw.core.rules.providers import PROVIDERS
from cachemw.core.rules.types import Model, Prices, Provider
from tests.docs.test_pages import names, rows, text

PAGE = "providers.md"


def known_by(row: Provider) -> str:
    """Return the second cell of a provider's line."""
    places = ", ".join(f"`{place}`" for place in (*row.hosts, *row.paths))
    if row.parent_provider:
        return f"{places} at `{row.parent_provider}`"
    return places or ("LiteLLM's hook alone" if row.name == "litellm-databricks" else "the setting alone")


def line(row: Provider) -> list[str]:
    """Return a provider's line."""
    if row.adds_own_breakpoint:
        added = f"with `openai_hints`: `{row.marker_key}`, `prompt_cache_key`"
        ttls, most = f"{row.ttl_seconds['5m'] // 60} minutes", f"{row.max_markers}, one of them its own"
    else:
        added = f"`{row.marker_key}`" if row.max_markers else "nothing"
        ttls, most = ", ".join(f"`{ttl}`" for ttl in row.ttls) or "none", str(row.max_markers)
    return [f"`{row.name}`", known_by(row), added, ttls, most]


def cells(row: Model) -> list[str]:
    """Return a model's line."""
    return [f"`{row.name}`", f"{row.minimum:,}", money(row.prices), source(row.prices)]


def money(prices: Prices | None) -> str:
    """Return five prices as written on the page."""
    if prices is None:
        return "unknown"
    kinds = (prices.input, prices.write_5m, prices.write_1h, prices.read, prices.output)
    return " / ".join(f"{amount.normalize():f}" for amount in kinds)


def source(prices: Prices | None) -> str:
    """Return the source and date of a price."""
    return "" if prices is None else f"{prices.source}, {prices.date}"


def test_page_has_a_line_for_each_provider() -> None:
    """A line has the hosts, the added fields, the TTLs and the cap of its row."""
    assert [list(map(str.strip, row)) for row in rows(PAGE, "provider")] == [
        line(row) for row in PROVIDERS.values()
    ]


def test_page_has_a_line_for_each_model() -> None:
    """A line has the minimum, the prices and their source. The row for unknown Claude models has no line."""
    meant = [cells(row) for row in MODELS.values() if row.name != "claude"]
    assert [[cell.strip() for cell in row] for row in rows(PAGE, "model")] == meant, "\n".join(
        f"| {' | '.join(row)} |" for row in meant
    )


def test_page_names_the_minimum_of_unknown_models() -> None:
    """The page names the minimum of models without a row."""
    assert f"{MODELS['claude'].minimum:,} tokens" in text(PAGE)
    assert len(names(PAGE, "model")) == len(MODELS) - 1
