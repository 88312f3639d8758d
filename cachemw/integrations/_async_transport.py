"""The transport for async clients of httpx and httpx2: `AsyncCacheTransport`.

Contains: one exchange through an inner transport, and the observation of its answer. Must not depend on: the form of
requests and answers (`http.exchange`), either library (`http_libraries`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from cachemw.engine import AsyncMiddleware
from cachemw.integrations._async_flow import AsyncExchangeFlow
from cachemw.integrations.http.libraries import (
    MAX_ERROR,
    feed_bytes,
    library_of,
    outgoing_request,
    read_request,
)
from cachemw.integrations.reply import Reply
from cachemw.integrations.resolve_middleware import resolve_middleware
from cachemw.settings import Settings
from cachemw.slices import run_in_loop

if TYPE_CHECKING:
    _Transport: TypeAlias = Any  # a type checker lets it pass wherever either library takes a transport
else:
    _Transport = object


class AsyncCacheTransport(_Transport):  # type: ignore[misc]  # see above
    """Place breakpoints in the chat requests that pass to `inner`, an async transport of httpx or httpx2.

    Without `inner` it is the library's own `AsyncHTTPTransport()`. Give either a `middleware`, or `settings`, or the
    fields of `Settings` as keywords, the last two with an optional `clock` in seconds; `cachemw.of` returns the
    middleware. Closing closes the inner transport and the middleware. Raises `ConfigError` at construction.
    """

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
        library, mw = library_of(request), self._cachemw
        if self._inner is None:
            self._inner = library.AsyncHTTPTransport()
        send = self._inner.handle_async_request
        chat = await run_in_loop(read_request(library, mw, request))
        if chat is None:
            return await send(await run_in_loop(outgoing_request(library, mw, request, None)))
        flow = AsyncExchangeFlow(mw)
        chat.call = await flow.prepare(chat.body, **chat.prepare_arguments)

        async def attempt() -> Reply:
            response = await send(await run_in_loop(outgoing_request(library, mw, request, chat)))
            verdict = chat.classify_response(response.status_code, response.headers)
            refusal = None
            if verdict == "refusable" and (error := await _read_error(library, response)) is not None:
                refusal = chat.refusal(response.status_code, error)
            return Reply(verdict == "started", response, refusal, close=response.aclose)

        reply = await flow.send(attempt)
        response = reply.value
        if reply.accepted:

            async def finish(complete: bool) -> None:
                await flow.finish(chat.usage(), complete=complete or chat.announced_end)

            if feed_bytes(library, chat, response):
                await finish(True)
            else:
                response.stream = _observed(library)(
                    response.stream, response.stream.aclose, chat.feed, finish
                )
        return response

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


async def _read_error(library: Any, response: Any) -> bytes | None:
    """Return the bytes of an error, None if there are too many; the response can be read as before."""
    kept, size, stream = list[bytes](), 0, response.stream
    rest = aiter(stream)
    try:
        async for chunk in rest:
            kept.append(chunk)
            size += len(chunk)
            if size > MAX_ERROR:
                break
    except BaseException:
        await stream.aclose()
        raise

    async def again() -> AsyncIterator[bytes]:
        for chunk in kept:
            yield chunk
        async for chunk in rest:
            yield chunk

    response.stream = _observed(library)(again(), stream.aclose)
    return b"".join(kept) if size <= MAX_ERROR else None


class AsyncObservedStream:
    """The bytes of a response as they come: each chunk is shown to `feed`, and the end reported once to `finish`."""

    def __init__(
        self,
        chunks: Any,
        close: Callable[[], Any],
        feed: Callable[[bytes], None] | None = None,
        finish: Callable[[bool], Any] | None = None,
    ) -> None:
        self._chunks, self._close, self._feed, self._finish_once = chunks, close, feed, finish

    async def __aiter__(self) -> AsyncIterator[bytes]:
        complete = False
        try:
            async for chunk in self._chunks:
                if self._feed is not None:
                    self._feed(chunk)
                yield chunk
            complete = True
        finally:
            await self._finish(complete)

    async def aclose(self) -> None:
        """Close the response; before its last byte that ends the exchange."""
        try:
            await self._close()
        finally:
            await self._finish(False)

    async def _finish(self, complete: bool) -> None:
        finish, self._finish_once = self._finish_once, None
        if finish is not None:
            await finish(complete)


@lru_cache(maxsize=2)
def _observed(library: Any) -> type[AsyncObservedStream]:
    """Return the class of a response's bytes; the libraries insist on their own base class."""
    return type("ObservedStream", (AsyncObservedStream, library.AsyncByteStream), {})
