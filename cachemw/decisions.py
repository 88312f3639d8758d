"""Everything the engine decides, with the store's answers given to it: shared by both twins.

Lives here: what a body and the store's answer become, what a settled call teaches, what is written
where. Must not know: how a store is called, threads, event loops. It keeps this process's own state:
rules and calibrations by model, kinds that were refused, calls that are under way.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from threading import Lock
from typing import Any, NamedTuple
from uuid import uuid4

from cachemw import ledger
from cachemw.core import diagnose, markers, planner, prefix, providers, refusal, usage
from cachemw.core.blocks import Parsed, Parser, Wire
from cachemw.core.chances import Reuse
from cachemw.core.cost import prices_for
from cachemw.core.plan import Plan, Reason
from cachemw.core.providers import TTL_SECONDS, Kind, Mark, Rules, Ttl
from cachemw.core.receipt import Receipt, receipt
from cachemw.core.tokens import Calibration
from cachemw.core.wire import Json
from cachemw.errors import BodyError
from cachemw.events import Counted, Counters, Event, Hook, Prepared, Settled
from cachemw.settings import Settings
from cachemw.stores.base import Arrival, Entry

_PENDING_LIMIT = 100_000
_IN_FLIGHT = 60.0  # seconds in which an answer should have begun
_RULES_LIMIT = 4_096
_OTHER = "other"
_NO_PLAN = Plan()
Amounts = list[tuple[str, dict[str, int]]]  # namespace, and what is added to its ledger


@dataclass(slots=True)
class State:
    """What the engine knows of one call beyond what the caller sees."""

    body: Json
    start: float
    namespace: str
    labels: Mapping[str, str]
    model: str
    rules: Rules | None = None
    parsed: Parsed | None = None
    chain: list[bytes] = field(default_factory=list)
    watched: list[int] = field(default_factory=list)
    arrival: Arrival | None = None
    entries: tuple[Entry, ...] = ()
    refreshed: tuple[Entry, ...] = ()
    plan: Plan = _NO_PLAN
    hypothetical: Plan | None = None
    size: float = 0.0
    begun: bool = False
    closed: bool = False
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request under way: send `body`, then tell the middleware how it ended.

    `body` is the caller's own object where nothing was added.
    """

    id: str
    body: Json
    plan: Plan
    labels: Mapping[str, str]
    _state: State = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Write:
    """One call of `Store.write` that is due."""

    state: State
    entries: tuple[Entry, ...]


class _Pending(NamedTuple):
    """What is kept of a call until it ends: enough to count it as unsettled, and no body."""

    start: float
    namespace: str
    labels: Mapping[str, str]
    model: str


class Decisions:
    """Turn bodies, records and usage into calls, writes and receipts."""

    def __init__(self, settings: Settings, clock: Callable[[], float], hooks: tuple[Hook, ...]) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = Counters()
        self.hooks = hooks
        self._parser = Parser()
        self._reuse = Reuse(hours=settings.ttl in ("1h", "auto"))
        self._rules: dict[tuple[str, str], Rules | None] = {}
        self._learned_models: dict[str, str] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._refused: dict[tuple[str, str], set[Kind]] = {}
        self._label_values: dict[str, set[str]] = {}
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._late: dict[str, dict[str, int]] = {}
        self._lock = Lock()
        self.sums: dict[str, int] = {}

    # -- before the request -------------------------------------------------------------------

    def start(self, body: Any, labels: Mapping[str, str], namespace: str | None) -> State:
        """Return what is known of a call before its body is read."""
        name = providers.model_key(_model(body))
        return State(body, self.clock(), namespace or self.settings.namespace, self.cut(labels), name)

    def read(self, state: State, provider: str | None, wire: Wire) -> None:
        """Read a body as far as it goes without the store. Raises `BodyError`."""
        settings = self.settings
        if not isinstance(state.body, Mapping):
            raise BodyError("not_a_mapping")
        chosen = settings.provider if provider is None or settings.provider != "auto" else provider
        if chosen == "auto":
            state.plan = Plan(skipped=Reason.PROVIDER_UNKNOWN)
            return
        rules = state.rules = self.rules(chosen, _model(state.body))
        if settings.mode == "off":
            state.plan = Plan(skipped=Reason.NOT_OPTIMIZING)
        elif rules is None:
            state.plan = Plan(skipped=Reason.MODEL_UNKNOWN)
        elif rules.model.caching != "explicit" or not rules.provider.max_markers:
            state.plan = Plan(skipped=Reason.MODEL_AUTOMATIC)
        else:
            self._read(state, rules, wire)

    def _read(self, state: State, rules: Rules, wire: Wire) -> None:
        parsed = state.parsed = self._parser.parse(state.body, rules.model, wire)
        # What is only watched keeps records and entries of its own: no breakpoint of ours was sent.
        space = state.namespace if self.settings.mode == "optimize" else f"{state.namespace}\x00observed"
        digests = state.chain = prefix.chain(parsed, space)
        watched = state.watched = prefix.watch(parsed)
        state.size = sum(block.size for block in parsed.blocks)
        following = [*digests[1:], bytes(4)]
        opening = min(parsed.system, len(digests) - 1)
        state.arrival = Arrival(
            namespace=space,
            root=digests[0],
            trunk=digests[opening],
            heads=sum(index < parsed.system for index in watched),
            keys=tuple([digests[index] for index in watched]),
            children=tuple([int.from_bytes(following[index][:4]) for index in watched]),
        )

    def decide(self, state: State, records: Any) -> Call:
        """Return the call, its body annotated as the records and the rules say."""
        parsed, rules = state.parsed, state.rules
        if parsed is not None and rules is not None:
            depths = self._reuse.judge(parsed, state.chain, state.watched, records, state.start)
            kinds = self.kinds(rules)
            plan = planner.plan(parsed, depths, rules, self.calibration(rules), kinds)
            self._expect(state, plan, records)
            if self.settings.mode == "optimize":
                state.plan = plan
            else:
                state.plan, state.hypothetical = Plan(skipped=Reason.NOT_OPTIMIZING), plan
        places = [(point.path, point.ttl) for point in state.plan.breakpoints if not point.own]
        return self._call(state, markers.apply(state.body, places))

    def _expect(self, state: State, plan: Plan, records: Any) -> None:
        """Note which entries the provider will write and which it will refresh."""
        known = dict(zip(state.watched, records, strict=True))
        parsed = state.parsed
        assert parsed is not None
        written, refreshed = [], []
        for point in plan.breakpoints:
            record, head = known[point.block], point.block < parsed.system
            ttl = TTL_SECONDS[point.ttl]
            if point.prefix_tokens <= plan.read:
                # Under the hit nothing is written: an entry keeps its TTL, a lapsed one comes back.
                ttl = min(record.ttl, ttl) if record is not None and record.ttl else ttl
                if record is not None and record.living(state.start):
                    ttl = record.ttl
                refreshed.append(Entry(state.chain[point.block], head, state.start + ttl, ttl))
            elif state.rules is not None and point.prefix_tokens >= state.rules.minimum:
                written.append(Entry(state.chain[point.block], head, state.start + ttl, ttl))
        record = known[plan.hit] if plan.hit is not None else None
        if plan.hit is not None and record is not None:
            expires = state.start + record.ttl
            refreshed.append(Entry(state.chain[plan.hit], plan.hit < parsed.system, expires, record.ttl))
        state.entries, state.refreshed = tuple(written), tuple(refreshed)

    def announce(self, call: Call) -> Write | None:
        """Return the note, for requests that come before the answer begins, of what this one writes."""
        state = call._state
        if not state.entries or state.arrival is None:
            return None
        until = state.start + _IN_FLIGHT
        return Write(state, tuple([entry._replace(expires=-1.0, pending=until) for entry in state.entries]))

    def passed(self, state: State | None, body: Any, error: Exception) -> Call:
        """Return the call of a request that goes as it came, and count why."""
        reason = Reason.FAILED
        if isinstance(error, BodyError):
            reason = Reason.UNREADABLE
            self.count(f"pass.{error.reason}")
        else:
            self.count(f"error.prepare.{type(error).__name__}")
        if state is None:
            return untracked(body)
        state.plan, state.arrival, state.parsed = Plan(skipped=reason), None, None
        state.entries = state.refreshed = ()
        return self._call(state, body)

    def _call(self, state: State, body: Json) -> Call:
        call = Call(uuid4().hex, body, state.plan, state.labels, state)
        if state.plan.skipped:
            self.count(f"skip.{state.plan.skipped}")
        self.tell(Prepared(call.id, call.labels, call.plan))
        pending = _Pending(state.start, state.namespace, state.labels, state.model)
        with self._lock:
            self._sweep(state.start)
            self._pending[call.id] = pending
        return call

    def expired(self) -> Amounts:
        """Forget calls that nobody settled within an hour, and return what is due to each ledger."""
        now = self.clock()
        with self._lock:
            self._sweep(now)
            late, self._late = self._late, {}
        return list(late.items())

    def _sweep(self, now: float) -> None:
        """Count as unsettled what is too old, or too much; the lock is held."""
        while self._pending:
            name, call = next(iter(self._pending.items()))
            if call.start + TTL_SECONDS["1h"] > now and len(self._pending) < _PENDING_LIMIT:
                return
            del self._pending[name]
            added = ledger.amounts(call.labels, call.model, {"calls": 1, "unsettled": 1})
            _sum(self._late.setdefault(call.namespace, {}), added)
            _sum(self.sums, added)

    # -- after it -----------------------------------------------------------------------------

    def begun(self, call: Call) -> Write | None:
        """Note that the answer has begun: what was written can be read, what was read lives on."""
        state = call._state
        return None if state.closed else self._readable(state)

    def _readable(self, state: State) -> Write | None:
        if state.begun or state.arrival is None:
            return None
        state.begun = True
        entries = (*state.entries, *state.refreshed)
        return Write(state, entries) if entries else None

    def settle(
        self, call: Call, response: Any, *, partial: bool = False
    ) -> tuple[Receipt, list[Write], Amounts]:
        """Return the receipt, the writes that are due, and what is added to each ledger.

        The first end of a call is its only one: after it nothing changes.
        """
        state = call._state
        with self._lock:
            if state.closed:
                return state.receipt or Receipt(), [], []
            state.closed = True
            # A call that had been given up as unsettled has been counted already.
            calls = {"calls": 1} if self._pending.pop(call.id, None) else {"unsettled": -1}
        writes = [write] if (write := self._readable(state)) else []
        read = usage.normalise(response, ttl=self._only_ttl(state.plan))
        if read is None:
            self.count("settle.no_usage")
            state.receipt = Receipt()
            added = ledger.amounts(state.labels, state.model, calls)
        else:
            self._learn_model(state, response)
            if dead := self._corrected(state, read):
                writes.append(Write(state, dead))
            miss = self._miss(state, read)
            state.receipt = receipt(read, state.rules.model if state.rules else None, miss)
            added = self._account(state, state.receipt, calls)
        with self._lock:
            _sum(self.sums, added)
            late, self._late = self._late, {}
        if partial:
            self.count("settle.partial")
        self.tell(Settled(call.id, call.labels, state.receipt, partial))
        return state.receipt, writes, [*late.items(), (state.namespace, added)]

    def fail(self, call: Call) -> Write | None:
        """Close a call that got no answer: nothing was written, nothing is owed, nobody need wait."""
        state = call._state
        with self._lock:
            if state.closed:
                return None
            state.closed = True
            self._pending.pop(call.id, None)
        self.count("fail")
        if state.begun or not state.entries:
            return None
        return Write(state, tuple([entry._replace(expires=-1.0) for entry in state.entries]))

    def refused(self, call: Call, status: int, error: Any) -> Json | None:
        """Return the original body once if a 400 names a marker of ours, and remember the kind."""
        state = call._state
        ours = state.plan.ours
        text = error if isinstance(error, str) else str(error)
        if status != 400 or not ours or state.begun or state.closed or not refusal.about_markers(text):
            return None
        blocks = state.parsed.blocks if state.parsed else ()
        kinds = refusal.refused_kinds(text, {blocks[point.block].kind for point in ours})
        if state.rules is not None:
            key = (state.rules.provider.name, state.rules.model.name)
            self._refused.setdefault(key, set()).update(kinds)
        for kind in kinds:
            self.count(f"refused.{kind}")
        self.count("refused")
        state.plan, state.entries, state.refreshed = Plan(skipped=Reason.FAILED), (), ()
        return state.body

    def _corrected(self, state: State, read: usage.Usage) -> tuple[Entry, ...]:
        """Calibrate tokens by what was counted, and return the entries that turned out not to be."""
        plan, rules = state.plan, state.rules
        if rules is None or state.parsed is None:
            return ()
        key = rules.model.name
        calibration = self.calibration(rules)
        self._calibrations[key] = calibration.learn(state.size, read.total)
        slack = 1 - 2 * max(calibration.spread, 0.05)
        if not state.plan.breakpoints or read.read >= plan.read * slack:
            return ()
        # Less was read than the mirror promised. What was written instead covers our breakpoints;
        # where nothing was written either, none of them is there.
        gone = state.refreshed if read.write_5m or read.write_1h else (*state.entries, *state.refreshed)
        self.count("mirror.corrected")
        return tuple(entry._replace(expires=0.0) for entry in gone)

    def _miss(self, state: State, read: usage.Usage) -> diagnose.Miss | None:
        if state.rules is None or not state.plan.breakpoints:
            return None
        return diagnose.diagnose(
            expected_read=state.plan.read,
            expected_write=state.plan.write_5m + state.plan.write_1h,
            marked=True,
            minimum=state.rules.minimum,
            slack=min(2 * self.calibration(state.rules).spread, 0.5),
            usage=read,
            prices=prices_for(state.rules.model, read.total),
        )

    @staticmethod
    def _only_ttl(plan: Plan) -> Ttl | None:
        """Return the TTL of all breakpoints, None where there are none or both."""
        ttls = {point.ttl for point in plan.breakpoints}
        return ttls.pop() if len(ttls) == 1 else None

    def _learn_model(self, state: State, response: Any) -> None:
        """Note which model an unknown name turned out to be, for the next request."""
        if state.rules is not None or not state.model or len(self._learned_models) >= _RULES_LIMIT:
            return
        answered = (
            response.get("model") if isinstance(response, Mapping) else getattr(response, "model", None)
        )
        model = providers.find_model(answered) if isinstance(answered, str) else None
        if model is not None and model.name in providers.MODELS:
            self._learned_models[str(state.body.get("model"))] = model.name
            self._rules.clear()

    def _account(self, state: State, bill: Receipt, calls: Mapping[str, int]) -> dict[str, int]:
        read = bill.usage
        assert read is not None
        sums: dict[str, int | Decimal] = {
            **calls, "read": read.read, "write_5m": read.write_5m, "write_1h": read.write_1h,
            "plain": read.plain, "output": read.output,
        }  # fmt: skip
        if bill.paid is not None and bill.baseline is not None and bill.saved is not None:
            ours = [point.block for point in state.plan.breakpoints if not point.own]
            own = [point.block for point in state.plan.breakpoints if point.own]
            whose = "ours" if max(ours, default=-1) > max(own, default=-1) else "found"
            sums |= {"paid": bill.paid, "baseline": bill.baseline, whose: bill.saved}
            if state.hypothetical is not None and state.rules is not None:
                expected = usage.Usage(
                    state.hypothetical.read, state.hypothetical.write_5m, state.hypothetical.write_1h,
                    state.hypothetical.plain, 0, "expected",
                )  # fmt: skip
                would = receipt(expected, state.rules.model).saved
                if would is not None:
                    sums["would_save"] = would - bill.saved
        return ledger.amounts(state.labels, state.model, sums)

    # -- what is looked up --------------------------------------------------------------------

    def rules(self, provider: str, model: str) -> Rules | None:
        """Return the rules of a model at a provider, settings laid over them; None where unknown."""
        key = (provider, model)
        if key not in self._rules:
            if len(self._rules) >= _RULES_LIMIT:
                self._rules.clear()
            settings = self.settings
            self._rules[key] = providers.resolve(
                provider,
                model,
                models={**self._learned_models, **settings.models},
                mark_kinds=settings.mark_kinds,
                ttl=settings.ttl,
                minimum=settings.min_tokens,
                prices=settings.prices,
            )
        return self._rules[key]

    def calibration(self, rules: Rules) -> Calibration:
        """Return how sizes become this model's tokens, as far as usage has shown."""
        known = self._calibrations.get(rules.model.name)
        return known or Calibration.start(rules.model.tokenizer)

    def kinds(self, rules: Rules) -> dict[Kind, Mark]:
        """Return which kinds may carry a marker now; what was refused may not."""
        refused = self._refused.get((rules.provider.name, rules.model.name), ())
        return {kind: "off" if kind in refused else rules.kinds.get(kind, "off") for kind in Kind}

    def cut(self, labels: Mapping[Any, Any]) -> Mapping[str, str]:
        """Return labels within the limits; what goes over them, or is no string, counts as "other"."""
        limited: dict[str, str] = {}
        for name, value in labels.items():
            if not isinstance(name, str) or not isinstance(value, str):
                name, value = _OTHER, _OTHER
                self.count("labels.cut")
            values = self._label_values.get(name)
            if values is None:
                if (
                    len(name) > self.settings.max_label_length
                    or len(self._label_values) >= self.settings.max_labels
                ):
                    name, value = _OTHER, _OTHER
                    self.count("labels.cut")
                values = self._label_values.setdefault(name, set())
            if value not in values and value != _OTHER:
                if len(value) > self.settings.max_label_length or len(values) >= self.settings.max_labels:
                    value = _OTHER
                    self.count("labels.cut")
                else:
                    values.add(value)
            limited[name] = value
        return limited

    def count(self, name: str) -> None:
        """Count one thing by name."""
        self.counters.add(name)
        if self.hooks:
            self.tell(Counted(name))

    def tell(self, event: Event) -> None:
        """Tell each hook; what one raises is counted, never passed on."""
        for hook in self.hooks:
            try:
                hook(event)
            except Exception as error:
                self.counters.add(f"error.hook.{type(error).__name__}")


def untracked(body: Json) -> Call:
    """Return a call that nothing is known of: its body goes as it came, and how it ends changes nothing."""
    plan = Plan(skipped=Reason.FAILED)
    return Call("", body, plan, {}, State(body, 0.0, "", {}, "", plan=plan, closed=True))


def _model(body: Any) -> str:
    name = body.get("model") if isinstance(body, Mapping) else None
    return name if isinstance(name, str) else ""


def _sum(into: dict[str, int], added: Mapping[str, int]) -> None:
    for name, amount in added.items():
        into[name] = into.get(name, 0) + amount


def secret_of(settings: Settings) -> bytes:
    """Return the key of hashes that leave the process; derived from the namespace where none is set."""
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    return hashlib.blake2b(b"cachemw\x00" + settings.namespace.encode(), digest_size=32).digest()
