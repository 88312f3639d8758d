"""Compare predicted with returned usage: why a request read or wrote fewer tokens than predicted.

Contains: the reasons of a miss, their costs and their sentences. Must not depend on: stores, which blocks
were marked, how the prediction was made. A prediction is an estimate: a usage within `slack` of it, or above
it, is no miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from cachemw.core.billing.usage import NO_COUNTERS, Usage
from cachemw.core.rules.types import Prices


class MissReason(StrEnum):
    """The reason why fewer tokens were read or written than predicted, in the order of the checks."""

    NOT_REPORTED = "not_reported"
    BELOW_MINIMUM = "below_minimum"
    IGNORED = "ignored"
    ENTRY_GONE = "entry_gone"
    SHORTER_READ = "shorter_read"
    NOT_WRITTEN = "not_written"


_SENTENCES = {
    MissReason.NOT_REPORTED: (
        "The answer reports no cache counters. It is unknown if the {expected:,} marked tokens were cache"
        " reads or cache writes."
    ),
    MissReason.BELOW_MINIMUM: (
        "The provider read and wrote no cached tokens. The marked prefix, estimated at {expected:,} tokens, is"
        " probably below the model's minimum."
    ),
    MissReason.IGNORED: (
        "The provider read and wrote no cached tokens, although {expected:,} tokens were marked, which is"
        " above the model's minimum. A gateway or the provider ignored or dropped the breakpoints."
    ),
    MissReason.ENTRY_GONE: (
        "About {expected:,} tokens of cache read were expected, and none occurred. The entry expired early or"
        " was evicted, or the request reached another provider cache."
    ),
    MissReason.SHORTER_READ: (
        "About {expected:,} tokens of cache read were expected, and only {got:,} occurred. The longest entry"
        " was gone, and a shorter one was read."
    ),
    MissReason.NOT_WRITTEN: (
        "Cache reads and writes were expected to cover about {expected:,} tokens, and covered {got:,}. The"
        " last breakpoint wrote no entry."
    ),
}


@dataclass(frozen=True, slots=True)
class Miss:
    """One prediction that failed. `expected` and `got` are tokens; `cost` is USD, None without prices.

    The tokens are cache reads for `ENTRY_GONE` and `SHORTER_READ`, else cache reads and writes together.
    `cost` is the price of the tokens that were expected to be read, over the price of reading them.
    """

    reason: MissReason
    expected: int
    got: int
    cost: Decimal | None

    def explain(self) -> str:
        """Return the miss in a sentence or two."""
        said = _SENTENCES[self.reason].format(expected=self.expected, got=self.got)
        return f"{said} It cost ${self.cost:.6f} more than predicted." if self.cost else said


def diagnose(
    *,
    expected_read: int,
    expected_write: int,
    marked: bool,
    minimum: int,
    slack: float,
    usage: Usage,
    prices: Prices | None = None,
) -> Miss | None:
    """Return why `usage` fell short of the prediction, or None if it did not.

    Args:
        expected_read: tokens that were expected to be read.
        expected_write: tokens that were expected to be written.
        marked: True if the request left with a breakpoint.
        minimum: the model's minimum for caching, in tokens.
        slack: the error of the estimates as a share of them, 0 to 1.
        usage: the tokens that the provider reports.
        prices: the model's prices; without them a miss has no cost.
    """
    predicted = expected_read + expected_write
    covered = usage.cache_read + usage.cache_write
    surely = 1 - slack

    def miss(reason: MissReason, expected: int, got: int) -> Miss:
        # An answer without counters proves no loss.
        lost = 0 if reason is MissReason.NOT_REPORTED else max(0, expected_read - usage.cache_read)
        return Miss(reason, expected, got, None if prices is None else _premium(lost, usage, prices))

    if not predicted or not (marked or expected_read):
        return None
    if not covered:
        if usage.rule == NO_COUNTERS:
            return miss(MissReason.NOT_REPORTED, predicted, 0)
        if marked:
            above = predicted * surely >= minimum
            return miss(MissReason.IGNORED if above else MissReason.BELOW_MINIMUM, predicted, 0)
    if usage.cache_read < expected_read * surely:
        return miss(
            MissReason.SHORTER_READ if usage.cache_read else MissReason.ENTRY_GONE,
            expected_read,
            usage.cache_read,
        )
    if covered < predicted * surely:
        return miss(MissReason.NOT_WRITTEN, predicted, covered)
    return None


def _premium(lost: int, usage: Usage, prices: Prices) -> Decimal:
    """Return the cost of `lost` tokens over reading them; the first tokens of a prompt are 1h writes."""
    cost = Decimal(0)
    for tokens, rate in (
        (usage.cache_write_1h, prices.write_1h),
        (usage.cache_write_5m, prices.write_5m),
        (usage.uncached, prices.input),
    ):
        billed = min(lost, tokens)
        cost += billed * (rate - prices.read)
        lost -= billed
    return cost.scaleb(-6)
