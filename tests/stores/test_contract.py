"""The contract of all stores, on each kind of store, sync and async."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cachemw.core.reuse.record import PrefixRecord, in_flight_record, new_record, record_arrival
from cachemw.stores.memory import MemoryStore
from cachemw.stores.protocol import Arrival, CacheEntry, Store

ROOT, TRUNK = b"r" * 16, b"t" * 16
HEADS = [bytes([index]) * 16 for index in range(3)]
OTHERS = [bytes([index]) * 16 for index in range(100, 106)]
FORGET = 7200.0

Namespaces = Callable[[], str]


def arrival(namespace: str, *keys: bytes) -> Arrival:
    """Return an arrival of these keys, shared prefixes first."""
    return Arrival(namespace, ROOT, TRUNK, sum(key in HEADS for key in keys), keys)


def added(store: Store, namespace: str, table: str, amounts: dict[str, int]) -> None:
    """Add amounts, and flush."""
    store.add(namespace, table, amounts, 60)
    assert not store.flush()


def entry(key: bytes, expires: float, ttl: int = 300, pending: float = 0.0) -> CacheEntry:
    """Return an entry of a key."""
    return CacheEntry(key, key in HEADS, expires, ttl, pending)


def same(left: Any, right: Any) -> bool:
    """Return True if two results hold the same records, floats to a millionth."""
    return len(left) == len(right) and all(
        (a is None and b is None)
        or (a is not None and b is not None and tuple(a) == pytest.approx(tuple(b), rel=1e-6))
        for a, b in zip(left, right, strict=True)
    )


def known(store: Store, namespace: str, *keys: bytes, now: float) -> list[PrefixRecord | None]:
    """Return the records of keys, by an arrival that only they get."""
    return list(store.observe(arrival(namespace, *keys), now))


observing = st.tuples(
    st.just("observe"),
    st.lists(st.sampled_from(HEADS), unique=True),
    st.lists(st.sampled_from(OTHERS), unique=True),
)
writing = st.tuples(
    st.just("write"),
    st.lists(
        st.builds(
            entry,
            st.sampled_from(HEADS + OTHERS),
            st.sampled_from([0.0, 1e9 + 5.5, 1e9 + 900.25, 1e9 + 3600.0]),
            st.sampled_from([0, 300, 3600]),
            st.sampled_from([0.0, 1e9 + 60.0, 1e9 + 900.0]),
        ),
        max_size=4,
    ),
)
claiming = st.tuples(
    st.just("claim"),
    st.lists(st.sampled_from(HEADS + OTHERS), unique=True, max_size=4),
    st.sampled_from([0.25, 60.0, 600.0]),
)
# Steps of the clock: forward, back (another worker's clock), and the edges of the time ranges of a record.
steps = st.one_of(
    st.sampled_from(
        [0.0, -3.25, 0.001, 299.999, 300.0, 300.001, 3600.0, 3600.5, FORGET, FORGET + 0.001, -9000.0]
    ),
    st.floats(-100, 4000),
)


def is_clustered(store: Any) -> bool:
    """Return True if a store sends one command for each shard."""
    commands = getattr(getattr(store, "store", store), "_commands", None)
    return commands is not None and commands._clustered


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(
    calls=[
        (("observe", [HEADS[0]], []), 0.0),
        (("claim", [HEADS[0]], 0.25), 0.0),
        (("claim", [OTHERS[0]], 600.0), 0.0),
        (("claim", [OTHERS[0], HEADS[0]], 0.25), 299.999),
        (("observe", [HEADS[0]], []), 0.0),
    ]
)
@given(calls=st.lists(st.tuples(st.one_of(observing, writing, claiming), steps), min_size=1, max_size=25))
def test_store_answers_any_calls_like_the_memory_store(
    store: Store, fresh: Namespaces, calls: list[tuple[tuple[Any, ...], float]]
) -> None:
    """The same calls get the same answers, whatever the clock does between them."""
    namespace, model, now = fresh(), MemoryStore(), 1e9
    for (name, *rest), step in calls:
        now += step
        if name == "observe":
            asked = arrival(namespace, *rest[0], *rest[1])
            assert not store.flush()
            assert same(store.peek(asked, now), model.peek(asked, now))
            assert same(store.observe(asked, now), model.observe(asked, now))
        elif name == "claim":
            entries = [entry(key, -1.0, pending=now + rest[1]) for key in rest[0]]
            assert not store.flush()
            got = model.claim(namespace, ROOT, TRUNK, entries, now)
            assert store.claim(namespace, ROOT, TRUNK, entries, now) is got
            shared = [each for each in entries if each.is_shared]
            # A cluster has granted the shared prefixes by then, and releases them.
            if not got and is_clustered(store) and model.claim(namespace, ROOT, TRUNK, shared, now):
                model.write(namespace, ROOT, TRUNK, [each.released() for each in shared])
        else:
            for each in (store, model):
                each.write(namespace, ROOT, TRUNK, rest[0])


def test_first_arrival_is_unknown_and_a_second_finds_it(store: Store, fresh: Namespaces) -> None:
    """`observe` returns the records from before its own arrival."""
    namespace = fresh()
    assert known(store, namespace, HEADS[0], OTHERS[0], now=1e9) == [None, None]
    assert known(store, namespace, HEADS[0], OTHERS[0], now=1e9 + 9.5) == [
        new_record(0, 1e9),
        new_record(1, 1e9),
    ]
    assert known(store, namespace, HEADS[0], now=1e9 + 20) == [
        record_arrival(new_record(0, 1e9), 0, 1e9 + 9.5)
    ]


@pytest.mark.parametrize("gap", [0.0, 299.999, 300.0, 300.001, 3599.999, 3600.0, 3600.001, FORGET])
def test_gap_at_an_edge_counts_as_in_python(store: Store, fresh: Namespaces, gap: float) -> None:
    """Five minutes and an hour are inclusive; scripts and Python agree on each edge."""
    namespace, record = fresh(), new_record(1, 0.0)
    known(store, namespace, OTHERS[0], now=0.0)
    for now in (gap, gap + 1.5):
        assert known(store, namespace, OTHERS[0], now=now) == [record]
        record = record_arrival(record, 1, now)


def test_empty_calls_have_no_effect(store: Store, fresh: Namespaces) -> None:
    """An arrival without keys, a write without entries and a table without amounts change nothing."""
    namespace = fresh()
    assert list(store.observe(arrival(namespace), 1e9)) == []
    assert list(store.peek(arrival(namespace), 1e9)) == []
    assert store.claim(namespace, ROOT, TRUNK, [], 1e9) is True
    store.write(namespace, ROOT, TRUNK, [])
    added(store, namespace, "hour", {})
    assert store.read(namespace, []) == {}
    assert store.read(namespace, ["hour"]) == {}


@pytest.mark.parametrize(("idle", "forgotten"), [(FORGET, False), (FORGET + 0.01, True)])
def test_prefix_after_two_hours_of_silence_is_forgotten(
    store: Store, fresh: Namespaces, idle: float, forgotten: bool
) -> None:
    """A record ends two hours after its last arrival, together with its entry."""
    namespace = fresh()
    known(store, namespace, OTHERS[0], now=1e9)
    store.write(namespace, ROOT, TRUNK, [entry(OTHERS[0], 1e9 + 9999)])
    found = known(store, namespace, OTHERS[0], now=1e9 + idle)
    assert (found == [None]) is forgotten
    (after,) = known(store, namespace, OTHERS[0], now=1e9 + idle)
    assert after is not None
    assert (after.arrivals, after.expires) == ((1, 0.0) if forgotten else (2, 1e9 + 9999))


def test_late_arrival_counts_and_moves_no_time_back(store: Store, fresh: Namespaces) -> None:
    """A worker whose clock is behind adds an arrival; `last_arrival` stays."""
    namespace = fresh()
    known(store, namespace, OTHERS[0], now=1e9 + 100)
    known(store, namespace, OTHERS[0], now=1e9)
    (record,) = known(store, namespace, OTHERS[0], now=1e9 + 130)
    assert record is not None
    assert (record.arrivals, record.last_arrival, record.last_gap) == (2, 1e9 + 100, 0.0)


def test_end_of_a_request_is_remembered(store: Store, fresh: Namespaces) -> None:
    """`request_ended_here` says of each prefix whether the last request ended there."""
    namespace = fresh()
    known(store, namespace, HEADS[0], OTHERS[0], now=1e9)
    found = known(store, namespace, HEADS[0], OTHERS[0], OTHERS[1], now=1e9 + 1)
    assert [record and record.request_ended_here for record in found] == [0, 1, None]
    found = known(store, namespace, HEADS[0], OTHERS[0], OTHERS[1], now=1e9 + 2)
    assert [record and record.request_ended_here for record in found] == [0, 0, 1]


@pytest.mark.parametrize(
    ("written", "held"),
    [
        ([100.0], 100.0),
        ([100.0, 200.0], 200.0),
        ([200.0, 100.0], 200.0),
        ([200.0, 0.0], 0.0),
        ([200.0, 0.0, 100.0], 100.0),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_later_expiry_wins_and_zero_always(
    store: Store, fresh: Namespaces, written: list[float], held: float, together: bool
) -> None:
    """A slow worker shortens no entry, and an entry that is known to be gone is gone."""
    namespace = fresh()
    known(store, namespace, HEADS[0], OTHERS[0], now=1.0)
    entries = [entry(key, expires, int(expires)) for expires in written for key in (HEADS[0], OTHERS[0])]
    for part in [entries] if together else [[one] for one in entries]:
        store.write(namespace, ROOT, TRUNK, part)
    for record in known(store, namespace, HEADS[0], OTHERS[0], now=2.0):
        assert record is not None
        assert (record.expires, record.ttl) == (held, int(held))
        assert record.is_cached(held - 1)
        assert not record.is_cached(held)


def test_entry_of_an_unknown_prefix_is_left_out(store: Store, fresh: Namespaces) -> None:
    """A prefix without arrivals gets no record."""
    namespace = fresh()
    store.write(namespace, ROOT, TRUNK, [entry(HEADS[0], 5.0), entry(OTHERS[0], 5.0)])
    assert known(store, namespace, HEADS[0], OTHERS[0], now=1.0) == [None, None]


def test_peek_counts_nothing(store: Store, fresh: Namespaces) -> None:
    """Any number of peeks return the next arrival's records, and make none."""
    namespace = fresh()
    asked = arrival(namespace, HEADS[0], OTHERS[0])
    assert list(store.peek(asked, 1.0)) == [None, None]
    known(store, namespace, OTHERS[0], now=1.0)
    for now in (1.0, 1.0 + FORGET):
        assert list(store.peek(asked, now)) == [None, new_record(1, 1.0)]
    assert list(store.peek(asked, 1.01 + FORGET)) == [None, None]
    assert known(store, namespace, HEADS[0], OTHERS[0], now=2.0) == [None, new_record(1, 1.0)]


@pytest.mark.parametrize(
    ("before", "now", "got"),
    [
        ({}, 10.0, True),
        ({"pending": 70.0}, 10.0, False),
        ({"pending": 70.0}, 69.9, False),
        ({"pending": 70.0}, 70.0, True),
        ({"expires": 300.0}, 10.0, False),
        ({"expires": 300.0}, 300.0, True),
    ],
)
@pytest.mark.parametrize("taken", [HEADS[0], OTHERS[1]], ids=["head", "other"])
def test_claim_of_a_cached_or_claimed_entry_is_refused(
    store: Store, fresh: Namespaces, taken: bytes, before: dict[str, float], now: float, got: bool
) -> None:
    """All entries are claimed, or none if the provider has one or a request is writing one."""
    namespace, keys = fresh(), (HEADS[0], HEADS[1], OTHERS[0], OTHERS[1])
    known(store, namespace, *keys, now=1.0)
    store.write(namespace, ROOT, TRUNK, [entry(taken, **{"expires": -1.0, **before})])
    was = list(store.peek(arrival(namespace, *keys), now))
    wanted = [entry(key, -1.0, pending=400.0) for key in reversed(keys)]
    assert store.claim(namespace, ROOT, TRUNK, wanted, now) is got
    found = list(store.peek(arrival(namespace, *keys), now))
    assert found == ([record and record._replace(in_flight_until=400.0) for record in was] if got else was)
    assert store.claim(namespace, ROOT, TRUNK, [entry(OTHERS[0], -1.0, pending=400.0)], now) is not got


def test_released_claim_is_granted_to_the_next_request(store: Store, fresh: Namespaces) -> None:
    """The write of a request without a response is free again; otherwise its entry is cached."""
    namespace = fresh()
    known(store, namespace, OTHERS[0], now=1.0)
    claimed = entry(OTHERS[0], 300.0).in_flight(61.0)
    assert store.claim(namespace, ROOT, TRUNK, [claimed], 1.0)
    assert not store.claim(namespace, ROOT, TRUNK, [claimed], 2.0)
    store.write(namespace, ROOT, TRUNK, [claimed.in_flight(0.0)])
    assert store.claim(namespace, ROOT, TRUNK, [claimed], 2.0)
    store.write(namespace, ROOT, TRUNK, [entry(OTHERS[0], 300.0)])
    assert not store.claim(namespace, ROOT, TRUNK, [claimed], 3.0)


def test_claim_of_a_prefix_without_arrivals_is_seen(store: Store, fresh: Namespaces) -> None:
    """A first request can claim its prefix: other workers see the claim, which counts no arrival."""
    namespace, keys = fresh(), (HEADS[0], OTHERS[1])
    wanted = [entry(key, -1.0, pending=61.0) for key in keys]
    assert store.claim(namespace, ROOT, TRUNK, wanted, 1.0)
    assert not store.claim(namespace, ROOT, TRUNK, wanted[1:], 2.0)
    claimed = in_flight_record(61.0)
    assert list(store.peek(arrival(namespace, *keys), 2.0)) == [claimed, claimed]
    assert list(store.lookup(arrival(namespace, *keys), 2.0)) == [claimed, claimed]
    assert list(store.peek(arrival(namespace, *keys), 62.0)) == [None, None]
    assert known(store, namespace, *keys, now=3.0) == [None, None]
    held = list(store.peek(arrival(namespace, *keys), 4.0))
    assert [(record and record.arrivals, record and record.in_flight_until) for record in held] == [
        (1, 61.0)
    ] * 2


def test_released_claim_of_a_prefix_without_arrivals_leaves_nothing(store: Store, fresh: Namespaces) -> None:
    """A request without a response releases its claim."""
    namespace, announcement = fresh(), entry(OTHERS[0], 300.0).in_flight(61.0)
    store.write(namespace, ROOT, TRUNK, [announcement])
    assert list(store.lookup(arrival(namespace, OTHERS[0]), 1.0)) == [in_flight_record(61.0)]
    store.write(namespace, ROOT, TRUNK, [announcement.in_flight(0.0)])
    assert list(store.lookup(arrival(namespace, OTHERS[0]), 1.0)) == [None]


def test_lookup_counts_no_arrival(store: Store, fresh: Namespaces) -> None:
    """Any number of lookups leave each record unchanged."""
    namespace, keys = fresh(), (HEADS[0], OTHERS[0])
    assert list(store.lookup(arrival(namespace, *keys), 1.0)) == [None, None]
    known(store, namespace, *keys, now=1.0)
    before = list(store.peek(arrival(namespace, *keys), 2.0))
    for now in (2.0, 3.0, 4.0):
        assert list(store.lookup(arrival(namespace, *keys), now)) == before
    assert list(store.peek(arrival(namespace, *keys), 4.0)) == before


def test_simultaneous_claims_are_granted_once(opened: Callable[[], Any], fresh: Namespaces) -> None:
    """Over threads or tasks, one claim is granted each time."""
    store, namespace = opened(), fresh()
    keys = (HEADS[0], OTHERS[0])
    known(store, namespace, *keys, now=1.0)
    for turn in range(5):
        now = 1.0 + 100 * turn
        wanted = [entry(key, -1.0, pending=now + 60) for key in keys]
        assert sum(at_once(store, 8, namespace, ROOT, TRUNK, wanted, now)) == 1


def at_once(store: Any, count: int, *arguments: Any) -> list[bool]:
    """Make so many claims at the same moment."""
    if not hasattr(store, "gather"):
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: store.claim(*arguments), range(count)))
    return list(store.gather(lambda inner: inner.claim(*arguments), count))


def test_updates_in_any_order_give_the_same_records(opened: Callable[[], Store], fresh: Namespaces) -> None:
    """Arrivals, entries and amounts leave the same counts, expiries and sums."""
    results = []
    moves = [
        ("seen", 1e9),
        ("seen", 1e9 + 250.5),
        ("entry", 1e9 + 300),
        ("entry", 1e9 + 550),
        ("sum", 2),
        ("sum", -5),
    ]
    for order in itertools.islice(itertools.permutations(moves), 0, 720, 37):
        store, namespace = opened(), fresh()
        known(store, namespace, OTHERS[0], now=1e9 - 1)
        for kind, value in order:
            if kind == "seen":
                known(store, namespace, OTHERS[0], now=value)
            elif kind == "entry":
                store.write(namespace, ROOT, TRUNK, [entry(OTHERS[0], value)])
            else:
                added(store, namespace, "hour", {"tokens": int(value)})
        (record,) = known(store, namespace, OTHERS[0], now=1e9 + 260)
        assert record is not None
        results.append(
            (record.arrivals, record.last_arrival, record.expires, store.read(namespace, ["hour"]))
        )
    assert results == [(3, 1e9 + 250.5, 1e9 + 550, {"tokens": -3})] * len(results)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a", "b"), ("a}:p:", "a"), ("a:b", "a"), ("", "\x00"), ("ä", "a"), ("\ud800", "\ud801")],
)
def test_namespaces_never_see_each_other(store: Store, fresh: Namespaces, one: str, other: str) -> None:
    """Records, entries and sums are not reachable from another namespace."""
    base = fresh()
    one, other = base + one, base + other
    known(store, one, HEADS[0], OTHERS[0], now=1.0)
    added(store, one, "hour", {"tokens": 1})
    assert known(store, other, HEADS[0], OTHERS[0], now=1.0) == [None, None]
    assert store.read(other, ["hour"]) == {}
    store.write(other, ROOT, TRUNK, [entry(OTHERS[0], 9.0)])
    (record,) = known(store, one, OTHERS[0], now=1.0)
    assert record is not None
    assert record.expires == 0


def test_secrets_never_see_each_other(opened: Callable[..., Store], fresh: Namespaces) -> None:
    """Two secrets on one server share nothing, even if they differ only after the longest hash key."""
    namespace = fresh()
    secrets = [b"", b"a", b"b", b"x" * 64, b"x" * 65, b"x" * 64 + b"y"]
    stores = [opened(secret=secret) for secret in secrets]
    for store in stores:
        assert known(store, namespace, HEADS[0], OTHERS[0], now=1.0) == [None, None]
        assert store.read(namespace, ["hour"]) == {}
        added(store, namespace, "hour", {"tokens": 1})


def test_workers_with_one_secret_share_records_and_sums(
    opened: Callable[..., Any], fresh: Namespaces
) -> None:
    """A worker reads the records, entries and sums of another; a memory store belongs to one process."""
    one, other, namespace = opened(), opened(), fresh()
    if one.local:
        pytest.skip("a memory store is not shared")
    known(one, namespace, HEADS[0], OTHERS[0], now=1.0)
    one.write(namespace, ROOT, TRUNK, [entry(HEADS[0], 9.0)])
    added(one, namespace, "hour", {"tokens": 1})
    assert known(other, namespace, HEADS[0], OTHERS[0], now=2.0) == [
        new_record(0, 1.0)._replace(expires=9.0, ttl=300),
        new_record(1, 1.0),
    ]
    assert other.read(namespace, ["hour"]) == {"tokens": 1}


def test_sums_of_several_tables_add_up(store: Store, fresh: Namespaces) -> None:
    """Amounts of one name add up in a table and over tables; names keep any text."""
    namespace = fresh()
    odd = "app=späti:{x} \n\ud800"
    added(store, namespace, "10", {"read": 5, odd: -2})
    added(store, namespace, "10", {"read": 2**53 + 1})
    added(store, namespace, "11", {"read": 1, "": 3})
    added(store, namespace, "12", {"read": 100})
    assert store.read(namespace, ["10", "11", "missing"]) == {"read": 2**53 + 7, odd: -2, "": 3}
    assert store.read(namespace, ["10"]) == {"read": 2**53 + 6, odd: -2}


def test_thousand_keys_in_one_arrival_are_counted(store: Store, fresh: Namespaces) -> None:
    """No limit of a script or a protocol is near the keys of one request."""
    keys = tuple(index.to_bytes(16, "big") for index in range(1, 1001))
    asked = Arrival(fresh(), ROOT, TRUNK, 300, keys)
    assert list(store.observe(asked, 1.0)) == [None] * 1000
    found = store.observe(asked, 2.0)
    assert found == [*[new_record(0, 1.0)] * 999, new_record(1, 1.0)]


@pytest.mark.parametrize("used", [False, True])
def test_second_close_has_no_effect(opened: Callable[[], Any], fresh: Namespaces, used: bool) -> None:
    """The close of an unused store has no effect either."""
    store = opened()
    if used:
        known(store, fresh(), OTHERS[0], now=1.0)
    for _ in range(2):
        store.close()
