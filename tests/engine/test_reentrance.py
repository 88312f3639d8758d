"""Locks under garbage collection: an abandoned coroutine may be closed inside any locked section.

Its clean-up runs in the same thread and takes the same lock. The first form of this fault stopped a worker
whose event loop had ended with a flush under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

import cachemw
from cachemw.events import Counters
from cachemw.stores.memory import MemoryStore
from cachemw.stores.protocol import CacheEntry
from cachemw.stores.redis.circuit_breaker import CircuitBreaker
from cachemw.stores.redis.near_cache import NearCache
from cachemw.stores.redis.sums_outbox import SumsOutbox

BODY = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": "Hello"}]}
near, memory, tally, breaker, counters = (
    NearCache(),
    MemoryStore(),
    SumsOutbox(),
    CircuitBreaker(),
    Counters(),
)
mw = cachemw.Middleware(provider="databricks")


@pytest.mark.parametrize(
    ("lock", "clean_up"),
    [
        (near._lock, lambda: near.schedule_restore([b"x"])),
        (memory._lock, lambda: memory.write("n", b"r", b"t", [CacheEntry(b"k", False, 9.0, 300)])),
        (tally._lock, lambda: tally.add("n", "t", {"x": 1}, 60.0)),
        (breaker._lock, lambda: breaker.failed(1.0)),
        (counters._lock, lambda: counters.add("x")),
        (mw._shell.writer._lock, lambda: mw._shell.writer.submit(lambda: None)),
        (mw._shared.lock, lambda: mw.fail(mw.prepare(BODY))),
        (mw._shared.reuse_lock, lambda: mw.settle(mw.prepare(BODY), None)),
    ],
    ids=["near", "memory", "tally", "breaker", "counters", "writer", "decisions", "judging"],
)
def test_clean_up_inside_a_locked_section_of_its_own_thread_returns(
    lock: Any, clean_up: Callable[[], object]
) -> None:
    """A thread that holds a lock can take it again."""
    done: list[object] = []

    def collect() -> None:
        with lock:
            clean_up()
        done.append(True)

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    thread.join(30)
    assert done
