"""What each policy came to: one point a request, and sums.

Lives here: values that the table and the page are made of, and how an amount is written. Must not know:
how they were measured. Money is USD for input tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from cachemw.core.billing.cost import price, prices_for
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.types import Model

KINDS = ("read", "written", "plain")


@dataclass(frozen=True, slots=True)
class Point:
    """One answered request: when, of which family, its tokens, and what each kind of them cost."""

    at: float
    family: str
    usage: Usage
    costs: tuple[Decimal, Decimal, Decimal]


def point(at: float, family: str, usage: Usage, model: Model) -> Point:
    """Return the point of a usage on a model that has prices."""
    prices = prices_for(model, usage.total)
    assert prices is not None
    read, written, plain = (
        price(part, prices).paid
        for part in (
            Usage(usage.cache_read, 0, 0, 0, 0, ""),
            Usage(0, usage.cache_write_5m, usage.cache_write_1h, 0, 0, ""),
            Usage(0, 0, 0, usage.uncached, 0, ""),
        )
    )
    return Point(at, family, usage, (read, written, plain))


@dataclass(frozen=True)
class Outcome:
    """All points of one policy, by time, and how many requests the provider refused."""

    policy: str
    points: Sequence[Point]
    refused: int = 0

    @cached_property
    def tokens(self) -> tuple[int, int, int]:
        """Return tokens read, written and plain."""
        read = sum(point.usage.cache_read for point in self.points)
        written = sum(point.usage.cache_write for point in self.points)
        return read, written, sum(point.usage.uncached for point in self.points)

    @cached_property
    def costs(self) -> tuple[Decimal, Decimal, Decimal]:
        """Return what tokens read, written and plain cost."""
        read, written, plain = (sum((p.costs[kind] for p in self.points), Decimal(0)) for kind in range(3))
        return read, written, plain

    @cached_property
    def cost(self) -> Decimal:
        """Return what all input tokens cost."""
        return sum(self.costs, Decimal(0))

    @property
    def hit_rate(self) -> float:
        """Return the share of input tokens that were read."""
        return self.tokens[0] / total if (total := sum(self.tokens)) else 0.0

    def of_family(self, family: str) -> Outcome:
        """Return the outcome of one family's requests; refusals are not told apart."""
        return Outcome(self.policy, [point for point in self.points if point.family == family])


@dataclass(frozen=True, slots=True)
class Comparison:
    """Outcomes of the same requests at the same times; the first is what the others are held against.

    `source` says where the requests come from, `facts` how the figures came about: what, and in words.
    """

    outcomes: Sequence[Outcome]
    source: str
    facts: Sequence[tuple[str, str]]

    @property
    def families(self) -> list[str]:
        """Return the families by what they cost in the first outcome, most first."""
        first = self.outcomes[0]
        names = dict.fromkeys(point.family for point in first.points)
        return sorted(names, key=lambda name: first.of_family(name).cost, reverse=True)

    def family(self, name: str) -> Comparison:
        """Return the comparison of one family's requests."""
        return Comparison([outcome.of_family(name) for outcome in self.outcomes], name, ())

    def against_first(self, outcome: Outcome) -> float | None:
        """Return the change of cost against the first outcome, such as -0.7; None where that is free."""
        first = self.outcomes[0].cost
        return float(outcome.cost / first) - 1 if first else None


def usd(amount: Decimal) -> str:
    """Return an amount as it is shown everywhere."""
    return f"${amount:,.4f}"


def percent(change: float | None) -> str:
    """Return a change as it is shown everywhere, such as "-71.3%"; nothing where there is none."""
    return "" if change is None else f"{change:+.1%}".replace("+0.0%", "0.0%").replace("-0.0%", "0.0%")
