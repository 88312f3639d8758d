"""Why a request read or wrote less than predicted: reasons, costs, sentences."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.billing.diagnose import Miss, MissReason, diagnose
from cachemw.core.billing.usage import NO_COUNTERS, Usage
from cachemw.core.rules.models import MODELS

PRICES = MODELS["claude-opus-4-6"].prices


def usage(
    read: int = 0, write_5m: int = 0, write_1h: int = 0, plain: int = 0, rule: str = "anthropic"
) -> Usage:
    """Return a usage with these tokens and no others."""
    return Usage(read, write_5m, write_1h, plain, 10, rule)


def missed(expected_read: int, expected_write: int, used: Usage, **given: Any) -> Miss | None:
    """Diagnose a marked request with usual settings but for those given."""
    settings: dict[str, Any] = {"marked": True, "minimum": 1024, "slack": 0.1, "prices": PRICES, **given}
    return diagnose(expected_read=expected_read, expected_write=expected_write, usage=used, **settings)


@pytest.mark.parametrize(
    ("read", "write", "used"),
    [
        (0, 0, usage(plain=500)),
        (10_000, 0, usage(read=10_000, plain=50)),
        (10_000, 500, usage(read=9_001, write_5m=1_400)),
        (10_000, 0, usage(read=20_000)),
        (0, 5_000, usage(write_5m=4_600, plain=20)),
        (0, 5_000, usage(read=5_000, plain=20)),
        (10_000, 300, usage(read=10_000, plain=300)),
    ],
    ids=[
        "nothing predicted",
        "as said",
        "within slack",
        "more",
        "written",
        "read instead",
        "tail within slack",
    ],
)
def test_usage_as_predicted_is_no_miss(read: int, write: int, used: Usage) -> None:
    """A usage within the error of the estimates, or better, is no miss."""
    assert missed(read, write, used) is None


@pytest.mark.parametrize(
    ("read", "write", "used", "reason", "expected", "got"),
    [
        (10_000, 0, usage(write_5m=10_000), MissReason.ENTRY_GONE, 10_000, 0),
        (10_000, 500, usage(read=4_000, write_5m=6_500), MissReason.SHORTER_READ, 10_000, 4_000),
        (0, 1_100, usage(plain=1_000), MissReason.BELOW_MINIMUM, 1_100, 0),
        (0, 5_000, usage(plain=5_100), MissReason.IGNORED, 5_000, 0),
        (4_000, 1_000, usage(plain=5_100), MissReason.IGNORED, 5_000, 0),
        (4_000, 4_000, usage(read=4_000, plain=4_000), MissReason.NOT_WRITTEN, 8_000, 4_000),
        (0, 8_000, usage(write_5m=3_000, plain=5_000), MissReason.NOT_WRITTEN, 8_000, 3_000),
        (0, 8_000, usage(plain=8_000, rule=NO_COUNTERS), MissReason.NOT_REPORTED, 8_000, 0),
    ],
)
def test_miss_has_the_reason_of_its_shortfall(
    read: int, write: int, used: Usage, reason: MissReason, expected: int, got: int
) -> None:
    """Each shortfall has its reason and the tokens that it is about."""
    miss = missed(read, write, used)
    assert miss is not None
    assert (miss.reason, miss.expected, miss.got) == (reason, expected, got)


def test_miss_is_ignored_only_if_the_low_estimate_meets_the_minimum() -> None:
    """A prefix counts as ignored if even its low estimate reaches the minimum."""
    sure, unsure = missed(0, 1_138, usage(plain=1_138)), missed(0, 1_137, usage(plain=1_137))
    assert sure is not None
    assert unsure is not None
    assert (sure.reason, unsure.reason) == (MissReason.IGNORED, MissReason.BELOW_MINIMUM)


def test_unmarked_request_misses_only_an_expected_read() -> None:
    """An unmarked request has a miss only if a read was expected at a provider that caches automatically."""
    assert missed(0, 5_000, usage(plain=5_000), marked=False) is None
    miss = missed(5_000, 0, usage(plain=5_000), marked=False)
    assert miss is not None
    assert miss.reason is MissReason.ENTRY_GONE


@pytest.mark.parametrize(
    ("read", "write", "used", "cost"),
    [
        (1_000_000, 0, usage(write_5m=1_000_000), "5.75"),
        (1_000_000, 0, usage(write_1h=400_000, write_5m=600_000), "7.25"),
        (1_000_000, 0, usage(read=600_000, write_5m=400_000), "2.3"),
        (1_000_000, 0, usage(plain=1_000_000), "4.5"),
        (1_000_000, 0, usage(write_5m=500_000, plain=400_000), "4.675"),
        (0, 1_000_000, usage(plain=1_000_000), "0"),
        (1_000_000, 0, usage(plain=1_000_000, rule=NO_COUNTERS), "0"),
    ],
)
def test_miss_costs_the_price_above_a_read(read: int, write: int, used: Usage, cost: str) -> None:
    """A miss costs the price of its tokens above that of a read; without an expected read it is free."""
    miss = missed(read, write, used)
    assert miss is not None
    assert miss.cost == Decimal(cost)


def test_miss_without_prices_has_no_cost() -> None:
    """A model without a price has misses without money."""
    miss = missed(10_000, 0, usage(write_5m=10_000), prices=None)
    assert miss is not None
    assert miss.cost is None
    assert "$" not in miss.explain()


@pytest.mark.parametrize("reason", MissReason)
def test_miss_explains_every_reason(reason: MissReason) -> None:
    """Each reason has a sentence with its tokens, and with money if some was lost."""
    said = Miss(reason, 12_345, 0, Decimal("0.0125")).explain()
    assert "12,345" in said
    assert said.endswith("It cost $0.012500 more than predicted.")
    assert "$" not in Miss(reason, 12_345, 0, Decimal(0)).explain()


counts = st.integers(0, 10**7)


@given(
    counts,
    counts,
    st.builds(Usage, counts, counts, counts, counts, counts, st.sampled_from(["a", NO_COUNTERS])),
)
def test_miss_of_any_prediction_is_a_shortfall(read: int, write: int, used: Usage) -> None:
    """For any prediction and usage, a miss got less than expected and cost at least nothing."""
    miss = missed(read, write, used)
    if miss is not None:
        assert miss.got < miss.expected
        assert miss.cost is not None
        assert miss.cost >= 0
    else:
        assert used.cache_read >= 0.9 * read
        assert used.cache_read + used.cache_write >= 0.9 * (read + write)
