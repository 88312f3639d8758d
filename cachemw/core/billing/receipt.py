"""The receipt of one call, in tokens and money.

Contains: the value and its construction. Must not depend on: stores, plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from cachemw.core.billing.cost import price, prices_for
from cachemw.core.billing.diagnose import Miss
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.types import Model


@dataclass(frozen=True, slots=True)
class Receipt:
    """One call's usage, and USD for its input tokens.

    `usage` is None if the answer reports none, money is None if the model's prices are unknown. `baseline` is
    the cost of the same tokens uncached. `saved` is the difference; it includes the premium of cache writes,
    so it may be negative. `miss` says why fewer tokens were read or written than expected.
    """

    usage: Usage | None = None
    paid: Decimal | None = None
    baseline: Decimal | None = None
    saved: Decimal | None = None
    miss: Miss | None = None


def make_receipt(usage: Usage, model: Model | None, miss: Miss | None = None) -> Receipt:
    """Return the receipt of a usage on a model; `model` is None if it is unknown."""
    prices = prices_for(model, usage.total) if model else None
    if prices is None:
        return Receipt(usage, miss=miss)
    bill = price(usage, prices)
    return Receipt(usage, bill.paid, bill.baseline, bill.saved, miss)
