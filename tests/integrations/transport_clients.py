"""Clients of httpx and httpx2 over cachemw's transports, sync and async, and the record of their middleware.

Contains: helpers of the transport tests. Must not depend on: any test module.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import cachemw
from cachemw import AsyncCacheTransport, CacheTransport
from tests.clients.recorder import AsyncRecorder, Recorder

PATH = "/v1/chat/completions"


class Integration(NamedTuple):
    """An HTTP library, sync or async, and the steps of the tests with it."""

    library: Any
    is_async: bool

    def client(self, inner: Any = None, **fields: Any) -> Any:
        """Return a client over a cachemw transport that records the calls of its middleware."""
        recorder: Any = (AsyncRecorder if self.is_async else Recorder)(**fields)
        kind: Any = AsyncCacheTransport if self.is_async else CacheTransport
        return self.bare_client(transport=kind(inner, middleware=recorder))

    def bare_client(self, **kwargs: Any) -> Any:
        """Return a client of the library with the given options."""
        return (self.library.AsyncClient if self.is_async else self.library.Client)(
            **{"trust_env": False, **kwargs}
        )

    def inner(self, **kwargs: Any) -> Any:
        """Return the library's own transport."""
        return (self.library.AsyncHTTPTransport if self.is_async else self.library.HTTPTransport)(**kwargs)

    def answering_client(self, answer: Callable[[Any], Any], **fields: Any) -> tuple[Any, list[Any]]:
        """Return a client whose inner transport answers by a function, and the requests that reach it."""
        arrived: list[Any] = []

        def handler(request: Any) -> Any:
            arrived.append(request)
            return answer(request)

        return self.client(self.library.MockTransport(handler), **fields), arrived

    def response_stream(self, pieces: Any) -> Any:
        """Return the pieces as the stream of a response; an exception among them is raised in its place."""

        def each() -> Iterator[bytes]:
            for piece in pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece

        class Stream(self.library.SyncByteStream, self.library.AsyncByteStream):  # type: ignore[name-defined,misc]
            closed = 0

            def __iter__(self) -> Iterator[bytes]:
                return each()

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in each():
                    yield piece

            def close(self) -> None:
                Stream.closed += 1

            async def aclose(self) -> None:
                Stream.closed += 1

        return Stream()

    async def post(self, client: Any, url: str, **kwargs: Any) -> Any:
        """Send a POST and read its answer."""
        return await finished(client.post(url, **kwargs))

    async def stream(
        self, client: Any, url: str, take: int | None = None, raw: bool = False, **kwargs: Any
    ) -> list[bytes]:
        """Read the given number of chunks of an answer, then close it."""
        got: list[bytes] = []
        if self.is_async:
            async with client.stream("POST", url, **kwargs) as response:
                if take != 0:
                    async for chunk in response.aiter_raw() if raw else response.aiter_bytes():
                        got.append(chunk)
                        if len(got) == take:
                            break
            return got
        with client.stream("POST", url, **kwargs) as response:
            if take != 0:
                for chunk in response.iter_raw() if raw else response.iter_bytes():
                    got.append(chunk)
                    if len(got) == take:
                        break
        return got

    async def close(self, client: Any) -> None:
        """Close a client."""
        await finished(client.aclose() if self.is_async else client.close())


async def finished(result: Any) -> Any:
    """Return a result, awaited if it is awaitable."""
    return await result if inspect.isawaitable(result) else result


def recorder_of(client: Any) -> Any:
    """Return the recording middleware under a client."""
    return cachemw.of(client._transport)


def event_names(client: Any) -> list[str]:
    """Return the names of the calls that the middleware got, in order."""
    return [found[0] for found in recorder_of(client).events]


def settlement(client: Any) -> tuple[Any, bool]:
    """Return usage and `partial` of the only settlement."""
    ((_, receipt, partial),) = [found for found in recorder_of(client).events if found[0] == "settle"]
    return receipt.usage, partial
