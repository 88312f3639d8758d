"""`wrap` around what goes wrong and what is unusual; the eight call styles are in tests/clients."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from cachemw.core.request.markers import canonical
from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError
from cachemw.integrations import openai_exchange
from cachemw.integrations.openai_client import of, wrap
from cachemw.settings import Settings
from tests.clients.endpoint import TEXT, USAGE, Endpoint, chunks, completion, error, event, events, plain
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

httpx: Any = pytest.importorskip("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"


def _client(endpoint: Endpoint, **kwargs: Any) -> OpenAI:
    return OpenAI(**{"base_url": f"{endpoint.url}/v1", "api_key": "key", "max_retries": 0, **kwargs})


def _async_client(endpoint: Endpoint, **kwargs: Any) -> AsyncOpenAI:
    return AsyncOpenAI(**{"base_url": f"{endpoint.url}/v1", "api_key": "key", "max_retries": 0, **kwargs})


def _names(recorder: Recorder | AsyncRecorder) -> list[str]:
    return [found[0] for found in recorder.events]


def _settled(recorder: Recorder | AsyncRecorder) -> tuple[Any, bool]:
    """Return usage and `partial` of the only settlement."""
    ((_, receipt, partial),) = [found for found in recorder.events if found[0] == "settle"]
    return receipt.usage, partial


# --- wrapping ---------------------------------------------------------------------------------------------


def test_same_client_and_its_middleware() -> None:
    """The client comes back itself, of its own class, and `of` gives the middleware of it and its copies."""
    client = OpenAI(api_key="key")
    assert wrap(client, provider="databricks", store="memory://") is client
    assert isinstance(client, OpenAI)
    assert isinstance(of(client), Middleware)
    assert of(client.with_options(timeout=1)) is of(client.copy().copy()) is of(client)
    client.close()


async def test_async_middleware_for_an_async_client() -> None:
    """An async client gets an async middleware, its copies the same one."""
    client = wrap(AsyncOpenAI(api_key="key"), settings=Settings(provider="databricks", store="memory://"))
    assert isinstance(of(client), AsyncMiddleware)
    assert of(client.with_options(timeout=1)) is of(client)
    await client.close()


def test_clock_is_handed_on(endpoint: Endpoint) -> None:
    """The middleware that `wrap` makes lives by the given clock."""
    asked: list[float] = []

    def clock() -> float:
        asked.append(1e9)
        return 1e9

    with wrap(_client(endpoint), provider="databricks", store="memory://", clock=clock) as client:
        client.chat.completions.create(**conversation())
    assert asked


def test_refuses_what_makes_no_sense() -> None:
    """Each wrong way to wrap is a `ConfigError` that says what was wrong, and leaves the client alone."""
    client = OpenAI(api_key="key")
    settings = Settings(provider="databricks", store="memory://")
    recorder = Recorder()
    for kwargs, said in [
        ({"middleware": AsyncRecorder()}, "AsyncRecorder; openai.OpenAI needs Middleware"),
        ({"middleware": recorder, "settings": settings}, "middleware brings its own settings"),
        ({"middleware": recorder, "clock": float}, "middleware brings its own settings"),
        ({"middleware": recorder, "store": "memory://"}, "middleware brings its own settings"),
        ({"settings": settings, "store": "memory://"}, "settings and store both given"),
    ]:
        with pytest.raises(ConfigError, match=said):
            wrap(client, **kwargs)
        with pytest.raises(ConfigError, match="not wrapped"):
            of(client)
    for stranger, name in [(object(), "object"), (openai, "module"), (None, "NoneType")]:
        with pytest.raises(ConfigError, match=f"client is {name}; allowed are openai.OpenAI"):
            wrap(stranger, settings=settings)


@pytest.mark.parametrize("provider", ["auto", "anthropic"])
def test_anthropics_endpoint_in_openai_format_is_not_marked(provider: str) -> None:
    """It ignores markers, so none are sent, whatever the setting says of Anthropic; the usage is counted."""
    bodies: list[Any] = []

    def answer(request: Any) -> Any:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=completion())

    http = httpx.Client(transport=httpx.MockTransport(answer))
    client = OpenAI(base_url="https://api.anthropic.com/v1/", api_key="key", http_client=http)
    with wrap(client, middleware=(recorder := Recorder(provider=provider))):
        client.chat.completions.create(**{**conversation(), "model": "claude-sonnet-4-6"})
    assert bodies == [{**conversation(), "model": "claude-sonnet-4-6"}]
    assert recorder.counts["skip.markers_ignored"] == 1
    assert _settled(recorder)[0].cache_read == 4000


def test_second_wrap_is_refused(endpoint: Endpoint) -> None:
    """A wrapped client, and a copy of one, can't be wrapped again."""
    with wrap(_client(endpoint), middleware=Recorder()) as client:
        for again in (client, client.with_options(timeout=1)):
            with pytest.raises(ConfigError, match="wrapped already"):
                wrap(again, middleware=Recorder())


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `openai` the error says what to install."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'cachemw\[openai\]'"):
        wrap(object())


def test_import_does_not_load_the_sdk() -> None:
    """Importing the integration leaves `openai` and both HTTP libraries unloaded."""
    program = "import sys, cachemw.integrations.openai_client; print({'openai', 'httpx', 'httpx2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- closing ----------------------------------------------------------------------------------------------


def test_middleware_closes_with_the_http_client() -> None:
    """Leaving the client, or closing a copy that shares its HTTP client, closes the middleware; another's does not."""
    recorder = Recorder()
    with wrap(OpenAI(api_key="key"), middleware=recorder) as client:
        client.with_options(http_client=httpx.Client()).close()
        assert recorder.events == []
    assert recorder.events == [("close",)]

    recorder = Recorder()
    wrap(OpenAI(api_key="key"), middleware=recorder).with_options(timeout=1).close()
    assert recorder.events == [("close",)]


async def test_async_middleware_closes_with_the_http_client() -> None:
    """The same, awaited."""
    recorder = AsyncRecorder()
    async with wrap(AsyncOpenAI(api_key="key"), middleware=recorder) as client:
        await client.with_options(http_client=httpx.AsyncClient()).close()
        assert recorder.events == []
    assert recorder.events == [("close",)]


# --- what is sent -----------------------------------------------------------------------------------------


def test_retries_are_one_arrival(endpoint: Endpoint) -> None:
    """The SDK's own retries send the same body again inside one prepared call."""
    endpoint.answers.extend(
        [error(500, "busy", {"retry-after-ms": "1"}), error(429, "slow", {"retry-after-ms": "1"})]
    )
    with wrap(_client(endpoint, max_retries=2), middleware=(recorder := Recorder())) as client:
        client.chat.completions.create(**conversation())
    assert _names(recorder) == ["prepare", "begun", "settle", "close"]
    assert len(endpoint.arrived) == 3
    assert endpoint.arrived[0].body == endpoint.arrived[1].body == endpoint.arrived[2].body
    assert marks(endpoint.arrived[0].body)


def test_extra_body_is_merged_as_the_sdk_does(endpoint: Endpoint) -> None:
    """Messages that come by `extra_body` are seen and marked, and the caller's dict stays as it was."""
    asked = conversation()
    extra = {"messages": asked.pop("messages"), "top_k": 4}
    before = deepcopy(extra)
    for client in (_client(endpoint), wrap(_client(endpoint), middleware=Recorder())):
        client.chat.completions.create(**asked, messages=[], extra_body=extra)
        client.close()
    came, left = (arrival.body for arrival in endpoint.arrived)
    assert canonical(left) == canonical(came)
    assert left["top_k"] == 4
    assert marks(left)
    assert extra == before


def test_other_requests_are_none_of_ours(endpoint: Endpoint) -> None:
    """What is no chat completion is sent without asking the middleware."""
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        client.post("/embeddings", body=conversation(), cast_to=object)
        client.post("/chat/completions/c1", body=conversation(), cast_to=object)
        client.post("/chat/completions", content=b'{"messages": []}', cast_to=object)
        with pytest.raises(openai.NotFoundError):
            client.models.list()
    assert _names(recorder) == ["close"]
    assert not any(marks(arrival.body) for arrival in endpoint.arrived)


def test_a_body_that_gets_no_marker_leaves_as_it_came(endpoint: Endpoint) -> None:
    """Where nothing is added the SDK sends exactly what it would have sent."""
    asked = {**conversation(), "model": "gpt-none"}
    for client in (_client(endpoint), wrap(_client(endpoint), middleware=Recorder())):
        client.chat.completions.create(**asked, extra_body={"top_k": 4})
        client.close()
    assert endpoint.arrived[0].body == endpoint.arrived[1].body


@pytest.mark.parametrize(
    ("base", "url", "provider"),
    [
        ("/serving-endpoints", "/chat/completions", "databricks"),
        ("/serving-endpoints", "/databricks-claude-sonnet-4/invocations", "databricks"),
        ("/v1", "{}/serving-endpoints/databricks-claude-sonnet-4/invocations", "databricks"),
        ("/v1", "chat/completions?a=1", None),
    ],
)
def test_provider_and_model_from_the_address(
    endpoint: Endpoint, base: str, url: str, provider: str | None
) -> None:
    """With "auto" the address tells the provider, and for invocations the model, which is not added to the body."""
    asked = conversation()
    if "invocations" in url:
        del asked["model"]
    with wrap(
        _client(endpoint, base_url=endpoint.url + base), middleware=(recorder := Recorder(provider="auto"))
    ) as client:
        client.post(url.format(endpoint.url), body=asked, cast_to=object)
    assert recorder.events[0] == ("prepare", provider)
    (arrival,) = endpoint.arrived
    assert canonical(arrival.body) == canonical(asked)
    assert bool(marks(arrival.body)) == (provider is not None)


def test_a_set_provider_is_not_looked_up(endpoint: Endpoint) -> None:
    """A provider named in the settings holds whatever the address says."""
    with wrap(_client(endpoint), middleware=(recorder := Recorder(provider="anthropic"))) as client:
        client.chat.completions.create(**conversation())
    assert recorder.events[0] == ("prepare", None)


# --- refusals and failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_refused_markers_are_sent_again_without(endpoint: Endpoint, stream: bool) -> None:
    """A 400 over our markers never reaches the caller: the original goes out once."""
    endpoint.answers.append(error(400, REFUSAL))
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        answer = client.chat.completions.create(**conversation(), stream=stream)
        assert len(list(answer) if stream else answer.choices) == (5 if stream else 1)
    first, second = (arrival.body for arrival in endpoint.arrived)
    assert marks(first)
    assert not marks(second)
    assert canonical(first) == canonical(second)
    assert _names(recorder) == ["prepare", "refused", "begun", "settle", "close"]
    assert _settled(recorder)[0].cache_read == 4000


@pytest.mark.parametrize("stream", [False, True])
async def test_async_refused_markers_are_sent_again_without(endpoint: Endpoint, stream: bool) -> None:
    """The same, awaited."""
    endpoint.answers.append(error(400, REFUSAL))
    async with wrap(_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        answer = await client.chat.completions.create(**conversation(), stream=stream)
        assert len([chunk async for chunk in answer] if stream else answer.choices) == (5 if stream else 1)
    assert [bool(marks(arrival.body)) for arrival in endpoint.arrived] == [True, False]
    assert _names(recorder) == ["prepare", "refused", "begun", "settle", "close"]
    assert _settled(recorder)[0].cache_read == 4000


def test_resent_once_only(endpoint: Endpoint) -> None:
    """A second refusal is the caller's own, raised as the SDK raises it."""
    endpoint.answers.extend([error(400, REFUSAL), error(400, REFUSAL)])
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.BadRequestError, match="cache_control") as raised,
    ):
        client.chat.completions.create(**conversation())
    assert not isinstance(raised.value.__context__, openai.OpenAIError)
    assert len(endpoint.arrived) == 2
    assert _names(recorder) == ["prepare", "refused", "fail", "close"]


@pytest.mark.parametrize("status", [400, 401, 500])
def test_other_errors_reach_the_caller(endpoint: Endpoint, status: int) -> None:
    """An error that is not over our markers passes, sent once, and the call has failed."""
    endpoint.answers.append(error(status, "temperature: out of range"))
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.APIStatusError, match="temperature"),
    ):
        client.chat.completions.create(**conversation())
    assert len(endpoint.arrived) == 1
    assert _names(recorder) == ["prepare", "refused", "fail", "close"]


def test_no_answer_is_a_failed_call() -> None:
    """Where nobody listens the SDK's error passes and the call has failed."""
    recorder = Recorder()
    with (
        wrap(
            OpenAI(base_url="http://127.0.0.1:9/v1", api_key="key", max_retries=0), middleware=recorder
        ) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(**conversation())
    assert _names(recorder) == ["prepare", "fail", "close"]


async def test_a_cancelled_call_is_released() -> None:
    """Cancelling a waiting call fails it and the cancellation goes on."""
    sent = asyncio.Event()

    async def never(request: Any) -> Any:
        sent.set()
        await asyncio.Event().wait()

    http = httpx.AsyncClient(transport=httpx.MockTransport(never))
    recorder = AsyncRecorder()
    async with wrap(AsyncOpenAI(api_key="key", http_client=http), middleware=recorder) as client:
        task = asyncio.create_task(client.chat.completions.create(**conversation()))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert _names(recorder) == ["prepare", "fail", "close"]


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ("_merged", "client.body"),
        ("provider_at", "client.body"),
        ("OpenAIExchange._taking", "client.options"),
        ("UsageReader.feed", "client.usage"),
    ],
)
def test_a_bug_of_ours_is_counted_and_never_seen(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, broken: str, name: str
) -> None:
    """Whatever raises inside the integration, the caller gets the answer and the failure is counted."""

    def bug(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("bug")

    monkeypatch.setattr(f"{openai_exchange.__name__}.{broken}", bug)
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder(provider="auto"))) as client,
        client.chat.completions.with_streaming_response.create(**conversation()) as response,
    ):
        assert response.parse().choices[0].message.content == TEXT
    assert ("count", name) in recorder.events
    assert (
        _names(recorder).count("settle")
        == _names(recorder).count("begun")
        == _names(recorder).count("prepare")
    )


# --- answers ----------------------------------------------------------------------------------------------


def test_an_answer_that_its_parser_refuses_is_settled(endpoint: Endpoint) -> None:
    """`parse` raises on a cut answer, but the answer came and its tokens are billed."""
    endpoint.answers.append(plain(reason="length"))
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.LengthFinishReasonError),
    ):
        client.chat.completions.parse(**conversation())
    assert _names(recorder) == ["prepare", "begun", "settle", "close"]
    assert _settled(recorder)[0].cache_read == 4000


async def test_async_answer_that_its_parser_refuses_is_settled(endpoint: Endpoint) -> None:
    """The same, awaited."""
    endpoint.answers.append(plain(reason="length"))
    async with wrap(_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        with pytest.raises(openai.LengthFinishReasonError):
            await client.chat.completions.parse(**conversation())
    assert _names(recorder) == ["prepare", "begun", "settle", "close"]
    assert _settled(recorder)[0].cache_read == 4000


@pytest.mark.parametrize("cast_to", [str, httpx.Response, object])
def test_unparsed_answers_are_read_too(endpoint: Endpoint, cast_to: Any) -> None:
    """Text, HTTP responses and dicts asked for by `client.post` settle with their usage."""
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        assert isinstance(client.post("/chat/completions", body=conversation(), cast_to=cast_to), cast_to)
    usage, partial = _settled(recorder)
    assert usage.cache_read == 4000
    assert not partial


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("way", ["iter_bytes", "iter_text", "iter_lines", "read", "text"])
def test_every_way_to_read(endpoint: Endpoint, stream: bool, zipped: bool, way: str) -> None:
    """However the caller reads an unread answer, its bytes are the same as unwrapped and its usage is settled once."""
    read = []
    for recorder in (None, Recorder()):
        endpoint.answers.append((events if stream else plain)(zipped=zipped))
        client = _client(endpoint) if recorder is None else wrap(_client(endpoint), middleware=recorder)
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
    usage, partial = _settled(recorder)
    assert (usage.cache_read, usage.cache_write_5m, usage.output, partial) == (4000, 900, 7, False)


def test_raw_bytes_pass_unseen(endpoint: Endpoint) -> None:
    """Bytes read below the decoder are not looked at: the call settles without usage, as partial."""
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder())) as client,
        client.chat.completions.with_streaming_response.create(**conversation()) as response,
    ):
        assert b"".join(response.http_response.iter_raw())
    assert _settled(recorder) == (None, True)


def test_an_answer_left_unread_is_settled_without_usage(endpoint: Endpoint) -> None:
    """A response that is opened and closed settles with nothing, marked partial."""
    with (
        wrap(_client(endpoint), middleware=(recorder := Recorder())) as client,
        client.chat.completions.with_streaming_response.create(**conversation()),
    ):
        assert _names(recorder) == ["prepare", "begun"]
    assert _settled(recorder) == (None, True)


def test_a_stream_without_usage(endpoint: Endpoint) -> None:
    """It settles with None, whole, and nothing was added to the request to get one."""
    endpoint.answers.append(events(usage=None))
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        assert len(list(client.chat.completions.create(**conversation(), stream=True))) == 5
    assert "stream_options" not in endpoint.arrived[0].body
    assert _settled(recorder) == (None, False)


def test_a_stream_closed_early(endpoint: Endpoint) -> None:
    """It settles with the usage it had, as partial, at the moment it is closed."""
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        with client.chat.completions.create(**conversation(), stream=True) as stream:
            next(iter(stream))
            assert _names(recorder) == ["prepare", "begun"]
        usage, partial = _settled(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_async_stream_closed_early(endpoint: Endpoint) -> None:
    """The same, awaited."""
    async with wrap(_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        async with await client.chat.completions.create(**conversation(), stream=True) as stream:
            await anext(aiter(stream))
            assert _names(recorder) == ["prepare", "begun"]
        usage, partial = _settled(recorder)
    assert (usage.cache_read, partial) == (4000, True)


def test_a_broken_stream(endpoint: Endpoint) -> None:
    """The caller gets the chunks that came and the error it would have got; the call settles with what it had."""
    raised = []
    for recorder in (None, Recorder()):
        endpoint.answers.append(events(broken_after=2))
        client = _client(endpoint) if recorder is None else wrap(_client(endpoint), middleware=recorder)
        got = []
        with client, pytest.raises(Exception) as caught:
            got.extend(chunk for chunk in client.chat.completions.create(**conversation(), stream=True))
        raised.append(caught.type)
    assert raised[0] is raised[1]
    assert recorder is not None
    usage, partial = _settled(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_async_broken_stream(endpoint: Endpoint) -> None:
    """The same, awaited."""
    endpoint.answers.append(events(broken_after=2))
    async with wrap(_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        stream = await client.chat.completions.create(**conversation(), stream=True)
        with pytest.raises(Exception):  # noqa: B017
            [chunk async for chunk in stream]
    usage, partial = _settled(recorder)
    assert (usage.cache_read, partial) == (4000, True)


async def test_a_cancelled_reader() -> None:
    """Cancelling a task that waits for the next chunk settles with what came, and the cancellation goes on."""
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
        usage, partial = _settled(recorder)
    assert (usage.cache_read, partial) == (4000, True)


def test_a_dropped_stream_is_settled_when_collected(endpoint: Endpoint) -> None:
    """A stream that was begun and forgotten settles once Python takes it away."""
    with wrap(_client(endpoint), middleware=(recorder := Recorder())) as client:
        next(iter(client.chat.completions.create(**conversation(), stream=True)))
        gc.collect()
        assert _settled(recorder)[1]


def test_chunks_pass_one_by_one_as_the_same_objects() -> None:
    """No chunk is copied, joined or held back: each is the caller's before the next is fetched."""
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
    assert _settled(recorder)[0].output == USAGE["completion_tokens"]


async def test_async_chunks_pass_one_by_one_as_the_same_objects() -> None:
    """The same, awaited."""
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
    assert _settled(recorder)[0].output == USAGE["completion_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_comes_read(stream: bool) -> None:
    """An HTTP client that hands over whole responses, as tests and caches do, is settled from their content."""
    whole = b"".join(event(chunk) for chunk in chunks())
    answer = {"content": whole} if stream else {"json": completion()}
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, **answer)))
    recorder = Recorder()
    with (
        wrap(OpenAI(api_key="key", http_client=http), middleware=recorder) as client,
        client.chat.completions.with_streaming_response.create(**conversation(), stream=stream) as response,
    ):
        response.read()
    usage, partial = _settled(recorder)
    assert (usage.cache_read, usage.output, partial) == (4000, 7, False)
