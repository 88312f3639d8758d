"""Every prior, margin, window and limit that decides money, with its unit, source and measured sensitivity.

Contains: constants. Must not depend on: the rest of the package. Facts about providers and models are no
tuning; they stand in `core.rules`.

Sensitivity is the change of the mean share of the clairvoyant saving, in percentage points, if a constant is
halved / doubled. The largest loss of one stream follows the semicolon. `make bench-sensitivity` prints it.
The figures beside the constants are of seed 1, from

    python -m benchmarks.sensitivity --only GROUP --workloads STREAMS

with "document blocks,dated with tools,fan-out,four levels,five tenants" for the planner, cohorts, records and
forecasts, and "dated with tools,four levels" for the other groups. A constant without a figure is not
measured yet. "Judgement" as a source means that no measurement chose the value. `tests/core/test_tuning.py`
holds each constant by a decision at its boundary.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlannerTuning:
    """The choice of breakpoints (`core.planner`)."""

    margin_5m: float = 0.03
    """Share of a token's uncached price that a 5m write must be expected to gain.

    Source: placement experiments, November 2026.
    Sensitivity: -0.01; -0.10 four levels (cachemw 1h) / +0.02; -0.06 fan-out (cachemw 1h).
    """
    margin_1h: float = 0.18
    """The same for a 1h write.

     Higher, since the estimate of late reuse is noisier.
    Source: judgement; 0.05 was enough in placement experiments, November 2026.
    Sensitivity: +0.04; +0.00 / -0.03; -0.18 five tenants (cachemw 1h).
    """
    telling_difference: float = 0.01
    """Gains per token that differ by less count as equal.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / -0.01; -0.07 four levels (cachemw).
    """
    max_candidates: int = 24
    """Breakpoints that are compared with each other.

     Planning time grows with its square.
    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    entries_tried: int = 3
    """Cached entries, deepest first, for which a plan is made.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """


@dataclass(frozen=True, slots=True)
class ForecastTuning:
    """Reuse probability before and beside a prefix's own record (`core.reuse.forecast`)."""

    prior_running: float = 0.6
    """Probability that an agent with tools, or a conversation in progress, continues.

    Source: placement experiments, November 2026.
    Sensitivity: +0.00; -0.01 five tenants (cachemw 1h) / -0.04; -0.11 dated with tools (cachemw 1h).
    """
    prior_single: float = 0.1
    """Probability that a single turn without tools comes again.

    Source: placement experiments, November 2026.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    prior_single_shared: float = 0.3
    """Probability that the shared prefix of such a turn comes again.

    Source: placement experiments, November 2026.
    Sensitivity: -0.36; -0.81 four levels (cachemw) / -0.00; -0.07 four levels (cachemw).
    """
    prior_repeat: float = 0.2
    """Probability that a whole prompt that came twice comes a third time: most are retries.

    Source: placement experiments, November 2026.
    Sensitivity: +0.00; +0.00 / -0.00; -0.00 four levels (cachemw).
    """
    own_prior: float = 0.5
    """Probability that a prefix with a long record comes again, before its record counts.

    Source: judgement.
    Sensitivity: +0.02; -0.13 four levels (cachemw) / -0.01; -0.08 four levels (cachemw 1h).
    """
    own_prior_weight: float = 4.0
    """Arrivals that the cohort's probability is worth beside the prefix's own record.

    Source: judgement.
    Sensitivity: +0.01; -0.15 four levels (cachemw 1h) / +0.02; -0.08 five tenants (cachemw).
    """
    own_late_prior_weight: float = 16.0
    """The same for late reuse.

     A record holds only returns, so the cohort counts more.
    Source: judgement.
    Sensitivity: +0.01; +0.00 / +0.00; +0.00.
    """
    blend_from_arrival: int = 4
    """Arrival from which a prefix's own history counts.

     A first reuse proves nothing.
    Source: placement experiments, November 2026.
    Sensitivity: +0.00; -0.06 fan-out (cachemw 1h) / -0.02; -0.22 four levels (cachemw).
    """
    own_only_from_arrival: int = 8
    """Arrival from which the cohort no longer counts, nor the prefix in its cohort.

    Source: judgement.
    Sensitivity: +0.04; +0.00 / +0.03; -0.00 five tenants (cachemw).
    """
    max_certainty: float = 0.98
    """Highest probability of one more read; it bounds the expected number of reads.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    middle_gap: float = 1020.0
    """Seconds between the second and the third gap class (5 min, 17 min, 1 h).

    Source: placement experiments, November 2026.
    Sensitivity: +0.01; -0.00 five tenants (cachemw) / -0.01; -0.05 four levels (cachemw).
    """
    distinct_positions: int = 3
    """Blocks of a section that have cohorts of their own; later ones share one.

    Source: judgement.
    Sensitivity: -0.01; -0.08 fan-out (cachemw 1h) / -0.05; -0.19 dated with tools (cachemw 1h).
    """
    distinct_stages: int = 2
    """Stages of a conversation that have cohorts of their own.

    Source: judgement.
    Sensitivity: -0.00; -0.02 fan-out (cachemw 1h) / -0.02; -0.11 five tenants (cachemw 1h).
    """
    distinct_turns: int = 16
    """Turns that have cohorts of their own under one system prompt.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / -0.00; -0.00 five tenants (cachemw).
    """


@dataclass(frozen=True, slots=True)
class CohortTuning:
    """Counts of cohorts and their shrinkage (`core.reuse.cohorts`)."""

    prior_weight: float = 2.0
    """Trials that the prior is worth.

    Source: placement experiments, November 2026.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    late_prior_weight: float = 4.0
    """Trials that the prior of late reuse is worth.

    Source: judgement.
    Sensitivity: +0.01; -0.01 five tenants (cachemw 1h) / -0.04; -0.40 four levels (cachemw 1h).
    """
    p_late: float = 0.2
    """Probability of reuse within the hour after none within five minutes.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    p_late_repeat: float = 0.05
    """The same for a prompt that came again as a whole.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    parent_weight: float = 3.0
    """Trials that the parent cohort is worth.

    Source: judgement.
    Sensitivity: -0.01; -0.07 four levels (cachemw) / -0.02; -0.10 dated with tools (cachemw 1h).
    """
    window: float = 64.0
    """Trials that a cohort remembers.

    Source: judgement.
    Sensitivity: -0.02; -0.10 fan-out (cachemw 1h) / +0.04; -0.08 fan-out (cachemw 1h).
    """
    half_life: float = 3600.0
    """Seconds after which a trial counts half.

    Source: the longest TTL.
    Sensitivity: -0.03; -0.09 five tenants (cachemw 1h) / +0.00; +0.00.
    """
    censoring_ramp: float = 30.0
    """Seconds after which a pending trial counts as failed in full.

    Source: placement experiments, November 2026. 150 is about as good.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    late_censoring_ramp: float = 300.0
    """Seconds past five minutes after which a pending trial counts as not reused.

    Source: judgement.
    Sensitivity: +0.00; -0.02 five tenants (cachemw 1h) / +0.02; +0.00.
    """


@dataclass(frozen=True, slots=True)
class RecordTuning:
    """The record of one prefix (`core.reuse.record`)."""

    decay: float = 31 / 32
    """Weight of a trial relative to the next one: some sixty arrivals make a record.

     `record.lua` repeats it.
    Source: judgement.
    Sensitivity: +0.01; -0.13 four levels (cachemw) / +0.00; +0.00.
    """


@dataclass(frozen=True, slots=True)
class SharingTuning:
    """Cohort counts exchanged by workers (`core.reuse.cohort_sharing`); streams of one worker do not use them."""

    slot: float = 600.0
    """Seconds of counts in one table.

     All workers of a store must agree.
    Source: judgement.
    """
    slots_read_back: int = 6
    """Tables that a new worker reads.

    Source: one hour, the half-life of counts.
    """
    clock_lag: float = 60.0
    """Seconds after its end for which a table is still read.

    Source: judgement.
    """
    published_at_once: int = 256
    """Cohorts that one exchange publishes, the busiest first.

    Source: judgement.
    """
    cohorts_per_table: int = 512
    """Cohorts in a table above which no new one is published.

    Source: judgement.
    """


@dataclass(frozen=True, slots=True)
class TrackingTuning:
    """Prefixes of a long request that have records (`core.request.tracked_prefixes`)."""

    system_ends: int = 6
    """Blocks of the system section, half from each end.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    opening_blocks: int = 8
    """First blocks of the messages; shorter requests are tracked whole.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    latest_ends: int = 24
    """Latest ends of runs of one role, each tracked.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    run_blocks: int = 8
    """Blocks at each side of the last run of one role.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    older_ends: int = 16
    """Older ends, at a stride that doubles.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    first_stride: int = 4
    """Smallest stride of older ends.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """


@dataclass(frozen=True, slots=True)
class SplitTextTuning:
    """The opt-in `split_text` (`core.opt_ins.split_text`); other settings do not depend on it."""

    least_bytes: int = 1_024
    """Bytes of a text, and of its first part, below which it is not split.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    piece_bytes: int = 256
    """Bytes of the shortest piece.

    Source: judgement.
    Sensitivity: -0.04; -0.07 dated with tools (cachemw / -0.19; -0.38 dated with tools (cachemw.
    """
    piece_share: int = 128
    """A piece is at least the text before it divided by this.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    line_bytes: int = 1_024
    """Bytes within which a piece is extended to the end of a line or word.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    max_cuts: int = 15
    """Cuts of one text.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    window: int = 32
    """Latest texts whose tails are remembered.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    least_branched: int = 2
    """Texts that must have branched near their ends before a new one is cut in advance.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    least_branched_share: float = 0.2
    """Share of the latest texts that must have branched.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """
    in_flight: float = 60.0
    """Seconds for which the text of a request without a response counts.

    Source: judgement.
    Sensitivity: +0.00; +0.00 / +0.00; +0.00.
    """


@dataclass(frozen=True, slots=True)
class CacheKeyTuning:
    """The opt-in `openai_hints` (`core.opt_ins.openai_hints`); other settings do not depend on it."""

    familiar_arrivals: int = 16
    """Arrivals after which a shared prefix may have a key.

    Source: judgement.
    """
    familiar_seconds: float = 600.0
    """Seconds that these arrivals must span.

    Source: judgement.
    """
    sure_arrivals: int = 1_000
    """Arrivals after which the span does not matter.

    Source: judgement.
    """
    busy_per_minute: float = 12.0
    """Requests a minute of one key.

    Source: OpenAI, prompt caching guide, October 2026: about 15.
    """
    max_keys: int = 64
    """Keys of one shared prefix.

    Source: judgement.
    """


@dataclass(frozen=True, slots=True)
class TokenTuning:
    """The calibration of token estimates (`core.request.tokens`)."""

    first_spread: float = 0.30
    """Relative error of an estimate before any usage.

    Source: judgement.
    """
    least_spread: float = 0.03
    """Smallest relative error that is assumed.

    Source: judgement.
    """
    window: int = 20
    """Answers over which scale and error are averaged.

    Source: judgement.
    """
    error_factor: float = 2.0
    """Spread in units of the mean error.

    Source: judgement.
    """
    least_tokens: int = 50
    """Tokens below which an answer teaches nothing.

    Source: judgement.
    """


PLANNER = PlannerTuning()
FORECAST = ForecastTuning()
COHORTS = CohortTuning()
RECORD = RecordTuning()
SHARING = SharingTuning()
TRACKING = TrackingTuning()
SPLIT_TEXT = SplitTextTuning()
CACHE_KEYS = CacheKeyTuning()
TOKENS = TokenTuning()
GROUPS = {
    "planner": PLANNER,
    "forecast": FORECAST,
    "cohorts": COHORTS,
    "record": RECORD,
    "sharing": SHARING,
    "tracking": TRACKING,
    "split_text": SPLIT_TEXT,
    "cache_keys": CACHE_KEYS,
    "tokens": TOKENS,
}
"""All groups by name, for the benchmark and the tests that vary one constant."""
