"""`CacheTransport` and its async twin under clients of httpx and of httpx2: what leaves, what comes, what goes wrong."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import brotli
import hypercorn.asyncio
import hypercorn.config
import pytest
import zstandard
from starlette.responses import RedirectResponse, StreamingResponse

import cachemw
from benchmarks.ports import free_port
from cachemw import AsyncCacheTransport, CacheTransport, ConfigError, Settings
from cachemw.apps import simulated_gateway
from cachemw.core.request.markers import canonical
from cachemw.integrations import _async_transport, _sync_transport
from cachemw.integrations.http import libraries
from tests.clients.endpoint import Endpoint, chunks, completion, error, event, events
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"
PATH = "/v1/chat/completions"


class Door(NamedTuple):
    """A library and a colour, and what the tests do with both."""

    library: Any
    is_async: bool

    def client(self, inner: Any = None, **fields: Any) -> Any:
        """Return a client over our transport, with a recorder."""
        recorder: Any = (AsyncRecorder if self.is_async else Recorder)(**fields)
        kind: Any = AsyncCacheTransport if self.is_async else CacheTransport
        return self.over(transport=kind(inner, middleware=recorder))

    def over(self, **kwargs: Any) -> Any:
        """Return a client."""
        return (self.library.AsyncClient if self.is_async else self.library.Client)(
            **{"trust_env": False, **kwargs}
        )

    def inner(self, **kwargs: Any) -> Any:
        """Return the library's own transport."""
        return (self.library.AsyncHTTPTransport if self.is_async else self.library.HTTPTransport)(**kwargs)

    def answering(self, answer: Callable[[Any], Any], **fields: Any) -> tuple[Any, list[Any]]:
        """Return a client whose inner transport answers by a function, and the requests that reach it."""
        arrived: list[Any] = []

        def handler(request: Any) -> Any:
            arrived.append(request)
            return answer(request)

        return self.client(self.library.MockTransport(handler), **fields), arrived

    def bytes_of(self, pieces: Any) -> Any:
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
        return await done(client.post(url, **kwargs))

    async def stream(
        self, client: Any, url: str, take: int | None = None, raw: bool = False, **kwargs: Any
    ) -> list[bytes]:
        """Read so many chunks of an answer, then close it."""
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
        await done(client.aclose() if self.is_async else client.close())


async def done(result: Any) -> Any:
    """Wait where there is something to wait for."""
    return await result if inspect.isawaitable(result) else result


def recorder(client: Any) -> Any:
    """Return what the middleware under a client wrote down."""
    return cachemw.of(client._transport)


def names(client: Any) -> list[str]:
    """Return what was asked of the middleware, in order."""
    return [found[0] for found in recorder(client).events]


def settled(client: Any) -> tuple[Any, bool]:
    """Return usage and `partial` of the only settlement."""
    ((_, receipt, partial),) = [found for found in recorder(client).events if found[0] == "settle"]
    return receipt.usage, partial


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    """Give the library, or say that it is not installed."""
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def door(library: Any, request: pytest.FixtureRequest) -> Door:
    """Give each library in each colour."""
    return Door(library, request.param)


# --- what leaves ------------------------------------------------------------------------------------------


async def test_a_call_is_annotated_and_settled(door: Door, endpoint: Endpoint) -> None:
    """One arrival with our markers and nothing else changed, its length right; usage settled once."""
    client = door.client()
    answer = await door.post(
        client,
        endpoint.url + PATH,
        json=conversation(),
        headers={"X-Cachemw-Label-Team": "north", "x-other": "1"},
    )
    assert answer.json() == completion()
    (arrival,) = endpoint.arrived
    assert marks(arrival.body) > 0
    assert canonical(arrival.body) == canonical(conversation())
    assert arrival.headers["x-other"] == "1"
    assert "x-cachemw-label-team" not in arrival.headers
    assert names(client) == ["prepare", "begun", "settle"]
    usage, partial = settled(client)
    assert (usage.cache_read, usage.cache_write_5m, usage.uncached, usage.output) == (4000, 900, 100, 7)
    assert not partial
    report = await done(recorder(client).report())
    assert dict(report.rows[0].labels) == {"team": "north"}
    await door.close(client)
    assert names(client)[-1] == "close"


async def test_the_callers_request_is_left_alone(door: Door) -> None:
    """Headers, body and extensions of the request object stay; the inner transport gets a request of its own."""
    client, arrived = door.answering(lambda request: door.library.Response(200, json=completion()))
    request = client.build_request(
        "POST", "https://llm.example.com" + PATH, json=conversation(), headers={"x-trace": "7"}, timeout=3
    )
    before = (list(request.headers.raw), request.content, dict(request.extensions))
    await done(client.send(request))
    assert (list(request.headers.raw), request.content, dict(request.extensions)) == before
    (sent,) = arrived
    assert sent is not request
    assert sent.extensions == request.extensions
    assert sent.headers["content-length"] == str(len(await sent.aread() if door.is_async else sent.read()))
    drop = [(name, value) for name, value in before[0] if name.lower() != b"content-length"]
    assert sent.headers.raw[:-1] == drop
    await door.close(client)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("POST", "/v1/embeddings", b'{"input": "x"}'),
        ("POST", PATH, b"no json"),
        ("POST", PATH, b'{"messages": [{"role": "user", "role": "user"}]}'),
    ],
)
async def test_everything_else_passes(door: Door, method: str, path: str, body: bytes) -> None:
    """What is no chat request goes to the inner transport as the very same object, but for labels."""
    client, arrived = door.answering(lambda request: door.library.Response(200))
    request = client.build_request(method, f"https://llm.example.com{path}", content=body)
    await done(client.send(request))
    labelled = client.build_request(method, request.url, content=body, headers={"x-cachemw-label-a": "b"})
    await done(client.send(labelled))
    first, second = arrived
    assert first is request
    assert second is not labelled
    assert second.headers == request.headers
    assert second.stream is labelled.stream
    assert [name for name in names(client) if name != "count"] == []
    await door.close(client)


async def test_a_streamed_request_body_passes_unread(door: Door, endpoint: Endpoint) -> None:
    """A body that is made while it is sent is not waited for."""
    raw = json.dumps(conversation()).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield raw

    client = door.client()
    await door.post(client, endpoint.url + PATH, content=slowly() if door.is_async else iter([raw]))
    assert endpoint.arrived[0].body == conversation()
    assert names(client) == []
    await door.close(client)


async def test_a_failure_of_ours_sends_the_request_as_it_came(
    door: Door, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new request can't be made, the caller's goes, and is counted."""

    def bug(*args: Any) -> Any:
        raise RuntimeError("bug")

    monkeypatch.setattr(libraries, "take_labels", bug)
    client = door.client()
    assert (await door.post(client, endpoint.url + PATH, json=conversation())).json() == completion()
    assert endpoint.arrived[0].body == conversation()
    assert ("count", "http.request") in recorder(client).events
    await door.close(client)


# --- what comes back --------------------------------------------------------------------------------------

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("encoding", PACK)
async def test_compressed_answers(door: Door, encoding: str, streamed: bool) -> None:
    """The caller gets the bytes as they came, and their usage is read."""
    told = [event(chunk) for chunk in chunks()] + [event(b"[DONE]")]
    whole = b"".join(told) if streamed else json.dumps(completion()).encode()
    packed = PACK[encoding](whole)
    pieces = [packed[:10], packed[10:50], packed[50:]]
    client, _ = door.answering(
        lambda request: door.library.Response(
            200, headers={"content-encoding": encoding}, stream=door.bytes_of(pieces)
        )
    )
    url = "https://llm.example.com" + PATH
    assert await door.stream(client, url, raw=True, json=conversation()) == pieces
    assert (await door.post(client, url, json=conversation())).content == whole
    assert names(client) == ["prepare", "begun", "settle"] * 2
    for _, receipt, partial in recorder(client).events[2::3]:
        assert (receipt.usage.cache_read, partial) == (4000, False)
    await door.close(client)


async def test_chunks_are_not_held_back(door: Door, endpoint: Endpoint) -> None:
    """Each chunk is there before the next has been made."""
    taken = threading.Event()
    seen: list[bytes] = []

    async def parts() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield event(chunk)
            await asyncio.to_thread(taken.wait)
            taken.clear()
        yield event(b"[DONE]")

    endpoint.answers.append(lambda body: StreamingResponse(parts(), media_type="text/event-stream"))
    client = door.client()
    kwargs = {"json": {**conversation(), "stream": True}, "timeout": 5}
    if door.is_async:
        async with client.stream("POST", endpoint.url + PATH, **kwargs) as response:
            async for chunk in response.aiter_bytes():
                seen.append(chunk)
                taken.set()
    else:
        with client.stream("POST", endpoint.url + PATH, **kwargs) as response:
            for chunk in response.iter_bytes():
                seen.append(chunk)
                taken.set()
    assert b"".join(seen) == b"".join([event(chunk) for chunk in chunks()] + [event(b"[DONE]")])
    assert settled(client)[1] is False
    await door.close(client)


@pytest.mark.parametrize(("take", "read", "partial"), [(0, None, True), (1, 4000, True), (None, 4000, False)])
async def test_a_stream_that_is_closed_early(
    door: Door, take: int | None, read: int | None, partial: bool
) -> None:
    """It is settled with what had come, as part of an answer."""
    pieces = [event(chunk) for chunk in chunks()]
    client, _ = door.answering(lambda request: door.library.Response(200, stream=door.bytes_of(pieces)))
    await door.stream(client, "https://llm.example.com" + PATH, take=take, json=conversation())
    assert [name for name in names(client) if name != "count"] == ["prepare", "begun", "settle"]
    usage, was_partial = settled(client)
    assert (usage and usage.cache_read, was_partial) == (read, partial)
    await door.close(client)


async def test_closing_after_the_streams_own_end_is_no_breach(door: Door) -> None:
    """SDKs stop reading at the last event."""
    pieces = [event(chunk) for chunk in chunks()] + [event(b"[DONE]"), b"\n"]
    client, _ = door.answering(lambda request: door.library.Response(200, stream=door.bytes_of(pieces)))
    await door.stream(client, "https://llm.example.com" + PATH, take=len(pieces) - 1, json=conversation())
    assert settled(client)[1] is False
    await door.close(client)


async def test_a_stream_that_breaks(door: Door, endpoint: Endpoint) -> None:
    """The caller gets the library's error, and the call is settled with what had come."""
    endpoint.answers.append(events(broken_after=2))
    client = door.client()
    with pytest.raises(door.library.RemoteProtocolError):
        await door.stream(client, endpoint.url + PATH, json=conversation())
    usage, partial = settled(client)
    assert (usage.cache_read, partial) == (4000, True)
    await door.close(client)


async def test_an_answer_without_a_body(door: Door) -> None:
    """A 2xx that says nothing is an answer without usage."""
    client, _ = door.answering(lambda request: door.library.Response(204))
    assert (await door.post(client, "https://llm.example.com" + PATH, json=conversation())).content == b""
    assert settled(client) == (None, False)
    await door.close(client)


# --- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message"), [(400, "max_tokens: too large"), (429, "slow down"), (503, "later")]
)
async def test_an_error_passes(door: Door, endpoint: Endpoint, status: int, message: str) -> None:
    """Status, headers and body are upstream's, read in whatever way; the call failed, once sent."""
    client = door.client()
    for read in ("whole", "raw"):
        endpoint.answers.append(error(status, message, {"retry-after": "3"}))
        kwargs: dict[str, Any] = {"json": conversation()}
        if read == "whole":
            answer = await door.post(client, endpoint.url + PATH, **kwargs)
            assert (answer.status_code, answer.json()["message"]) == (status, message)
            assert answer.headers["retry-after"] == "3"
        else:
            assert message.encode() in b"".join(
                await door.stream(client, endpoint.url + PATH, raw=True, **kwargs)
            )
    assert [name for name in names(client) if name != "refused"] == ["prepare", "fail"] * 2
    assert len(endpoint.arrived) == 2
    await door.close(client)


@pytest.mark.parametrize("zipped", [False, True])
async def test_a_refused_marker(door: Door, zipped: bool) -> None:
    """A 400 about our marker: the original goes once more, and its answer is the caller's."""

    def answer(request: Any) -> Any:
        if marks(json.loads(request.content)):
            body = json.dumps({"message": REFUSAL}).encode()
            headers = {"content-encoding": "gzip"} if zipped else {}
            return door.library.Response(
                400, headers=headers, content=gzip.compress(body) if zipped else body
            )
        return door.library.Response(200, json=completion())

    client, arrived = door.answering(answer)
    raw = json.dumps(conversation(), indent=1).encode()
    got = await door.post(client, "https://llm.example.com" + PATH, content=raw)
    assert got.json() == completion()
    assert len(arrived) == 2
    assert arrived[1].content == raw
    assert names(client) == ["prepare", "refused", "begun", "settle"]
    await door.close(client)


async def test_a_refusal_of_the_original_too(door: Door, endpoint: Endpoint) -> None:
    """The second 400 is the caller's: two requests, no more."""
    endpoint.answers.extend([error(400, REFUSAL), error(400, "and now this")])
    client = door.client()
    got = await door.post(client, endpoint.url + PATH, json=conversation())
    assert (got.status_code, got.json()["message"]) == (400, "and now this")
    assert [marks(arrival.body) > 0 for arrival in endpoint.arrived] == [True, False]
    assert names(client)[-2:] == ["refused", "fail"]
    await door.close(client)


async def test_a_400_too_long_to_be_a_refusal(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not read to its end, and passes whole."""
    for twin in (_async_transport, _sync_transport):
        monkeypatch.setattr(twin, "MAX_ERROR", 20)
    pieces = [REFUSAL.encode(), b"more", b"and more"]
    client, arrived = door.answering(lambda request: door.library.Response(400, stream=door.bytes_of(pieces)))
    assert (
        await door.stream(client, "https://llm.example.com" + PATH, raw=True, json=conversation()) == pieces
    )
    assert len(arrived) == 1
    assert names(client) == ["prepare", "fail"]
    await door.close(client)


async def test_a_400_that_breaks(door: Door) -> None:
    """The library's error is the caller's, the answer is closed, the call failed."""
    stream = door.bytes_of([b"half", door.library.ReadError("gone")])
    client, _ = door.answering(lambda request: door.library.Response(400, stream=stream))
    with pytest.raises(door.library.ReadError):
        await door.post(client, "https://llm.example.com" + PATH, json=conversation())
    assert names(client) == ["prepare", "fail"]
    assert stream.closed
    await door.close(client)


async def test_nobody_there(door: Door) -> None:
    """A refused connection is the library's own error, and the call failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = door.client()
    with pytest.raises(door.library.ConnectError):
        await door.post(client, url + PATH, json=conversation())
    assert names(client) == ["prepare", "fail"]
    await door.close(client)


@pytest.mark.parametrize("moment", ["before", "started"])
async def test_a_cancelled_call(library: Any, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A task that is cancelled leaves no call open: failed before an answer, settled and closed after."""
    door, waiting = Door(library, True), asyncio.Event()
    stream = door.bytes_of([b"{}"])

    async def forever(*args: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def handler(request: Any) -> Any:
        if moment == "before":
            await forever()
        return library.Response(200, stream=stream)

    client = door.client(library.MockTransport(handler))
    if moment == "started":
        monkeypatch.setattr(recorder(client), "begun", forever)
    task = asyncio.create_task(client.post("https://llm.example.com" + PATH, json=conversation()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [name for name in names(client) if name != "count"] == [
        "prepare",
        "fail" if moment == "before" else "settle",
    ]
    assert stream.closed == (moment == "started")
    await door.close(client)


# --- around it --------------------------------------------------------------------------------------------


async def test_what_the_library_does_around_a_transport(door: Door, endpoint: Endpoint) -> None:
    """Mounts, a proxy, retries of a connection and redirects work as over any transport."""
    kind: Any = AsyncCacheTransport if door.is_async else CacheTransport
    make: Any = AsyncRecorder if door.is_async else Recorder
    mounted = kind(door.inner(proxy=endpoint.url, retries=1), middleware=make())
    client = door.over(mounts={"http://llm.example.com": mounted}, follow_redirects=True)
    endpoint.answers.append(lambda body: RedirectResponse("/v2/chat/completions", 307))
    got = await door.post(client, "http://llm.example.com" + PATH, json=conversation())
    assert got.json() == completion()
    assert [marks(arrival.body) > 0 for arrival in endpoint.arrived] == [True, True]
    assert [arrival.headers["host"] for arrival in endpoint.arrived] == ["llm.example.com"] * 2
    found: Any = cachemw.of(mounted)
    assert [name for name, *_ in found.events] == ["prepare", "fail", "prepare", "begun", "settle"]
    await door.close(client)
    assert found.events[-1] == ("close",)


@pytest.fixture(scope="module")
def over_http2() -> Iterator[str]:
    """Serve the simulated provider over HTTP/2 without TLS; its URL."""
    config = hypercorn.config.Config()
    port = free_port()
    config.bind, config.loglevel, config.accesslog, config.errorlog = (
        [f"127.0.0.1:{port}"],
        "CRITICAL",
        None,
        None,
    )
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        serving = hypercorn.asyncio.serve(simulated_gateway.build(), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
        loop.run_until_complete(serving)
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(500):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            break
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


async def test_http2(door: Door, over_http2: str) -> None:
    """Over HTTP/2 calls are annotated, streamed and settled as over HTTP/1.1; the second reads what the first wrote."""
    client = door.client(door.inner(http1=False, http2=True))
    asked = conversation()
    del asked["tools"][0]["function"]["strict"]
    headers = {"authorization": f"Bearer {door.library.__name__} {door.is_async}"}
    first = await door.post(client, over_http2 + PATH, json=asked, headers=headers)
    assert (first.http_version, first.status_code) == ("HTTP/2", 200)
    got = await door.stream(client, over_http2 + PATH, json={**asked, "stream": True}, headers=headers)
    assert got[-1].endswith(b"data: [DONE]\n\n")
    usages = [found[1].usage for found in recorder(client).events if found[0] == "settle"]
    assert usages[0].cache_write == usages[1].cache_read > 10_000
    await door.close(client)


async def test_closing(door: Door) -> None:
    """The inner transport and the middleware are entered and closed with ours, or with the client."""
    entered: list[str] = []

    class Inner(door.library.AsyncBaseTransport if door.is_async else door.library.BaseTransport):  # type: ignore[misc]
        def __enter__(self) -> Any:
            entered.append("enter")
            return self

        async def __aenter__(self) -> Any:
            entered.append("enter")
            return self

        def close(self) -> None:
            entered.append("close")

        async def aclose(self) -> None:
            entered.append("close")

    client = door.client(Inner())
    if door.is_async:
        async with client:
            pass
    else:
        with client:
            pass
    assert entered == ["enter", "close"]
    assert names(client) == ["close"]
    idle = door.client()
    if door.is_async:
        async with idle:
            pass
    else:
        with idle:
            pass
    assert names(idle) == ["close"]
    unused = door.client()
    await door.close(unused)
    assert names(unused) == ["close"]


def test_a_request_of_a_class_of_ones_own(library: Any) -> None:
    """The library is known by the request's ancestors."""

    class Request(library.Request):  # type: ignore[misc]
        pass

    assert libraries.library_of(Request("GET", "http://x")) is library


def test_settings_and_mistakes() -> None:
    """Fields of `Settings`, a clock, or a middleware; each wrong mixture is a `ConfigError` that says which."""
    built = CacheTransport(provider="databricks", clock=lambda: 1e9)
    assert cachemw.of(built).settings.provider == "databricks"
    built.close()
    recorded = AsyncRecorder()
    assert cachemw.of(AsyncCacheTransport(middleware=recorded)) is recorded
    with pytest.raises(
        ConfigError, match=r"AsyncCacheTransport: middleware is .*Recorder; .* needs AsyncMiddleware"
    ):
        AsyncCacheTransport(middleware=Recorder())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CacheTransport: settings and store both given"):
        CacheTransport(settings=Settings(), store="memory://")
    with pytest.raises(ConfigError, match="CacheTransport: a middleware brings its own settings"):
        CacheTransport(middleware=Recorder(), ttl="5m")
