"""Savings as sums: the amounts that each call adds, and the report made of them.

Contains: the names of the sums, per hour, label set and model, and the rows of a report. Must not depend on:
stores beyond "a table of named integers". Money is whole pico-dollars, so sums are exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from cachemw.core.billing.cost import from_pico, to_pico

HOUR = 3600.0
KEEP_HOURS = 7 * 24
_SUMS = ("calls", "settled", "cache_read", "cache_write_5m", "cache_write_1h", "uncached", "output")
_MONEY = ("paid", "baseline", "saved_by_cachemw", "saved_by_client", "would_save")


@dataclass(frozen=True, slots=True)
class Row:
    """The sums of one label set on one model (the totals have neither).

    `calls` counts calls whose response started. `unsettled` calls are in progress, or their end was never
    reported, for example because a worker died. Tokens and calls are counts, money is USD for input tokens.
    `saved` includes the premium of cache writes and may be negative. It is `saved_by_cachemw` for calls whose
    deepest breakpoint was added by cachemw, else `saved_by_client`. `would_save` is the saving that mode
    "observe" expects of breakpoints that it did not set.
    """

    labels: Mapping[str, str]
    model: str
    calls: int = 0
    unsettled: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    uncached: int = 0
    output: int = 0
    paid: Decimal = Decimal(0)
    baseline: Decimal = Decimal(0)
    saved_by_cachemw: Decimal = Decimal(0)
    saved_by_client: Decimal = Decimal(0)
    would_save: Decimal = Decimal(0)

    @property
    def saved(self) -> Decimal:
        """Return the difference between the baseline, all tokens uncached, and the amount paid."""
        return self.saved_by_cachemw + self.saved_by_client

    @property
    def hit_rate(self) -> float:
        """Return the share of input tokens that were read from the provider's cache."""
        total = self.cache_read + self.cache_write_5m + self.cache_write_1h + self.uncached
        return self.cache_read / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """Rows by labels and model, and their totals."""

    rows: tuple[Row, ...] = ()
    totals: Row = field(default_factory=lambda: Row({}, ""))


def table(now: float) -> str:
    """Return the name of the hour's table."""
    return f"ledger:{int(now // HOUR)}"


def tables(now: float) -> list[str]:
    """Return the names of all kept tables, and of the next hour for workers whose clock is fast."""
    hour = int(now // HOUR)
    return [f"ledger:{h}" for h in range(hour - KEEP_HOURS + 1, hour + 2)]


def amounts(labels: Mapping[str, str], model: str, sums: Mapping[str, int | Decimal]) -> dict[str, int]:
    """Return the amounts that one call adds to the hour's table."""
    key = json.dumps([model, sorted(labels.items())], separators=(",", ":"))
    return {
        f"{name} {key}": to_pico(value) if isinstance(value, Decimal) else value
        for name, value in sums.items()
        if value
    }


def report(table: Mapping[str, int]) -> Report:
    """Return the rows of summed tables; unknown names are left out."""
    found: dict[str, dict[str, int]] = {}
    for full, amount in table.items():
        name, _, key = full.partition(" ")
        if name in _SUMS or name in _MONEY:
            found.setdefault(key, {})[name] = amount
    rows = []
    for key, sums in sorted(found.items()):
        named = _model_and_labels(key)
        if named is None:
            del found[key]
        else:
            rows.append(_row(named[1], named[0], sums))
    total: dict[str, int] = {}
    for sums in found.values():
        for name, amount in sums.items():
            total[name] = total.get(name, 0) + amount
    return Report(tuple(rows), _row({}, "", total))


def _model_and_labels(key: str) -> tuple[str, dict[str, str]] | None:
    """Return the model and labels of a key made by `amounts`, None if another program wrote it."""
    try:
        model, pairs = json.loads(key)
        labels = dict(pairs)
    except (ValueError, TypeError, RecursionError):
        return None
    texts = all(isinstance(text, str) for text in (model, *labels, *labels.values()))
    return (model, labels) if texts else None


def _row(labels: Mapping[str, str], model: str, sums: Mapping[str, int]) -> Row:
    counts = {name: sums.get(name, 0) for name in _SUMS}
    money = {name: from_pico(sums.get(name, 0)) for name in _MONEY}
    return Row(
        labels,
        model,
        calls=counts["calls"],
        unsettled=max(counts["calls"] - counts["settled"], 0),
        cache_read=counts["cache_read"],
        cache_write_5m=counts["cache_write_5m"],
        cache_write_1h=counts["cache_write_1h"],
        uncached=counts["uncached"],
        output=counts["output"],
        paid=money["paid"],
        baseline=money["baseline"],
        saved_by_cachemw=money["saved_by_cachemw"],
        saved_by_client=money["saved_by_client"],
        would_save=money["would_save"],
    )
