"""What came of one call, in tokens and money."""

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

    `usage` is None where the answer told none, money where the model's prices are unknown. `baseline`
    is what the same tokens would have cost plain; `saved`, the difference, is net of what writing cost
    more and may be negative. `miss` says why less was read or written than expected.
    """

    usage: Usage | None = None
    paid: Decimal | None = None
    baseline: Decimal | None = None
    saved: Decimal | None = None
    miss: Miss | None = None


def make_receipt(usage: Usage, model: Model | None, miss: Miss | None = None) -> Receipt:
    """Return the receipt of a usage on a model; None is a model that nothing is known of."""
    prices = prices_for(model, usage.total) if model else None
    if prices is None:
        return Receipt(usage, miss=miss)
    bill = price(usage, prices)
    return Receipt(usage, bill.paid, bill.baseline, bill.saved, miss)
