"""The proxy in a thread, a raw upstream with a given behaviour, a raw client, and requests."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import uvicorn

from cachemw.apps.proxy.reverse_proxy import Limits
from cachemw.apps.proxy.server import Proxy, ProxyOptions
from cachemw.apps.proxy.serving import config, listen
from tests.clients.recorder import conversation

QUICK = Limits(connect=10.0, first_byte=30.0, idle=1.0)
"""Limits that end a stalled answer soon, and that a slow machine still keeps."""
PATIENCE = 30.0
"""Seconds until a test gives up. No passing test waits so long."""
CHAT = "/serving-endpoints/chat/completions"
LONG = "A support agent reads the policy, looks at the order and answers in two sentences. " * 120
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


def chat(headers: dict[str, str] | None = None, path: str = CHAT, **more: Any) -> dict[str, Any]:
    """Return the arguments of httpx2 that send the conversation."""
    return {"method": "POST", "url": path, "json": {**conversation(), **more}, "headers": headers or {}}


def post(body: bytes, *headers: str, path: str = CHAT) -> bytes:
    """Return a raw POST."""
    lines = [f"POST {path} HTTP/1.1", "host: proxy", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def jwt(**claims: Any) -> str:
    """Return a token with a random signature, of one issuer and subject unless `claims` name others."""
    parts = [{"alg": "RS256"}, {"iss": "https://accounts.example.com", "sub": "victim", **claims}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, base64.urlsafe_b64encode(os.urandom(24)).decode()])


class Proxied:
    """A running proxy: its address, its middleware, and the connections of its clients."""

    def __init__(self, port: int, app: Proxy, connections: Collection[Any]) -> None:
        self.connections = connections
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.mw: Any = app._app._cachemw

    def connect(self, *, buffer: int | None = None) -> socket.socket:
        """Return a connection, optionally with a receive buffer of this size."""
        made = socket.socket()
        if buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        made.settimeout(PATIENCE)
        made.connect(("127.0.0.1", self.port))
        return made

    def ask(self, *raw: bytes) -> bytes:
        """Send raw bytes, and return all bytes of the answer until the connection ends."""
        with closing(self.connect()) as made:
            for part in raw:
                made.sendall(part)
            return rest(made)


class _Server(uvicorn.Server):
    """A server that stops at once: uvicorn's own main loop looks for its end each tenth of a second."""

    def __init__(self, settings: uvicorn.Config) -> None:
        super().__init__(settings)
        self.serves, self._stopped = threading.Event(), asyncio.Event()

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.serves.set()
        await self._stopped.wait()

    def stop(self) -> None:
        """End the main loop, from another thread."""
        self._loop.call_soon_threadsafe(self._stopped.set)


@contextmanager
def proxying(
    upstream: str, *, limits: Limits | None = None, send_buffer: int = 0, **options: Any
) -> Iterator[Proxied]:
    """Run the proxy on a free port, with fields of `ProxyOptions`, and settings as `fields`."""
    fields = {"provider": "databricks", **options.pop("fields", {})}
    app = Proxy(ProxyOptions(upstream, limits=limits or Limits(), fields=fields, **options))
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = _Server(config(lambda: app, drain=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert server.serves.wait(PATIENCE)
    try:
        yield Proxied(listener.getsockname()[1], app, server.server_state.connections)
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Raw:
    """An upstream that calls a function with each connection and the first request on it."""

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
    """Run a raw upstream: a function of connection and request, or the bytes of each answer."""
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
    """Return all further bytes of a connection until it ends."""
    parts = []
    with suppress(ConnectionResetError):
        while part := made.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def until(true: Callable[[], Any], expected: str, seconds: float = PATIENCE) -> None:
    """Wait until a condition holds; fail with its description after some seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, expected
        time.sleep(0.005)
