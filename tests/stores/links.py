"""Clients of both kinds with one interface, and a server that misbehaves as a test demands."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

from redis.exceptions import RedisError

from benchmarks.redis_servers import Certificates
from cachemw.stores.redis import commands
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient
from cachemw.stores.redis.commands import Command

SCRIPT = "for i = 1, #KEYS do redis.call('INCR', KEYS[i]) end return redis.call('GET', KEYS[1])"
SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()
PATIENT = 20.0
# Seconds that a busy machine may add to a call.
SLACK = 5.0


def count(*keys: bytes) -> Command:
    """Return the command that adds one to each key."""
    return commands.run(SCRIPT, keys)


class Twin:
    """A client of one kind with a sync interface; an async one runs in a loop of its own."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.link: Any = RedisClient(url, **options) if kind == "sync" else AsyncRedisClient(url, **options)
        self._runner = None if kind == "sync" else asyncio.Runner()
        self._tls = url.startswith("rediss")

    def execute(self, sent: Sequence[Command], seconds: float = PATIENT) -> list[Any]:
        if self._runner is None:
            return self.link.execute(sent, seconds)
        return self._runner.run(self.link.execute(sent, seconds))

    def pause(self, seconds: float) -> None:
        if self._runner is None:
            time.sleep(seconds)
        else:
            self._runner.run(asyncio.sleep(seconds))

    def until(self, sent: Command, seconds: float = 60.0, budget: float = 0.2) -> Any:
        """Return the first reply without an error."""
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
            if self._tls:
                # The loop needs a moment to shut down the TLS of a refused connection.
                self.pause(0.1)
            self._runner.close()


Linker = Callable[..., Twin]


class Impostor:
    """A server that speaks as a test demands, on threads, and records all requests."""

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
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    """Answer PING by itself, and other requests by `speak`."""

    def both(connection: socket.socket, data: bytes) -> None:
        if b"PING" in data:
            connection.sendall(b"+PONG\r\n")
        else:
            speak(connection, data)

    return both


def tls(url: str, certificates: Certificates, **changes: str) -> str:
    """Return a URL with the parameters of TLS."""
    options = certificates.client_options() | changes
    query = "&".join(f"{name}={value}" for name, value in options.items() if value)
    return url + ("&" if "?" in url else "?") + query
