"""The names of redis-py without a public counterpart: one test each (see cachemw/stores/redis/client/README.md)."""

from __future__ import annotations

import asyncio
import inspect
import ssl
import time
from collections.abc import Callable

import pytest
import redis
import redis.asyncio
from redis.asyncio.connection import RedisSSLContext
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import TimeoutError as RedisTimeout

from benchmarks.redis_servers import Certificates, Server
from cachemw.stores.redis.client import connect, sockets
from cachemw.stores.redis.client.connect import Connection
from cachemw.stores.url import target
from tests.stores.links import tls

Opener = Callable[[], Connection]


def opener(server: Server, certificates: Certificates | None = None) -> Opener:
    """Return a function that opens a sync connection."""
    url = server.url if certificates is None else tls(server.url, certificates)
    opened = connect.opener(target(url), 1.0)
    return lambda: opened(None)


def check_deadline(opened: Opener) -> None:
    """Check that a connection reads a reply that has arrived, and stops waiting at its deadline."""
    connection = opened()
    assert isinstance(connection._sock, sockets.BoundedSocket)
    connection.send_command("ECHO", "late but there", check_health=False)
    time.sleep(0.05)
    connection.until(time.monotonic() - 1)
    assert connection.read_response() == b"late but there"
    connection.disconnect()
    for last_read in (False, True):
        connection = opened()
        connection.send_command("BLPOP", "none", "0.2", check_health=False)
        connection.until(time.monotonic() - 1)
        connection._sock._last = last_read
        with pytest.raises(RedisTimeout):
            connection.read_response()
        assert not connection.is_connected


def test_connect_of_a_tcp_connection_opens_the_bounded_socket(single: Server) -> None:
    """redis-py opens its sockets by `_connect`: without it, no deadline would bound a reply as a whole."""
    assert callable(redis.Connection._connect)
    check_deadline(opener(single))


def test_connect_of_a_unix_connection_opens_the_bounded_socket(by_socket: Server) -> None:
    """redis-py opens unix sockets by a `_connect` of its own."""
    assert "_connect" in vars(redis.UnixDomainSocketConnection)
    check_deadline(opener(by_socket))


def test_connect_of_a_tls_connection_opens_the_bounded_socket(
    encrypted: Server, certificates: Certificates
) -> None:
    """redis-py opens TLS connections by the `_connect` of its TCP connections."""
    check_deadline(opener(encrypted, certificates))


def test_wrap_socket_with_ssl_uses_the_shared_context(
    encrypted: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py speaks TLS by `_wrap_socket_with_ssl`: the override wraps each socket in the same context."""
    assert "_wrap_socket_with_ssl" in vars(redis.SSLConnection)
    contexts: list[ssl.SSLContext] = []
    wrap = ssl.SSLContext.wrap_socket

    def spied(context: ssl.SSLContext, *arguments: object, **options: object) -> ssl.SSLSocket:
        contexts.append(context)
        return wrap(context, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", spied)
    opened = opener(encrypted, certificates)
    for connection in (opened(), opened()):
        connection.disconnect()
    assert len(contexts) == 2
    assert contexts[0] is contexts[1]


def test_ssl_context_keeps_the_context_that_it_made() -> None:
    """`RedisSSLContext.get` makes one context, and takes the arguments that a URL can set."""
    made = RedisSSLContext(cert_reqs="none", check_hostname=False)
    assert made.get() is made.get()
    taken = inspect.signature(RedisSSLContext).parameters
    assert {"ca_certs", "certfile", "keyfile", "password", "cert_reqs", "check_hostname"} <= taken.keys()


async def test_ssl_context_of_an_async_connection_is_the_shared_one(
    encrypted: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """redis-py's asyncio connection reads its context from `ssl_context`."""
    made = []
    get = RedisSSLContext.get

    def spied(self: RedisSSLContext) -> ssl.SSLContext:
        made.append(self)
        return get(self)

    opened = connect.async_opener(target(tls(encrypted.url, certificates)), 1.0)
    first = await opened(None)
    monkeypatch.setattr(RedisSSLContext, "get", spied)
    second = await opened(None)
    assert first.ssl_context is second.ssl_context
    assert second.ssl_context in made
    await asyncio.gather(connect.ended(first), connect.ended(second))


async def test_writer_of_an_async_connection_is_aborted_without_a_wait(single: Server) -> None:
    """redis-py sends by `_writer`: aborting its transport drops the unsent part of a request."""
    connection = await connect.async_opener(target(single.url), 1.0)(None)
    transport = connection._writer.transport
    try:
        connection._writer.write(b"".join(connection.pack_command("SET", "a", b"x" * 50_000_000)))
        assert transport.get_write_buffer_size() > 0
    finally:
        await connection.disconnect(nowait=True)
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    await asyncio.sleep(0)


def test_key_slot_is_that_of_the_cluster_specification() -> None:
    """The specification gives the slot of one key, and only the part in braces counts."""
    assert REDIS_CLUSTER_HASH_SLOTS == 16384
    assert key_slot(b"123456789") == 0x31C3 == key_slot(b"a{123456789}b")
