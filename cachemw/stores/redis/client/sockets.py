"""redis-py's connections with a deadline for each whole call, and with shared TLS contexts.

Contains: all uses of private names of redis-py; README.md lists them with the reason and the test of each.
Must not depend on: the time at which a connection is opened, commands.
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
    """A socket that waits until a deadline at most.

    After the deadline it still reads once without a wait: a delayed thread gets a reply that has arrived.
    """

    def __init__(self, plain: socket.socket, deadline: float) -> None:
        self._socket = plain
        self.until(deadline)

    def until(self, deadline: float) -> None:
        """Set the deadline of all later waits, a time of `time.monotonic`."""
        self._deadline, self._last = deadline, False

    def recv_into(self, buffer: Any) -> int:
        """Receive as a socket does."""
        return int(self._in_time(self._socket.recv_into, buffer))

    def recv(self, *arguments: int) -> bytes:
        """Receive as a socket does."""
        return bytes(self._in_time(self._socket.recv, *arguments))

    def sendall(self, packed: bytes) -> None:
        """Send as a socket does, with all parts before the deadline, also over TLS."""
        left = memoryview(packed)
        while left:
            left = left[self._in_time(self._socket.send, left) :]

    def settimeout(self, seconds: float | None) -> None:
        """Ignore redis-py's own timeouts, which are longer."""

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
        """Set the deadline of all later sends and reads, a time of `time.monotonic`."""
        self._socket.until(deadline)


class Plain(_Bounded, redis.Connection):
    """A TCP connection."""


class Tls(_Bounded, redis.SSLConnection):
    """A TLS connection with a shared context: making one takes 50 milliseconds."""

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._context = context

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> ssl.SSLSocket:
        return self._context.get().wrap_socket(sock, server_hostname=self.host)


class _Dropping:
    _writer: asyncio.StreamWriter | None

    async def disconnect(self, nowait: bool = False, *rest: Any, **named: Any) -> None:
        """Disconnect. With `nowait`, drop unsent requests too.

        A server that does not read would keep the socket open.
        """
        if nowait and self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(nowait, *rest, **named)  # type: ignore[misc]


class AsyncPlain(_Dropping, redis.asyncio.Connection):
    """A TCP connection for asyncio."""


class AsyncUnix(_Dropping, redis.asyncio.UnixDomainSocketConnection):
    """A unix socket connection for asyncio."""


class AsyncTls(_Dropping, redis.asyncio.SSLConnection):
    """A TLS connection for asyncio with a shared context: making one would block the loop."""

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = context


class Unix(_Bounded, redis.UnixDomainSocketConnection):
    """A unix socket connection."""


def contexts(at: Target) -> Callable[[], RedisSSLContext]:
    """Return a function that returns a target's TLS context, a new one after a change of its files."""
    options = at.parameters
    files = [Path(options[name]) for name in FILES if name in options]

    @lru_cache(1)
    def made(_changed: tuple[int, ...]) -> RedisSSLContext:
        context = RedisSSLContext(
            ca_certs=options.get("ssl_ca_certs"),
            certfile=options.get("ssl_certfile"),
            keyfile=options.get("ssl_keyfile"),
            password=options.get("ssl_password"),
            cert_reqs=options.get("ssl_cert_reqs", "required"),
            check_hostname=options.get("ssl_check_hostname") != "no",
        )
        context.get()
        return context

    return lambda: made(tuple(file.stat().st_mtime_ns for file in files))
