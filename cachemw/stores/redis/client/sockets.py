"""redis-py's connections, with a bound on each call as a whole, and with TLS contexts that are made once.

Lives here: the one place that overrides what redis-py has no public name for. Must not know: when a connection
is opened, what is sent.

`_connect` opens a socket, `_wrap_socket_with_ssl` speaks TLS over it. Overriding the first is the only way to
bound a whole answer: redis-py bounds each part of one. Tests hold that both are called. `_writer` is what an
asyncio connection sends by; redis-py itself disconnects without a wait where a call is given up.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import RedisSSLContext

from cachemw.stores.url import FILES, Target

_NOTHING_YET = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


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
    _socket: BoundedSocket

    def _connect(self) -> BoundedSocket:
        plain = super()._connect()  # type: ignore[misc]
        patience: float = self.socket_connect_timeout  # type: ignore[attr-defined]
        self._socket = BoundedSocket(plain, time.monotonic() + patience)
        return self._socket

    def until(self, deadline: float) -> None:
        """Bound what is sent and read from here on by a time of `time.monotonic`."""
        self._socket.until(deadline)


class Plain(_Bounded, redis.Connection):
    """By TCP."""


class Tls(_Bounded, redis.SSLConnection):
    """By TLS, in a context that was made before: making one takes 50 milliseconds."""

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._context = context

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._context.get().wrap_socket(sock, server_hostname=self.host)


class _Dropping:
    _writer: asyncio.StreamWriter | None

    async def disconnect(self, nowait: bool = False, *rest: Any, **named: Any) -> None:
        """Disconnect; without a wait unsent requests, too, are dropped: who reads nothing would keep it open."""
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, *rest, **named)  # type: ignore[misc]


class AsyncPlain(_Dropping, redis.asyncio.Connection):
    """By TCP, for asyncio."""


class AsyncUnix(_Dropping, redis.asyncio.UnixDomainSocketConnection):
    """By a unix socket, for asyncio."""


class AsyncTls(_Dropping, redis.asyncio.SSLConnection):
    """By TLS, for asyncio, where the loop would stand still while a context is made."""

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = context


class Unix(_Bounded, redis.UnixDomainSocketConnection):
    """By a unix socket."""


def contexts(at: Target) -> Callable[[], RedisSSLContext]:
    """Return what makes a target's TLS context: once, and again where its files have changed."""
    told = at.parameters
    files = [Path(told[name]) for name in FILES if name in told]

    @lru_cache(1)
    def made(_changed: tuple[int, ...]) -> RedisSSLContext:
        context = RedisSSLContext(
            ca_certs=told.get("ssl_ca_certs"),
            certfile=told.get("ssl_certfile"),
            keyfile=told.get("ssl_keyfile"),
            password=told.get("ssl_password"),
            cert_reqs=told.get("ssl_cert_reqs", "required"),
            check_hostname=told.get("ssl_check_hostname") != "no",
        )
        context.get()
        return context

    return lambda: made(tuple(file.stat().st_mtime_ns for file in files))
