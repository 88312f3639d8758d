"""Transports for httpx and httpx2 that place breakpoints on the way: `CacheTransport`, `AsyncCacheTransport`.

Lives here: only translation between a transport and the middleware, for any SDK on these libraries. Must not
decide anything about breakpoints, and knows no other integration. Neither library is imported here: whose
requests arrive is seen from the requests, so one class serves both.

The caller's request object is never changed; where its body is, a new one goes to the inner transport, with the
same URL, extensions and headers, but for the length and our labels. A body that is streamed passes unread. An
answer is looked at as it is on the wire, chunk by chunk, and passes as it is.

A retry made above a transport comes as a new request and is a new call: nothing in it says which call it
repeats, and the failed one is over. `wrap` sees the retries of its SDK as one call.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.integrations.guard import Engine, Guard
from cachemw.integrations.http.exchange import HttpExchange, take_labels
from cachemw.integrations.resolve_middleware import resolve_middleware
from cachemw.settings import Settings
from cachemw.slices import Slices, run, run_in_loop

if TYPE_CHECKING:
    _Transport: TypeAlias = Any  # to a type checker it fits wherever either library takes a transport
else:
    _Transport = object

_LENGTHS = (b"content-length", b"transfer-encoding")
MOST = 1 << 20
"""Bytes of a 400 beyond which it is no refusal of a marker, and is read no further."""


class CacheTransport(_Transport):  # type: ignore[misc]  # see above
    """Place breakpoints in the chat requests that pass to `inner`, a transport of httpx or httpx2.

    Without `inner` it is the library's `HTTPTransport()`. Give either a `middleware`, or `settings`, or the
    fields of `Settings` as keywords, the last two with an optional `clock` in seconds; `cachemw.of` returns
    the middleware. Closing closes the inner transport and the middleware. Raises `ConfigError` at construction.
    """

    def __init__(
        self,
        inner: Any = None,
        *,
        settings: Settings | None = None,
        middleware: Middleware | None = None,
        clock: Callable[[], float] | None = None,
        **settings_fields: Any,
    ) -> None:
        self._inner = inner
        self._cachemw = resolve_middleware(
            "CacheTransport", Middleware, middleware, settings, clock, settings_fields
        )

    def handle_request(self, request: Any) -> Any:
        """Send a request and return its response."""
        library, mw = _library(request), self._cachemw
        if self._inner is None:
            self._inner = library.HTTPTransport()
        send = self._inner.handle_request
        chat = run(_reading(library, mw, request))
        if chat is None:
            return send(run(_outgoing(library, mw, request, None)))
        chat.call = call = mw.prepare(chat.body, **chat.prepare_arguments)
        while True:
            try:
                response = send(run(_outgoing(library, mw, request, chat)))
                verdict = chat.classify_response(response.status_code, response.headers)
                if verdict == "refusable":
                    error = self._error(library, response)
                    refusal = None if error is None else chat.refusal(response.status_code, error)
                    if refusal is not None and mw.refused(call, *refusal) is not None:
                        response.close()
                        continue
            except BaseException:
                mw.fail(call)
                raise
            break
        if verdict != "begun":
            mw.fail(call)
            return response

        def over(whole: bool) -> None:
            mw.settle(call, chat.usage(), partial=not (whole or chat.finish))

        mw.begun(call)
        if _at_hand(library, chat, response):
            over(True)
        else:
            response.stream = _passing(library)(response.stream, response.stream.close, chat.feed, over)
        return response

    @staticmethod
    def _error(library: Any, response: Any) -> bytes | None:
        """Return the bytes of an error, None where there are too many; the response can be read as before."""
        kept, size, stream = list[bytes](), 0, response.stream
        rest = iter(stream)
        try:
            for chunk in rest:
                kept.append(chunk)
                size += len(chunk)
                if size > MOST:
                    break
        except BaseException:
            stream.close()
            raise
        response.stream = _passing(library)(chain(kept, rest), stream.close)
        return b"".join(kept) if size <= MOST else None

    def close(self) -> None:
        """Close the inner transport and the middleware."""
        try:
            if self._inner is not None:
                self._inner.close()
        finally:
            self._cachemw.close()

    def __enter__(self) -> Self:
        if self._inner is not None:
            self._inner.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            if self._inner is not None:
                self._inner.__exit__(*failure)
        finally:
            self._cachemw.close()


class AsyncCacheTransport(_Transport):  # type: ignore[misc]  # see above
    """`CacheTransport` for async clients: the same, awaited."""

    def __init__(
        self,
        inner: Any = None,
        *,
        settings: Settings | None = None,
        middleware: AsyncMiddleware | None = None,
        clock: Callable[[], float] | None = None,
        **settings_fields: Any,
    ) -> None:
        self._inner = inner
        self._cachemw = resolve_middleware(
            "AsyncCacheTransport", AsyncMiddleware, middleware, settings, clock, settings_fields
        )

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request and return its response."""
        library, mw = _library(request), self._cachemw
        if self._inner is None:
            self._inner = library.AsyncHTTPTransport()
        send = self._inner.handle_async_request
        chat = await run_in_loop(_reading(library, mw, request))
        if chat is None:
            return await send(run(_outgoing(library, mw, request, None)))
        chat.call = call = await mw.prepare(chat.body, **chat.prepare_arguments)
        while True:
            try:
                response = await send(await run_in_loop(_outgoing(library, mw, request, chat)))
                verdict = chat.classify_response(response.status_code, response.headers)
                if verdict == "refusable":
                    error = await self._error(library, response)
                    refusal = None if error is None else chat.refusal(response.status_code, error)
                    if refusal is not None and await mw.refused(call, *refusal) is not None:
                        await response.aclose()
                        continue
            except BaseException:
                await mw.fail(call)
                raise
            break
        if verdict != "begun":
            await mw.fail(call)
            return response

        async def over(whole: bool) -> None:
            await mw.settle(call, chat.usage(), partial=not (whole or chat.finish))

        try:
            await mw.begun(call)
            if _at_hand(library, chat, response):
                await over(True)
                return response
        except BaseException:  # cancelled: nobody will read or close it
            await over(False)
            await response.aclose()
            raise
        response.stream = _async_passing(library)(response.stream, response.stream.aclose, chat.feed, over)
        return response

    @staticmethod
    async def _error(library: Any, response: Any) -> bytes | None:
        """Return the bytes of an error, None where there are too many; the response can be read as before."""
        kept, size, stream = list[bytes](), 0, response.stream
        rest = aiter(stream)
        try:
            async for chunk in rest:
                kept.append(chunk)
                size += len(chunk)
                if size > MOST:
                    break
        except BaseException:
            await stream.aclose()
            raise

        async def again() -> AsyncIterator[bytes]:
            for chunk in kept:
                yield chunk
            async for chunk in rest:
                yield chunk

        response.stream = _async_passing(library)(again(), stream.aclose)
        return b"".join(kept) if size <= MOST else None

    async def aclose(self) -> None:
        """Close the inner transport and the middleware."""
        try:
            if self._inner is not None:
                await self._inner.aclose()
        finally:
            await self._cachemw.close()

    async def __aenter__(self) -> Self:
        if self._inner is not None:
            await self._inner.__aenter__()
        return self

    async def __aexit__(self, *failure: object) -> None:
        try:
            if self._inner is not None:
                await self._inner.__aexit__(*failure)
        finally:
            await self._cachemw.close()


def _library(request: Any) -> Any:
    """Return the module, httpx or httpx2, whose request this is."""
    roots = (kind.__module__.partition(".")[0] for kind in type(request).__mro__)
    return sys.modules[next(root for root in roots if root in ("httpx", "httpx2"))]


def _reading(library: Any, mw: Engine, request: Any) -> Slices[HttpExchange | None]:
    """Read a request; None where it is no chat request or its body is not at hand."""
    if not isinstance(request.stream, library.ByteStream):
        return None
    body = b"".join(request.stream)
    reading = HttpExchange.reading(
        mw, method=request.method, url=str(request.url), headers=request.headers.raw, body=body
    )
    return (yield from reading)


def _at_hand(library: Any, chat: HttpExchange, response: Any) -> bool:
    """Look at the bytes of an answer that is made of them, such as a mock's: nobody will read its stream."""
    if not isinstance(response.stream, library.ByteStream):
        return False
    for chunk in response.stream:
        chat.feed(chunk)
    return True


def _outgoing(library: Any, mw: Engine, request: Any, chat: HttpExchange | None) -> Slices[Any]:
    """Return what goes to the inner transport: the request itself where nothing in it changes."""
    with Guard(mw, "http.request"):
        labels, headers = take_labels(request.headers.raw)
        stream = request.stream
        if chat is not None and chat.changed:
            body = yield from chat.sending()
            headers = [pair for pair in headers if pair[0].lower() not in _LENGTHS]
            headers.append((b"Content-Length", str(len(body)).encode()))
            stream = library.ByteStream(body)
        elif not labels:
            return request
        return library.Request(
            request.method, request.url, headers=headers, stream=stream, extensions=request.extensions
        )
    return request


class _Bytes:
    """A response's bytes as they come, each chunk shown to `see`, and `over` told once how they ended."""

    def __init__(
        self,
        chunks: Any,
        close: Callable[[], Any],
        see: Callable[[bytes], None] = lambda _chunk: None,
        over: Callable[[bool], Any] | None = None,
    ) -> None:
        self._chunks, self._close, self._see = chunks, close, see
        self._tell = over


class ObservedStream(_Bytes):
    def __iter__(self) -> Iterator[bytes]:
        whole = False
        try:
            for chunk in self._chunks:
                self._see(chunk)
                yield chunk
            whole = True
        finally:
            self._over(whole)

    def close(self) -> None:
        try:
            self._close()
        finally:
            self._over(False)

    def _over(self, whole: bool) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(whole)


class AsyncObservedStream(_Bytes):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        whole = False
        try:
            async for chunk in self._chunks:
                self._see(chunk)
                yield chunk
            whole = True
        finally:
            await self._over(whole)

    async def aclose(self) -> None:
        try:
            await self._close()
        finally:
            await self._over(False)

    async def _over(self, whole: bool) -> None:
        tell, self._tell = self._tell, None
        if tell is not None:
            await tell(whole)


@lru_cache(maxsize=2)
def _passing(library: Any) -> type[ObservedStream]:
    """Return the class of a response's bytes; the libraries insist on their own base class."""
    return type("Passing", (ObservedStream, library.SyncByteStream), {})


@lru_cache(maxsize=2)
def _async_passing(library: Any) -> type[AsyncObservedStream]:
    return type("AsyncPassing", (AsyncObservedStream, library.AsyncByteStream), {})
