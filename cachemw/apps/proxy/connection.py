"""A client's connection to the proxy: uvicorn's httptools protocol with limits, probes and a hard end.

Contains: the parts of HTTP/1 that uvicorn leaves open. Must not depend on: the app that is served.

`tests/apps/proxy/test_private_names.py` has one test for each name of uvicorn that this module overrides or
reads. Two kinds of requests need more than uvicorn offers, because common clients send them:

- `Upgrade` (sent by curl with `--http2` and by Java's HTTP client) is declined, as RFC 9110, 7.8 allows: the
  request is served as one without the header. httptools takes everything behind such a head for the other
  protocol, so a second parser reads the head again without `Upgrade`, and then the body.
- HTTP/1.0 (sent by older nginx and by health checks of load balancers) has no chunks: `without_chunks` makes
  the end of the connection the end of an answer of unknown length.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

CONNECTION = "cachemw.connection"
"""The extension of a scope under which the app finds its `Connection`."""
CYCLE = "cachemw.cycle"
"""The extension with uvicorn's state of this request: each request on a connection has its own."""
KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept. Load balancers keep theirs shorter, so they close first."""
_HEAD_SECONDS = 30.0
_PROBE_SECONDS = 0.1
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD_BYTES = 64 << 10
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER of zero seconds: close with a reset and drop unsent bytes


class Connection(HttpToolsProtocol):
    """A connection with limits on heads and trailers, which the app can break off.

    `left` is called as soon as the client has disconnected; `lost` is True from then on. ASGI's own message
    would arrive a turn of the event loop later.
    """

    left: Callable[[], None] | None = None
    lost = False
    _ended = False  # the client has closed its side for writing
    _head: asyncio.TimerHandle | None = None
    _bytes_without_progress = 0  # received since the last head or part of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request's head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the app."""
        self.lost = True
        self._head_arrived()
        super().connection_lost(exc)
        if self.left is not None:
            self.left()

    def data_received(self, data: bytes) -> None:
        """Read data; abort on an endless head, on endless trailers, and on anything else without progress."""
        self._unset_keepalive_if_required()
        before = self._progress()
        rest = data
        while rest:
            rest = self._parsed(rest)
        self._bytes_without_progress = (
            self._bytes_without_progress + len(data) if self._progress() == before else 0
        )
        if self._bytes_without_progress > _HEAD_BYTES:
            self.transport.abort()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection if a client that sends no more waits for an answer.

        A client that has closed its socket resets the connection when the proxy sends something; a client
        that has closed only its side for writing does not. Interim answers therefore probe the client until
        its answer begins: the first after `_PROBE_SECONDS`, each next one after twice as long. HTTP/1.0 has
        no interim answers: there the answer itself is the probe.
        """
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.transport.is_closing():
            return False
        cycle.keep_alive = False
        self._head_arrived()
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
        """Begin the request, and show the app its connection; a head with `Upgrade` is read again first."""
        if self.parser.should_upgrade():
            return
        self._head_arrived()
        super().on_headers_complete()
        self.scope["extensions"] = {CONNECTION: self, CYCLE: self.cycle}  # type: ignore[dict-item]
        self.headers = []  # collects trailers, which the app must not take for headers

    def on_message_complete(self) -> None:
        """End the request, and resume reading: only a read notices that the client disconnects."""
        if not self.parser.should_upgrade():
            super().on_message_complete()
            if not self.pipeline:
                self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Wait for the next request, or until the client has read all, at most for `KEEP_ALIVE`."""
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self.loop.call_later(KEEP_ALIVE, self.transport.abort)
        super().on_response_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Drop a connection that was idle, or whose client does not read."""
        self.transport.abort()

    async def drop(self, *, flush: float = 0.0) -> None:
        """Break off an answer so that it looks incomplete; bytes already sent have `flush` seconds."""
        if not self.lost and is_http_1_0(self.cycle.scope):
            # A regular end of the connection would mark the answer as whole.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        elif flush and not self.lost:
            closed = asyncio.Event()
            self.left = closed.set
            self.transport.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), flush)
        self.transport.abort()
        await asyncio.sleep(0)  # lets `connection_lost` run before the app returns

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
        """Parse data, and return the bytes for the next parser: a head without `Upgrade` and its rest."""
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
            self.send_400_response("CONNECT is not supported.")
        except HttpParserError:
            message = "The request is not valid HTTP."
            self.logger.warning("A client sent bytes that are not HTTP/1. Answered with 400.")
            self.send_400_response(message)
        return b""

    def _progress(self) -> tuple[object, ...]:
        """Return a value that changes when a head begins or ends, or when a part of a body arrives."""
        return self._head, self.cycle, len(getattr(self.cycle, "body", b""))

    def _await_head(self) -> None:
        self._head = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _head_arrived(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


def is_http_1_0(scope: Mapping[str, object]) -> bool:
    """Return True if a request came over HTTP/1.0, which has no chunks and no interim answers."""
    return scope["http_version"] == "1.0"


def without_chunks(scope: Scope, send: Send) -> Send:
    """Return a `send` for HTTP/1.0: an answer of unknown length ends with the connection, without chunks."""
    cycle: RequestResponseCycle = scope["extensions"][CYCLE]
    sized = True

    async def unchunked(message: Message) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name == b"content-length" for name, _ in message.get("headers", ()))
            if not sized:
                cycle.chunked_encoding = False
        elif not sized:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return unchunked
