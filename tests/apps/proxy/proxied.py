"""The proxy in a thread, a raw upstream that does as it is told, and a raw client."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import uvicorn

from cachemw.apps.proxy.reverse_proxy import Limits
from cachemw.apps.proxy.server import Options, Proxy
from cachemw.apps.proxy.serving import config, listen

QUICK = Limits(connect=1.0, first_byte=0.5, idle=0.3)


class Proxied:
    """A proxy that runs: its address, its middleware, and the connections of its clients."""

    def __init__(self, port: int, app: Proxy, connections: Collection[Any]) -> None:
        self.connections = connections
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.mw: Any = app._app._cachemw

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        """Return a connection, with a receive buffer of so many bytes."""
        made = socket.socket()
        if buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.settimeout(10)
        made.connect(("127.0.0.1", self.port))
        return made

    def ask(self, *raw: bytes) -> bytes:
        """Return everything that comes back for raw bytes until the connection ends."""
        with closing(self.connect()) as made:
            for part in raw:
                made.sendall(part)
            return rest(made)


@contextmanager
def proxying(
    upstream: str, *, limits: Limits | None = None, send_buffer: int = 0, **options: Any
) -> Iterator[Proxied]:
    """Run the proxy on a free port; fields of `Options`, and settings as `fields`."""
    fields = {"provider": "databricks", **options.pop("fields", {})}
    app = Proxy(Options(upstream, limits=limits or Limits(), fields=fields, **options))
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = uvicorn.Server(config(lambda: app, drain=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started, "the proxy runs")
    try:
        yield Proxied(listener.getsockname()[1], app, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


class Raw:
    """An upstream of one function that is given each connection with what was read of its first request."""

    def __init__(self, handle: Callable[[socket.socket, bytes], None]) -> None:
        self.arrived: list[bytes] = []
        self.left = 0
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                made, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(made,), daemon=True).start()

    def _serve(self, made: socket.socket) -> None:
        with closing(made), suppress(OSError):
            whole = request(made)
            self.arrived.append(whole)
            self._handle(made, whole)
        self.left += 1

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


@contextmanager
def raw(handle: Callable[[socket.socket, bytes], None] | bytes) -> Iterator[Raw]:
    """Run a raw upstream: a function of its connection and the request, or the bytes that it answers."""
    given = handle
    served = Raw(given if callable(given) else lambda made, _: made.sendall(given))
    try:
        yield served
    finally:
        served.close()


def request(made: socket.socket) -> bytes:
    """Return one request with its body, by its content-length."""
    got = b""
    while b"\r\n\r\n" not in got:
        part = made.recv(65_536)
        if not part:
            return got
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    ]
    parts, left = [got], int(lengths[0] if lengths else 0) - len(body)
    while left > 0 and (part := made.recv(1 << 20)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def rest(made: socket.socket) -> bytes:
    """Return all that a connection still brings until it ends."""
    parts = []
    with suppress(ConnectionResetError):
        while part := made.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def until(true: Callable[[], Any], what: str, seconds: float = 10.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.005)
