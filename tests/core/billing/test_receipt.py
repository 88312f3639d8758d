"""The money of a usage."""

from __future__ import annotations

from decimal import Decimal

import pytest

from cachemw.core.billing.diagnose import Miss, MissReason
from cachemw.core.billing.receipt import Receipt, make_receipt
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.types import Model

SONNET = MODELS["claude-sonnet-4-5"]
HAIKU = MODELS["claude-haiku-5-5"]


@pytest.mark.parametrize(
    ("usage", "paid", "baseline"),
    [
        (Usage(0, 0, 0, 1_000_000, 7, "r"), "3", "3"),
        (Usage(1_000_000, 0, 0, 0, 0, "r"), "0.3", "3"),
        (Usage(0, 1_000_000, 0, 0, 0, "r"), "3.75", "3"),
        (Usage(0, 0, 1_000_000, 0, 0, "r"), "6", "3"),
        (Usage(800, 100, 50, 50, 9, "r"), "0.001065", "0.003"),
        (Usage(0, 0, 0, 0, 9, "r"), "0", "0"),
    ],
)
def test_receipt_has_paid_baseline_and_saved(usage: Usage, paid: str, baseline: str) -> None:
    """Paid and baseline follow the model's price list; saved includes the premium of cache writes."""
    assert make_receipt(usage, SONNET) == Receipt(
        usage, Decimal(paid), Decimal(baseline), Decimal(baseline) - Decimal(paid)
    )


def test_receipt_of_a_write_that_is_never_read_is_a_loss() -> None:
    """A write that is never read has a negative saving."""
    saved = make_receipt(Usage(0, 1000, 0, 0, 0, "r"), SONNET).saved
    assert saved is not None
    assert saved < 0


def test_receipt_of_a_long_prompt_uses_long_prices() -> None:
    """Above the model's limit the whole request is billed by the long list."""
    short, long = (make_receipt(Usage(0, 0, 0, tokens, 0, "r"), HAIKU) for tokens in (100_000, 100_001))
    assert (short.paid, long.paid) == (Decimal("0.01"), Decimal("0.0500005"))


@pytest.mark.parametrize("model", [None, Model("claude-unpriced", 4096, None)])
def test_receipt_without_prices_has_no_money(model: Model | None) -> None:
    """Without a price there are tokens and no money; the miss stays."""
    usage, miss = Usage(1, 2, 3, 4, 5, "r"), Miss(MissReason.ENTRY_GONE, 10, 0, None)
    assert make_receipt(usage, model, miss) == Receipt(usage, miss=miss)


def test_receipt_keeps_the_miss() -> None:
    """The reason of a miss stands beside the money."""
    miss = Miss(MissReason.ENTRY_GONE, 10, 0, Decimal(1))
    assert make_receipt(Usage(0, 0, 0, 10, 0, "r"), SONNET, miss).miss is miss
