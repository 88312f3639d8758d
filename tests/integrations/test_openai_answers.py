"""Answers to a wrapped OpenAI client: parsed, unparsed, streamed, cut and dropped ones."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from cachemw.integrations.openai_client import wrap
from tests.clients.endpoint import USAGE, Endpoint, chunks, completion, event, events, plain
from tests.clients.recorder import AsyncRecorder, Recorder, conversation
from tests.integrations.openai_clients import event_names, make_async_client, make_client, settlement

httpx: Any = pytest.importorskip("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")


def test_answer_that_its_parser_refuses_is_settled(endpoint: Endpoint) -> None:
    """`parse` raises on a cut answer, but the answer arrived and its tokens are billed."""
    endpoint.answers.append(plain(reason="length"))
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.LengthFinishReasonError),
    ):
        client.chat.completions.parse(**conversation())
    assert event_names(recorder) == ["prepare", "begun", "settle", "close"]
    assert settlement(recorder)[0].cache_read == 4000


async def test_async_answer_that_its_parser_refuses_is_settled(endpoint: Endpoint) -> None:
    """An async answer settles by the same rule."""
    endpoint.answers.append(plain(reason="length"))
    async with wrap(make_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(**conversation())
    assert event_names(recorder) == ["prepare", "begun", "settle", "close"]
    assert settlement(recorder)[0].cache_read == 4000


@pytest.mark.parametrize("cast_to", [str, httpx.Response, object])
def test_unparsed_answer_is_settled_with_its_usage(endpoint: Endpoint, cast_to: Any) -> None:
    """Text, HTTP responses and dicts that `client.post` returns settle with their usage."""
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        assert isinstance(client.post("/chat/completions", body=conversation(), cast_to=cast_to), cast_to)
    usage, partial = settlement(recorder)
    assert usage.cache_read == 4000
    assert not partial


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("way", ["iter_bytes", "iter_text", "iter_lines", "read", "text"])
def test_answer_read_in_any_way_has_the_same_bytes_and_settles_once(
    endpoint: Endpoint, stream: bool, zipped: bool, way: str
) -> None:
    """The bytes equal those of an unwrapped client, and the usage is settled once."""
    read = []
    for recorder in (None, Recorder()):
        endpoint.answers.append((events if stream else plain)(zipped=zipped))
        client = (
            make_client(endpoint) if recorder is None else wrap(make_client(endpoint), middleware=recorder)
        )
        with (
            client,
            client.chat.completions.with_streaming_response.create(
                **conversation(), stream=stream
            ) as response,
        ):
            found = getattr(response, way)()
            parts = [found] if isinstance(found, str | bytes) else list(found)
            read.append(parts[0][:0].join(parts))
    assert read[0] == read[1]
    assert recorder is not None
    usage, partial = settlement(recorder)
    assert (usage.cache_read, usage.cache_write_5m, usage.output, partial) == (4000, 900, 7, False)


def test_raw_bytes_settle_without_usage(endpoint: Endpoint) -> None:
    """Bytes read below the decoder are not examined: the call settles without usage, as partial."""
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client,
        client.chat.completions.with_streaming_response.create(**conversation()) as response,
    ):
        assert b"".join(response.http_response.iter_raw())
    assert settlement(recorder) == (None, True)


def test_unread_answer_settles_without_usage(endpoint: Endpoint) -> None:
    """A response that is opened and closed settles without usage, as partial."""
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client,
        client.chat.completions.with_streaming_response.create(**conversation()),
    ):
        assert event_names(recorder) == ["prepare", "begun"]
    assert settlement(recorder) == (None, True)


def test_stream_without_usage_settles_as_complete(endpoint: Endpoint) -> None:
    """The call settles with None, and the request got no option to ask for usage."""
    endpoint.answers.append(events(usage=None))
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        assert len(list(client.chat.completions.create(**conversation(), stream=True))) == 5
    assert "stream_options" not in endpoint.arrived[0].body
    assert settlement(recorder) == (None, False)


def test_stream_closed_early_settles_as_partial(endpoint: Endpoint) -> None:
    """The call settles with the usage so far at the moment of closing."""
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        with client.chat.completions.create(**conversation(), stream=True) as stream:
            next(iter(stream))
            assert event_names(recorder) == ["prepare", "begun"]
        usage, partial = settlement(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_async_stream_closed_early_settles_as_partial(endpoint: Endpoint) -> None:
    """An async stream settles by the same rule."""
    async with wrap(make_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        async with await client.chat.completions.create(**conversation(), stream=True) as stream:
            await anext(aiter(stream))
            assert event_names(recorder) == ["prepare", "begun"]
        usage, partial = settlement(recorder)
    assert (usage.cache_read, partial) == (4000, True)


def test_broken_stream_raises_as_unwrapped_and_settles_as_partial(endpoint: Endpoint) -> None:
    """The caller gets the chunks and error of an unwrapped client; the call settles with the usage so far."""
    raised = []
    for recorder in (None, Recorder()):
        endpoint.answers.append(events(broken_after=2))
        client = (
            make_client(endpoint) if recorder is None else wrap(make_client(endpoint), middleware=recorder)
        )
        got = []
        with client, pytest.raises(Exception) as caught:
            got.extend(chunk for chunk in client.chat.completions.create(**conversation(), stream=True))
        raised.append(caught.type)
    assert raised[0] is raised[1]
    assert recorder is not None
    usage, partial = settlement(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_async_broken_stream_settles_as_partial(endpoint: Endpoint) -> None:
    """An async stream that breaks settles by the same rule."""
    endpoint.answers.append(events(broken_after=2))
    async with wrap(make_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        stream = await client.chat.completions.create(**conversation(), stream=True)
        with pytest.raises(Exception):  # noqa: B017
            [chunk async for chunk in stream]
    usage, partial = settlement(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_cancelled_reader_settles_as_partial() -> None:
    """Cancelling a task that waits for the next chunk settles the call, and the cancellation goes on."""
    waiting = asyncio.Event()

    class Body(httpx.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield event(chunks()[0])
            waiting.set()
            await asyncio.Event().wait()

    async def read() -> None:
        async for _ in await client.chat.completions.create(**conversation(), stream=True):
            pass

    http = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=Body()))
    )
    recorder = AsyncRecorder()
    async with wrap(AsyncOpenAI(api_key="key", http_client=http), middleware=recorder) as client:
        task = asyncio.create_task(read())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        usage, partial = settlement(recorder)
    assert (usage.cache_read, partial) == (4000, True)


def test_dropped_stream_is_settled_when_collected(endpoint: Endpoint) -> None:
    """A stream that was begun and forgotten settles when Python collects it."""
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        next(iter(client.chat.completions.create(**conversation(), stream=True)))
        gc.collect()
        assert settlement(recorder)[1]


def test_chunks_pass_one_by_one_as_the_same_objects() -> None:
    """No chunk is copied, joined or delayed: the caller has each one before the next is fetched."""
    parts = [event(chunk) for chunk in chunks()]
    fetched: list[int] = []

    class Body(httpx.SyncByteStream):  # type: ignore[misc]
        def __iter__(self) -> Iterator[bytes]:
            for n, part in enumerate(parts):
                fetched.append(n)
                yield part

    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=Body())))
    recorder = Recorder()
    with (
        wrap(OpenAI(api_key="key", http_client=http), middleware=recorder) as client,
        client.chat.completions.with_streaming_response.create(**conversation(), stream=True) as response,
    ):
        for n, chunk in enumerate(response.iter_bytes()):
            assert chunk is parts[n]
            assert fetched == list(range(n + 1))
        hooks = {"iter_bytes", "close"} & set(vars(response.http_response))
    assert not hooks
    assert settlement(recorder)[0].output == USAGE["completion_tokens"]


async def test_async_chunks_pass_one_by_one_as_the_same_objects() -> None:
    """Async chunks pass by the same rule."""
    parts = [event(chunk) for chunk in chunks()]
    fetched: list[int] = []

    class Body(httpx.AsyncByteStream):  # type: ignore[misc]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for n, part in enumerate(parts):
                fetched.append(n)
                yield part

    http = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=Body()))
    )
    recorder = AsyncRecorder()
    async with wrap(AsyncOpenAI(api_key="key", http_client=http), middleware=recorder) as client:
        asked = client.chat.completions.with_streaming_response.create(**conversation(), stream=True)
        async with asked as response:
            n = 0
            async for chunk in response.iter_bytes():
                assert chunk is parts[n]
                n += 1
                assert fetched == list(range(n))
            hooks = {"aiter_bytes", "aclose"} & set(vars(response.http_response))
    assert not hooks
    assert settlement(recorder)[0].output == USAGE["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_response_that_arrives_read_is_settled_from_its_content(stream: bool) -> None:
    """An HTTP client that returns complete responses, as tests and caches do, gets its calls settled."""
    whole = b"".join(event(chunk) for chunk in chunks())
    answer = {"content": whole} if stream else {"json": completion()}
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, **answer)))
    recorder = Recorder()
    with (
        wrap(OpenAI(api_key="key", http_client=http), middleware=recorder) as client,
        client.chat.completions.with_streaming_response.create(**conversation(), stream=stream) as response,
    ):
        response.read()
    usage, partial = settlement(recorder)
    assert (usage.cache_read, usage.output, partial) == (4000, 7, False)
