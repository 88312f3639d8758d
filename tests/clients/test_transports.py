"""The contract with SDKs over cachemw's transport: Anthropic's client, LangChain's, and `openai`, against the simulated provider."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from starlette.applications import Starlette

import cachemw
from cachemw import AsyncCacheTransport, CacheTransport
from cachemw.apps import simulated_gateway
from cachemw.simulation.options import Options
from tests.clients.endpoint import TEXT, Endpoint, error
from tests.clients.recorder import AsyncRecorder, Recorder, conversation

TEXT_OF_ANSWER = "This answer is simulated."
SYSTEM = "Answer politely, check the booking first, and never guess a date. " * 400
QUESTIONS = ("Can I send it back?", "Until when?", "Who pays?")


class Served(NamedTuple):
    """The simulated provider: its URL and its bill."""

    url: str
    app: Starlette

    @property
    def billed(self) -> dict[str, int]:
        """Return the tokens of all answers, by kind."""
        totals: dict[str, int] = self.app.state.ledger.totals
        return {
            kind: totals[kind]
            for kind in ("cache_read", "cache_write_5m", "cache_write_1h", "uncached", "output")
        }


@pytest.fixture(params=["databricks", "anthropic"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    """Serve the provider, as Databricks and as Anthropic answers."""
    app = simulated_gateway.build(Options(provider=request.param))
    with simulated_gateway.running(app) as url:
        yield Served(url, app)


def _settled(report: Any, billed: dict[str, int], calls: int) -> None:
    """Compare the report with the bill: each call is settled once, by the provider's numbers, with a saving."""
    totals = report.totals
    assert (totals.calls, totals.unsettled) == (calls, 0)
    assert {kind: getattr(totals, kind) for kind in billed} == billed
    assert billed["cache_read"] > billed["cache_write_5m"] > 2000
    assert totals.saved_by_cachemw > 0


# --- Anthropic's client -----------------------------------------------------------------------------------


def _messages(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "claude-sonnet-4-6", "max_tokens": 50, "system": SYSTEM, "messages": messages}


def test_anthropic_client_sync_is_caught_in_each_style(served: Served) -> None:
    """The Anthropic client's calls, created and streamed as events and by the helper, are caught and settled."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    transport = CacheTransport(provider="anthropic", store="memory://")
    http = anthropic.DefaultHttpxClient(transport=transport)
    with anthropic.Anthropic(base_url=served.url, api_key="key", http_client=http) as client:
        for question in QUESTIONS:
            assert client.messages.create(**_messages(question)).content[0].text == TEXT_OF_ANSWER
        kinds = [event.type for event in client.messages.create(**_messages("Why?"), stream=True)]
        with client.messages.stream(**_messages("How?")) as stream:
            assert "".join(stream.text_stream) == TEXT_OF_ANSWER
            usage = stream.get_final_message().usage
        raw = client.messages.with_raw_response.create(**_messages("Where?"))
        assert raw.parse().content[0].text == TEXT_OF_ANSWER
        _settled(cachemw.of(transport).report(), served.billed, 6)
        counts = cachemw.of(transport).counts
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert usage.cache_read_input_tokens > 2000
    assert not {"settle.partial", "settle.no_usage"} & counts.keys()


async def test_anthropic_client_async_is_caught_in_each_style(served: Served) -> None:
    """The async twin is caught in the same way."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    transport = AsyncCacheTransport(provider="anthropic", store="memory://")
    http = anthropic.DefaultAsyncHttpxClient(transport=transport)
    async with anthropic.AsyncAnthropic(base_url=served.url, api_key="key", http_client=http) as client:
        for question in QUESTIONS:
            assert (await client.messages.create(**_messages(question))).content[0].text == TEXT_OF_ANSWER
        events = await client.messages.create(**_messages("Why?"), stream=True)
        kinds = [event.type async for event in events]
        async with client.messages.stream(**_messages("How?")) as stream:
            assert "".join([piece async for piece in stream.text_stream]) == TEXT_OF_ANSWER
        _settled(await cachemw.of(transport).report(), served.billed, 5)
        counts = cachemw.of(transport).counts
    assert (kinds[0], kinds[-2:]) == ("message_start", ["message_delta", "message_stop"])
    assert not {"settle.partial", "settle.no_usage"} & counts.keys()


def test_anthropic_client_counting_tokens_passes_unchanged(endpoint: Endpoint) -> None:
    """Requests to other routes than `/v1/messages` pass unchanged."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    recorder = Recorder(provider="anthropic")
    http = anthropic.DefaultHttpxClient(transport=CacheTransport(middleware=recorder))
    arguments = {key: value for key, value in _messages("Hi").items() if key != "max_tokens"}
    with anthropic.Anthropic(base_url=endpoint.url, api_key="key", http_client=http) as client:
        client.messages.count_tokens(**arguments)
    assert endpoint.arrived[0].body == arguments
    assert recorder.events == [("close",)]


# --- LangChain's client for OpenAI ------------------------------------------------------------------------


def test_langchain_openai_sync_is_caught_in_each_style(served: Served) -> None:
    """`invoke`, `stream` and `batch` of ChatOpenAI are caught, with the given HTTP client."""
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    openai = pytest.importorskip("openai")
    transport = CacheTransport(provider="databricks", store="memory://")
    with openai.DefaultHttpxClient(transport=transport) as http:
        chat = langchain.ChatOpenAI(
            model="databricks-claude-sonnet-4-6",
            base_url=f"{served.url}/serving-endpoints",
            api_key="key",
            http_client=http,
            stream_usage=True,
        )
        arguments = [[("system", SYSTEM), ("user", question)] for question in QUESTIONS]
        assert [chat.invoke(messages).content for messages in arguments] == [TEXT_OF_ANSWER] * 3
        assert "".join(chunk.content for chunk in chat.stream(arguments[0])) == TEXT_OF_ANSWER
        assert [answer.content for answer in chat.batch(arguments)] == [TEXT_OF_ANSWER] * 3
        _settled(cachemw.of(transport).report(), served.billed, 7)


async def test_langchain_openai_async_is_caught_in_each_style(served: Served) -> None:
    """The async twin is caught in the same way."""
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    openai = pytest.importorskip("openai")
    transport = AsyncCacheTransport(provider="databricks", store="memory://")
    async with openai.DefaultAsyncHttpxClient(transport=transport) as http:
        chat = langchain.ChatOpenAI(
            model="databricks-claude-sonnet-4-6",
            base_url=f"{served.url}/serving-endpoints",
            api_key="key",
            http_async_client=http,
            stream_usage=True,
        )
        arguments = [[("system", SYSTEM), ("user", question)] for question in QUESTIONS]
        assert [(await chat.ainvoke(messages)).content for messages in arguments] == [TEXT_OF_ANSWER] * 3
        assert "".join([chunk.content async for chunk in chat.astream(arguments[0])]) == TEXT_OF_ANSWER
        _settled(await cachemw.of(transport).report(), served.billed, 4)


# --- openai -----------------------------------------------------------------------------------------------


def _arguments(question: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"model": "claude-sonnet-4-6", "messages": messages, **more}


def test_openai_client_sync_over_a_transport_is_caught(served: Served) -> None:
    """Calls of `openai`, created and streamed with an HTTP client over the transport, are caught as with `wrap`."""
    openai = pytest.importorskip("openai")
    transport = CacheTransport(provider="databricks", store="memory://")
    http = openai.DefaultHttpxClient(transport=transport)
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="key", http_client=http) as client:
        for question in QUESTIONS:
            answer = client.chat.completions.create(**_arguments(question))
            assert answer.choices[0].message.content == TEXT_OF_ANSWER
        chunks = client.chat.completions.create(
            **_arguments("Why?", stream=True, stream_options={"include_usage": True})
        )
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT_OF_ANSWER
        _settled(cachemw.of(transport).report(), served.billed, 4)


async def test_openai_client_async_over_a_transport_is_caught(served: Served) -> None:
    """The async twin is caught in the same way."""
    openai = pytest.importorskip("openai")
    transport = AsyncCacheTransport(provider="databricks", store="memory://")
    http = openai.DefaultAsyncHttpxClient(transport=transport)
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="key", http_client=http) as client:
        for question in QUESTIONS:
            answer = await client.chat.completions.create(**_arguments(question))
            assert answer.choices[0].message.content == TEXT_OF_ANSWER
        chunks = await client.chat.completions.create(
            **_arguments("Why?", stream=True, stream_options={"include_usage": True})
        )
        assert (
            "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices]) == TEXT_OF_ANSWER
        )
        _settled(await cachemw.of(transport).report(), served.billed, 4)


async def test_retries_of_an_sdk_over_a_transport_are_calls_of_their_own(endpoint: Endpoint) -> None:
    """Under a transport each attempt is a call of its own: failed ones cost nothing, the last one is settled."""
    openai = pytest.importorskip("openai")
    attempts = ["prepare", "fail", "prepare", "begun", "settle", "close"]
    for recorder in (Recorder(), AsyncRecorder()):
        endpoint.answers.append(error(503, "later", {"retry-after-ms": "1"}))
        if isinstance(recorder, Recorder):
            http = openai.DefaultHttpxClient(transport=CacheTransport(middleware=recorder))
            with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="key", http_client=http) as client:
                answer = client.chat.completions.create(**conversation())
        else:
            http = openai.DefaultAsyncHttpxClient(transport=AsyncCacheTransport(middleware=recorder))
            async with openai.AsyncOpenAI(
                base_url=f"{endpoint.url}/v1", api_key="key", http_client=http
            ) as client:
                answer = await client.chat.completions.create(**conversation())
        assert answer.choices[0].message.content == TEXT
        assert [name for name, *_ in recorder.events] == attempts
    assert len(endpoint.arrived) == 4
