"""The results of each policy: one point for each request, and sums.

Contains: the values of table and page, and the format of amounts. Must not depend on: how they were
measured. Money is USD for input tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from cachemw.core.billing.cost import price, prices_for
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.types import Model

KINDS = ("cached", "cache writes", "uncached")
"""Kinds of input tokens by their names in table and page."""


@dataclass(frozen=True, slots=True)
class Point:
    """One answered request: its time, its family, its tokens, and the cost of each kind of tokens."""

    at: float
    family: str
    usage: Usage
    costs: tuple[Decimal, Decimal, Decimal]


def point(at: float, family: str, usage: Usage, model: Model) -> Point:
    """Return the point of a request with this usage on a model that has prices."""
    prices = prices_for(model, usage.total)
    assert prices is not None
    cached, cache_writes, uncached = (
        price(part, prices).paid
        for part in (
            Usage(usage.cache_read, 0, 0, 0, 0, ""),
            Usage(0, usage.cache_write_5m, usage.cache_write_1h, 0, 0, ""),
            Usage(0, 0, 0, usage.uncached, 0, ""),
        )
    )
    return Point(at, family, usage, (cached, cache_writes, uncached))


@dataclass(frozen=True)
class PolicyOutcome:
    """All points of one policy in order of time, and the number of requests that the provider refused."""

    policy: str
    points: Sequence[Point]
    refused: int = 0

    @cached_property
    def tokens(self) -> tuple[int, int, int]:
        """Return the input tokens by kind, in the order of `KINDS`."""
        usages = [point.usage for point in self.points]
        cached, writes = (
            sum(usage.cache_read for usage in usages),
            sum(usage.cache_write for usage in usages),
        )
        return cached, writes, sum(usage.uncached for usage in usages)

    @cached_property
    def costs(self) -> tuple[Decimal, Decimal, Decimal]:
        """Return the cost by kind, in the order of `KINDS`."""
        cached, writes, uncached = (
            sum((point.costs[kind] for point in self.points), Decimal(0)) for kind in range(3)
        )
        return cached, writes, uncached

    @cached_property
    def cost(self) -> Decimal:
        """Return the cost of all input tokens."""
        return sum(self.costs, Decimal(0))

    def of_family(self, family: str) -> PolicyOutcome:
        """Return the outcome of one family's requests, without refused ones."""
        return PolicyOutcome(self.policy, [point for point in self.points if point.family == family])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcomes of the same requests at the same times; the first is the baseline of the savings.

    `source` names the origin of the requests. `facts` says how the figures were made: subject and words.
    """

    outcomes: Sequence[PolicyOutcome]
    source: str
    facts: Sequence[tuple[str, str]]

    @property
    def families(self) -> list[str]:
        """Return the families by their cost in the first outcome, highest first."""
        first = self.outcomes[0]
        names = dict.fromkeys(point.family for point in first.points)
        return sorted(names, key=lambda name: first.of_family(name).cost, reverse=True)

    def family(self, name: str) -> Comparison:
        """Return the comparison of one family's requests."""
        return Comparison([outcome.of_family(name) for outcome in self.outcomes], name, ())

    def saved(self, outcome: PolicyOutcome, baseline: PolicyOutcome | None = None) -> float | None:
        """Return the saved share of the baseline's cost, such as 0.7; None for the baseline itself.

        The default baseline is the first outcome. The share is negative if the outcome costs more, and
        None if the baseline costs nothing.
        """
        base = baseline or self.outcomes[0]
        return 1 - float(outcome.cost / base.cost) if base.cost and outcome is not base else None

    @property
    def refusals(self) -> str:
        """Return a sentence with the refused requests of each policy, or nothing if there are none."""
        if not any(outcome.refused for outcome in self.outcomes):
            return ""
        counts = ", ".join(f"{outcome.policy} {outcome.refused}" for outcome in self.outcomes)
        return f"Requests that the provider refused: {counts}."


def usd(amount: Decimal) -> str:
    """Return an amount in the format of table and page."""
    return f"${amount:,.4f}"


def percent(share: float | None) -> str:
    """Return a share in the format of table and page, such as "71.3%"; nothing for None."""
    shown = "" if share is None else f"{share:.1%}"
    return "0.0%" if shown == "-0.0%" else shown
