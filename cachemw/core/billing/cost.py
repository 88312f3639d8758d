"""Usage times prices: the cost of input, and the cost of the same tokens uncached.

Contains: exact `Decimal` money and its whole-number form for ledgers. Must not depend on: plans, stores, who
placed the breakpoints. Money is rounded only to the smallest amount that a ledger holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

from cachemw.core.billing.usage import Usage
from cachemw.core.rules.types import Model, Prices

# The application may have set a decimal context of its own; these sums keep every digit.
_EXACT = Context(prec=100, rounding=ROUND_HALF_EVEN)
_PER_MILLION = -6
_PICO = 12


@dataclass(frozen=True, slots=True)
class Bill:
    """USD for the input tokens of one request: as paid, as the same tokens uncached, and the difference.

    `saved` includes the premium of cache writes, so it may be negative.
    """

    paid: Decimal
    baseline: Decimal
    saved: Decimal


def prices_for(model: Model, total: int) -> Prices | None:
    """Return the prices that hold for a request of `total` input tokens, or None if none are known."""
    if model.long is not None and total > model.long:
        return model.long_prices
    return model.prices


def price(usage: Usage, prices: Prices) -> Bill:
    """Return the bill for the input tokens of `usage`."""
    with localcontext(_EXACT):
        paid = (
            usage.cache_read * prices.read
            + usage.cache_write_5m * prices.write_5m
            + usage.cache_write_1h * prices.write_1h
            + usage.uncached * prices.input
        ).scaleb(_PER_MILLION)
        baseline = (usage.total * prices.input).scaleb(_PER_MILLION)
        return Bill(paid, baseline, baseline - paid)


def to_pico(amount: Decimal) -> int:
    """Return USD as whole pico-dollars (1e-12), to the nearest, half to even.

    The result is exact for prices with up to six decimals, as all listed prices are.
    """
    with localcontext(_EXACT):
        return int(amount.scaleb(_PICO).to_integral_value())


def from_pico(amount: int) -> Decimal:
    """Return whole pico-dollars as USD."""
    with localcontext(_EXACT):
        return Decimal(amount).scaleb(-_PICO)
