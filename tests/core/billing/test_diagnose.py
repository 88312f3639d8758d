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
def test_no_miss(read: int, write: int, used: Usage) -> None:
    """As predicted, within the estimates' error, or better: nothing is missing."""
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
def test_reasons(read: int, write: int, used: Usage, reason: MissReason, expected: int, got: int) -> None:
    """Each way to fall short has its reason, with the tokens that it is about."""
    miss = missed(read, write, used)
    assert miss is not None
    assert (miss.reason, miss.expected, miss.got) == (reason, expected, got)


def test_the_minimum_is_reached_only_beyond_doubt() -> None:
    """A prefix is called ignored where even its low estimate reaches the minimum."""
    sure, unsure = missed(0, 1_138, usage(plain=1_138)), missed(0, 1_137, usage(plain=1_137))
    assert sure is not None
    assert unsure is not None
    assert (sure.reason, unsure.reason) == (MissReason.IGNORED, MissReason.BELOW_MINIMUM)


def test_without_a_breakpoint_only_a_read_can_be_missed() -> None:
    """An unmarked request owes nothing, unless a read was expected of a provider that caches by itself."""
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
def test_cost_of_a_miss(read: int, write: int, used: Usage, cost: str) -> None:
    """A miss costs what its tokens were billed above the price of a read; nothing where none was to be."""
    miss = missed(read, write, used)
    assert miss is not None
    assert miss.cost == Decimal(cost)


def test_without_prices_there_is_no_cost() -> None:
    """A model without a price has misses without money."""
    miss = missed(10_000, 0, usage(write_5m=10_000), prices=None)
    assert miss is not None
    assert miss.cost is None
    assert "$" not in miss.explain()


@pytest.mark.parametrize("reason", MissReason)
def test_every_reason_is_explained(reason: MissReason) -> None:
    """Each reason is told in words with its tokens, and its money where some was lost."""
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
def test_a_miss_is_a_shortfall(read: int, write: int, used: Usage) -> None:
    """Whatever is predicted and returned, a miss got less than expected and never cost less than nothing."""
    miss = missed(read, write, used)
    if miss is not None:
        assert miss.got < miss.expected
        assert miss.cost is not None
        assert miss.cost >= 0
    else:
        assert used.cache_read >= 0.9 * read
        assert used.cache_read + used.cache_write >= 0.9 * (read + write)
