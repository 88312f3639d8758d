"""The exchange between workers on one store: facts about models, and statistics for unknown prefixes."""

from __future__ import annotations

import json
import re
from itertools import count
from typing import Any

from cachemw.core.rules.types import Kind
from cachemw.engine import learned_facts
from cachemw.engine.call import Call
from cachemw.engine.flow import CallFlow
from cachemw.engine.shared import Shared
from cachemw.settings import Settings
from cachemw.slices import run
from cachemw.stores.memory import MemoryStore

SYSTEM = "The manual of the espresso machine, in all its detail. " * 200
BODY: dict[str, Any] = {
    "model": "claude-sonnet-4-6",
    "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "How hot?"}],
}


class Worker:
    """The decisions of a middleware on a shared store, with a memory store in its place."""

    def __init__(
        self, store: MemoryStore, *, secret: str = "s", url: str = "redis://nowhere", **settings: Any
    ) -> None:
        self.now = 1_000.0
        chosen = Settings(provider="databricks", store=url, secret=secret, **settings)
        self.flow = CallFlow(Shared(chosen, lambda: self.now, ()), shares_store=True)
        self.exchange = self.flow.worker_exchange
        self.store = store

    def request(
        self,
        question: str,
        now: float,
        system: str = SYSTEM,
        *,
        namespace: str | None = None,
        accepted: bool = True,
    ) -> int:
        """Return how many tokens a request is to write; an accepted request is learned from."""
        self.now = now
        body = {
            "model": "claude-sonnet-4-6",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        }
        call = self.prepared(body, now, namespace)
        if accepted:
            write, _ = self.flow.settlement.start_response(call)
            assert write is not None
            assert write.accepted is not None
            records = self.store.observe(write.arrival, write.accepted.started)
            self.flow.settlement.observe(write.accepted, records)
        else:
            self.flow.settlement.fail(call)
        return call.plan.cache_write_5m

    def prepared(self, body: dict[str, Any], now: float, namespace: str | None = None) -> Call:
        """Return the call of a body that arrives at a time."""
        planner, lifecycle = self.flow.planner, self.flow.planner.begin_call(body, {}, namespace)
        run(planner.parse(lifecycle, None, "chat"))
        assert lifecycle.parsed.prompt is not None
        planner.forecast_and_plan(lifecycle, self.store.lookup(lifecycle.parsed.prompt.arrival, now))
        return planner.build_call(lifecycle)

    def share(self) -> None:
        """Publish updates, and merge those of other workers."""
        for table, amounts, keep in self.exchange.drain_updates():
            assert keep > 0
            self.store.add("default", table, amounts, keep)
        for table in self.exchange.tables():
            self.exchange.merge_updates(table, self.store.read("default", [table]))


def test_fresh_worker_writes_no_more_than_the_others() -> None:
    """System prompts that never return are not written by a worker that knows them from the exchange only."""
    store = MemoryStore()
    old, fresh, isolated = Worker(store), Worker(store), Worker(store)
    prompts = (f"Request {number}. {SYSTEM}" for number in count())
    for number in range(20):
        old.request("How hot?", 1_000.0 + number, next(prompts))
        old.share()
    fresh.now = 1_100.0
    fresh.share()
    assert old.request("How hot?", 1_101.0, next(prompts)) == 0
    assert fresh.request("How hot?", 1_101.0, next(prompts)) == 0
    assert isolated.request("How hot?", 1_101.0, next(prompts)) > 2_000


def test_refused_kind_reaches_other_workers_at_the_next_exchange() -> None:
    """A refused kind is published and merged with the statistics."""
    store = MemoryStore()
    one, other = Worker(store), Worker(store)
    facts = one.flow.shared.facts.of("default")
    rules = facts.rules("databricks", "claude-sonnet-4-6")
    assert rules is not None
    facts.refuse(rules, {Kind.IMAGE})
    for worker in (one, other):
        worker.share()
    assert other.flow.shared.facts.of("default").kinds(rules)[Kind.IMAGE] == "off"
    assert other.flow.shared.facts.of("another").kinds(rules)[Kind.IMAGE] == "on"
    assert one.exchange.drain_updates() == other.exchange.drain_updates() == []


def test_published_tables_hold_keyed_names_and_integers_only() -> None:
    """No digest of a prompt is in the tables, and another secret gives other names."""
    tables: list[dict[str, Any]] = []
    for secret in ("one", "another"):
        worker = Worker(MemoryStore(), secret=secret)
        for number in range(3):
            worker.request("How hot?", 1_000.0 + number)
        [(table, amounts, _)] = worker.exchange.drain_updates()
        assert re.fullmatch(r"chances:\d+", table)
        assert all(re.fullmatch(r"[0-9a-f]{24}[bslow]", name) for name in amounts)
        assert len(json.dumps(amounts)) < 100 * 30
        tables.append(amounts)
    assert not set(tables[0]) & set(tables[1])
    assert sorted(tables[0].values()) == sorted(tables[1].values())


def test_process_with_a_memory_store_publishes_nothing() -> None:
    """A memory store has one worker: only the table of facts would be read."""
    worker = Worker(MemoryStore(), url="memory://")
    for number in range(3):
        worker.request("How hot?", 1_000.0 + number)
    assert worker.exchange.drain_updates() == []
    assert worker.exchange.tables() == [learned_facts.TABLE]


def send_changing_prompts(worker: Worker, namespace: str, start: float, *, accepted: bool = True) -> None:
    """Send requests whose system prompts never return."""
    for number in range(20):
        system = f"Request {number} of {namespace}. {SYSTEM}"
        worker.request("How hot?", start + number, system, namespace=namespace, accepted=accepted)
        worker.share()


def test_reuse_of_one_namespace_is_not_forecast_from_another() -> None:
    """Prompts of one namespace that never return prevent no cache write of another, at any worker."""
    store = MemoryStore()
    one, fresh = Worker(store), Worker(store)
    send_changing_prompts(one, "send_changing_prompts", 1_000.0)
    fresh.now = 1_100.0
    fresh.share()
    assert one.request("How hot?", 1_101.0, f"New. {SYSTEM}", namespace="send_changing_prompts") == 0
    for worker in (one, fresh):
        assert worker.request("How hot?", 1_101.0, f"New. {SYSTEM}", namespace=f"calm {id(worker)}") > 2_000


def test_reuse_of_a_group_of_namespaces_is_forecast_from_all_of_them() -> None:
    """Namespaces in one of the `cohort_groups` learn from each other, and their records stay apart."""
    store = MemoryStore()
    one = Worker(store, cohort_groups={"team-*": "product"})
    send_changing_prompts(one, "team-a", 1_000.0)
    assert one.request("How hot?", 1_101.0, f"New. {SYSTEM}", namespace="team-b") == 0
    assert one.request("How hot?", 1_101.0, f"New. {SYSTEM}", namespace="other") > 2_000
    prefixes = [len(store._records._records.read(name)) for name in ("team-a", "team-b", "other")]
    assert prefixes == [40, 2, 2]


def test_requests_that_were_not_accepted_teach_no_worker_anything() -> None:
    """A client without a valid credential changes no plan, no record and no table."""
    store = MemoryStore()
    one = Worker(store)
    send_changing_prompts(one, "default", 1_000.0, accepted=False)
    assert one.exchange.drain_updates() == []
    assert len(store._records._records) == 0
    assert one.request("How hot?", 1_101.0, f"New. {SYSTEM}") > 2_000


def test_refusal_in_one_namespace_leaves_the_plans_of_another() -> None:
    """A namespace whose markers were refused gets none; another keeps its own, at every worker."""
    store = MemoryStore()
    one, fresh = Worker(store), Worker(store)
    call = one.prepared(BODY, 1_000.0, "refused")
    original, _ = one.flow.settlement.refuse(
        call, 400, "messages.0: cache_control is not supported for text blocks", resent=True
    )
    assert original is BODY
    assert one.exchange.drain_updates() == []
    one.flow.settlement.start_response(call)
    one.share()
    fresh.share()
    for worker in (one, fresh):
        assert worker.request("How hot?", 1_001.0, namespace="refused") == 0
        assert worker.request("How hot?", 1_001.0, namespace=f"other {id(worker)}") > 2_000
