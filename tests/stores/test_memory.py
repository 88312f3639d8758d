"""What only the memory store promises: a bound, and a lock."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from cachemw.stores import memory
from cachemw.stores.memory import MemoryStore
from cachemw.stores.protocol import Arrival, CacheEntry


def arrival(*keys: int) -> Arrival:
    """Return an arrival of keys by number."""
    names = tuple(key.to_bytes(16, "big") for key in keys)
    return Arrival("tenant", b"r" * 16, b"t" * 16, 0, names)


def seen(store: MemoryStore, *keys: int) -> list[int]:
    """Return how often each key was seen, 0 for an unknown one."""
    return [record.arrivals if record else 0 for record in store.observe(arrival(*keys), 1.0)]


def test_the_longest_unused_goes_first() -> None:
    """Over its bound a store drops what was not used for longest, never what has just arrived."""
    store = MemoryStore(max_prefixes=3)
    store.observe(arrival(1, 2, 3), 1.0)
    store.observe(arrival(1, 4), 1.0)
    assert seen(store, 1, 4, 3) == [2, 1, 1]
    assert seen(store, 2) == [0]


def test_an_arrival_over_the_bound_keeps_its_end() -> None:
    """Of more keys than a store holds, the deepest stay."""
    store = MemoryStore(max_prefixes=2)
    store.observe(arrival(1, 2, 3, 4), 1.0)
    assert seen(store, 4) == [1]
    assert seen(store, 1) == [0]


def test_the_bound_holds_over_namespaces() -> None:
    """All tenants share one bound."""
    store = MemoryStore(max_prefixes=50)
    for tenant in range(40):
        keys = tuple(bytes([tenant, index]) * 8 for index in range(7))
        store.observe(Arrival(f"tenant {tenant}", b"", b"", 0, keys), 1.0)
        assert len(store._records._records) <= 50


def test_threads_lose_no_arrival_and_no_amount() -> None:
    """Eight threads count as one."""
    store = MemoryStore()

    def work(_: int) -> None:
        for _ in range(500):
            store.observe(arrival(1, 2), 1.0)
            store.add("tenant", "hour", {"calls": 1}, 60)
            store.write("tenant", b"", b"", [CacheEntry((1).to_bytes(16, "big"), False, 9.0, 300)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert seen(store, 1, 2) == [4000, 4000]
    assert store.read("tenant", ["hour"]) == {"calls": 4000}


def test_tables_go_when_their_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is there for as long after its last amount as was said then, and none for ever."""
    store, now = MemoryStore(), 1_000.0
    monkeypatch.setattr(memory.time, "monotonic", lambda: now)
    for hour in range(200):
        store.add("tenant", f"hour {hour}", {"calls": 1}, 10 * 3600.0)
        store.add("other", "facts", {"calls": 1}, 2 * 3600.0)
        kept = [f"hour {number}" for number in range(max(hour - 10, 0), hour + 1)]
        assert store.read("tenant", kept) == {"calls": len(kept)}
        assert store.read("tenant", [f"hour {hour - 11}"]) == {}
        now += 3600.0
    assert store.read("other", ["facts"]) == {"calls": 200}
    assert len(store._tables) == len(store._kept) == 12
