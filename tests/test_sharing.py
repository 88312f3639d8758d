"""What workers on one store tell each other: of models, and of prefixes that were never seen."""

from __future__ import annotations

import json
import re
from itertools import count
from typing import Any

from cachemw import knowledge
from cachemw.core.providers import Kind
from cachemw.decisions import Decisions
from cachemw.settings import Settings
from cachemw.stores.memory import MemoryStore

SYSTEM = "The manual of the espresso machine, in all its detail. " * 200


class Worker:
    """What a middleware on a shared store decides, with a memory store in that one's place."""

    def __init__(self, store: MemoryStore, *, secret: str = "s", url: str = "redis://nowhere") -> None:
        self.now = 1_000.0
        chosen = Settings(provider="databricks", store=url, secret=secret)
        self.decisions = Decisions(chosen, lambda: self.now, ())
        self.store = store

    def request(self, question: str, now: float, system: str = SYSTEM) -> int:
        """Return how many tokens a request is to write."""
        self.now = now
        body = {
            "model": "claude-sonnet-4-6",
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
        }
        state = self.decisions.start(body, {}, None)
        self.decisions.read(state, None, "chat")
        assert state.arrival is not None
        self.decisions.weigh(state, self.store.observe(state.arrival, now))
        return state.plan.write_5m

    def share(self) -> None:
        """Tell the others, and hear them."""
        for table, amounts, keep in self.decisions.news():
            assert keep > 0
            self.store.add("default", table, amounts, keep)
        for table in self.decisions.tables():
            self.decisions.absorb(table, self.store.read("default", [table]))


def test_a_fresh_worker_writes_no_more_than_the_others() -> None:
    """System prompts that never come again are not written by a worker that has only heard of it."""
    store = MemoryStore()
    old, fresh, deaf = Worker(store), Worker(store), Worker(store)
    prompts = (f"Request {number}. {SYSTEM}" for number in count())
    for number in range(20):
        old.request("How hot?", 1_000.0 + number, next(prompts))
        old.share()
    fresh.now = 1_100.0
    fresh.share()
    assert old.request("How hot?", 1_101.0, next(prompts)) == 0
    assert fresh.request("How hot?", 1_101.0, next(prompts)) == 0
    assert deaf.request("How hot?", 1_101.0, next(prompts)) > 2_000


def test_what_was_learned_of_models_goes_the_same_way() -> None:
    """A refused kind is heard of at the next exchange."""
    store = MemoryStore()
    one, other = Worker(store), Worker(store)
    rules = one.decisions.knowledge.rules("databricks", "claude-sonnet-4-6")
    assert rules is not None
    one.decisions.knowledge.refuse(rules, {Kind.IMAGE})
    for worker in (one, other):
        worker.share()
    assert other.decisions.knowledge.kinds(rules)[Kind.IMAGE] == "off"
    assert one.decisions.news() == other.decisions.news() == []


def test_only_keyed_names_and_integers_leave() -> None:
    """No digest of a prompt is in the tables, and another secret makes other names of the same."""
    tables: list[dict[str, Any]] = []
    for secret in ("one", "another"):
        worker = Worker(MemoryStore(), secret=secret)
        for number in range(3):
            worker.request("How hot?", 1_000.0 + number)
        [(table, amounts, _)] = worker.decisions.news()
        assert re.fullmatch(r"chances:\d+", table)
        assert all(re.fullmatch(r"[0-9a-f]{16}[bslow]", name) for name in amounts)
        assert len(json.dumps(amounts)) < 100 * 30
        tables.append(amounts)
    assert not set(tables[0]) & set(tables[1])
    assert sorted(tables[0].values()) == sorted(tables[1].values())


def test_a_process_by_itself_tells_nobody() -> None:
    """With a memory store there is nobody to tell: only the table of facts would be read."""
    worker = Worker(MemoryStore(), url="memory://")
    for number in range(3):
        worker.request("How hot?", 1_000.0 + number)
    assert worker.decisions.news() == []
    assert worker.decisions.tables() == [knowledge.TABLE]
