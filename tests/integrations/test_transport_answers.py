"""Answers and errors through `CacheTransport` and `AsyncCacheTransport`."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import brotli
import pytest
import zstandard
from starlette.responses import StreamingResponse

from cachemw.integrations import _async_transport, _sync_transport
from tests.clients.endpoint import Endpoint, chunks, completion, error, event, events
from tests.clients.recorder import conversation, marks
from tests.integrations.transport_clients import (
    PATH,
    Integration,
    event_names,
    recorder_of,
    settlement,
)

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"

PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("encoding", PACK)
async def test_compressed_answer_passes_unchanged_and_settles(
    integration: Integration, encoding: str, streamed: bool
) -> None:
    """The caller gets the original bytes, and their usage is read."""
    frames = [event(chunk) for chunk in chunks()] + [event(b"[DONE]")]
    whole = b"".join(frames) if streamed else json.dumps(completion()).encode()
    packed = PACK[encoding](whole)
    pieces = [packed[:10], packed[10:50], packed[50:]]
    client, _ = integration.answering_client(
        lambda request: integration.library.Response(
            200, headers={"content-encoding": encoding}, stream=integration.response_stream(pieces)
        )
    )
    url = "https://llm.example.com" + PATH
    assert await integration.stream(client, url, raw=True, json=conversation()) == pieces
    assert (await integration.post(client, url, json=conversation())).content == whole
    assert event_names(client) == ["prepare", "begun", "settle"] * 2
    for _, receipt, partial in recorder_of(client).events[2::3]:
        assert (receipt.usage.cache_read, partial) == (4000, False)
    await integration.close(client)


async def test_chunks_of_a_stream_are_not_delayed(integration: Integration, endpoint: Endpoint) -> None:
    """Each chunk arrives before the next has been made."""
    taken = threading.Event()
    seen: list[bytes] = []

    async def parts() -> AsyncIterator[bytes]:
        for chunk in chunks():
            yield event(chunk)
            await asyncio.to_thread(taken.wait, 120)
            taken.clear()
        yield event(b"[DONE]")

    endpoint.answers.append(lambda body: StreamingResponse(parts(), media_type="text/event-stream"))
    client = integration.client()
    kwargs = {"json": {**conversation(), "stream": True}, "timeout": 30}
    if integration.is_async:
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
    assert settlement(client)[1] is False
    await integration.close(client)


@pytest.mark.parametrize(("take", "read", "partial"), [(0, None, True), (1, 4000, True), (None, 4000, False)])
async def test_stream_closed_early_settles_as_partial(
    integration: Integration, take: int | None, read: int | None, partial: bool
) -> None:
    """A stream that is closed early settles with the usage so far."""
    pieces = [event(chunk) for chunk in chunks()]
    client, _ = integration.answering_client(
        lambda request: integration.library.Response(200, stream=integration.response_stream(pieces))
    )
    await integration.stream(client, "https://llm.example.com" + PATH, take=take, json=conversation())
    assert [name for name in event_names(client) if name != "count"] == ["prepare", "begun", "settle"]
    usage, was_partial = settlement(client)
    assert (usage and usage.cache_read, was_partial) == (read, partial)
    await integration.close(client)


async def test_stream_closed_after_its_last_event_settles_as_complete(integration: Integration) -> None:
    """SDKs stop reading at the last event."""
    pieces = [event(chunk) for chunk in chunks()] + [event(b"[DONE]"), b"\n"]
    client, _ = integration.answering_client(
        lambda request: integration.library.Response(200, stream=integration.response_stream(pieces))
    )
    await integration.stream(
        client, "https://llm.example.com" + PATH, take=len(pieces) - 1, json=conversation()
    )
    assert settlement(client)[1] is False
    await integration.close(client)


async def test_broken_stream_raises_the_librarys_error_and_settles_as_partial(
    integration: Integration, endpoint: Endpoint
) -> None:
    """The caller gets the library's error, and the call settles with the usage so far."""
    endpoint.answers.append(events(broken_after=2))
    client = integration.client()
    with pytest.raises(integration.library.RemoteProtocolError):
        await integration.stream(client, endpoint.url + PATH, json=conversation())
    usage, partial = settlement(client)
    assert (usage.cache_read, partial) == (4000, True)
    await integration.close(client)


async def test_answer_without_a_body_settles_without_usage(integration: Integration) -> None:
    """A 2xx without a body is an answer without usage."""
    client, _ = integration.answering_client(lambda request: integration.library.Response(204))
    assert (
        await integration.post(client, "https://llm.example.com" + PATH, json=conversation())
    ).content == b""
    assert settlement(client) == (None, False)
    await integration.close(client)


@pytest.mark.parametrize(
    ("status", "message"), [(400, "max_tokens: too large"), (429, "slow down"), (503, "later")]
)
async def test_error_response_passes_and_the_call_fails(
    integration: Integration, endpoint: Endpoint, status: int, message: str
) -> None:
    """Status, headers and body are the upstream's, read whole or raw; the call failed after one request."""
    client = integration.client()
    for read in ("whole", "raw"):
        endpoint.answers.append(error(status, message, {"retry-after": "3"}))
        kwargs: dict[str, Any] = {"json": conversation()}
        if read == "whole":
            answer = await integration.post(client, endpoint.url + PATH, **kwargs)
            assert (answer.status_code, answer.json()["message"]) == (status, message)
            assert answer.headers["retry-after"] == "3"
        else:
            assert message.encode() in b"".join(
                await integration.stream(client, endpoint.url + PATH, raw=True, **kwargs)
            )
    assert [name for name in event_names(client) if name != "refused"] == ["prepare", "fail"] * 2
    assert len(endpoint.arrived) == 2
    await integration.close(client)


@pytest.mark.parametrize("zipped", [False, True])
async def test_refused_request_is_resent_once_without_markers(integration: Integration, zipped: bool) -> None:
    """After a 400 about an added marker the original goes once more, and its answer is the caller's."""

    def answer(request: Any) -> Any:
        if marks(json.loads(request.content)):
            body = json.dumps({"message": REFUSAL}).encode()
            headers = {"content-encoding": "gzip"} if zipped else {}
            return integration.library.Response(
                400, headers=headers, content=gzip.compress(body) if zipped else body
            )
        return integration.library.Response(200, json=completion())

    client, arrived = integration.answering_client(answer)
    raw = json.dumps(conversation(), indent=1).encode()
    got = await integration.post(client, "https://llm.example.com" + PATH, content=raw)
    assert got.json() == completion()
    assert len(arrived) == 2
    assert arrived[1].content == raw
    assert event_names(client) == ["prepare", "refused", "begun", "settle"]
    await integration.close(client)


async def test_second_refusal_reaches_the_caller(integration: Integration, endpoint: Endpoint) -> None:
    """The second 400 reaches the caller after two requests."""
    endpoint.answers.extend([error(400, REFUSAL), error(400, "and now this")])
    client = integration.client()
    got = await integration.post(client, endpoint.url + PATH, json=conversation())
    assert (got.status_code, got.json()["message"]) == (400, "and now this")
    assert [marks(arrival.body) > 0 for arrival in endpoint.arrived] == [True, False]
    assert event_names(client)[-2:] == ["refused", "fail"]
    await integration.close(client)


async def test_400_too_long_for_a_refusal_passes_whole(
    integration: Integration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long 400 is not read to its end, and passes whole."""
    for module in (_async_transport, _sync_transport):
        monkeypatch.setattr(module, "MAX_ERROR", 20)
    pieces = [REFUSAL.encode(), b"more", b"and more"]
    client, arrived = integration.answering_client(
        lambda request: integration.library.Response(400, stream=integration.response_stream(pieces))
    )
    assert (
        await integration.stream(client, "https://llm.example.com" + PATH, raw=True, json=conversation())
        == pieces
    )
    assert len(arrived) == 1
    assert event_names(client) == ["prepare", "fail"]
    await integration.close(client)


async def test_400_that_breaks_raises_the_librarys_error(integration: Integration) -> None:
    """The caller gets the library's error, the answer is closed, and the call failed."""
    stream = integration.response_stream([b"half", integration.library.ReadError("gone")])
    client, _ = integration.answering_client(lambda request: integration.library.Response(400, stream=stream))
    with pytest.raises(integration.library.ReadError):
        await integration.post(client, "https://llm.example.com" + PATH, json=conversation())
    assert event_names(client) == ["prepare", "fail"]
    assert stream.closed
    await integration.close(client)


async def test_refused_connection_is_a_failed_call(integration: Integration) -> None:
    """A refused connection raises the library's own error, and the call failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = integration.client()
    with pytest.raises(integration.library.ConnectError):
        await integration.post(client, url + PATH, json=conversation())
    assert event_names(client) == ["prepare", "fail"]
    await integration.close(client)


@pytest.mark.parametrize("moment", ["before", "started"])
async def test_cancelled_call_is_failed_or_settled(
    library: Any, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A cancelled task leaves no call open: failed before an answer, settled and closed after it began."""
    integration, waiting = Integration(library, True), asyncio.Event()
    stream = integration.response_stream([b"{}"])

    async def forever(*args: Any) -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def handler(request: Any) -> Any:
        if moment == "before":
            await forever()
        return library.Response(200, stream=stream)

    client = integration.client(library.MockTransport(handler))
    if moment == "started":
        monkeypatch.setattr(recorder_of(client), "begun", forever)
    task = asyncio.create_task(client.post("https://llm.example.com" + PATH, json=conversation()))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [name for name in event_names(client) if name != "count"] == [
        "prepare",
        "fail" if moment == "before" else "settle",
    ]
    assert stream.closed == (moment == "started")
    await integration.close(client)
