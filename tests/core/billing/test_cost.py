"""Money: paid, baseline and saved, exact to the pico-dollar."""

from __future__ import annotations

from decimal import Decimal, localcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.billing.cost import from_pico, price, prices_for, to_pico
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.types import Prices

HAIKU = MODELS["claude-haiku-5-5"]
OPUS = Prices(
    Decimal(5), Decimal("6.25"), Decimal(10), Decimal("0.5"), Decimal(25), source="test", date="2026-11-24"
)


def usage(read: int = 0, write_5m: int = 0, write_1h: int = 0, plain: int = 0, output: int = 0) -> Usage:
    """Return a usage with these tokens and no others."""
    return Usage(read, write_5m, write_1h, plain, output, "anthropic")


@pytest.mark.parametrize(
    ("used", "paid", "saved"),
    [
        (usage(), "0", "0"),
        (usage(plain=1_000_000), "5", "0"),
        (usage(write_5m=1_000_000), "6.25", "-1.25"),
        (usage(write_1h=1_000_000), "10", "-5"),
        (usage(read=1_000_000), "0.5", "4.5"),
        (usage(read=80_000, write_5m=10_000, plain=10_000), "0.1525", "0.3475"),
        (usage(plain=1), "0.000005", "0"),
    ],
)
def test_bill_prices_each_kind_of_token(used: Usage, paid: str, saved: str) -> None:
    """Each kind of token has its price; the saving includes the premium of cache writes."""
    bill = price(used, OPUS)
    assert (bill.paid, bill.saved) == (Decimal(paid), Decimal(saved))
    assert bill.baseline == bill.paid + bill.saved


def test_bill_with_output_tokens_covers_input_only() -> None:
    """A bill covers input tokens only."""
    assert price(usage(output=2_000), OPUS).paid == 0


@pytest.mark.parametrize(("total", "expected"), [(0, "0.10"), (100_000, "0.10"), (100_001, "0.50")])
def test_prices_of_a_long_prompt_are_the_long_ones(total: int, expected: str) -> None:
    """Above the limit the long prices hold for the whole request, so for its baseline too."""
    prices = prices_for(HAIKU, total)
    assert prices is not None
    assert prices.input == Decimal(expected)


def test_prices_of_a_model_without_long_prices_ignore_length() -> None:
    """The length of a prompt does not matter if the model has one price list or none."""
    assert prices_for(MODELS["claude-opus-4-6"], 900_000) is MODELS["claude-opus-4-6"].prices
    assert prices_for(MODELS["claude"], 10) is None


counts = st.integers(0, 10**12)
amounts = st.decimals(0, 1000, places=6)
any_prices = st.builds(
    Prices, amounts, amounts, amounts, amounts, amounts, st.just("t"), st.just("2026-11-24")
)
any_usage = st.builds(Usage, counts, counts, counts, counts, counts, st.just("t"))


@given(st.lists(any_usage, max_size=6), any_prices)
def test_sums_of_bills_are_exact(used: list[Usage], prices: Prices) -> None:
    """The bills of parts add up to the bill of the whole, in USD and in a ledger's whole numbers."""
    whole = Usage(
        sum(one.cache_read for one in used),
        sum(one.cache_write_5m for one in used),
        sum(one.cache_write_1h for one in used),
        sum(one.uncached for one in used),
        0,
        "t",
    )
    bills = [price(one, prices) for one in used]
    total = price(whole, prices)
    for name in ("paid", "baseline", "saved"):
        parts = [getattr(bill, name) for bill in bills]
        with localcontext(prec=100):
            assert sum(parts) == getattr(total, name)
        assert sum(to_pico(part) for part in parts) == to_pico(getattr(total, name))


@given(any_usage, any_prices)
def test_bill_under_another_decimal_context_is_the_same(used: Usage, prices: Prices) -> None:
    """An application that works with three digits gets the same bill and keeps its context."""
    expected = price(used, prices)
    with localcontext(prec=3) as context:
        assert price(used, prices) == expected
        assert from_pico(to_pico(expected.saved)) == expected.saved
        assert context.prec == 3


@given(st.integers(-(10**30), 10**30))
def test_pico_dollars_survive_the_round_trip(amount: int) -> None:
    """Pico-dollars stay the same on the way to USD and back, negative ones too."""
    assert to_pico(from_pico(amount)) == amount


def test_half_a_pico_dollar_is_rounded_to_even() -> None:
    """Half a pico-dollar is rounded to the even neighbour, so sums do not drift."""
    assert [to_pico(Decimal(text)) for text in ("5E-13", "15E-13", "-5E-13", "16E-13")] == [0, 2, 0, 2]
