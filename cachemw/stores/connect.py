"""Connections to Redis, one at a time: opened to the end, and bounded in what a call may wait for them.

Lives here: which of redis-py's classes a target means, and what "open" is: name looked up, connected, TLS
spoken, logged in, and one PING answered, so that a server which takes connections and does not speak is
found out here. Must not know: calls, pools, slots.

Each wait of opening is bounded by the patience in seconds; looking up a name is not, by anything, so
the pools do all of this in the background.

`_connect` is redis-py's hook for what opens a socket and has no public name. Overriding it is the only way
to bound a whole answer: redis-py bounds each part of one. A test holds that it is called.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from cachemw.stores.url import Address, Target

Connection: TypeAlias = Any  # redis-py's, sync or async: the two share no typed face

_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
# What sentinels are asked for is known to them: one that does not answer soon is no help.
_SENTINEL_PATIENCE = 0.5
_GOODBYE = 0.1


class BoundedSocket:
    """Be the socket it is given, except that no wait ends later than `until` said.

    What has arrived by then is read, once: a thread that came late to its answer still gets it.
    """

    def __init__(self, plain: socket.socket, deadline: float) -> None:
        self._socket = plain
        self.until(deadline)

    def until(self, deadline: float) -> None:
        """Bound all waits from here on by a time of `time.monotonic`."""
        self._deadline, self._last = deadline, False

    def recv_into(self, buffer: Any) -> int:
        """Receive as a socket does."""
        return int(self._in_time(self._socket.recv_into, buffer))

    def recv(self, *arguments: int) -> bytes:
        """Receive as a socket does."""
        return bytes(self._in_time(self._socket.recv, *arguments))

    def sendall(self, packed: bytes) -> None:
        """Send as a socket does; with TLS, too, all of it within the bound."""
        left = memoryview(packed)
        while left:
            left = left[self._in_time(self._socket.send, left) :]

    def settimeout(self, seconds: float | None) -> None:
        """Do nothing: redis-py's own timeouts are longer."""

    def _in_time(self, act: Callable[..., Any], *arguments: Any) -> Any:
        left = self._deadline - time.monotonic()
        if left <= 0:
            if self._last:
                raise TimeoutError
            self._last, left = True, 0
        self._socket.settimeout(left)
        try:
            return act(*arguments)
        except _NOTHING_YET:
            raise TimeoutError from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


class _Bounded:
    socket_connect_timeout: float
    _socket: BoundedSocket

    def _connect(self) -> BoundedSocket:
        plain = super()._connect()  # type: ignore[misc]
        self._socket = BoundedSocket(plain, time.monotonic() + self.socket_connect_timeout)
        return self._socket

    def until(self, deadline: float) -> None:
        """Bound what is sent and read from here on by a time of `time.monotonic`."""
        self._socket.until(deadline)


class _Plain(_Bounded, redis.Connection):
    pass


class _Tls(_Bounded, redis.SSLConnection):
    pass


class _Unix(_Bounded, redis.UnixDomainSocketConnection):
    pass


def opener(at: Target, patience: float) -> Callable[[Address | None], Connection]:
    """Return what opens a connection: to an address, or, told none, to where the target itself is."""
    options = _login(at) | _waits(patience) | {"retry": Retry(NoBackoff(), 0)}

    def connect(address: Address | None) -> Connection:
        if at.path:
            return _opened(_Unix(path=at.path, **options))
        host, port = address or (_master(at, patience) if at.service else at.hosts[0])
        return _opened((_Tls if at.tls else _Plain)(host=host, port=port, **options, **_tls(at)))

    return connect


def _opened(connection: Connection) -> Connection:
    connection.connect()
    connection.send_command("PING", check_health=False)
    # Any answer will do: this user may not be allowed to ask.
    with suppress(ResponseError):
        connection.read_response()
    return connection


def _master(at: Target, patience: float) -> Address:
    # A new one each time: `Sentinel` is not made for several threads, and opening is rare.
    with redis.sentinel.Sentinel(at.hosts, sentinel_kwargs=_sentinels(at, patience, Retry)) as sentinels:
        return _address(sentinels.discover_master(at.service))


def async_opener(at: Target, patience: float) -> Callable[[Address | None], Awaitable[Connection]]:
    """Return the same for asyncio."""
    options = _login(at) | {"socket_timeout": None, "retry": AsyncRetry(NoBackoff(), 0)}

    async def connect(address: Address | None) -> Connection:
        if at.path:
            return await _async_opened(redis.asyncio.UnixDomainSocketConnection(path=at.path, **options))
        host, port = address or (await _async_master(at, patience) if at.service else at.hosts[0])
        await _looked_up(host)
        kind = redis.asyncio.SSLConnection if at.tls else redis.asyncio.Connection
        return await _async_opened(kind(host=host, port=port, **options, **_tls(at)))

    async def bounded(address: Address | None) -> Connection:
        async with asyncio.timeout(patience):
            return await connect(address)

    return bounded


async def _looked_up(host: str) -> None:
    """Look a name up on a thread of its own: those of the loop's executor are the application's.

    A name server that does not answer keeps a thread for half a minute, and there are few of them. What is
    found is not used: the loop asks again, and is answered.
    """
    loop = asyncio.get_running_loop()
    found = loop.create_future()

    def tell() -> None:
        if not found.done():
            found.set_result(None)

    def look() -> None:
        with suppress(OSError, UnicodeError):
            socket.getaddrinfo(host, None)
        # The loop may have ended.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=look, name="cachemw-connect", daemon=True).start()
    await found


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


async def _async_master(at: Target, patience: float) -> Address:
    sentinels = redis.asyncio.sentinel.Sentinel(
        at.hosts, sentinel_kwargs=_sentinels(at, patience, AsyncRetry)
    )
    try:
        return _address(await sentinels.discover_master(at.service))
    finally:
        for sentinel in sentinels.sentinels:
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


def _tls(at: Target) -> dict[str, Any]:
    if not at.tls:
        return {}
    told: dict[str, Any] = {name: at.parameters[name] for name in at.parameters if name.startswith("ssl_")}
    return told | {"ssl_check_hostname": told.get("ssl_check_hostname") != "no"}


def _sentinels(at: Target, patience: float, retry: Any) -> dict[str, Any]:
    return {
        "username": at.parameters.get("sentinel_username"),
        "password": at.parameters.get("sentinel_password"),
        "driver_info": None,
        "protocol": 2,
        "retry": retry(NoBackoff(), 0),
        "ssl": at.tls,
        **_waits(min(patience, _SENTINEL_PATIENCE)),
        **_tls(at),
    }


def _address(found: Sequence[Any]) -> Address:
    return str(found[0]), int(found[1])
