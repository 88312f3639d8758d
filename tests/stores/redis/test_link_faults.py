"""Faults of servers and networks, and the time that they cost a call."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from redis._parsers import _AsyncRESP2Parser, _RESP2Parser
from redis.exceptions import ConnectionError as Refused
from redis.exceptions import (
    MovedError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from benchmarks import redis_servers
from benchmarks.redis_servers import Cluster, Server, until
from cachemw.stores.redis.client import connect, servers
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient
from cachemw.stores.redis.client.pool import Background
from cachemw.stores.redis.client.routes import MAX_REDIRECTS
from cachemw.stores.redis.commands import Command
from tests.stores.links import PATIENT, SLACK, Impostor, Linker, count, ponging, tls


def drip(connection: socket.socket, data: bytes) -> None:
    """Send an endless reply, a byte every five milliseconds."""
    connection.sendall(b"$100000\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.005)


def flood(connection: socket.socket, data: bytes) -> None:
    """Send an endless reply at full speed."""
    connection.sendall(b"$1000000000000\r\n")
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize(
    "speak",
    [drip, ponging(drip), ponging(flood), lambda *_: None, ponging(lambda *_: None)],
    ids=["drips at once", "drips", "floods", "accepts only", "falls silent"],
)
def test_reply_in_endless_parts_ends_at_the_deadline(linked: Linker, speak: Callable[..., None]) -> None:
    """The deadline bounds a reply as a whole, however its parts arrive."""
    with Impostor(speak) as server:
        link = linked(server.url, connect_patience=0.5)
        for _ in range(3):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", "a")], 0.1)
            assert time.monotonic() - start < 0.1 + SLACK


def test_request_to_a_server_that_does_not_read_ends_at_the_deadline(linked: Linker) -> None:
    """A server that stops reading fills the network buffers; the client drops the unsent part."""
    stop, came = threading.Event(), [0]

    def deaf(connection: socket.socket, data: bytes) -> None:
        came[0] = len(data)
        stop.wait(30)
        while part := connection.recv(1 << 20):
            came[0] += len(part)

    with Impostor(ponging(deaf)) as server:
        link = linked(server.url)
        link.execute([], 1)
        start = time.monotonic()
        with pytest.raises((RedisTimeout, TimeoutError)):
            link.execute([("SET", "a", b"x" * 20_000_000)], 0.3)
        assert time.monotonic() - start < 0.3 + SLACK
        stop.set()
        link.pause(0.3)
    assert came[0] < 20_000_000


def test_frozen_server_costs_the_deadline_and_serves_after_it(linked: Linker) -> None:
    """Connections from before the freeze and those made during it behave alike."""
    with redis_servers.standalone() as server:
        link = linked(server.url)
        link.execute([("SET", "a", 1)])
        server.freeze()
        for _ in range(4):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", "a")], 0.05)
            assert time.monotonic() - start < 0.05 + SLACK
        server.thaw()
        assert link.until(("GET", "a")) == b"1"


def test_closed_port_is_refused_at_once(linked: Linker, closed_port: int) -> None:
    """The client does not try again within a call."""
    link = linked(f"redis://127.0.0.1:{closed_port}")
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(Refused):
            link.execute([("GET", "a")], PATIENT)
        assert time.monotonic() - start < SLACK


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
def test_unreachable_target_of_any_topology_is_an_error(
    linked: Linker, closed_port: int, scheme: str
) -> None:
    """The call fails as soon as all named servers have refused."""
    link = linked(f"{scheme}://127.0.0.1:{closed_port}" + ("/mymaster" if "sentinel" in scheme else ""))
    start = time.monotonic()
    with pytest.raises(Refused):
        link.execute([("GET", "a")], PATIENT)
    assert time.monotonic() - start < SLACK


def test_silent_name_server_costs_the_deadline(
    linked: Linker, single: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look-up continues in the background, one call waits for it, and a later call uses its result."""
    real, silent = socket.getaddrinfo, threading.Event()

    def sleep(host: Any, *rest: Any, **more: Any) -> Any:
        if host != "named.invalid":
            return real(host, *rest, **more)
        silent.wait(30)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", sleep)
    link = linked(single.url.replace("127.0.0.1", "named.invalid"))
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            link.execute([("GET", "a")], 0.05)
        assert time.monotonic() - start < 0.05 + SLACK
    silent.set()
    assert link.until(("SET", "a", 1)) == b"OK"


def test_unknown_host_name_is_refused(linked: Linker) -> None:
    """The error has the class of a refused connection."""
    with pytest.raises(Refused):
        linked("redis://no-such-host.invalid").execute([("GET", "a")])


def test_network_slower_than_the_deadline_is_connected_in_the_end(linked: Linker) -> None:
    """A later call continues the opening that an earlier one did not wait for."""

    def late(connection: socket.socket, data: bytes) -> None:
        time.sleep(0.2)
        connection.sendall(b"+PONG\r\n")

    with Impostor(late) as server:
        link = linked(server.url)
        link_errors = 0
        end = time.monotonic() + 60
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


def test_calls_above_max_connections_wait(linked: Linker, single: Server, keys: list[bytes]) -> None:
    """Calls beyond the limit of the URL wait for a connection until their deadline."""
    link = linked(single.url + "?max_connections=2")
    (key, *_) = keys
    sent: list[Command] = [("BLPOP", key, "25")]
    if isinstance(link.link, RedisClient):
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(link.link.execute, sent, 30.0) for _ in range(3)]
            with single.client() as client:
                _until_blocked(client, 2)
                with pytest.raises(TimeoutError):
                    link.execute([("GET", "a")], 0.05)
                _until_blocked(client, 2)
                client.rpush(key, "x", "x", "x")
            assert [call.result() for call in calls] == [[[key, b"x"]]] * 3
    else:

        async def all_at_once() -> list[Any]:
            calls = [asyncio.create_task(link.link.execute(sent, 30.0)) for _ in range(3)]
            with single.client() as client:
                await asyncio.to_thread(_until_blocked, client, 2)
                with pytest.raises(TimeoutError):
                    await link.link.execute([("GET", "a")], 0.05)
                await asyncio.to_thread(_until_blocked, client, 2)
                client.rpush(key, "x", "x", "x")
            return await asyncio.gather(*calls)

        assert link._runner is not None
        assert link._runner.run(all_at_once()) == [[[key, b"x"]]] * 3


def _until_blocked(client: Any, count: int) -> None:
    until(lambda: client.info("clients")["blocked_clients"] == count, "the calls do not wait", seconds=20)


def test_connection_closed_by_the_server_is_replaced_before_the_call(
    linked: Linker, single: Server, keys: list[bytes]
) -> None:
    """The client notices it before it sends, so the call loses no command."""
    link = linked(single.url)
    for counted in range(1, 4):
        assert link.execute([count(keys[0])]) == [b"%d" % counted]
        with single.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        link.pause(0.02)


def test_server_after_a_restart_is_served_again(linked: Linker) -> None:
    """The first call that reaches it succeeds."""
    with redis_servers.standalone() as server:
        link = linked(server.url)
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


def test_command_with_a_lost_reply_is_not_sent_again(linked: Linker) -> None:
    """A connection that breaks before the reply may have delivered the command."""

    def hang_up(connection: socket.socket, data: bytes) -> None:
        connection.shutdown(socket.SHUT_RDWR)

    with Impostor(ponging(hang_up)) as server:
        with pytest.raises(Refused):
            linked(server.url).execute([("INCR", "a")], 1)
        assert [data for data in server.sent if b"INCR" in data] == [b"*2\r\n$4\r\nINCR\r\n$1\r\na\r\n"]


def test_late_reply_reaches_no_later_call(linked: Linker, single: Server) -> None:
    """The client closes the connection of a reply that missed its deadline."""
    link = linked(single.url)
    for _ in range(5):
        with pytest.raises((TimeoutError, RedisTimeout)):
            link.execute([("BLPOP", "none", "5")], 0.03)
        assert link.execute([("ECHO", "mine")]) == [b"mine"]


@pytest.mark.parametrize("name", ["single", "encrypted"])
def test_calls_without_hiredis_work_the_same(
    request: pytest.FixtureRequest,
    linked: Linker,
    kind: str,
    name: str,
    keys: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """redis-py's own parser checks by receiving whether a connection is usable, which takes no time."""
    parser = _RESP2Parser if kind == "sync" else _AsyncRESP2Parser
    login = connect._login
    monkeypatch.setattr(connect, "_login", lambda at: login(at) | {"parser_class": parser})
    server = request.getfixturevalue(name)
    url = tls(server.url, request.getfixturevalue("certificates")) if name == "encrypted" else server.url
    link = linked(url)
    start = time.monotonic()
    replies = [link.execute([("CLIENT", "ID"), count(keys[0])]) for _ in range(5)]
    assert replies == [[replies[0][0], b"%d" % counted] for counted in range(1, 6)]
    assert time.monotonic() - start < PATIENT
    with server.client() as client:
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    link.pause(0.02)
    assert link.execute([count(keys[0])]) == [b"6"]


@pytest.mark.parametrize("together", [True, False], ids=["with the answer", "after it"])
def test_stray_reply_ends_its_connection(linked: Linker, together: bool) -> None:
    """The next call would read a stray reply as its own."""

    def twice(connection: socket.socket, data: bytes) -> None:
        if together:
            connection.sendall(b"+first\r\n+stray\r\n")
        else:
            connection.sendall(b"+first\r\n")
            time.sleep(0.02)
            connection.sendall(b"+stray\r\n")
        server.sent.append(b"stray")

    with Impostor(ponging(twice)) as server:
        link = linked(server.url)
        for call in range(1, 4):
            assert link.execute([("GET", "a")]) == [b"first"]
            until(lambda call=call: server.sent.count(b"stray") == call, "nothing is sent")
            link.pause(0.02)


def test_closed_client_still_writes_and_keeps_no_connection(linked: Linker) -> None:
    """A write after the end is still written."""
    with redis_servers.standalone() as server, server.client() as client:
        link = linked(server.url)
        link.execute([("SET", "a", 1)])
        others = len(client.client_list()) - 1
        assert others == 1
        if link._runner is None:
            link.link.close()
        else:
            link._runner.run(link.link.close())
        until(lambda: len(client.client_list()) == 1, "the connection stays")
        assert link.execute([("GET", "a")]) == [b"1"]
        link.pause(0.02)
        until(lambda: len(client.client_list()) == 1, "the connection stays")


def test_close_during_an_opening_ends_the_connection(linked: Linker) -> None:
    """The connection is closed as soon as it is open."""
    late, ended = threading.Event(), threading.Event()

    def slow(connection: socket.socket, data: bytes) -> None:
        late.wait(30)
        # The client sends no more and closes the connection.
        with suppress(OSError):
            connection.sendall(b"+PONG\r\n")
            connection.recv(1)
        ended.set()

    with Impostor(slow) as server:
        link = linked(server.url)
        with pytest.raises(TimeoutError):
            link.execute([("GET", "a")], 0.1)
        if link._runner is None:
            link.link.close()
        else:
            link._runner.run(link.link.close())
        late.set()
        assert ended.wait(30)


def test_close_during_an_opening_leaves_no_task(linked: Linker) -> None:
    """The loop ends without a warning about tasks in the background."""
    with Impostor(lambda *_: None) as server:
        link = linked(server.url)
        with pytest.raises(TimeoutError):
            link.execute([("GET", "a")], 0.05)
        cluster = linked(server.url.replace("redis", "redis+cluster", 1))
        with pytest.raises(TimeoutError):
            cluster.execute([("GET", "a")], 0.05)


def test_client_shared_by_threads_mixes_no_replies(single: Server, keys: list[bytes], script: None) -> None:
    """Each thread gets its own replies, and all of them."""
    link = RedisClient(single.url + "?max_connections=3")

    def work(number: int) -> None:
        for _ in range(50):
            assert link.execute([("ECHO", number), count(keys[0])], PATIENT)[0] == b"%d" % number

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert link.execute([("GET", keys[0])], PATIENT) == [b"400"]
    link.close()


def test_first_calls_of_threads_share_one_look_up_of_slots(
    three: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread looks, and the rest wait for its result, even while its thread is being started."""

    def slow(work: Callable[[], None]) -> Background[None]:
        time.sleep(0.05)
        return Background(work)

    monkeypatch.setattr(servers, "Background", slow)
    link, together = RedisClient(three.url), threading.Barrier(24)

    def work(number: int) -> list[Any]:
        together.wait(PATIENT)
        return link.execute([("ECHO", number)], PATIENT)

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(work, range(24))) == [[b"%d" % number] for number in range(24)]
    link.close()


async def test_cancelled_task_disturbs_no_other_task(single: Server, keys: list[bytes]) -> None:
    """A task may be cancelled while it waits for a connection, for its opening or for a reply."""
    link = AsyncRedisClient(single.url + "?max_connections=3")
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
    link = AsyncRedisClient(single.url)

    async def call() -> list[Any]:
        return await link.execute([("ECHO", "x")], 0.05)

    for _ in range(3):
        task = asyncio.create_task(call())
        for _ in range(4):
            await asyncio.sleep(0)
            time.sleep(0.08)  # noqa: ASYNC251 - it is busy
        assert await task == [b"x"]
    await link.close()


async def test_name_look_up_uses_no_thread_of_the_application(
    single: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent name server would occupy all threads of the loop's executor."""
    real, ours = socket.getaddrinfo, []

    def look(host: Any, *rest: Any, **more: Any) -> Any:
        if host == "named.invalid":
            ours.append(threading.get_ident())
            time.sleep(0.3)
        return real("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    link = AsyncRedisClient(single.url.replace("127.0.0.1", "named.invalid"))
    with pytest.raises(TimeoutError):
        await link.execute([("GET", "a")], 0.05)
    assert ours
    assert await asyncio.to_thread(threading.get_ident) not in ours
    await link.close()


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_client_in_a_new_loop_or_fork_opens_its_own_connections(
    single: Server, three: Cluster, scheme: str
) -> None:
    """Each `asyncio.run` and each child has connections of its own, and leaves the parent's alone."""
    program = """
import asyncio, os, sys
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient
from cachemw.stores.redis.client.routes import MAX_REDIRECTS
link = AsyncRedisClient(sys.argv[1])
for _ in range(3):
    assert asyncio.run(link.execute([("SET", "a", 5), ("GET", "a")], 5)) == [b"OK", b"5"]
asyncio.run(link.close())
link = RedisClient(sys.argv[1])
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
    # In a process of its own: an ended loop leaves its connection open, and Python warns about it.
    subprocess.run([sys.executable, "-c", program, url], check=True)


def test_client_in_another_process_leaves_the_parents_connections(single: Server) -> None:
    """The connections of the parent process stay as they are."""
    link = RedisClient(single.url)
    (mine,) = link.execute([("CLIENT", "ID")], PATIENT)
    parents = link._servers
    link._process = -1
    link.close()
    (other,) = link.execute([("CLIENT", "ID")], PATIENT)
    assert other != mine
    with single.client() as client:
        assert {str(mine), str(other)} <= {each["id"] for each in client.client_list()}
    link.close()
    parents.close()


async def test_close_of_an_unused_client_has_no_effect(single: Server) -> None:
    """A client without a loop has no connection to close."""
    await AsyncRedisClient(single.url).close()


def test_endless_redirects_end_after_the_maximum(linked: Linker) -> None:
    """After a few redirects the refusal is the reply."""

    def sends_on(connection: socket.socket, data: bytes) -> None:
        own = b"*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % server.port
        if b"SLOTS" in data:
            connection.sendall(b"*1\r\n*3\r\n:0\r\n:16383\r\n" + own)
        else:
            connection.sendall(b"-MOVED 1 127.0.0.1:%d\r\n" % server.port)

    with Impostor(ponging(sends_on)) as server:
        (reply,) = linked(server.url.replace("redis", "redis+cluster", 1)).execute([("GET", "a")])
        assert isinstance(reply, MovedError)
        assert sum(b"GET" in data for data in server.sent) == MAX_REDIRECTS
