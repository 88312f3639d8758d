# Generated from _async_transport.py by scripts/unasync.py: change that file instead.
"""The transport for sync clients of httpx and httpx2: `CacheTransport`.

Contains: one exchange through an inner transport, and the observation of its answer. Must not depend on: the form of
requests and answers (`http.exchange`), either library (`http_libraries`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from cachemw.engine import Middleware
from cachemw.integrations._sync_flow import ExchangeFlow
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
from cachemw.slices import run

if TYPE_CHECKING:
    _Transport: TypeAlias = Any  # a type checker lets it pass wherever either library takes a transport
else:
    _Transport = object


class CacheTransport(_Transport):  # type: ignore[misc]  # see above
    """Place breakpoints in the chat requests that pass to `inner`, a transport of httpx or httpx2.

    Without `inner` it is the library's own `HTTPTransport()`. Give either a `middleware`, or `settings`, or the
    fields of `Settings` as keywords, the last two with an optional `clock` in seconds; `cachemw.of` returns the
    middleware. Closing closes the inner transport and the middleware. Raises `ConfigError` at construction.
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
        library, mw = library_of(request), self._cachemw
        if self._inner is None:
            self._inner = library.HTTPTransport()
        send = self._inner.handle_request
        chat = run(read_request(library, mw, request))
        if chat is None:
            return send(run(outgoing_request(library, mw, request, None)))
        flow = ExchangeFlow(mw)
        chat.call = flow.prepare(chat.body, **chat.prepare_arguments)

        def attempt() -> Reply:
            response = send(run(outgoing_request(library, mw, request, chat)))
            verdict = chat.classify_response(response.status_code, response.headers)
            refusal = None
            if verdict == "refusable" and (error := _read_error(library, response)) is not None:
                refusal = chat.refusal(response.status_code, error)
            return Reply(verdict == "started", response, refusal, close=response.close)

        reply = flow.send(attempt)
        response = reply.value
        if reply.accepted:

            def finish(complete: bool) -> None:
                flow.finish(chat.usage(), complete=complete or chat.announced_end)

            if feed_bytes(library, chat, response):
                finish(True)
            else:
                response.stream = _observed(library)(
                    response.stream, response.stream.close, chat.feed, finish
                )
        return response

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


def _read_error(library: Any, response: Any) -> bytes | None:
    """Return the bytes of an error, None if there are too many; the response can be read as before."""
    kept, size, stream = list[bytes](), 0, response.stream
    rest = iter(stream)
    try:
        for chunk in rest:
            kept.append(chunk)
            size += len(chunk)
            if size > MAX_ERROR:
                break
    except BaseException:
        stream.close()
        raise

    def again() -> Iterator[bytes]:
        for chunk in kept:
            yield chunk
        for chunk in rest:
            yield chunk

    response.stream = _observed(library)(again(), stream.close)
    return b"".join(kept) if size <= MAX_ERROR else None


class ObservedStream:
    """The bytes of a response as they come: each chunk is shown to `feed`, and the end reported once to `finish`."""

    def __init__(
        self,
        chunks: Any,
        close: Callable[[], Any],
        feed: Callable[[bytes], None] | None = None,
        finish: Callable[[bool], Any] | None = None,
    ) -> None:
        self._chunks, self._close, self._feed, self._finish_once = chunks, close, feed, finish

    def __iter__(self) -> Iterator[bytes]:
        complete = False
        try:
            for chunk in self._chunks:
                if self._feed is not None:
                    self._feed(chunk)
                yield chunk
            complete = True
        finally:
            self._finish(complete)

    def close(self) -> None:
        """Close the response; before its last byte that ends the exchange."""
        try:
            self._close()
        finally:
            self._finish(False)

    def _finish(self, complete: bool) -> None:
        finish, self._finish_once = self._finish_once, None
        if finish is not None:
            finish(complete)


@lru_cache(maxsize=2)
def _observed(library: Any) -> type[ObservedStream]:
    """Return the class of a response's bytes; the libraries insist on their own base class."""
    return type("ObservedStream", (ObservedStream, library.SyncByteStream), {})
