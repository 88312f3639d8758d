"""A forked process and the state of its parent."""

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
from tests.stores.redis.test_near_cache import SHARED, drained, to_restore, warm

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def said_by_child(act: Callable[[], object]) -> str:
    """Return the result of a child, "dies" if it does not end by itself."""
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


def test_lock_held_in_the_parent_is_free_in_the_child() -> None:
    """Another thread of the parent may hold any of the locks during the fork."""
    counters, breaker, near = Counters(), CircuitBreaker(), NearCache()
    with counters._lock, breaker._lock, near._lock:
        said = said_by_child(lambda: (counters.add("x"), breaker.failed(0.0), near.peek([b"x"], 0.0)))
    assert said == "(None, False, [None])"


def test_unsent_data_stays_with_the_parent() -> None:
    """The parent sends it once; both processes keep the records."""
    near = warm(seen=9)
    assert near.count(SHARED, 10.05) is not None
    near.schedule_restore([b"message 1"])

    def look() -> object:
        records = near.count(SHARED, 10.06)
        return (
            to_restore(near),
            [(held.name, held.arrivals) for held in drained(near)],
            [r and r.arrivals for r in records or ()],
        )

    assert said_by_child(look) == str(({}, [(name, 1) for name in sorted(SHARED)], [11, 11]))
    assert [held.arrivals for held in drained(near)] == [1, 1]
    assert list(to_restore(near)) == [b"message 1"]


BODY = {"model": "databricks-claude-sonnet-4-6", "messages": [{"role": "user", "content": "x" * 9_000}]}
USAGE = {"usage": {"prompt_tokens": 9, "completion_tokens": 1}}


@pytest.mark.parametrize("store", ["memory://", "redis://127.0.0.1:1"])
def test_middleware_in_a_child_continues(store: str) -> None:
    """It keeps the learned records, with sums and updates of its own, whatever the parent's threads do."""
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


def test_registered_object_is_not_kept_alive() -> None:
    """An object that is collected gets no call in a child."""
    before = len(fork_safety._methods)
    counters = Counters()
    assert len(fork_safety._methods) == before + 1
    del counters
    gc.collect()
    assert len(fork_safety._methods) <= before
