"""What a forked process does with what its parent had."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import ExitStack

import pytest

import cachemw
from cachemw import fork_safety
from cachemw.events import Counters
from cachemw.stores.redis.circuit_breaker import CircuitBreaker
from cachemw.stores.redis.near_cache import NearCache
from tests.stores.redis.test_near_cache import HEADS, drained, to_restore, warm

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def said_by_child(act: Callable[[], object]) -> str:
    """Return what a child says, "dies" where it does not end by itself."""
    reader, speaker = os.pipe()
    child = os.fork()
    if child == 0:
        said = "raises"
        try:
            said = str(act())
        finally:
            os.write(speaker, said.encode())
            os._exit(0)
    os.close(speaker)
    with os.fdopen(reader, "rb") as answers:
        said = answers.read().decode()
    os.waitpid(child, 0)
    return said or "dies"


def test_a_lock_that_was_held_is_free() -> None:
    """Another thread of the parent may have been at work in any of them."""
    counters, breaker, near = Counters(), CircuitBreaker(), NearCache()
    with counters._lock, breaker._lock, near._lock:
        said = said_by_child(lambda: (counters.add("x"), breaker.failed(0.0), near.peek([b"x"], 0.0)))
    assert said == "(None, False, [None])"


def test_what_is_unsent_is_the_parents_to_send() -> None:
    """It is sent once; what is known is known in both."""
    near = warm(seen=9)
    assert near.count(HEADS, 10.05) is not None
    near.schedule_restore([b"message 1"])

    def look() -> object:
        records = near.count(HEADS, 10.06)
        return (
            to_restore(near),
            [(held.name, held.arrivals) for held in drained(near)],
            [r and r.arrivals for r in records or ()],
        )

    assert said_by_child(look) == str(({}, [(name, 1) for name in sorted(HEADS)], [11, 11]))
    assert [held.arrivals for held in drained(near)] == [1, 1]
    assert list(to_restore(near)) == [b"message 1"]


BODY = {"model": "databricks-claude-sonnet-4-6", "messages": [{"role": "user", "content": "x" * 9_000}]}
USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}


@pytest.mark.parametrize("store", ["memory://", "redis://127.0.0.1:1"])
def test_a_middleware_goes_on(store: str) -> None:
    """With what it has learned, and sums and news of its own, whatever the parent's threads were at."""
    mw = cachemw.Middleware(provider="databricks", store=store, secret="s", clock=lambda: 1.0)
    for _ in range(3):
        mw.settle(mw.prepare(BODY), USAGE)
    shared = mw._shared
    held = [shared.lock, shared.reuse_lock, shared.splitter_lock, shared.facts.lock]
    with ExitStack() as locks:
        for lock in [*held, *([mw._shell.store._lock] if store == "memory://" else [])]:
            locks.enter_context(lock)

        def act() -> object:
            before = mw.report("process").totals.calls, mw._flow.worker_exchange.drain_updates()
            call = mw.prepare(BODY)
            mw.settle(call, USAGE)
            known = call.plan.total > 0
            return before, known, mw.report("process").totals.calls

        said = said_by_child(act)
    assert said == "((0, []), True, 1)"
    assert mw.report("process").totals.calls == 3
    mw.close()


def test_nothing_is_kept_alive_to_be_told() -> None:
    """An object that is gone is told nothing."""
    before = len(fork_safety._methods)
    counters = Counters()
    assert len(fork_safety._methods) == before + 1
    del counters
    gc.collect()
    assert len(fork_safety._methods) <= before
