"""The decisions before a request leaves: read it, apply the opt-ins, forecast, plan, and insert breakpoints.

Contains: the steps from a body to a `Call`, each given the store's answer. Must not depend on: stores, event loops,
the order of the steps (`flow`). Learning comes later: a request teaches only once its response has started.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from cachemw.core.opt_ins import openai_hints
from cachemw.core.opt_ins.sort_tools import sort_tools
from cachemw.core.planner import planner
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request import markers
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.equality import same_structure
from cachemw.core.request.parser import WireFormat
from cachemw.core.request.prefix_hashes import hash_prefixes
from cachemw.core.request.tracked_prefixes import track_prefixes
from cachemw.core.reuse.forecast import ArrivedRequest, PrefixForecast, with_current_entries
from cachemw.core.reuse.record import PrefixRecord
from cachemw.core.rules.model_names import model_key
from cachemw.core.rules.providers import PROVIDERS
from cachemw.core.rules.resolve import takes_breakpoints
from cachemw.core.rules.types import Rules
from cachemw.engine.call import Call, CallLifecycle, ParsedCall, ParsedPrompt, PlannedCall, pass_through_call
from cachemw.engine.mirror import predict_entries
from cachemw.engine.shared import Shared
from cachemw.errors import BodyError
from cachemw.events import Prepared
from cachemw.slices import Slices
from cachemw.stores.protocol import Arrival

Records = Sequence[PrefixRecord | None]


class RequestPlanner:
    """Turn bodies and records into calls. Any number of threads may use one."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    def begin_call(self, body: Any, labels: Mapping[str, str], namespace: str | None) -> CallLifecycle:
        """Return the lifecycle of a call whose body is not read yet."""
        shared = self._shared
        space = namespace or shared.settings.namespace
        name = model_key(model_name(body))
        model = shared.model_limits.apply(space, {"model": name})[0]["model"]
        limited, cut = shared.label_limits.apply(space, labels)
        for _ in range(cut):
            shared.count("labels.cut")
        return CallLifecycle(ParsedCall(body, shared.clock(), space, limited, model, shared.facts.of(space)))

    # -- read ---------------------------------------------------------------------------------

    def parse(self, lifecycle: CallLifecycle, provider: str | None, wire: WireFormat) -> Slices[None]:
        """Read a body in slices, if its rules allow breakpoints. Raises `BodyError`."""
        parsed = lifecycle.parsed
        if not isinstance(parsed.body, Mapping):
            raise BodyError("not_a_mapping")
        name = self._provider_name(provider)
        rules = None if name == "auto" else parsed.facts.rules(name, model_name(parsed.body))
        skipped = Reason.PROVIDER_UNKNOWN if name == "auto" else self._reason_to_skip(rules, wire)
        lifecycle.parsed = parsed = replace(parsed, rules=rules)
        if skipped is not None:
            lifecycle.planned = PlannedCall(Plan(skipped=skipped))
        elif rules is not None:
            prompt = yield from self._parse_prompt(lifecycle, rules, wire)
            lifecycle.parsed = replace(parsed, prompt=prompt)

    def _provider_name(self, provider: str | None) -> str:
        """Return the provider whose rules hold: the setting's, or the integration's where that is more exact."""
        setting = self._shared.settings.provider
        row = PROVIDERS.get(provider) if provider else None
        is_part = row is not None and row.parent_provider == setting
        return provider if provider and (is_part or setting == "auto") else setting

    def _reason_to_skip(self, rules: Rules | None, wire: WireFormat) -> Reason | None:
        settings = self._shared.settings
        if settings.mode == "off":
            return Reason.NOT_OPTIMIZING
        if rules is None:
            return Reason.MODEL_UNKNOWN
        if takes_breakpoints(rules, settings.openai_hints and wire == "chat"):
            return None
        ignored = rules.provider.parent_provider and not rules.provider.max_markers
        return Reason.MARKERS_IGNORED if ignored else Reason.MODEL_AUTOMATIC

    def _parse_prompt(self, lifecycle: CallLifecycle, rules: Rules, wire: WireFormat) -> Slices[ParsedPrompt]:
        shared, namespace = self._shared, lifecycle.parsed.namespace
        body = self._apply_opt_ins(lifecycle, wire)
        parsed = yield from shared.parser.steps(body, rules.model, wire, namespace)
        if rules.provider.adds_own_breakpoint:
            parsed = openai_hints.with_automatic_breakpoint(parsed, body, rules.provider.max_markers)
        # Mode "observe" uses a namespace of its own. Its requests carry no added breakpoints, so the entries that it
        # predicts never exist at the provider.
        space = namespace if shared.settings.mode == "optimize" else f"{namespace}\x00observed"
        hashes, tracked = hash_prefixes(parsed, space), track_prefixes(parsed)
        opening = min(parsed.system_end, len(hashes) - 1)
        arrival = Arrival(
            namespace=space,
            shared_shard_key=hashes[0],
            conversation_shard_key=hashes[opening],
            shared_count=sum(index < parsed.system_end for index in tracked),
            keys=tuple([hashes[index] for index in tracked]),
        )
        size = sum(block.size for block in parsed.blocks)
        return ParsedPrompt(body, parsed, rules, hashes, tracked, arrival, size)

    def _apply_opt_ins(self, lifecycle: CallLifecycle, wire: WireFormat) -> Json:
        """Return the body as the opt-ins leave it; the body itself if none is set."""
        shared, parsed = self._shared, lifecycle.parsed
        body = sort_tools(parsed.body) if shared.settings.sort_tools else parsed.body
        if shared.splitter is None:
            return body
        with shared.splitter_lock:
            body, texts = shared.splitter.split(body, wire, parsed.namespace, parsed.started, parsed.model)
            lifecycle.texts = texts
            shared.splitter.mark_in_flight(parsed.namespace, texts, parsed.started)
        return body

    # -- plan ---------------------------------------------------------------------------------

    def forecast_and_plan(self, lifecycle: CallLifecycle, records: Records) -> None:
        """Plan a request by the records of its tracked prefixes and the statistics of its cohorts."""
        shared, parsed, prompt = self._shared, lifecycle.parsed, lifecycle.parsed.prompt
        if prompt is None:
            return
        if prompt.rules.provider.adds_own_breakpoint:
            self._choose_prompt_cache_key(lifecycle, prompt, records)
            if not prompt.rules.model.hints:
                lifecycle.planned = replace(lifecycle.planned, plan=Plan(skipped=Reason.MODEL_AUTOMATIC))
                return
        owner = shared.cohort_owner(parsed.namespace)
        arrived = ArrivedRequest(
            prompt.parsed, prompt.prefix_hashes, prompt.tracked_blocks, records, parsed.started
        )
        with shared.reuse_lock:
            forecasts = shared.reuse.forecast(arrived, owner)
        self._plan(lifecycle, prompt, forecasts, records)

    def replan_if_entries_changed(self, lifecycle: CallLifecycle, records: Records) -> bool:
        """Plan again if an entry was written, or is being written, since the last look; return True if so."""
        prompt, forecasts = lifecycle.parsed.prompt, lifecycle.planned.forecasts
        updated = with_current_entries(forecasts, records, self._shared.clock())
        if prompt is None or updated == forecasts:
            return False
        self._plan(lifecycle, prompt, updated, records)
        return True

    def plan_for(
        self, lifecycle: CallLifecycle, prompt: ParsedPrompt, forecasts: Sequence[PrefixForecast]
    ) -> Plan:
        """Return the plan of a request if these were the forecasts of its prefixes."""
        facts, rules = lifecycle.parsed.facts, prompt.rules
        return planner.plan(prompt.parsed, forecasts, rules, facts.calibration(rules), facts.kinds(rules))

    def _plan(
        self,
        lifecycle: CallLifecycle,
        prompt: ParsedPrompt,
        forecasts: Sequence[PrefixForecast],
        records: Records,
    ) -> None:
        plan = self.plan_for(lifecycle, prompt, forecasts)
        written, refreshed = predict_entries(prompt, plan, records, lifecycle.parsed.started)
        carried_out = self._shared.settings.mode == "optimize"
        lifecycle.planned = replace(
            lifecycle.planned,
            plan=plan if carried_out else Plan(skipped=Reason.NOT_OPTIMIZING),
            observed_plan=None if carried_out else plan,
            forecasts=forecasts,
            entries_to_write=written,
            entries_to_refresh=refreshed,
        )

    def _choose_prompt_cache_key(
        self, lifecycle: CallLifecycle, prompt: ParsedPrompt, records: Records
    ) -> None:
        """Choose the `prompt_cache_key`, unless the client sends one or the provider has refused it."""
        shared, parsed = self._shared, lifecycle.parsed
        client_key = prompt.outgoing_body.get(openai_hints.KEY)
        accepted = parsed.facts.takes_key(prompt.rules)
        if shared.settings.mode != "optimize" or client_key is not None or not accepted:
            return
        end = max(prompt.parsed.system_end - 1, 0)
        record = dict(zip(prompt.tracked_blocks, records, strict=True)).get(end)
        arrivals = 0 if record is None else record.arrivals
        conversation = prompt.arrival.conversation_shard_key
        with shared.reuse_lock:
            key = shared.prompt_cache_keys.key(
                parsed.namespace, prompt.prefix_hashes[end], conversation, arrivals, parsed.started
            )
        lifecycle.planned = replace(lifecycle.planned, prompt_cache_key=key, shared_prefix_arrivals=arrivals)

    # -- the call -----------------------------------------------------------------------------

    def build_call(self, lifecycle: CallLifecycle) -> Call:
        """Return the call with the annotated body.

        Raises `BodyError` if the result differs from the client's body in more than the settings allow.
        """
        settings, parsed, planned = self._shared.settings, lifecycle.parsed, lifecycle.planned
        points = planned.plan.breakpoints
        paths = [(point.path, point.ttl) for point in points if not point.from_client]
        marker_key = parsed.rules.provider.marker_key if parsed.rules else "cache_control"
        # The opt-ins only help breakpoints: without one the original body goes out.
        source = parsed.prompt.outgoing_body if points and parsed.prompt is not None else parsed.body
        body = markers.insert(source, paths, marker_key)
        if planned.prompt_cache_key is not None:
            body = {**body, openai_hints.KEY: planned.prompt_cache_key}
        if not same_structure(
            parsed.body, body, split_text=settings.split_text, sort_tools=settings.sort_tools
        ):
            raise BodyError("changed")
        return self._call(lifecycle, body)

    def pass_through(self, lifecycle: CallLifecycle | None, body: Any, error: Exception) -> Call:
        """Return the call of a request that goes out as it came because of an error, and count why."""
        if isinstance(error, BodyError):
            reason = Reason.UNREADABLE
            self._shared.count(f"pass.{error.reason}")
        else:
            reason = Reason.FAILED
            self._shared.count(f"error.prepare.{type(error).__name__}")
        if lifecycle is None:
            return pass_through_call(body)
        lifecycle.parsed = replace(lifecycle.parsed, prompt=None)
        lifecycle.planned = PlannedCall(Plan(skipped=reason))
        return self._call(lifecycle, body)

    def _call(self, lifecycle: CallLifecycle, body: Json) -> Call:
        plan, labels = lifecycle.planned.plan, lifecycle.parsed.labels
        call = Call(uuid4().hex, body, plan, labels, lifecycle)
        if plan.skipped:
            self._shared.count(f"skip.{plan.skipped}")
        self._shared.emit(Prepared(call.id, call.labels, call.plan))
        return call


def model_name(body: Any) -> str:
    """Return the model that a body names, "" if it names none."""
    name = body.get("model") if isinstance(body, Mapping) else None
    return name if isinstance(name, str) else ""
