"""Pass a request to the upstream over HTTP and its answer back, as an ASGI app.

Contains: hop-by-hop headers, time limits, errors of the upstream, and clients that disconnect. Must not
depend on: the content of a body. A request arrives whole; an answer is passed on chunk by chunk.
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

from cachemw.apps.proxy.connection import CONNECTION, CYCLE, Connection
from cachemw.apps.proxy.problems import ProxyError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Headers = Iterable[tuple[bytes, bytes]]

_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer"
    b" transfer-encoding upgrade".split()
)
_NOT_PASSED_ON = _HOP | {b"host", b"content-length", b"expect"}
# Headers that aiohttp adds by itself.
_ADDED = ("accept", "accept-encoding", "content-type", "user-agent")
# Bytes. A body up to `_SHORT` is copied behind the head and written with it. A longer one is written in a
# first part of `_FIRST` and further parts of `_PART`.
_SHORT, _FIRST, _PART = 64 << 10, 4 << 10, 1 << 20
_HEADER_BYTES = 64 << 10
_BODILESS = (204, 304)
_NO_HTTP = "The upstream sent an answer that is not valid HTTP. Check --upstream."


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds: to connect, until an answer begins, and between two parts of a body."""

    connect: float = 10.0
    first_byte: float = 600.0
    idle: float = 120.0


class ReverseProxy:
    """Pass requests to the server at `url`, without the headers named in `dropped`.

    `proxy` is the URL of a forward proxy in front of that server. `connection.Connection` must serve it.
    """

    def __init__(
        self, url: str, limits: Limits, *, dropped: Iterable[bytes] = (), proxy: str | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._limits = limits
        self._not_passed_on = _NOT_PASSED_ON | set(dropped)
        self._proxy = proxy
        self._session: aiohttp.ClientSession

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the app.

        Raises `ProxyError` if there is no answer and the client has received no part of one.
        """
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body = (await receive()).get("body", b"")
        connection: Connection = scope["extensions"][CONNECTION]
        if connection.lost:  # the client disconnected while the request was planned
            return
        client = _ClientWatch(scope)
        try:
            await self._pass(scope, body, client, send)
        except asyncio.CancelledError:
            if not client.has_left():
                raise
        except ProxyError:
            client.done = True
            if not client.started:
                raise
            await connection.drop(flush=0.0 if client.stalled else self._limits.idle)
        finally:
            client.release()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
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
        await asyncio.sleep(0)  # aiohttp closes its connections in the next turn of the loop
        await send({"type": "lifespan.shutdown.complete"})

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """Return a socket that gives up unsent bytes after the idle limit, if the upstream stops reading."""
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._limits.idle * 1000))
        return made

    async def _pass(self, scope: Scope, body: bytes, client: _ClientWatch, send: Send) -> None:
        """Send the request, pass the answer on. Raises `ProxyError` if the answer is not complete."""
        if not scope["raw_path"].startswith(b"/"):
            raise ProxyError(
                400,
                "bad_target",
                "The target of the request is not a path. Send a path such as /v1/messages.",
            )
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
                "The upstream did not answer in time. Retry, or raise --first-byte-timeout.",
            ) from None

    def _headers(self, scope: Scope, body: bytes) -> Iterator[tuple[str, str]]:
        headers: Headers = scope["headers"]
        named = _named(headers)
        sized = bool(body)
        for name, value in headers:
            sized = sized or name in (b"content-length", b"transfer-encoding")
            if name in self._not_passed_on or name in named:
                if name == b"transfer-encoding" and value.lower() != b"chunked":
                    raise ProxyError(
                        501,
                        "transfer_coding",
                        "The request has a transfer coding other than chunked. Send it with its length.",
                    )
                continue
            try:
                yield name.decode("ascii"), value.decode("utf-8")
            except UnicodeDecodeError:
                raise ProxyError(
                    400, "bad_header", "A header of the request is not UTF-8. Send it in UTF-8."
                ) from None
        if sized:
            yield "content-length", str(len(body))


class _Body(aiohttp.Payload):
    """A long body, written in parts with pauses and without a copy behind the head."""

    _value: bytes

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._size = len(body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body in parts."""
        view = memoryview(self._value)
        await writer.write(view[:_FIRST])
        for start in range(_FIRST, len(view), _PART):
            await writer.write(view[start : start + _PART])


class _ClientWatch:
    """Cancel the task that fetches an answer when its client disconnects.

    `done`: nothing is left to cancel. `stalled`: the upstream exceeded a time limit.
    """

    def __init__(self, scope: Scope) -> None:
        self._connection: Connection = scope["extensions"][CONNECTION]
        self._cycle: RequestResponseCycle = scope["extensions"][CYCLE]
        self.done = self.stalled = self._has_left = False
        self._task = asyncio.current_task()
        self._connection.left = self._leave

    @property
    def started(self) -> bool:
        """Return True if the client has a part of the answer: `CacheMiddleware` may hold messages back."""
        return self._cycle.response_started

    def release(self) -> None:
        """Stop watching the connection, unless the next request on it watches already."""
        if self._connection.left == self._leave:
            self._connection.left = None

    def _leave(self) -> None:
        if not self.done and self._task is not None:
            self._has_left = True
            self._task.cancel()

    def has_left(self) -> bool:
        """Return True if only the client's disconnect cancelled the task."""
        return self._has_left and self._task is not None and self._task.uncancel() == 0


def _named(headers: Headers) -> set[bytes]:
    """Return the names that `Connection` lists: these headers are for one hop only."""
    values = [value for name, value in headers if name == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")} if values else set()


def _end_to_end(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """Return the headers to pass on. Raises `ProxyError` if the answer cannot be passed on as HTTP."""
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
            504,
            "upstream_timeout",
            f"The upstream took no connection within {limits.connect:g} s. Retry later.",
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return ProxyError(
            502,
            "upstream_unreachable",
            "The upstream cannot be reached. Check its host, port, certificate and the network.",
        )
    if isinstance(error, (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)):
        return ProxyError(
            502,
            "upstream_closed",
            "The upstream closed the connection before its answer was complete. Retry.",
        )
    return ProxyError(502, "upstream_invalid", _NO_HTTP)
