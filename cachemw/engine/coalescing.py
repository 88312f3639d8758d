"""Send only one of several concurrent requests that share an uncached prefix; the others wait until it is cached.

Contains: who goes first, which prefixes are worth a wait, how long it lasts. Must not depend on: stores, threads,
event loops: each step is yielded to the flow.

A request that is about to write many tokens claims its entries in the store before it leaves. A request that would
read many of the claimed tokens polls the store until the response to the first one has started, and then reads them.
If the first one fails, the next one claims in its place. A wait is in real time, whatever the middleware's clock.
"""

from __future__ import annotations

import time
from itertools import chain, repeat

from cachemw.engine.call import CallLifecycle
from cachemw.engine.request_planning import RequestPlanner
from cachemw.engine.settlement import IN_FLIGHT_SECONDS
from cachemw.engine.shared import Shared
from cachemw.engine.steps import Flow, shell_call, store_call
from cachemw.stores.protocol import CacheEntry

# Seconds between two polls: the first few, and all later ones.
_FIRST_PAUSES, _PAUSE = (0.002, 0.004, 0.008, 0.016), 0.025
_SHARE_WORTH_WAITING_FOR = 0.1
_REMEMBERED = 1024


class Coalescer:
    """Make concurrent requests take turns (single-flight), over all workers of a store."""

    def __init__(self, shared: Shared, planner: RequestPlanner) -> None:
        self._shared, self._planner = shared, planner
        self._longest = shared.settings.coalesce_wait_ms / 1000
        # Until when no request waits for a prefix, because one waited in vain: the writer may have died.
        self._abandoned_until: dict[bytes, float] = {}

    def wait(self, lifecycle: CallLifecycle) -> Flow[None]:
        """Return when a request should leave, its plan brought up to date. Raises `StoreError`."""
        if (prompt := lifecycle.parsed.prompt) is None:
            return
        shared, arrival = self._shared, prompt.arrival
        ends = time.monotonic() + self._longest
        awaited, waited = self._awaited_prefix(lifecycle), False
        for pause in chain(_FIRST_PAUSES, repeat(_PAUSE)):
            if awaited is None:
                entries = self._entries_to_claim(lifecycle)
                if not entries or (yield shell_call("claim", lifecycle, arrival, entries)):
                    return
            if not waited:
                shared.count("coalesce.waited")
                waited = True
            left = ends - time.monotonic()
            if left <= 0:
                shared.count("coalesce.timed_out")
                self._abandon(awaited)
                return
            yield shell_call("pause", min(pause, left))
            records = yield store_call("peek", arrival, shared.clock())
            if self._planner.replan_if_entries_changed(lifecycle, records):
                awaited = self._awaited_prefix(lifecycle)

    def _awaited_prefix(self, lifecycle: CallLifecycle) -> bytes | None:
        """Return the prefix that another request is writing, if reading it is worth a wait."""
        prompt, forecasts = lifecycle.parsed.prompt, lifecycle.planned.forecasts
        if prompt is None or not any(forecast.in_flight for forecast in forecasts):
            return None
        cached = [f._replace(cached_ttl="5m", in_flight=False) if f.in_flight else f for f in forecasts]
        plan = self._planner.plan_for(lifecycle, prompt, cached)
        gained = plan.cache_read - lifecycle.planned.plan.cache_read
        if plan.hit is None or not _worth_waiting_for(lifecycle, gained):
            return None
        prefix = prompt.prefix_hashes[plan.hit]
        return prefix if self._abandoned_until.get(prefix, 0.0) <= time.monotonic() else None

    def _entries_to_claim(self, lifecycle: CallLifecycle) -> tuple[CacheEntry, ...]:
        """Return the entries that only this request is about to write, if others should wait for them."""
        prompt, planned = lifecycle.parsed.prompt, lifecycle.planned
        written = planned.plan.cache_write_5m + planned.plan.cache_write_1h
        if prompt is None or not _worth_waiting_for(lifecycle, written):
            return ()
        in_flight = {prompt.prefix_hashes[f.block] for f in planned.forecasts if f.in_flight}
        until = self._shared.clock() + IN_FLIGHT_SECONDS
        mine = [entry for entry in planned.entries_to_write if entry.key not in in_flight]
        return tuple(entry.in_flight(until) for entry in mine)

    def _abandon(self, prefix: bytes | None) -> None:
        if len(self._abandoned_until) >= _REMEMBERED:
            self._abandoned_until.clear()
        if prefix is not None:
            self._abandoned_until[prefix] = time.monotonic() + IN_FLIGHT_SECONDS


def _worth_waiting_for(lifecycle: CallLifecycle, tokens: int) -> bool:
    """Return True for at least the model's minimum, and at least a tenth of the request."""
    rules, total = lifecycle.parsed.rules, lifecycle.planned.plan.total
    return rules is not None and tokens >= max(rules.minimum, total * _SHARE_WORTH_WAITING_FOR)
