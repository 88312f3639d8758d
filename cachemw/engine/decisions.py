"""Everything the engine decides, with the store's answers given to it: shared by both twins.

Lives here: what a body and the store's answer become, what a settled call teaches, what is written
where. Must not know: how a store is called, event loops. It keeps what this process has learned.

A request teaches nothing before its answer has begun: a client without a valid credential changes no count, no label
and no plan, not even its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from threading import RLock
from typing import Any
from uuid import uuid4

from cachemw.core.billing import diagnose, usage
from cachemw.core.billing.cost import prices_for
from cachemw.core.billing.receipt import Receipt, receipt
from cachemw.core.opt_ins import openai_hints
from cachemw.core.opt_ins.sort_tools import sort_tools
from cachemw.core.opt_ins.split_text import Splitter
from cachemw.core.planner import planner
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request import markers, prefix_hashes
from cachemw.core.request.equality import same_structure
from cachemw.core.request.message_blocks import Json
from cachemw.core.request.parser import Keys, Parser, Wire
from cachemw.core.request.tokens import Counter
from cachemw.core.reuse import cohort_sharing
from cachemw.core.reuse.forecast import Depth, Reuse, refreshed
from cachemw.core.reuse.record import LONG, SHORT, Prefix
from cachemw.core.rules import providers, refusals
from cachemw.core.rules.providers import Rules, Ttl
from cachemw.engine import learned_facts
from cachemw.engine.call import Accepted, Call, Refusal, State, Write, untracked
from cachemw.engine.learned_facts import Knowledge
from cachemw.errors import BodyError
from cachemw.events import Counted, Counters, Event, Hook, Prepared, Settled
from cachemw.fork_safety import in_child
from cachemw.reporting import ledger
from cachemw.reporting.labelling import Limits
from cachemw.settings import Settings
from cachemw.slices import Slices
from cachemw.stores.protocol import Arrival, Entry

_MODELS, _LONGEST_MODEL = 256, 256
IN_FLIGHT = 60.0  # seconds in which an answer should have begun
Amounts = dict[str, int]


class Decisions:
    """Turn bodies, records and usage into calls, writes and receipts."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        hooks: tuple[Hook, ...],
        process_key: bytes = b"",
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = Counters()
        self.hooks = hooks
        # A process by itself shares no hashes, so its own random key serves for all of them.
        alone, secret = settings.store.startswith("memory:"), secret_of(settings)
        private = alone and settings.secret is None
        self._content_keys = Keys(memo=process_key, digests=process_key if private else secret)
        self._parser = Parser(keys=self._content_keys)
        hours = settings.ttl in ("1h", "auto")
        texts = Splitter(LONG if hours else SHORT, self._content_keys.digests)
        self._splitter = texts if settings.split_text else None
        self._reuse = Reuse(hours=hours, secret=None if alone else secret)
        self.knowledge = Knowledge(settings, secret)
        self._cohort_owner = lru_cache(1024)(settings.cohort_group)
        self._limits = Limits(settings.max_labels, settings.max_label_length)
        self._models = Limits(_MODELS, _LONGEST_MODEL)
        self._keys = openai_hints.Keys(secret)
        self.sums: dict[str, int] = {}
        self._renew()
        in_child(self._forked)

    def _renew(self) -> None:
        self._lock, self._judging, self._splitting = RLock(), RLock(), RLock()

    def _forked(self) -> None:
        """Have counted nothing yet: the parent tells its own."""
        self._renew()
        self.sums = {}
        self._reuse.classes.leave_untold()

    def count_exactly(self, counter: Counter) -> None:
        """Count tokens by this from now on; what was read before is read again."""
        self._parser = Parser(counter, self._content_keys)

    # -- before the request -------------------------------------------------------------------

    def start(self, body: Any, labels: Mapping[str, str], namespace: str | None) -> State:
        """Return what is known of a call before its body is read."""
        space = namespace or self.settings.namespace
        name = self._models.apply(space, {"model": providers.model_key(_model(body))})[0]["model"]
        limited, cut = self._limits.apply(space, labels)
        for _ in range(cut):
            self.count("labels.cut")
        return State(body, self.clock(), space, limited, name, facts=self.knowledge.of(space))

    def read(self, state: State, provider: str | None, wire: Wire) -> Slices[None]:
        """Read a body in slices, as far as it goes without the store. Raises `BodyError`."""
        settings = self.settings
        if not isinstance(state.body, Mapping):
            raise BodyError("not_a_mapping")
        known = providers.PROVIDERS.get(provider) if provider else None
        part = known is not None and known.within == settings.provider
        chosen = provider if provider and (part or settings.provider == "auto") else settings.provider
        if chosen == "auto":
            state.plan = Plan(skipped=Reason.PROVIDER_UNKNOWN)
            return
        assert state.facts is not None
        rules = state.rules = state.facts.rules(chosen, _model(state.body))
        if settings.mode == "off":
            state.plan = Plan(skipped=Reason.NOT_OPTIMIZING)
        elif rules is None:
            state.plan = Plan(skipped=Reason.MODEL_UNKNOWN)
        elif not providers.marked(rules, settings.openai_hints and wire == "chat"):
            ignored = rules.provider.within and not rules.provider.max_markers
            state.plan = Plan(skipped=Reason.MARKERS_IGNORED if ignored else Reason.MODEL_AUTOMATIC)
        else:
            yield from self._read(state, rules, wire)

    def _read(self, state: State, rules: Rules, wire: Wire) -> Slices[None]:
        state.sent = self._opted(state, wire)
        parsed = yield from self._parser.steps(state.sent, rules.model, wire, state.namespace)
        state.parsed = parsed
        if rules.provider.implicit:
            openai_hints.read(parsed, state.sent, rules.provider.max_markers)
        # What is only watched keeps records and entries of its own: no breakpoint of ours was sent.
        space = state.namespace if self.settings.mode == "optimize" else f"{state.namespace}\x00observed"
        digests = state.chain = prefix_hashes.chain(parsed, space)
        watched = state.watched = prefix_hashes.watch(parsed)
        state.size = sum(block.size for block in parsed.blocks)
        opening = min(parsed.system, len(digests) - 1)
        state.arrival = Arrival(
            namespace=space,
            root=digests[0],
            trunk=digests[opening],
            heads=sum(index < parsed.system for index in watched),
            keys=tuple([digests[index] for index in watched]),
        )

    def _opted(self, state: State, wire: Wire) -> Json:
        """Return the body with what the opt-ins change in it; the body itself without any."""
        body = sort_tools(state.body) if self.settings.sort_tools else state.body
        if self._splitter is None:
            return body
        with self._splitting:
            body, state.texts = self._splitter.split(body, wire, state.namespace, state.start, state.model)
            self._splitter.announce(state.namespace, state.texts, state.start)
        return body

    def weigh(self, state: State, records: Any) -> None:
        """Plan a request as the records and the rules say."""
        if state.parsed is None or state.rules is None:
            return
        if state.rules.provider.implicit:
            state.key = self._key(state, state.rules, records)
            if not state.rules.model.hints:
                state.plan = Plan(skipped=Reason.MODEL_AUTOMATIC)
                return
        owner = self._cohort_owner(state.namespace)
        with self._judging:
            depths = self._reuse.forecast(
                state.parsed, state.chain, state.watched, records, state.start, owner
            )
        self._plan(state, depths, records)

    def _key(self, state: State, rules: Rules, records: Any) -> str | None:
        """Return the `prompt_cache_key` to send, None where there is one, or it is not wanted."""
        parsed, arrival = state.parsed, state.arrival
        assert parsed is not None
        assert arrival is not None
        observed = self.settings.mode != "optimize"
        assert state.facts is not None
        if observed or state.sent.get(openai_hints.KEY) is not None or not state.facts.takes_key(rules):
            return None
        head = max(parsed.system - 1, 0)
        record = dict(zip(state.watched, records, strict=True)).get(head)
        state.head_seen = 0 if record is None else record.seen
        with self._judging:
            return self._keys.key(
                state.namespace, state.chain[head], arrival.trunk, state.head_seen, state.start
            )

    def weigh_again(self, state: State, records: Any) -> bool:
        """Plan it anew if entries live, or are just written, that did not or were not; say whether so."""
        depths = refreshed(state.depths, records, self.clock())
        if depths == state.depths:
            return False
        self._plan(state, depths, records)
        return True

    def _plan(self, state: State, depths: list[Depth], records: Any) -> None:
        plan = self.planned(state, depths)
        self._expect(state, plan, records)
        state.depths = depths
        if self.settings.mode == "optimize":
            state.plan = plan
        else:
            state.plan, state.hypothetical = Plan(skipped=Reason.NOT_OPTIMIZING), plan

    def planned(self, state: State, depths: list[Depth]) -> Plan:
        """Return the plan for a request that was read, if this were known of its prefixes."""
        parsed, rules = state.parsed, state.rules
        assert parsed is not None
        assert rules is not None
        facts = state.facts
        assert facts is not None
        return planner.plan(parsed, depths, rules, facts.calibration(rules), facts.kinds(rules))

    def decide(self, state: State) -> Call:
        """Return the call, its body annotated as planned. Raises `BodyError` rather than change anything else."""
        points = state.plan.breakpoints
        places = [(point.path, point.ttl) for point in points if not point.own]
        word = state.rules.provider.word if state.rules else "cache_control"
        # Without a breakpoint nothing is gained by an opt-in.
        body = markers.apply(state.sent if points else state.body, places, word)
        if state.key is not None:
            body = {**body, openai_hints.KEY: state.key}
        split, ordered = self.settings.split_text, self.settings.sort_tools
        if not same_structure(state.body, body, split_text=split, sort_tools=ordered):
            raise BodyError("changed")
        return self._call(state, body)

    def _expect(self, state: State, plan: Plan, records: Any) -> None:
        """Note which entries the provider will write and which it will refresh."""
        known = dict(zip(state.watched, records, strict=True))
        parsed, rules = state.parsed, state.rules
        assert parsed is not None
        assert rules is not None
        written, refreshed = [], []
        for point in plan.breakpoints:
            record, head = known[point.block], point.block < parsed.system
            ttl = rules.provider.lives[point.ttl]
            if point.prefix_tokens <= plan.read:
                # Under the hit nothing is written: an entry keeps its TTL, a lapsed one comes back.
                ttl = min(record.ttl, ttl) if record is not None and record.ttl else ttl
                if record is not None and record.living(state.start):
                    ttl = record.ttl
                refreshed.append(Entry(state.chain[point.block], head, state.start + ttl, ttl))
            elif point.prefix_tokens >= rules.minimum:
                written.append(Entry(state.chain[point.block], head, state.start + ttl, ttl))
        record = known[plan.hit] if plan.hit is not None else None
        if plan.hit is not None and record is not None:
            expires = state.start + record.ttl
            refreshed.append(Entry(state.chain[plan.hit], plan.hit < parsed.system, expires, record.ttl))
        state.entries, state.refreshed = tuple(written), tuple(refreshed)

    def announce(self, call: Call) -> Write | None:
        """Return the note, for requests that come before the answer begins, of what this one writes."""
        state = call._state
        if not state.entries or state.arrival is None or state.held:
            return None
        state.held = state.entries
        until = state.start + IN_FLIGHT
        return Write(state.arrival, tuple([entry.announced(until) for entry in state.entries]))

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
        state.plan, state.parsed = Plan(skipped=reason), None
        state.entries = state.refreshed = ()
        return self._call(state, body)

    def _call(self, state: State, body: Json) -> Call:
        call = Call(uuid4().hex, body, state.plan, state.labels, state)
        if state.plan.skipped:
            self.count(f"skip.{state.plan.skipped}")
        self.tell(Prepared(call.id, call.labels, call.plan))
        return call

    def _added(self, state: State, sums: Mapping[str, int | Decimal]) -> Amounts:
        added = ledger.amounts(state.labels, state.model, sums)
        with self._lock:
            for name, amount in added.items():
                self.sums[name] = self.sums.get(name, 0) + amount
        return added

    # -- after it -----------------------------------------------------------------------------

    def begun(self, call: Call) -> tuple[Write | None, Amounts]:
        """Learn from a call whose answer has begun: its arrival counts, and its entries can be read."""
        return (None, {}) if call._state.closed else self._begin(call._state)

    def _begin(self, state: State) -> tuple[Write | None, Amounts]:
        with self._lock:
            if state.begun:
                return None, {}
            state.begun = True
        try:
            self._learn(state)
        except Exception as error:
            # The call counts, and its entries are written, whatever can't be learned from it.
            self.count(f"error.learn.{type(error).__name__}")
        added = self._added(state, {"calls": 1})
        if state.arrival is None:
            return None, added
        accepted = None
        if state.parsed is not None:
            accepted = Accepted(state.namespace, state.parsed, state.chain, state.watched, state.start)
        return Write(state.arrival, (*state.entries, *state.refreshed), accepted), added

    def observe(self, accepted: Accepted, records: Sequence[Prefix | None]) -> None:
        """Learn from the arrival of an accepted request, by the store's records from before it."""
        with self._judging:
            self._reuse.observe(
                accepted.parsed,
                accepted.chain,
                accepted.watched,
                records,
                accepted.start,
                self._cohort_owner(accepted.namespace),
            )

    def _learn(self, state: State) -> None:
        """Learn what an accepted request shows of its tenant's traffic."""
        space = state.namespace
        with self._lock:
            # Others may have taken the room since the request was prepared.
            state.model = self._models.apply(space, {"model": state.model})[0]["model"]
            state.labels = self._limits.apply(space, state.labels)[0]
            self._models.learn(space, {"model": state.model})
            self._limits.learn(space, state.labels)
            if state.parsed is not None:
                self._parser.learn(space, state.parsed)
        if state.head_seen is not None and state.parsed is not None:
            head = state.chain[max(state.parsed.system - 1, 0)]
            with self._judging:
                self._keys.learn(space, head, state.head_seen, state.start)
        if self._splitter is not None and state.texts:
            with self._splitting:
                self._splitter.learn(space, state.texts, state.start)
        if state.refusal is not None:
            self._learn_refusal(state, state.refusal)

    def settle(
        self, call: Call, response: Any, *, partial: bool = False
    ) -> tuple[Receipt, list[Write], Amounts]:
        """Return the receipt, the writes that are due, and what is added to the ledger.

        The first end of a call is its only one: after it nothing changes.
        """
        state = call._state
        with self._lock:
            if state.closed:
                return state.receipt or Receipt(), [], {}
            state.closed = True
        write, added = self._begin(state)
        writes = [write] if write else []
        read = usage.normalise(response, ttl=self._only_ttl(state.plan))
        sums: dict[str, int | Decimal] = {"settled": 1}
        if read is None:
            self.count("settle.no_usage")
            state.receipt = Receipt()
        else:
            if state.rules is None and state.facts is not None:
                state.facts.learn_model(_model(state.body), response)
            if state.arrival is not None and (dead := self._corrected(state, read)):
                writes.append(Write(state.arrival, dead))
            miss = self._miss(state, read)
            state.receipt = receipt(read, state.rules.model if state.rules else None, miss)
            sums |= self._account(state, state.receipt)
        if partial:
            self.count("settle.partial")
        self.tell(Settled(call.id, call.labels, state.receipt, partial))
        return state.receipt, writes, added | self._added(state, sums)

    def fail(self, call: Call) -> tuple[Write | None, Amounts]:
        """Close a call that got no answer: nothing was written, nothing is owed, nobody need wait."""
        state = call._state
        with self._lock:
            if state.closed:
                return None, {}
            state.closed = True
        self.count("fail")
        return self.unannounced(state), self._added(state, {"calls": -1}) if state.begun else {}

    def unannounced(self, state: State) -> Write | None:
        """Return the write that releases the entries of a request that won't write them; forget its texts."""
        texts, state.texts = state.texts, ()
        if self._splitter is not None and texts:
            with self._splitting:
                self._splitter.release(state.namespace, texts)
        held, state.held = state.held, ()
        if state.begun or not held or state.arrival is None:
            return None
        return Write(state.arrival, tuple([entry.announced(0.0) for entry in held]))

    def refused(
        self, call: Call, status: int, error: Any, *, resent: bool = True
    ) -> tuple[Json | None, Write | None]:
        """Return the original body once if a 400 names a marker that cachemw set.

        The refusal is learned once the original request has been accepted, which proves that the marker was at
        fault; at once if the host can't send it again (`resent` False). The write that is then due releases the
        announced entries.
        """
        state = call._state
        ours = state.plan.ours
        text = error if isinstance(error, str) else str(error)
        sent = ours or state.key is not None
        if status != 400 or not sent or state.begun or state.closed or not refusals.about_markers(text):
            return None, None
        blocks = state.parsed.blocks if state.parsed else ()
        kinds = refusals.refused_kinds(text, {blocks[point.block].kind for point in ours})
        about_key = state.key is not None and refusals.about_key(text)
        state.refusal = Refusal(frozenset() if about_key else kinds, refusals.refuses_hour(text), about_key)
        if not resent:
            self._learn_refusal(state, state.refusal)
        self.count("refused")
        write = self.unannounced(state)
        state.plan, state.entries, state.refreshed = Plan(skipped=Reason.REFUSED), (), ()
        state.key = None
        return state.body, write

    def _learn_refusal(self, state: State, refused: Refusal) -> None:
        if state.rules is None or state.facts is None:
            return
        for kind in refused.kinds:
            self.count(f"refused.{kind}")
        state.facts.refuse(state.rules, refused.kinds)
        if refused.key:
            self.count("refused.key")
            state.facts.refuse_key(state.rules)
        if refused.hour:
            state.facts.refuse_hour(state.rules)

    def _corrected(self, state: State, read: usage.Usage) -> tuple[Entry, ...]:
        """Calibrate tokens by what was counted, and return the entries that turned out not to be."""
        plan, rules, facts = state.plan, state.rules, state.facts
        if rules is None or facts is None or state.parsed is None:
            return ()
        calibration = facts.calibration(rules)
        facts.count_tokens(rules, state.size, read.total)
        if plan.ours and not read.read and not read.write_5m and not read.write_1h:
            deepest = max(point.prefix_tokens for point in plan.breakpoints)
            facts.unserved(rules, deepest * read.total / max(plan.total, 1))
        slack = 1 - 2 * max(calibration.spread, 0.05)
        # Where a prompt's end has more tokens for its size than its start, less is read than was thought
        # although the entry lives: nearer to it than to the next shorter prefix is as good as it.
        shorter = max((p.prefix_tokens for p in plan.breakpoints if p.prefix_tokens < plan.read), default=0)
        if not plan.breakpoints or read.read >= min(plan.read * slack, (plan.read + shorter) / 2):
            return ()
        # Less was read than the mirror promised. Where something was written instead, each breakpoint has an
        # entry, for as long as it asked; where nothing was written either, none of them is there.
        gone = (*state.entries, *state.refreshed)
        if read.write_5m or read.write_1h:
            lives = {
                state.chain[point.block]: rules.provider.lives[point.ttl]
                for point in plan.breakpoints
                if point.prefix_tokens >= rules.minimum
            }
            gone = tuple([entry for entry in state.refreshed if entry.ttl > lives.get(entry.key, 0)])
        self.count("mirror.corrected")
        return tuple(entry._replace(expires=0.0) for entry in gone)

    def _miss(self, state: State, read: usage.Usage) -> diagnose.Miss | None:
        if state.rules is None or state.facts is None or not state.plan.breakpoints:
            return None
        return diagnose.diagnose(
            expected_read=state.plan.read,
            expected_write=state.plan.write_5m + state.plan.write_1h,
            marked=True,
            minimum=state.rules.minimum,
            slack=min(2 * state.facts.calibration(state.rules).spread, 0.5),
            usage=read,
            prices=prices_for(state.rules.model, read.total),
        )

    @staticmethod
    def _only_ttl(plan: Plan) -> Ttl | None:
        """Return the TTL of all breakpoints, None where there are none or both."""
        ttls = {point.ttl for point in plan.breakpoints}
        return ttls.pop() if len(ttls) == 1 else None

    def _account(self, state: State, bill: Receipt) -> dict[str, int | Decimal]:
        read = bill.usage
        assert read is not None
        sums: dict[str, int | Decimal] = {
            "read": read.read, "write_5m": read.write_5m, "write_1h": read.write_1h,
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
        return sums

    # -- what workers tell each other ----------------------------------------------------------

    def news(self) -> list[tuple[str, Amounts, float]]:
        """Return what other workers should know: a table, what to add to it, and how long it is kept."""
        with self._judging:
            table, counted = self._reuse.classes.news(self.clock())
        told = [
            (learned_facts.TABLE, self.knowledge.news(), learned_facts.KEEP),
            (table, counted, cohort_sharing.KEEP),
        ]
        return [(table, amounts, keep) for table, amounts, keep in told if amounts]

    def tables(self) -> list[str]:
        """Return the tables in which other workers tell, each to be read by itself."""
        with self._judging:
            return [learned_facts.TABLE, *self._reuse.classes.tables(self.clock())]

    def absorb(self, table: str, sums: Mapping[str, int]) -> None:
        """Learn what is in one of these tables."""
        if table == learned_facts.TABLE:
            self.knowledge.absorb(sums)
        else:
            with self._judging:
                self._reuse.classes.absorb(table, sums, self.clock())

    # -- what is told --------------------------------------------------------------------------

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


def _model(body: Any) -> str:
    name = body.get("model") if isinstance(body, Mapping) else None
    return name if isinstance(name, str) else ""


def secret_of(settings: Settings) -> bytes:
    """Return the key of hashes that leave the process; derived from the namespace where none is set."""
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    return hashlib.blake2b(b"cachemw\x00" + settings.namespace.encode(), digest_size=32).digest()
