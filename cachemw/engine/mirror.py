"""The entry mirror: which cache entries the provider is expected to hold after a request, and a check by its usage.

Contains: pure functions. Must not depend on: stores, statistics, the order of a call.
"""

from __future__ import annotations

from collections.abc import Sequence

from cachemw.core.billing.usage import Usage
from cachemw.core.planner.plan import Plan
from cachemw.core.reuse.record import PrefixRecord
from cachemw.engine.call import ParsedPrompt, PlannedCall
from cachemw.stores.protocol import CacheEntry

# Estimates err by a twentieth at least, however well the calibration fits.
_LEAST_SPREAD = 0.05


def predict_entries(
    prompt: ParsedPrompt, plan: Plan, records: Sequence[PrefixRecord | None], started: float
) -> tuple[tuple[CacheEntry, ...], tuple[CacheEntry, ...]]:
    """Return the entries that the provider writes for a plan, and those that it refreshes.

    `records` belong to `prompt.tracked_blocks`; `started` is the time of the request in seconds.
    """
    record_of = dict(zip(prompt.tracked_blocks, records, strict=True))
    rules, shared_end = prompt.rules, prompt.parsed.system_end
    written: list[CacheEntry] = []
    refreshed: list[CacheEntry] = []
    for point in plan.breakpoints:
        record, is_shared = record_of[point.block], point.block < shared_end
        ttl = rules.provider.ttl_seconds[point.ttl]
        if point.prefix_tokens <= plan.cache_read:
            # A breakpoint within the hit writes nothing: an entry keeps its TTL, an expired one comes back.
            ttl = min(record.ttl, ttl) if record is not None and record.ttl else ttl
            if record is not None and record.is_cached(started):
                ttl = record.ttl
            refreshed.append(CacheEntry(prompt.prefix_hashes[point.block], is_shared, started + ttl, ttl))
        elif point.prefix_tokens >= rules.minimum:
            written.append(CacheEntry(prompt.prefix_hashes[point.block], is_shared, started + ttl, ttl))
    record = record_of[plan.hit] if plan.hit is not None else None
    if plan.hit is not None and record is not None:
        hit = prompt.prefix_hashes[plan.hit]
        refreshed.append(CacheEntry(hit, plan.hit < shared_end, started + record.ttl, record.ttl))
    return tuple(written), tuple(refreshed)


def reconcile_with_usage(
    prompt: ParsedPrompt, planned: PlannedCall, usage: Usage, spread: float
) -> tuple[CacheEntry, ...] | None:
    """Return the expected entries that the usage proves absent, each marked as gone, or None if it confirms the plan.

    `spread` is the relative error of token estimates. The tokens at a prompt's end may be larger than those at its
    start, so less may be read than was estimated although the entry exists. A cache read that is nearer to the
    expected prefix than to the next shorter one confirms the expected one.
    """
    plan = planned.plan
    slack = 1 - 2 * max(spread, _LEAST_SPREAD)
    shorter = max((p.prefix_tokens for p in plan.breakpoints if p.prefix_tokens < plan.cache_read), default=0)
    if not plan.breakpoints or usage.cache_read >= min(
        plan.cache_read * slack, (plan.cache_read + shorter) / 2
    ):
        return None
    absent = (*planned.entries_to_write, *planned.entries_to_refresh)
    if usage.cache_write_5m or usage.cache_write_1h:
        # The provider has just written an entry at each breakpoint, so only longer TTLs are disproved.
        ttl_of: dict[bytes, int] = {
            prompt.prefix_hashes[point.block]: prompt.rules.provider.ttl_seconds[point.ttl]
            for point in plan.breakpoints
            if point.prefix_tokens >= prompt.rules.minimum
        }
        absent = tuple(entry for entry in planned.entries_to_refresh if entry.ttl > ttl_of.get(entry.key, 0))
    return tuple(entry.gone() for entry in absent)
