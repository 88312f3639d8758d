"""The promises of the memory store alone: a bound and a lock."""

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
    """Return the arrivals of each key, 0 for an unknown one."""
    return [record.arrivals if record else 0 for record in store.observe(arrival(*keys), 1.0)]


def test_full_store_drops_the_longest_unused_record() -> None:
    """It never drops a record of the arrival itself."""
    store = MemoryStore(max_prefixes=3)
    store.observe(arrival(1, 2, 3), 1.0)
    store.observe(arrival(1, 4), 1.0)
    assert seen(store, 1, 4, 3) == [2, 1, 1]
    assert seen(store, 2) == [0]


def test_arrival_above_the_bound_keeps_its_deepest_keys() -> None:
    """The store keeps the deepest keys of a request with more keys than its bound."""
    store = MemoryStore(max_prefixes=2)
    store.observe(arrival(1, 2, 3, 4), 1.0)
    assert seen(store, 4) == [1]
    assert seen(store, 1) == [0]


def test_bound_holds_over_all_namespaces() -> None:
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


def test_tables_after_their_keep_time_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is kept for the given time after its last amount."""
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
