"""Connections to Redis, one at a time: opened to the end, and bounded in what a call may wait for them.

Lives here: which of redis-py's classes a target means, and what "open" is: name looked up, connected, TLS
spoken, logged in, and one PING answered, so that a server which takes connections and does not speak is
found out here. Must not know: calls, pools, slots.

Each wait of opening is bounded by the patience in seconds; looking up a name is not, by anything, so the
pools do all of this in the background.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from cachemw.stores.redis.client.sockets import AsyncPlain, AsyncTls, AsyncUnix, Plain, Tls, Unix, contexts
from cachemw.stores.url import Address, Target
from cachemw.threads import start

Connection: TypeAlias = Any  # redis-py's, sync or async: the two share no typed face
T = TypeVar("T")

# What sentinels are asked for is known to them: one that does not answer soon is no help.
_SENTINEL_PATIENCE = 0.5
_GOODBYE = 1.0


def opener(at: Target, patience: float) -> Callable[[Address | None], Connection]:
    """Return what opens a connection: to an address, or, told none, to where the target itself is."""
    options = _login(at) | _waits(patience) | {"retry": Retry(NoBackoff(), 0)}
    context = contexts(at)

    def connect(address: Address | None) -> Connection:
        if at.path:
            by_path: Any = Unix
            return _opened(by_path(path=at.path, **options))
        tls = {"context": context()} if at.tls else {}
        host, port = address or (_master(at, patience, tls) if at.service else at.hosts[0])
        return _opened((Tls if at.tls else Plain)(host=host, port=port, **options, **tls))

    return connect


def _opened(connection: Connection) -> Connection:
    connection.connect()
    connection.send_command("PING", check_health=False)
    # Any answer will do: this user may not be allowed to ask.
    with suppress(ResponseError):
        connection.read_response()
    return connection


def _master(at: Target, patience: float, tls: dict[str, Any]) -> Address:
    # A new one each time: `Sentinel` is not made for several threads, and opening is rare.
    kind: Any = redis.sentinel.Sentinel
    with kind(at.hosts, sentinel_kwargs=_sentinels(at, patience, Retry)) as sentinels:
        _secured(sentinels, Tls, tls)
        return _address(sentinels.discover_master(at.service))


def async_opener(at: Target, patience: float) -> Callable[[Address | None], Awaitable[Connection]]:
    """Return the same for asyncio."""
    options = _login(at) | {"socket_timeout": None, "retry": AsyncRetry(NoBackoff(), 0)}
    context = contexts(at)

    async def connect(address: Address | None) -> Connection:
        if at.path:
            by_path: Any = AsyncUnix
            return await _async_opened(by_path(path=at.path, **options))
        tls = {"context": await _on_a_thread(context)} if at.tls else {}
        host, port = address or (await _async_master(at, patience, tls) if at.service else at.hosts[0])
        # What is found is not used: the loop asks again, and is answered.
        with suppress(OSError, UnicodeError):
            await _on_a_thread(lambda: socket.getaddrinfo(host, None))
        kind: Any = AsyncTls if at.tls else AsyncPlain
        return await _async_opened(kind(host=host, port=port, **options, **tls))

    async def bounded(address: Address | None) -> Connection:
        async with asyncio.timeout(patience):
            return await connect(address)

    return bounded


async def _on_a_thread(work: Callable[[], T]) -> T:
    """Do work on a thread of its own: the few of the loop's executor are the application's.

    A name server that does not answer would keep each of them for half a minute.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(error: Exception | None, result: Any) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)

    def run() -> None:
        error, result = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        # The loop may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell, error, result)

    start(run)
    return await done


async def _async_opened(connection: Connection) -> Connection:
    try:
        await connection.connect()
        await connection.send_command("PING", check_health=False)
        with suppress(ResponseError):
            await connection.read_response()
        return connection
    except BaseException:
        await connection.disconnect(nowait=True)
        raise


async def ended(connection: Connection) -> None:
    """Disconnect to the end: with TLS that takes the server's part, which is waited for a moment only."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE):
            await connection.disconnect()


async def _async_master(at: Target, patience: float, tls: dict[str, Any]) -> Address:
    kind: Any = redis.asyncio.sentinel.Sentinel
    sentinels = kind(at.hosts, sentinel_kwargs=_sentinels(at, patience, AsyncRetry))
    _secured(sentinels, AsyncTls, tls)
    try:
        return _address(await sentinels.discover_master(at.service))
    finally:
        for sentinel in sentinels.sentinels:
            # What is known by now is not lost by a goodbye that takes long.
            with suppress(RedisError):
                await sentinel.aclose()


def _login(at: Target) -> dict[str, Any]:
    # Protocol 2 and no driver's name spare round trips, and replies have one shape in every version.
    return {
        "username": at.username or None,
        "password": at.password or None,
        "db": at.db,
        "protocol": 2,
        "driver_info": None,
    }


def _waits(seconds: float) -> dict[str, Any]:
    return {"socket_timeout": seconds, "socket_connect_timeout": seconds}


def _sentinels(at: Target, patience: float, retry: Any) -> dict[str, Any]:
    return {
        "username": at.parameters.get("sentinel_username"),
        "password": at.parameters.get("sentinel_password"),
        "driver_info": None,
        "protocol": 2,
        "retry": retry(NoBackoff(), 0),
        **_waits(min(patience, _SENTINEL_PATIENCE)),
    }


def _secured(sentinels: Any, kind: Any, tls: dict[str, Any]) -> None:
    for sentinel in sentinels.sentinels:
        if tls:
            sentinel.connection_pool.connection_class = kind
            sentinel.connection_pool.connection_kwargs.update(tls)


def _address(found: Sequence[Any]) -> Address:
    return str(found[0]), int(found[1])
