"""Pass a request on over HTTP and its answer back, as an ASGI app.

Lives here: headers that end at a hop, time limits, and what becomes of errors and of a client that leaves. Must
not know: what is in a body. A request comes whole, an answer goes on chunk by chunk as it comes.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE
from yarl import URL

from cachemw.apps.proxy.problems import ProxyError
from cachemw.apps.proxy.serving import CONNECTION, CYCLE, Connection

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Headers = Iterable[tuple[bytes, bytes]]

_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
_OURS = _HOP | {b"host", b"content-length", b"expect"}
# What the library adds by itself.
_ADDED = ("accept", "accept-encoding", "content-type", "user-agent")
# Bytes of a body up to which it is written with the head, copied behind it; those of a longer one that are, and
# those in each part of its rest.
_SHORT, _FIRST, _PART = 64 << 10, 4 << 10, 1 << 20
_HEADER_BYTES = 64 << 10
_BODILESS = (204, 304)
_NO_HTTP = "the upstream answered with something that is not HTTP"


@dataclass(frozen=True)
class Limits:
    """Seconds: to be connected, until an answer begins, and between two parts of a body."""

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 120.0


class ReverseProxy:
    """Pass what comes on to the server at `url`; the headers named in `dropped` stay here.

    `proxy` is the URL of one to go through. What serves the app must be a `serving.Connection`.
    """

    def __init__(
        self, url: str, limits: Limits, *, dropped: Iterable[bytes] = (), proxy: str | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._limits = limits
        self._ours = _OURS | set(dropped)
        self._proxy = proxy
        self._session: aiohttp.ClientSession

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the app.

        Raises `ProxyError` where there is no answer, and nothing of one has gone out to the client.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        body = (await receive()).get("body", b"")
        connection: Connection = scope["extensions"][CONNECTION]
        if connection.lost:  # while it was decided what to send
            return
        client = _ClientWatch(scope)
        try:
            await self._pass(scope, body, client, send)
        except asyncio.CancelledError:
            if not client.left():
                raise
        except ProxyError:
            client.done = True
            if not client.started:
                raise
            await connection.drop(flush=0.0 if client.stalled else self._limits.idle)
        finally:
            client.release()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30, socket_factory=self._socket)
        async with aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_ADDED,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(connect=self._limits.connect),
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
            proxy=self._proxy,
        ) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await asyncio.sleep(0)  # the library's connections end in the loop's next turn
        await send({"type": "lifespan.shutdown.complete"})

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket that does not wait for ever to get rid of what a stalled upstream does not read."""
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.idle * 1000))
        return made

    async def _pass(self, scope: Scope, body: bytes, client: _ClientWatch, send: Send) -> None:
        """Send the request and its answer. Raises `ProxyError` where there is no answer, or no more of it."""
        if not scope["raw_path"].startswith(b"/"):
            raise ProxyError(400, "bad_target", "a request's target must be a path; '*' is not passed on")
        limits, headers = self._limits, CIMultiDict(self._headers(scope, body))
        query = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        url = URL(self._url + target.decode("latin-1"), encoded=True)
        data = _Body(body) if len(body) > _SHORT else body or None
        try:
            async with asyncio.timeout(limits.first_byte) as patience:
                async with self._session.request(
                    scope["method"],
                    url,
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                ) as response:
                    kept = _end_to_end(response)
                    await send({"type": "http.response.start", "status": response.status, "headers": kept})
                    content, last = response.content, False
                    while not last:
                        patience.reschedule(asyncio.get_running_loop().time() + limits.idle)
                        chunk = await content.readany()
                        last = client.done = content.at_eof()
                        if chunk or last:
                            await send({"type": "http.response.body", "body": chunk, "more_body": not last})
        except aiohttp.ClientError as error:
            raise _problem(error, limits) from None
        except TimeoutError:
            client.stalled = True
            raise ProxyError(
                504,
                "upstream_timeout",
                "the upstream did not answer in time",
            ) from None

    def _headers(self, scope: Scope, body: bytes) -> Iterator[tuple[str, str]]:
        headers: Headers = scope["headers"]
        named = _named(headers)
        sized = bool(body)
        for name, value in headers:
            sized = sized or name in (b"content-length", b"transfer-encoding")
            if name in self._ours or name in named:
                if name == b"transfer-encoding" and value.lower() != b"chunked":
                    raise ProxyError(501, "transfer_coding", "no transfer coding but chunked is understood")
                continue
            try:
                yield name.decode("ascii"), value.decode("utf-8")
            except UnicodeDecodeError:
                raise ProxyError(400, "bad_header", "a header of the request is not UTF-8") from None
        if sized:
            yield "content-length", str(len(body))


class _Body(aiohttp.Payload):
    """A long body: written with pauses, and not copied to stand behind the head."""

    _value: bytes

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write it."""
        view = memoryview(self._value)
        await writer.write(view[:_FIRST])
        for start in range(_FIRST, len(view), _PART):
            await writer.write(view[start : start + _PART])


class _ClientWatch:
    """Whoever waits for the answer: cancels the task that gets it when they leave.

    `done`: there is nothing left to cancel; `stalled`: the time for a part is over.
    """

    def __init__(self, scope: Scope) -> None:
        self._connection: Connection = scope["extensions"][CONNECTION]
        self._cycle: RequestResponseCycle = scope["extensions"][CYCLE]
        self.done = self.stalled = self._gone = False
        self._task = asyncio.current_task()
        self._connection.left = self._leave

    @property
    def started(self) -> bool:
        """Say whether they have a part of the answer: what we sent may be held on its way."""
        return self._cycle.response_started

    def release(self) -> None:
        """Hear no more of the connection, where the next request on it does not already."""
        if self._connection.left == self._leave:
            self._connection.left = None

    def _leave(self) -> None:
        if not self.done and self._task is not None:
            self._gone = True
            self._task.cancel()

    def left(self) -> bool:
        """Say whether it was us who cancelled the task, and nobody else."""
        return self._gone and self._task is not None and self._task.uncancel() == 0


def _named(headers: Headers) -> set[bytes]:
    """Return the headers that `Connection` says are for this hop only."""
    values = [value for name, value in headers if name == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")} if values else set()


def _end_to_end(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """Return the headers that go on. Raises `ProxyError` where the answer is one that can't."""
    lower = [(name.lower(), value) for name, value in response.raw_headers]
    codings = {value.lower() for name, value in lower if name == b"transfer-encoding"}
    if (
        not 200 <= response.status < 600
        or not codings <= {b"chunked"}
        or HEADER_VALUE_RE.search(b"".join([value for _, value in lower]))
    ):
        raise ProxyError(502, "upstream_invalid", _NO_HTTP)
    left = _HOP | _named(lower)
    if codings or response.status in _BODILESS:
        left |= {b"content-length"}
    return [pair for pair in lower if pair[0] not in left]


def _problem(error: aiohttp.ClientError, limits: Limits) -> ProxyError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ProxyError(
            504, "upstream_timeout", f"no connection to the upstream within {limits.connect:g} s"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return ProxyError(502, "upstream_unreachable", "the upstream can't be reached")
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        return ProxyError(502, "upstream_closed", "the upstream closed the connection before it had answered")
    return ProxyError(502, "upstream_invalid", _NO_HTTP)
