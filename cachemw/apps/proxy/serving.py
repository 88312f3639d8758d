"""How the proxy is served: connections with limits, a drain on SIGTERM, several workers.

Lives here: what is added to uvicorn. Must not know: what is served.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors import Multiprocess

from cachemw.errors import ConfigError

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent

CONNECTION = "cachemw.connection"
"""The extension of a scope under which the app finds its `Connection`."""
CYCLE = "cachemw.cycle"
"""The same for uvicorn's state of this request: of several on a connection, each has its own."""
KEEP_ALIVE = 75
"""Seconds that an idle connection is kept: longer than load balancers do, who should be the first to close."""
# Parameters of glibc's mallopt(3): where separate mappings begin, and how much stays that is free.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_HEAD_SECONDS = 30.0
_PROBE_SECONDS = 0.1
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # linger for no second: a reset, and what is not sent is dropped


class Connection(HttpToolsProtocol):
    """A connection whose requests must begin soon and briefly, and which the app can break off.

    `left` is called when the client has gone, which `lost` says: quicker than a task that waits for ASGI's
    message.
    """

    left: Callable[[], None] | None = None
    lost = False
    _ended = False  # the client sends no more
    _head: asyncio.TimerHandle | None = None
    _vain = 0  # bytes since a head or a part of a body came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers."""
        self.lost = True
        self._head_came()
        super().connection_lost(exc)
        if self.left is not None:
            self.left()

    def data_received(self, data: bytes) -> None:
        """Read what comes, but no endless head or trailers, or anything else that is no body."""
        self._unset_keepalive_if_required()
        before = self._progress()
        rest = data
        while rest:
            rest = self._parsed(rest)
        self._vain = self._vain + len(data) if self._progress() == before else 0
        if self._vain > _HEAD_BYTES:
            self.transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection where a client that sends no more waits for an answer.

        TCP tells a client that has closed its socket from one that only sends no more when something is sent to it:
        the closed one resets the connection. So interim answers probe a client until its answer begins, the first
        after `_PROBE_SECONDS`, each next one after twice as long. HTTP/1.0 has none: its answer itself is the probe.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.transport.is_closing():
            return False
        cycle.keep_alive = False
        self._head_came()
        if not self._ended:
            self._ended = True
            self._probe_after(_PROBE_SECONDS)
        return True

    def on_message_begin(self) -> None:
        """Wait for the rest of the head."""
        super().on_message_begin()
        if self._head is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Begin the request, and show the app its connection. One to upgrade is yet to be read."""
        if self.parser.should_upgrade():
            return
        self._head_came()
        super().on_headers_complete()
        self.scope["extensions"] = {CONNECTION: self, CYCLE: self.cycle}  # type: ignore[dict-item]
        self.headers = []  # trailers come here, where nobody takes them for headers
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _Unchunked

    def on_message_complete(self) -> None:
        """End the request, and read on after a large body: only who reads sees that a client leaves."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            if not self.pipeline:
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, or until the client has read all; not for ever."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(KEEP_ALIVE, self.transport.abort)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Drop a connection that was idle, or whose client does not read."""
        self.transport.abort()

    async def drop(self, *, flush: float = 0.0) -> None:
        """End the connection, so that nobody takes what they have for the whole; what is sent has `flush` seconds."""
        if not self.lost and isinstance(self.cycle, _Unchunked):
            # The end of the connection says that this is the whole, unless it does not end well.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif flush and not self.lost:
            gone = asyncio.Event()
            self.left = gone.set
            self.transport.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), flush)
        self.transport.abort()
        await asyncio.sleep(0)  # the server hears of it before the app returns

    def _probe_after(self, seconds: float) -> None:
        """Send an interim answer then, and again, until the last request's answer begins."""
        cycle = self.cycle

        def probe() -> None:
            if self.lost or cycle.response_started:
                return
            if not self.pipeline:
                self.transport.write(_INTERIM)
            self._probe_after(2 * seconds)

        if cycle.scope["http_version"] == "1.1":
            self.loop.call_later(seconds, probe)

    def _parsed(self, data: bytes) -> bytes:
        """Parse it, and return what is yet to be: a request to upgrade once more, as one that does not ask for it.

        Else its body would be taken for what speaks the other protocol.
        """
        parser = self.parser
        try:
            parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            method, version = parser.get_method(), parser.get_http_version().encode()
            if method != b"CONNECT":
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                kept = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] != b"upgrade"]
                head = b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(kept))
                return head + data[upgrade.args[0] :]
            self.send_400_response("A tunnel is not to be had here.")
        except HttpParserError:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            self.send_400_response(message)
        return b""

    def _progress(self) -> tuple[object, ...]:
        """Return what changes whenever a head begins or ends, or a part of a body has come."""
        return self._head, self.cycle, len(getattr(self.cycle, "body", b""))

    def _await_head(self) -> None:
        self._head = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class _Unchunked(RequestResponseCycle):
    """An answer over HTTP/1.0, which has no chunks: one of unknown length ends with the connection."""

    _sized = True

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self._sized = any(name == b"content-length" for name, _ in message.get("headers", ()))
            if not self._sized:
                self.chunked_encoding = False
        elif not self._sized and message["type"] == "http.response.body":
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class Drain:
    """Whether the process is about to stop: new requests are still taken for `delay` seconds after SIGTERM."""

    def __init__(self, delay: float) -> None:
        self.begun = False
        self._delay = delay

    def listen(self) -> None:
        """Put ourselves before the server's own handler; call it in the event loop."""
        if threading.current_thread() is not threading.main_thread():
            return
        stop, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()
        assert callable(stop)

        def begin(number: int, frame: FrameType | None) -> None:
            again, self.begun = self.begun, True
            if again or not self._delay:
                stop(number, frame)
            else:
                loop.call_soon_threadsafe(loop.call_later, self._delay, stop, number, None)

        signal.signal(signal.SIGTERM, begin)


def keep_memory() -> None:
    """Let the C library keep memory that is freed: a request of 400 KB is copied some ten times on its way.

    Each copy in fresh pages of the system's costs more than the copying (0.6 of 1.7 ms measured). glibc only.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, most in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20)):
            mallopt(parameter, most)


def freeze_loaded() -> None:
    """Take modules and all else that is loaded by now out of the garbage collector's passes.

    A request with 80,000 values makes it pass over everything there is: 20 ms, of which modules take nearly all.
    """
    gc.collect()
    gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens there; `ConfigError` where that can't be."""
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With the protocol named, asyncio switches Nagle's algorithm off.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(f"port {port} of {host!r} can't be served: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener


def config(build: Callable[[], Any], *, workers: int = 1, drain: int = 30) -> Config:
    """Return how uvicorn serves what `build` returns: nothing of its own in answers, nothing logged but failures."""
    return Config(
        build,
        factory=True,
        http=Connection,
        ws="none",
        lifespan="on",
        workers=workers,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=drain,
    )


def serve(served: Config, listener: socket.socket) -> None:
    """Serve until SIGTERM, then as long as answers under way may take."""
    if served.workers > 1:
        _Workers(served, sockets=[listener]).run()
        return
    signal.signal(signal.SIGTERM, _leave)  # the server raises the signal again when it is done
    Server(served).run(sockets=[listener])


class _Workers(Multiprocess):
    """Workers that refuse new connections while they drain: the parent's socket would take them for nobody."""

    def terminate_all(self) -> None:
        super().terminate_all()
        for listener in self.sockets:
            listener.close()


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
