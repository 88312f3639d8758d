"""Predicted against returned usage: why a request read or wrote less than it was to.

Lives here: the reasons of a miss, what each cost, and how each is said. Must not know: stores, which
blocks were marked, how the prediction was made. A prediction is an estimate: within `slack` of it
nothing is missing, and more than predicted never is.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from cachemw.core.billing.usage import NO_COUNTERS, Usage
from cachemw.core.rules.types import Prices


class MissReason(StrEnum):
    """Why less was read or written than predicted; the order is the one they are looked for in."""

    NOT_REPORTED = "not_reported"
    BELOW_MINIMUM = "below_minimum"
    IGNORED = "ignored"
    ENTRY_GONE = "entry_gone"
    SHORTER_READ = "shorter_read"
    NOT_WRITTEN = "not_written"


_SENTENCES = {
    MissReason.NOT_REPORTED: (
        "The answer reports no cache counters, so whether the {expected:,} marked tokens were"
        " read or written is unknown."
    ),
    MissReason.BELOW_MINIMUM: (
        "Nothing was read or written: the marked prefix, estimated at {expected:,} tokens,"
        " is probably below the model's minimum."
    ),
    MissReason.IGNORED: (
        "Nothing was read or written although {expected:,} tokens were marked, surely above the"
        " model's minimum: the breakpoints were ignored or dropped on the way."
    ),
    MissReason.ENTRY_GONE: (
        "About {expected:,} tokens were to be read and none were: the entry had expired early or was"
        " evicted, or the request reached another provider cache."
    ),
    MissReason.SHORTER_READ: (
        "About {expected:,} tokens were to be read and only {got:,} were: the longest entry was gone"
        " and a shorter one served."
    ),
    MissReason.NOT_WRITTEN: (
        "Reads and writes were to cover about {expected:,} tokens and covered {got:,}:"
        " the last breakpoint wrote nothing."
    ),
}


@dataclass(frozen=True, slots=True)
class Miss:
    """One prediction that failed. `expected` and `got` are tokens; `cost` is USD, None without prices.

    They count reads for `ENTRY_GONE` and `SHORTER_READ`, else reads and writes together. `cost` is what
    this request paid for tokens that were to be read, over the price of reading them.
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
    """Return why `usage` fell short of the prediction, or None where it did not.

    `marked`: whether the request left with a breakpoint. `minimum`: the model's, in tokens. `slack`: the
    error of the estimates as a share of them, 0 to 1.
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
    """Return what `lost` tokens cost over reading them; the first of a prompt are the ones written for 1h."""
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
