"""What a link promises on every topology, and what servers and networks can do to it."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Refused
from redis.exceptions import TimeoutError as RedisTimeout

from benchmarks import redis_servers
from benchmarks.redis_servers import Certificates, Cluster, MissingError, Sentinels, Server, until
from cachemw.stores import commands, connect
from cachemw.stores.commands import Command
from cachemw.stores.link import AsyncLink, Link
from cachemw.stores.url import target

SCRIPT = "for i = 1, #KEYS do redis.call('INCR', KEYS[i]) end return redis.call('GET', KEYS[1])"
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
PATIENT = 5.0
# What a busy machine may add to a call's time.
SLACK = 0.25
# An ACL user that may touch our keys only.
ACL = ["--user", "default", "on", ">all", "~*", "&*", "+@all"]
ACL += ["--user", "ours", "on", ">of:ours@", "resetkeys", "~cachemw:*", "+@all", "-ping"]


@pytest.fixture(autouse=True)
def script(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a script that no other test's server knows."""
    monkeypatch.setitem(commands._TEXTS, SHA, SCRIPT)
    monkeypatch.setitem(commands._SHAS, SCRIPT, SHA)


def count(*keys: bytes) -> Command:
    """Return the command that adds one to each key."""
    return commands.run(SCRIPT, keys)


class Twin:
    """A link of one kind behind one face; an async one in a loop of its own."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.link: Any = Link(url, **options) if kind == "sync" else AsyncLink(url, **options)
        self._runner = None if kind == "sync" else asyncio.Runner()

    def execute(self, sent: Sequence[Command], seconds: float = PATIENT) -> list[Any]:
        if self._runner is None:
            return self.link.execute(sent, seconds)
        return self._runner.run(self.link.execute(sent, seconds))

    def pause(self, seconds: float) -> None:
        if self._runner is None:
            time.sleep(seconds)
        else:
            self._runner.run(asyncio.sleep(seconds))

    def until(self, sent: Command, seconds: float = 12.0, budget: float = 0.2) -> Any:
        """Return the first answer that is none of an error."""
        end = time.monotonic() + seconds
        while True:
            error: Any
            try:
                (error,) = self.execute([sent], budget)
                if not isinstance(error, Exception):
                    return error
            except (RedisError, OSError) as raised:
                error = raised
            assert time.monotonic() < end, error
            self.pause(0.02)

    def end(self) -> None:
        if self._runner is None:
            self.link.close()
        else:
            self._runner.run(self.link.close())
            self._runner.close()


Opener = Callable[..., Twin]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the twins."""
    return str(request.param)


@pytest.fixture
def opened(kind: str) -> Iterator[Opener]:
    """Open links of one kind, closed at the end."""
    with ExitStack() as stack:

        def open_one(url: str, **options: Any) -> Twin:
            twin = Twin(kind, url, **options)
            stack.callback(twin.end)
            return twin

        yield open_one


@pytest.fixture(scope="session")
def single() -> Iterator[Server]:
    """One Valkey, with two users."""
    with redis_servers.standalone("valkey", *ACL, "--enable-debug-command", "yes") as server:
        server.url = server.url.replace("redis://", "redis://:all@")
        yield server


@pytest.fixture(scope="session")
def by_socket() -> Iterator[Server]:
    """One Valkey, by its socket."""
    with redis_servers.unix_socket() as server:
        yield server


@pytest.fixture(scope="session")
def three() -> Iterator[Cluster]:
    """Three masters."""
    with redis_servers.cluster() as made:
        yield made


@pytest.fixture(scope="session")
def watched() -> Iterator[Sentinels]:
    """A master, a replica, three sentinels."""
    with redis_servers.sentinel() as made:
        yield made


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What TLS needs."""
    with skipping():
        return Certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def encrypted(certificates: Certificates) -> Iterator[Server]:
    """The machine's own Redis, that takes TLS with client certificates only, with two users."""
    with skipping(), redis_servers.standalone("redis", *ACL, tls=certificates) as server:
        server.url = server.url.replace("rediss://", "rediss://:all@")
        yield server


@contextmanager
def skipping() -> Iterator[None]:
    """Skip where this machine lacks a program."""
    try:
        yield
    except MissingError as missing:
        pytest.skip(str(missing))


def tls(url: str, certificates: Certificates, **changes: str) -> str:
    """Return a URL with the parameters of TLS."""
    options = certificates.client_options() | changes
    return url + "?" + "&".join(f"{name}={value}" for name, value in options.items() if value)


class Topology:
    """A URL and the masters behind it."""

    def __init__(self, url: str, masters: Sequence[Server]) -> None:
        self.url, self.masters = url, masters


KINDS = ["single", "socket", "cluster", "one seed", "sentinel", "acl", "tls", "tls and acl", "redis"]


@pytest.fixture(params=KINDS)
def topology(request: pytest.FixtureRequest) -> Topology:
    """Every way to reach a server."""
    get = request.getfixturevalue
    if request.param in ("single", "acl"):
        server = get("single")
        return Topology(
            server.url.replace(":all@", "ours:of%3Aours%40@" if request.param == "acl" else ":all@"), [server]
        )
    if request.param == "socket":
        return Topology(get("by_socket").url, [get("by_socket")])
    if request.param in ("cluster", "one seed"):
        made = get("three")
        closed = f"127.0.0.1:{redis_servers.free_port()}"
        one = f"valkey+cluster://{closed},127.0.0.1:{made.nodes[1].port}"
        return Topology(made.url if request.param == "cluster" else one, made.nodes)
    if request.param == "sentinel":
        return Topology(get("watched").url, [get("watched").master])
    if request.param == "redis":
        return Topology(get("redis_server"), [])
    server = get("encrypted")
    user = "ours:of%3Aours%40@" if "acl" in request.param else ":all@"
    return Topology(tls(server.url.replace(":all@", user), get("certificates")), [server])


_numbers = iter(range(10**9))


@pytest.fixture
def keys() -> list[bytes]:
    """Ten keys that no test has used, each in a slot of its own."""
    number = next(_numbers)
    return [b"cachemw:{%d-%d}" % (number, index) for index in range(10)]


def test_replies_come_in_order_and_a_refusal_in_its_place(
    opened: Opener, topology: Topology, keys: list[bytes]
) -> None:
    """Commands of any slots go together, scripts and others; what one is refused stops no other."""
    link = opened(topology.url)
    assert link.link.clustered is ("cluster" in topology.url)
    sent: list[Command] = []
    for key in keys:
        sent += [("SET", key, 5), ("LPUSH", key, "x"), ("GET", key)]
    replies = link.execute(sent)
    assert replies[0::3] == [b"OK"] * 10
    assert {type(reply) for reply in replies[1::3]} == {ResponseError}
    assert replies[2::3] == [b"5"] * 10
    assert link.execute([count(key) for key in keys]) == [b"6"] * 10


def test_a_flushed_script_is_loaded_again_and_counted_once(
    opened: Opener, topology: Topology, keys: list[bytes]
) -> None:
    """NOSCRIPT is cured inside the call, on each node that says it."""
    link = opened(topology.url)
    for counted in range(1, 4):
        for server in topology.masters:
            with server.client() as client:
                client.script_flush()
        assert link.execute([count(key) for key in keys]) == [b"%d" % counted] * 10


def test_slots_of_two_nodes_are_waited_for_together(opened: Opener, three: Cluster) -> None:
    """One round trip: two waits of a quarter second take no half."""
    link = opened(three.url)
    both = [b"none{%d}" % tag for tag in _tags(0, 12000)]
    link.execute([("GET", key) for key in both])
    start = time.monotonic()
    assert link.execute([("BLPOP", key, "0.25") for key in both]) == [None, None]
    assert 0.25 <= time.monotonic() - start < 0.45


def _tags(*near: int) -> list[int]:
    """Return tags whose slots follow the given ones closely: each on the node of that slot."""
    return [next(tag for tag in range(10**6) if 0 <= key_slot(b"%d" % tag) - slot < 500) for slot in near]


def test_keys_of_two_slots_in_one_command_are_refused(opened: Opener, three: Cluster) -> None:
    """That is the server's answer, as any other."""
    (reply,) = opened(three.url).execute([("MGET", b"{0}", b"{1}")])
    assert isinstance(reply, ResponseError)


def test_a_slot_that_moves_is_followed(opened: Opener, three: Cluster, keys: list[bytes]) -> None:
    """ASK while it moves, MOVED when it has; what was learned is not asked again."""
    link, key = opened(three.url), keys[0]
    slot = key_slot(key)
    source = slot * 3 // 16384
    goal = (source + 1) % 3
    assert link.execute([("SET", key, 1)]) == [b"OK"]
    three.move_slot(slot, source, goal, [key], end=False)
    assert link.execute([count(key), ("GET", key)]) == [b"2", b"2"]
    asked = _errors(three.nodes[source])
    assert asked["ASK"] >= 1
    three.move_slot(slot, source, goal)
    assert link.execute([count(key)]) == [b"3"]
    assert link.execute([count(key)] * 3) == [b"4", b"5", b"6"]
    link.pause(0.2)
    assert link.execute([count(key)]) == [b"7"]
    assert _errors(three.nodes[source])["MOVED"] == asked.get("MOVED", 0) + 1
    three.move_slot(slot, goal, source, [key])
    assert link.execute([count(key)]) == [b"8"]


def _errors(server: Server) -> dict[str, int]:
    with server.client() as client:
        return {name[10:]: fact["count"] for name, fact in client.info("errorstats").items()}


def test_a_command_without_a_key_goes_to_some_node(opened: Opener, three: Cluster) -> None:
    """So a cluster can be asked what it is."""
    (reply,) = opened(three.url).execute([("PING",)])
    assert reply == b"PONG"


def test_a_server_that_is_no_cluster_says_so(opened: Opener, single: Server) -> None:
    """The refusal of the slots is what the call raises."""
    with pytest.raises(ResponseError):
        opened(single.url.replace("redis", "redis+cluster", 1)).execute([("PING",)])


@pytest.mark.parametrize("login", ["nobody:wrong@", ":wrong@", "ours:wrong@", ""])
def test_a_wrong_password_is_an_authentication_error(opened: Opener, single: Server, login: str) -> None:
    """So is a missing one."""
    with pytest.raises(AuthenticationError):
        opened(single.url.replace(":all@", login)).execute([("GET", "a")])


def test_a_user_of_our_keys_has_no_others(opened: Opener, single: Server, keys: list[bytes]) -> None:
    """What the user may not touch is refused in place, and what it may goes on."""
    link = opened(single.url.replace(":all@", "ours:of%3Aours%40@"))
    replies = link.execute([("SET", "other", 1), count(b"other"), count(keys[0])])
    assert [type(reply) for reply in replies] == [NoPermissionError, NoPermissionError, bytes]


def test_databases_are_told_apart(opened: Opener, single: Server, keys: list[bytes]) -> None:
    """The number in the URL is selected on every connection."""
    assert opened(single.url + "/3").execute([("SET", keys[0], 1)]) == [b"OK"]
    assert opened(single.url + "?db=3").execute([("GET", keys[0])]) == [b"1"]
    assert opened(single.url).execute([("GET", keys[0])]) == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {"ssl_certfile": "", "ssl_keyfile": "", "ssl_password": ""},
        {"ssl_ca_certs": ""},
        {"ssl_password": "wrong"},
        {"host": "ip6-localhost"},
    ],
    ids=["no client certificate", "unknown authority", "wrong key password", "another name"],
)
def test_tls_is_refused_where_anything_is_wrong(
    opened: Opener,
    encrypted: Server,
    certificates: Certificates,
    changes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By an error, not by going on in clear."""
    url = encrypted.url
    changes = dict(changes)
    if changes.pop("host", ""):
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more)
        )
        url = url.replace("127.0.0.1", "another.invalid")
        assert opened(tls(url, certificates, ssl_check_hostname="no")).execute([("GET", "a")]) == [None]
        assert opened(tls(url, certificates, ssl_cert_reqs="none")).execute([("GET", "a")]) == [None]
    with pytest.raises((RedisError, OSError)):
        opened(tls(url, certificates, **changes)).execute([("GET", "a")])


def test_opening_takes_one_ping_and_no_more(opened: Opener) -> None:
    """No driver's name is told, no protocol negotiated: on a slow network each would cost its time."""
    with redis_servers.standalone() as server, server.client() as client:
        before = client.info("commandstats")
        link = opened(server.url)
        for _ in range(3):
            link.execute([("GET", "a")])
        after = client.info("commandstats")
    ran = {name: fact["calls"] - before.get(name, {"calls": 0})["calls"] for name, fact in after.items()}
    assert {name: calls for name, calls in ran.items() if calls} == {
        "cmdstat_ping": 1,
        "cmdstat_get": 3,
        "cmdstat_info": 1,
    }


def test_a_server_that_loads_says_so_until_it_has(opened: Opener, tmp_path: Path) -> None:
    """LOADING is an error of its class at once, and the next call after it is served."""
    loading = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    with redis_servers.standalone("valkey", *loading) as server:
        with server.client() as client:
            client.mset({f"key {number}": "x" * 100 for number in range(300)})
            client.save()
        server.kill()
        server.start(wait=False)
        link = opened(server.url)
        seen = set()
        end = time.monotonic() + 10
        while seen != {Refused, BusyLoadingError, bytes}:
            assert time.monotonic() < end, seen
            try:
                seen.add(type(link.execute([("GET", "key 7")], 1)[0]))
            except Refused as error:
                seen.add(type(error))
            if bytes in seen:
                seen.add(Refused)  # it may have listened before we asked


def test_read_only_is_told_and_a_new_connection_made(opened: Opener) -> None:
    """Where a name leads to another server after a failover, keeping the connection would keep the old one."""
    with redis_servers.standalone() as server, server.client() as client:
        link = opened(server.url)
        (before,) = link.execute([("CLIENT", "ID")])
        client.replicaof("127.0.0.1", redis_servers.free_port())
        assert [type(reply) for reply in link.execute([count(b"a"), ("SET", "a", 1)])] == [ReadOnlyError] * 2
        client.replicaof("NO", "ONE")
        (after,), (counted,) = link.execute([("CLIENT", "ID")]), link.execute([count(b"a")])
        assert after > before
        assert counted == b"1"


@pytest.mark.parametrize("gone", ["demoted", "killed", "frozen"])
def test_a_promotion_by_the_sentinels_is_followed(gone: str) -> None:
    """By both twins, whatever became of the old master, and without one of the sentinels."""
    with redis_servers.sentinel() as made, ExitStack() as stack:
        twins = [Twin(kind, made.url, connect_patience=0.5) for kind in ("sync", "async")]
        for twin in twins:
            stack.callback(twin.end)
            assert twin.execute([("SET", "a", 1)]) == [b"OK"]
        if gone == "demoted":
            with made.sentinels[0].client() as client:
                client.execute_command("SENTINEL", "FAILOVER", redis_servers.SERVICE)
        else:
            made.sentinels[0].kill()
            made.master.kill() if gone == "killed" else made.master.freeze()
        for twin in twins:
            _until_at(twin, made.replicas[0].port)


def _until_at(twin: Twin, port: int) -> None:
    # The old master takes writes until it is told.
    end = time.monotonic() + 12
    while int(twin.until(("CONFIG", "GET", "port"))[1]) != port or twin.until(("SET", "a", 2)) != b"OK":
        assert time.monotonic() < end, "the promotion is not followed"
        twin.pause(0.02)


def test_a_cluster_goes_on_while_a_node_is_gone_and_after_its_replica_took_over() -> None:
    """Other slots are served at full speed, those of the node again after the election: dead, then frozen."""
    with redis_servers.cluster(replicas=1) as made, ExitStack() as stack:
        twins = [Twin(kind, made.url, connect_patience=0.5) for kind in ("sync", "async")]
        lost, kept = ([b"{%d}" % tag for tag in _tags(*slots)] for slots in ((0, 6000), (12000,)))
        for twin in twins:
            stack.callback(twin.end)
            twin.execute([("SET", key, 1) for key in (*lost, *kept)])
        for key, gone in zip(lost, (made.nodes[0].kill, made.nodes[1].freeze), strict=True):
            gone()
            for twin in twins:
                with pytest.raises((Refused, RedisTimeout, TimeoutError)):
                    twin.execute([("SET", key, 2)], 0.1)
                for _ in range(20):
                    start = time.monotonic()
                    with suppress(RedisError, TimeoutError):
                        twin.execute([("SET", key, 2)], 0.1)
                    assert twin.execute([("SET", kept[0], 2)], 0.1) == [b"OK"]
                    assert time.monotonic() - start < 0.1 + SLACK
            for twin in twins:
                assert twin.until(("SET", key, 3)) == b"OK"
                assert twin.execute([("SET", other, 3) for other in (key, kept[0])]) == [b"OK"] * 2


def test_a_frozen_node_is_waited_for_by_one_call_not_by_each(opened: Opener, three: Cluster) -> None:
    """A connection that is being opened in vain makes the calls after it fail at once."""
    link = opened(three.url)
    (tag,) = _tags(0)
    link.execute([("SET", b"{%d}" % tag, 1)])
    waits = []
    three.nodes[0].freeze()
    try:
        for _ in range(12):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", b"{%d}" % tag)], 0.04)
            waits.append(time.monotonic() - start)
    finally:
        three.nodes[0].thaw()
    assert sum(wait > 0.03 for wait in waits) <= 3
    assert link.until(("GET", b"{%d}" % tag)) == b"1"


class Impostor:
    """A server of our own that speaks as it is told, on threads; it counts what it is sent."""

    def __init__(self, speak: Callable[[socket.socket, bytes], None], *, listening: bool = True) -> None:
        self._speak = speak
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.sent: list[bytes] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            while data := connection.recv(65536):
                self.sent.append(data)
                self._speak(connection, data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


def ponging(speak: Callable[[socket.socket, bytes], None]) -> Callable[[socket.socket, bytes], None]:
    """Answer PING, and else as told."""

    def both(connection: socket.socket, data: bytes) -> None:
        if b"PING" in data:
            connection.sendall(b"+PONG\r\n")
        else:
            speak(connection, data)

    return both


def drip(connection: socket.socket, data: bytes) -> None:
    """Send an endless answer, a byte every five milliseconds."""
    connection.sendall(b"$100000\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.005)


def flood(connection: socket.socket, data: bytes) -> None:
    """Send an endless answer as fast as it goes."""
    connection.sendall(b"$1000000000000\r\n")
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    "speak",
    [drip, ponging(drip), ponging(flood), lambda *_: None, ponging(lambda *_: None)],
    ids=["drips at once", "drips", "floods", "accepts only", "falls silent"],
)
def test_no_answer_takes_longer_than_the_call_may(opened: Opener, speak: Callable[..., None]) -> None:
    """However the parts of an answer come, it is bounded as a whole."""
    with Impostor(speak) as server:
        link = opened(server.url, connect_patience=0.5)
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", "a")], 0.1)
            assert time.monotonic() - start < 0.1 + SLACK


def test_a_request_that_nobody_takes_is_bounded(opened: Opener) -> None:
    """So is sending: a server that stops reading fills the network's buffers."""
    stop = threading.Event()

    def deaf(connection: socket.socket, data: bytes) -> None:
        stop.wait(5)

    with Impostor(ponging(deaf)) as server:
        link = opened(server.url)
        link.execute([], 1)
        start = time.monotonic()
        with pytest.raises((RedisTimeout, TimeoutError)):
            link.execute([("SET", "a", b"x" * 50_000_000)], 0.3)
        assert time.monotonic() - start < 0.3 + 2 * SLACK
        stop.set()


def test_a_frozen_server_is_bounded_and_served_when_thawed(opened: Opener) -> None:
    """Connections that were open before and those made while it is frozen, alike."""
    with redis_servers.standalone() as server:
        link = opened(server.url)
        link.execute([("SET", "a", 1)])
        server.freeze()
        for _ in range(4):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", "a")], 0.05)
            assert time.monotonic() - start < 0.05 + SLACK
        server.thaw()
        assert link.until(("GET", "a")) == b"1"


def test_a_port_that_nobody_listens_on_is_refused_at_once(opened: Opener, closed_port: int) -> None:
    """Nor is it tried again within a call."""
    link = opened(f"redis://127.0.0.1:{closed_port}")
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(Refused):
            link.execute([("GET", "a")], PATIENT)
        assert time.monotonic() - start < SLACK


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
def test_nobody_there_is_an_error_of_every_topology(opened: Opener, closed_port: int, scheme: str) -> None:
    """As soon as all that were named have refused."""
    link = opened(f"{scheme}://127.0.0.1:{closed_port}" + ("/mymaster" if "sentinel" in scheme else ""))
    start = time.monotonic()
    with pytest.raises(Refused):
        link.execute([("GET", "a")], PATIENT)
    assert time.monotonic() - start < 2 * SLACK


def test_a_name_server_that_does_not_answer_is_bounded(
    opened: Opener, single: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking up goes on in the background, one call waits for it, and what was found serves a later one."""
    real, silent = socket.getaddrinfo, threading.Event()

    def sleep(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "named.invalid":
            return real(host, *rest, **more)
        silent.wait(5)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", sleep)
    link = opened(single.url.replace("127.0.0.1", "named.invalid"))
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            link.execute([("GET", "a")], 0.05)
        assert time.monotonic() - start < 0.05 + SLACK
    silent.set()
    assert link.until(("SET", "a", 1)) == b"OK"


def test_a_name_that_nobody_knows_is_refused(opened: Opener) -> None:
    """By the class of a refused connection."""
    with pytest.raises(Refused):
        opened("redis://no-such-host.invalid").execute([("GET", "a")])


def test_a_network_slower_than_a_call_is_connected_to_in_the_end(opened: Opener) -> None:
    """No call starts anew what the one before it did not wait for."""

    def late(connection: socket.socket, data: bytes) -> None:
        time.sleep(0.2)
        connection.sendall(b"+PONG\r\n")

    with Impostor(late) as server:
        link = opened(server.url)
        link_errors = 0
        end = time.monotonic() + 5
        while not link_errors or len(server.sent) < 2:
            assert time.monotonic() < end
            with suppress(TimeoutError, RedisTimeout):
                link.execute([("GET", "a")], 0.05)
                break
            link_errors += 1
            link.pause(0.02)
        assert link_errors
        assert server.sent[0].count(b"PING") == 1
        assert b"GET" in server.sent[1]


def test_no_more_connections_than_the_url_allows(opened: Opener, single: Server) -> None:
    """The others wait for one, in time."""
    link = opened(single.url.replace("redis://", "redis://") + "?max_connections=2")
    start = time.monotonic()
    sent: list[Command] = [("BLPOP", "none", "0.3")]
    if isinstance(link.link, Link):
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(link.link.execute, sent, 5.0) for _ in range(3)]
            time.sleep(0.1)
            with pytest.raises(TimeoutError):
                link.execute([("GET", "a")], 0.05)
            assert [call.result() for call in calls] == [[None]] * 3
    else:

        async def all_at_once() -> list[Any]:
            calls = [asyncio.create_task(link.link.execute(sent, 5.0)) for _ in range(3)]
            await asyncio.sleep(0.1)
            with pytest.raises(TimeoutError):
                await link.link.execute([("GET", "a")], 0.05)
            return await asyncio.gather(*calls)

        assert link._runner is not None
        assert link._runner.run(all_at_once()) == [[None]] * 3
    assert time.monotonic() - start >= 0.6


def test_a_connection_that_the_server_closed_is_not_sent_over(
    opened: Opener, single: Server, keys: list[bytes]
) -> None:
    """It is noticed before the call, which loses nothing."""
    link = opened(single.url)
    for counted in range(1, 4):
        assert link.execute([count(keys[0])]) == [b"%d" % counted]
        with single.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        link.pause(0.02)


def test_a_restarted_server_is_served_again(opened: Opener) -> None:
    """At the first call that finds it."""
    with redis_servers.standalone() as server:
        link = opened(server.url)
        assert link.execute([count(b"a")]) == [b"1"]
        server.restart()
        link.pause(0.02)
        assert link.execute([count(b"a")]) == [b"1"]
        server.kill()
        link.pause(0.02)
        with pytest.raises(Refused):
            link.execute([count(b"a")])
        server.start()
        assert link.execute([count(b"a")]) == [b"1"]


def test_what_was_sent_is_never_sent_again(opened: Opener) -> None:
    """A connection that breaks before the answer may have been counted."""

    def hang_up(connection: socket.socket, data: bytes) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    with Impostor(ponging(hang_up)) as server:
        with pytest.raises(Refused):
            opened(server.url).execute([("INCR", "a")], 1)
        assert [data for data in server.sent if b"INCR" in data] == [b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n"]


def test_an_answer_that_comes_too_late_is_no_later_calls(opened: Opener, single: Server) -> None:
    """Its connection is given up."""
    link = opened(single.url)
    for _ in range(5):
        with pytest.raises((TimeoutError, RedisTimeout)):
            link.execute([("BLPOP", "none", "0.1")], 0.03)
        assert link.execute([("ECHO", "mine")]) == [b"mine"]


def test_what_nobody_asked_for_ends_a_connection(opened: Opener) -> None:
    """A stray answer would be read as the next one."""

    def twice(connection: socket.socket, data: bytes) -> None:
        connection.sendall(b"+first\r\n")
        time.sleep(0.02)
        with suppress(OSError):
            connection.sendall(b"+stray\r\n")

    with Impostor(ponging(twice)) as server:
        link = opened(server.url)
        for _ in range(3):
            assert link.execute([("GET", "a")]) == [b"first"]
            link.pause(0.05)


def test_closing_ends_connections_and_a_later_call_keeps_none(opened: Opener) -> None:
    """A write that comes after the end is still written."""
    with redis_servers.standalone() as server, server.client() as client:
        link = opened(server.url)
        link.execute([("SET", "a", 1)])
        others = len(client.client_list()) - 1
        assert others == 1
        if link._runner is None:
            link.link.close()
        else:
            link._runner.run(link.link.close())
        until(lambda: len(client.client_list()) == 1, "the connection stays")
        assert link.execute([("GET", "a")]) == [b"1"]
        link.end() if link._runner is None else link._runner.run(link.link.close())
        until(lambda: len(client.client_list()) == 1, "the connection stays")


def test_closing_gives_up_what_is_being_opened(opened: Opener) -> None:
    """A loop ends without a word of tasks that nobody waited for."""
    with Impostor(lambda *_: None) as server:
        link = opened(server.url)
        with pytest.raises(TimeoutError):
            link.execute([("GET", "a")], 0.05)
        cluster = opened(server.url.replace("redis", "redis+cluster", 1))
        with pytest.raises(TimeoutError):
            cluster.execute([("GET", "a")], 0.05)


def test_threads_share_a_link(single: Server, keys: list[bytes]) -> None:
    """None loses an answer or takes another's."""
    link = Link(single.url + "?max_connections=3")

    def work(number: int) -> None:
        for _ in range(50):
            assert link.execute([("ECHO", number), count(keys[0])], PATIENT)[0] == b"%d" % number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert link.execute([("GET", keys[0])], PATIENT) == [b"400"]
    link.close()


async def test_tasks_share_a_link_and_a_cancelled_one_hurts_no_other(
    single: Server, keys: list[bytes]
) -> None:
    """Whatever it was waiting for: a connection, its opening, an answer."""
    link = AsyncLink(single.url + "?max_connections=3")
    for waited in range(30):
        tasks = [asyncio.create_task(link.execute([("ECHO", number)], PATIENT)) for number in range(6)]
        for _ in range(waited % 10):
            await asyncio.sleep(0)
        tasks[waited % 6].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert answer == [b"%d" % number] or isinstance(answer, asyncio.CancelledError)
    await link.close()


async def test_a_busy_loop_loses_no_answer(single: Server) -> None:
    """Time in which the loop did not get round to it does not count."""
    link = AsyncLink(single.url)

    async def call() -> list[Any]:
        return await link.execute([("ECHO", "x")], 0.05)

    for _ in range(3):
        task = asyncio.create_task(call())
        for _ in range(4):
            await asyncio.sleep(0)
            time.sleep(0.08)  # noqa: ASYNC251 - it is busy
        assert await task == [b"x"]
    await link.close()


async def test_the_applications_threads_are_not_used_to_look_up_a_name(
    single: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that is gone would take them all."""
    real, ours = socket.getaddrinfo, []

    def look(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "named.invalid":
            ours.append(threading.current_thread().name)
            time.sleep(0.3)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    link = AsyncLink(single.url.replace("127.0.0.1", "named.invalid"))
    with pytest.raises(TimeoutError):
        await link.execute([("GET", "a")], 0.05)
    assert ours == ["cachemw-connect"]
    await link.close()


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_link_outlives_its_loop_and_a_fork(single: Server, three: Cluster, scheme: str) -> None:
    """Each `asyncio.run` and each child has connections of its own, and leaves the parent's alone."""
    program = """
import asyncio, os, sys
from cachemw.stores.link import AsyncLink, Link
link = AsyncLink(sys.argv[1])
for _ in range(3):
    assert asyncio.run(link.execute([("SET", "a", 5), ("GET", "a")], 5)) == [b"OK", b"5"]
asyncio.run(link.close())
link = Link(sys.argv[1])
ask = lambda: link.execute([("SET", "a", 5), ("CLIENT", "ID")], 5)[1]
mine = ask()
child = os.fork()
if not child:
    link.close()
    os._exit(0 if ask() != mine and ask() != mine else 1)
assert os.waitpid(child, 0)[1] == 0
assert ask() == mine
link.close()
"""
    url = single.url if scheme == "redis" else three.url
    # In a process of its own: a loop that ended leaves its connection open, and Python says so when it can.
    subprocess.run([sys.executable, "-c", program, url], check=True)


@pytest.mark.parametrize("name", ["single", "by_socket", "encrypted"])
def test_redis_py_opens_sockets_by_the_hook_that_bounds_them(
    request: pytest.FixtureRequest, name: str
) -> None:
    """`_connect` has no public name: should it go, answers would no longer be bounded as a whole."""
    server = request.getfixturevalue(name)
    url = tls(server.url, request.getfixturevalue("certificates")) if name == "encrypted" else server.url
    connection = connect.opener(target(url), 1.0)(None)
    assert isinstance(connection._sock, connect.BoundedSocket)
    connection.until(time.monotonic() - 1)
    connection.send_command("ECHO", "late but there", check_health=False)
    time.sleep(0.05)
    with pytest.raises(RedisTimeout):
        connection.read_response()
    assert not connection.is_connected
