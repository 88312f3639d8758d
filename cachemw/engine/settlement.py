"""The decisions after a request has left: its entries, its arrival, its usage, refusals, and all that is learned.

Contains: the steps from a sent call to its end. Must not depend on: stores, event loops, the order of the steps
(`flow`).

A request teaches nothing before its response has started: a client without a valid credential changes no count, no
label and no plan, not even its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from cachemw.core.billing import diagnose
from cachemw.core.billing.cost import prices_for
from cachemw.core.billing.receipt import Receipt, make_receipt
from cachemw.core.billing.usage import Usage, read_usage
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request.canonical_json import Json
from cachemw.core.reuse.forecast import ArrivedRequest
from cachemw.core.reuse.record import PrefixRecord
from cachemw.core.rules import refusals
from cachemw.core.rules.types import Ttl
from cachemw.engine.call import (
    AcceptedRequest,
    Call,
    CallLifecycle,
    ParsedCall,
    ParsedPrompt,
    PlannedCall,
    Refusal,
    StoreWrite,
)
from cachemw.engine.mirror import reconcile_with_usage
from cachemw.engine.request_planning import model_name
from cachemw.engine.shared import LedgerDelta, Shared
from cachemw.events import Settled
from cachemw.stores.protocol import CacheEntry

IN_FLIGHT_SECONDS = 60.0
"""Seconds after which a request that has no response is no longer expected to write its entries."""


class Settlement:
    """Turn the progress of calls into store writes, receipts and facts. Any number of threads may use one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    # -- entries in flight --------------------------------------------------------------------

    def mark_in_flight(self, call: Call) -> StoreWrite | None:
        """Return the write that marks the entries of this request as in flight, for other requests."""
        lifecycle = call._lifecycle
        if lifecycle is None or lifecycle.parsed.prompt is None or lifecycle.claimed_entries:
            return None
        entries = lifecycle.planned.entries_to_write
        if not entries:
            return None
        lifecycle.claimed_entries = entries
        until = lifecycle.parsed.started + IN_FLIGHT_SECONDS
        arrival = lifecycle.parsed.prompt.arrival
        return StoreWrite(arrival, tuple([entry.in_flight(until) for entry in entries]))

    def release_in_flight(self, lifecycle: CallLifecycle) -> StoreWrite | None:
        """Forget a request's texts, and return the write that releases the entries it will not write."""
        shared = self._shared
        texts, lifecycle.texts = lifecycle.texts, ()
        if shared.splitter is not None and texts:
            with shared.splitter_lock:
                shared.splitter.release(lifecycle.parsed.namespace, texts)
        claimed, lifecycle.claimed_entries = lifecycle.claimed_entries, ()
        prompt = lifecycle.parsed.prompt
        if lifecycle.response_started or not claimed or prompt is None:
            return None
        return StoreWrite(prompt.arrival, tuple([entry.released() for entry in claimed]))

    # -- the response starts ------------------------------------------------------------------

    def start_response(self, call: Call) -> tuple[StoreWrite | None, LedgerDelta]:
        """Learn from an accepted request: return the write of its arrival and entries, and the ledger's change."""
        lifecycle = call._lifecycle
        if lifecycle is None or lifecycle.finished:
            return None, {}
        return self._start_response(lifecycle)

    def _start_response(self, lifecycle: CallLifecycle) -> tuple[StoreWrite | None, LedgerDelta]:
        with self._shared.lock:
            if lifecycle.response_started:
                return None, {}
            lifecycle.response_started = True
        try:
            self._learn(lifecycle)
        except Exception as error:
            # The call counts and its entries are written even if learning from it fails.
            self._shared.count(f"error.learn.{type(error).__name__}")
        parsed, planned = lifecycle.parsed, lifecycle.planned
        added = self._shared.add_to_ledger(parsed.labels, parsed.model, {"calls": 1})
        if (prompt := parsed.prompt) is None:
            return None, added
        accepted = AcceptedRequest(
            parsed.namespace, prompt.parsed, prompt.prefix_hashes, prompt.tracked_blocks, parsed.started
        )
        entries = (*planned.entries_to_write, *planned.entries_to_refresh)
        return StoreWrite(prompt.arrival, entries, accepted), added

    def _learn(self, lifecycle: CallLifecycle) -> None:
        """Learn from an accepted request: labels, model, contents, cache key paces, texts, and a refusal."""
        shared, parsed, prompt = self._shared, lifecycle.parsed, lifecycle.parsed.prompt
        namespace = parsed.namespace
        with shared.lock:
            # Other requests may have used up the label limits since this one was prepared: apply them again.
            model = shared.model_limits.apply(namespace, {"model": parsed.model})[0]["model"]
            labels = shared.label_limits.apply(namespace, parsed.labels)[0]
            lifecycle.parsed = parsed = replace(parsed, model=model, labels=labels)
            shared.model_limits.learn(namespace, {"model": model})
            shared.label_limits.learn(namespace, labels)
            if prompt is not None:
                shared.parser.learn(namespace, prompt.parsed)
        arrivals = lifecycle.planned.shared_prefix_arrivals
        if arrivals is not None and prompt is not None:
            end = prompt.prefix_hashes[max(prompt.parsed.system_end - 1, 0)]
            with shared.reuse_lock:
                shared.prompt_cache_keys.learn(namespace, end, arrivals, parsed.started)
        if shared.splitter is not None and lifecycle.texts:
            with shared.splitter_lock:
                shared.splitter.learn(namespace, lifecycle.texts, parsed.started)
        if lifecycle.refusal is not None:
            self._learn_refusal(parsed, lifecycle.refusal)

    def observe(self, accepted: AcceptedRequest, records: Sequence[PrefixRecord | None]) -> None:
        """Count an accepted request in the reuse statistics, by the store's records from before its arrival."""
        shared = self._shared
        arrived = ArrivedRequest(
            accepted.parsed, accepted.prefix_hashes, accepted.tracked_blocks, records, accepted.started
        )
        with shared.reuse_lock:
            shared.reuse.observe(arrived, shared.cohort_owner(accepted.namespace))

    # -- the end ------------------------------------------------------------------------------

    def settle(
        self, call: Call, response: Any, *, partial: bool = False
    ) -> tuple[Receipt, list[StoreWrite], LedgerDelta]:
        """Return the receipt of a call, the writes that are due, and the ledger's change.

        Only the first end of a call counts: after it nothing changes, and the same receipt is returned.
        """
        lifecycle = call._lifecycle
        if lifecycle is None or not self._finish(lifecycle):
            return (lifecycle and lifecycle.receipt) or Receipt(), [], {}
        write, added = self._start_response(lifecycle)
        writes = [write] if write else []
        parsed, planned = lifecycle.parsed, lifecycle.planned
        usage = read_usage(response, ttl=_only_ttl(planned.plan))
        sums: dict[str, int | Decimal] = {"settled": 1}
        if usage is None:
            self._shared.count("settle.no_usage")
            receipt = Receipt()
        else:
            if parsed.rules is None:
                parsed.facts.learn_model(model_name(parsed.body), response)
            if parsed.prompt is not None and (gone := self._reconcile(parsed, parsed.prompt, planned, usage)):
                writes.append(StoreWrite(parsed.prompt.arrival, gone))
            model = parsed.rules.model if parsed.rules else None
            receipt = make_receipt(usage, model, self._miss(parsed, planned, usage))
            sums |= _sums(parsed, planned, usage, receipt)
        lifecycle.receipt = receipt
        if partial:
            self._shared.count("settle.partial")
        self._shared.emit(Settled(call.id, call.labels, receipt, partial))
        return receipt, writes, added | self._shared.add_to_ledger(parsed.labels, parsed.model, sums)

    def fail(self, call: Call) -> tuple[StoreWrite | None, LedgerDelta]:
        """End a call that got no answer: return the write that releases its entries, and the ledger's change."""
        lifecycle = call._lifecycle
        if lifecycle is None or not self._finish(lifecycle):
            return None, {}
        self._shared.count("fail")
        added: LedgerDelta = {}
        if lifecycle.response_started:
            added = self._shared.add_to_ledger(lifecycle.parsed.labels, lifecycle.parsed.model, {"calls": -1})
        return self.release_in_flight(lifecycle), added

    def _finish(self, lifecycle: CallLifecycle) -> bool:
        """Mark a call as finished; return False if it was before."""
        with self._shared.lock:
            first, lifecycle.finished = not lifecycle.finished, True
        return first

    def _reconcile(
        self, parsed: ParsedCall, prompt: ParsedPrompt, planned: PlannedCall, usage: Usage
    ) -> tuple[CacheEntry, ...]:
        """Calibrate token estimates by the usage, and return the entries that it proves absent."""
        plan, rules, facts = planned.plan, prompt.rules, parsed.facts
        spread = facts.calibration(rules).spread
        facts.count_tokens(rules, prompt.estimated_size, usage.total)
        if plan.added and not usage.cache_read and not usage.cache_write:
            deepest = max(point.prefix_tokens for point in plan.breakpoints)
            facts.unserved(rules, deepest * usage.total / max(plan.total, 1))
        gone = reconcile_with_usage(prompt, planned, usage, spread)
        if gone is None:
            return ()
        self._shared.count("mirror.corrected")
        return gone

    def _miss(self, parsed: ParsedCall, planned: PlannedCall, usage: Usage) -> diagnose.Miss | None:
        plan, rules = planned.plan, parsed.rules
        if rules is None or not plan.breakpoints:
            return None
        return diagnose.diagnose(
            expected_read=plan.cache_read,
            expected_write=plan.cache_write_5m + plan.cache_write_1h,
            marked=True,
            minimum=rules.minimum,
            slack=min(2 * parsed.facts.calibration(rules).spread, 0.5),
            usage=usage,
            prices=prices_for(rules.model, usage.total),
        )

    # -- refusals -----------------------------------------------------------------------------

    def refuse(
        self, call: Call, status: int, error: Any, *, resent: bool
    ) -> tuple[Json | None, StoreWrite | None]:
        """Return the original body once if a 400 names a marker that cachemw added, and the write that is due.

        The refusal is learned once the original request has been accepted, which proves that the marker was the
        cause; at once if the host cannot send it again (`resent` False). The write releases the claimed entries.
        """
        lifecycle = call._lifecycle
        if lifecycle is None:
            return None, None
        planned, text = lifecycle.planned, error if isinstance(error, str) else str(error)
        added, key = planned.plan.added, planned.prompt_cache_key
        sendable = not lifecycle.response_started and not lifecycle.finished
        if (
            status != 400
            or not (added or key is not None)
            or not sendable
            or not refusals.about_markers(text)
        ):
            return None, None
        prompt = lifecycle.parsed.prompt
        blocks = prompt.parsed.blocks if prompt is not None else ()
        kinds = refusals.refused_kinds(text, {blocks[point.block].kind for point in added})
        about_key = key is not None and refusals.about_key(text)
        refusal = Refusal(frozenset() if about_key else kinds, refusals.refuses_hour(text), about_key)
        lifecycle.refusal = refusal
        if not resent:
            self._learn_refusal(lifecycle.parsed, refusal)
        self._shared.count("refused")
        write = self.release_in_flight(lifecycle)
        lifecycle.planned = PlannedCall(
            Plan(skipped=Reason.REFUSED), shared_prefix_arrivals=planned.shared_prefix_arrivals
        )
        return lifecycle.parsed.body, write

    def _learn_refusal(self, parsed: ParsedCall, refusal: Refusal) -> None:
        rules, facts = parsed.rules, parsed.facts
        if rules is None:
            return
        for kind in refusal.kinds:
            self._shared.count(f"refused.{kind}")
        facts.refuse(rules, refusal.kinds)
        if refusal.prompt_cache_key:
            self._shared.count("refused.key")
            facts.refuse_key(rules)
        if refusal.one_hour:
            facts.refuse_hour(rules)


def _only_ttl(plan: Plan) -> Ttl | None:
    """Return the TTL that all breakpoints have, None if there are none or both TTLs occur."""
    ttls = {point.ttl for point in plan.breakpoints}
    return ttls.pop() if len(ttls) == 1 else None


def _sums(
    parsed: ParsedCall, planned: PlannedCall, usage: Usage, receipt: Receipt
) -> dict[str, int | Decimal]:
    """Return the ledger's sums of one answer: tokens, and money where the model has prices.

    The saving belongs to the side that set the deepest breakpoint: cachemw or the client.
    """
    sums: dict[str, int | Decimal] = {
        "cache_read": usage.cache_read,
        "cache_write_5m": usage.cache_write_5m,
        "cache_write_1h": usage.cache_write_1h,
        "uncached": usage.uncached,
        "output": usage.output,
    }
    if receipt.paid is None or receipt.baseline is None or receipt.saved is None:
        return sums
    points = planned.plan.breakpoints
    added = max((point.block for point in points if not point.from_client), default=-1)
    client = max((point.block for point in points if point.from_client), default=-1)
    whose = "saved_by_cachemw" if added > client else "saved_by_client"
    sums |= {"paid": receipt.paid, "baseline": receipt.baseline, whose: receipt.saved}
    observed = planned.observed_plan
    if observed is not None and parsed.rules is not None:
        expected = Usage(
            observed.cache_read,
            observed.cache_write_5m,
            observed.cache_write_1h,
            observed.uncached,
            0,
            "expected",
        )
        would = make_receipt(expected, parsed.rules.model).saved
        if would is not None:
            sums["would_save"] = would - receipt.saved
    return sums
