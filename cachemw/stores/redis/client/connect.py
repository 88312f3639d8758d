"""The opening of one connection to Redis.

Contains: the class of redis-py for a target, and the steps until a connection is open: name look-up, connect,
TLS, login and one PING, which detects a server that accepts connections and never replies. Must not depend
on: calls, pools, slots.

The patience in seconds bounds each wait of these steps except the name look-up, which has no bound. So the
pools open connections in the background.
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

Connection: TypeAlias = Any  # redis-py's, sync or async; the two have no common base
T = TypeVar("T")

# A sentinel answers from memory, so a slow one is of no use.
_SENTINEL_PATIENCE = 0.5
_GOODBYE = 1.0


def opener(at: Target, patience: float) -> Callable[[Address | None], Connection]:
    """Return a function that opens a connection to an address, or to the target itself for None."""
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
    # Any reply will do, since this user may lack the permission.
    with suppress(ResponseError):
        connection.read_response()
    return connection


def _master(at: Target, patience: float, tls: dict[str, Any]) -> Address:
    # A new one each time: `Sentinel` is not thread-safe, and opening is rare.
    kind: Any = redis.sentinel.Sentinel
    with kind(at.hosts, sentinel_kwargs=_sentinels(at, patience, Retry)) as sentinels:
        _secured(sentinels, Tls, tls)
        return _address(sentinels.discover_master(at.service))


def async_opener(at: Target, patience: float) -> Callable[[Address | None], Awaitable[Connection]]:
    """Return a coroutine function that does the same for asyncio."""
    options = _login(at) | {"socket_timeout": None, "retry": AsyncRetry(NoBackoff(), 0)}
    context = contexts(at)

    async def connect(address: Address | None) -> Connection:
        if at.path:
            by_path: Any = AsyncUnix
            return await _async_opened(by_path(path=at.path, **options))
        tls = {"context": await _on_a_thread(context)} if at.tls else {}
        host, port = address or (await _async_master(at, patience, tls) if at.service else at.hosts[0])
        # The loop repeats the look-up and gets the answer from the resolver's cache.
        with suppress(OSError, UnicodeError):
            await _on_a_thread(lambda: socket.getaddrinfo(host, None))
        kind: Any = AsyncTls if at.tls else AsyncPlain
        return await _async_opened(kind(host=host, port=port, **options, **tls))

    async def bounded(address: Address | None) -> Connection:
        async with asyncio.timeout(patience):
            return await connect(address)

    return bounded


async def _on_a_thread(work: Callable[[], T]) -> T:
    """Run a function on a new thread, and return its result.

    The few threads of the loop's executor belong to the application. A silent name server would block each of
    them for half a minute.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def hand_over(error: Exception | None, result: Any) -> None:
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
            loop.call_soon_threadsafe(hand_over, error, result)

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
    """Close a connection, and wait a moment for the server's part of the TLS shutdown."""
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
            # A slow shutdown must not lose the address.
            with suppress(RedisError):
                await sentinel.aclose()


def _login(at: Target) -> dict[str, Any]:
    # Protocol 2 without a driver name saves round trips, and its replies have one shape in all versions.
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
