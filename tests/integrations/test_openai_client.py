"""`wrap` around an OpenAI client: arguments, closing, requests and refusals.

The eight call styles are in tests/clients.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from copy import deepcopy
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from cachemw.core.request.equality import canonical
from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError
from cachemw.integrations import openai_exchange
from cachemw.integrations.openai_client import of, wrap
from cachemw.settings import Settings
from tests.clients.endpoint import TEXT, Endpoint, completion, error
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks
from tests.integrations.openai_clients import event_names, make_async_client, make_client, settlement

httpx: Any = pytest.importorskip("httpx2" if int(openai.__version__.split(".")[0]) >= 3 else "httpx")

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"

# --- wrapping ---------------------------------------------------------------------------------------------


def test_wrap_returns_the_same_client_with_its_middleware() -> None:
    """The client keeps its identity and class, and `of` returns the middleware of it and its copies."""
    client = OpenAI(api_key="key")
    assert wrap(client, provider="databricks", store="memory://") is client
    assert isinstance(client, OpenAI)
    assert isinstance(of(client), Middleware)
    assert of(client.with_options(timeout=1)) is of(client.copy().copy()) is of(client)
    client.close()


async def test_async_client_gets_an_async_middleware() -> None:
    """An async client gets an async middleware, which its copies share."""
    client = wrap(AsyncOpenAI(api_key="key"), settings=Settings(provider="databricks", store="memory://"))
    assert isinstance(of(client), AsyncMiddleware)
    assert of(client.with_options(timeout=1)) is of(client)
    await client.close()


def test_clock_of_wrap_is_the_clock_of_its_middleware(endpoint: Endpoint) -> None:
    """The middleware that `wrap` makes uses the given clock."""
    times: list[float] = []

    def clock() -> float:
        times.append(1e9)
        return 1e9

    with wrap(make_client(endpoint), provider="databricks", store="memory://", clock=clock) as client:
        client.chat.completions.create(**conversation())
    assert times


def test_wrong_arguments_of_wrap_are_config_errors() -> None:
    """Each wrong way to wrap is a `ConfigError` that names the mistake, and leaves the client unwrapped."""
    client = OpenAI(api_key="key")
    settings = Settings(provider="databricks", store="memory://")
    recorder = Recorder()
    for kwargs, message in [
        ({"middleware": AsyncRecorder()}, "AsyncRecorder; openai.OpenAI needs Middleware"),
        ({"middleware": recorder, "settings": settings}, "middleware brings its own settings"),
        ({"middleware": recorder, "clock": float}, "middleware brings its own settings"),
        ({"middleware": recorder, "store": "memory://"}, "middleware brings its own settings"),
        ({"settings": settings, "store": "memory://"}, "settings and store both given"),
    ]:
        with pytest.raises(ConfigError, match=message):
            wrap(client, **kwargs)
        with pytest.raises(ConfigError, match="not wrapped"):
            of(client)
    for stranger, name in [(object(), "object"), (openai, "module"), (None, "NoneType")]:
        with pytest.raises(ConfigError, match=f"client is {name}; allowed are openai.OpenAI"):
            wrap(stranger, settings=settings)


@pytest.mark.parametrize("provider", ["auto", "anthropic"])
def test_anthropics_endpoint_in_openai_format_is_not_marked(provider: str) -> None:
    """Anthropic's endpoint ignores markers: none are sent, whatever the settings, and usage is counted."""
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
    assert settlement(recorder)[0].cache_read == 4000


def test_second_wrap_is_refused(endpoint: Endpoint) -> None:
    """A wrapped client, and a copy of one, can't be wrapped again."""
    with wrap(make_client(endpoint), middleware=Recorder()) as client:
        for again in (client, client.with_options(timeout=1)):
            with pytest.raises(ConfigError, match="wrapped already"):
                wrap(again, middleware=Recorder())


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `openai` the error names the missing package and the command that installs it."""
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"package openai is missing. Run `pip install '\.\[openai\]'`"):
        wrap(object())


def test_import_does_not_load_the_sdk() -> None:
    """Importing the integration leaves `openai` and both HTTP libraries unloaded."""
    program = "import sys, cachemw.integrations.openai_client; print({'openai', 'httpx', 'httpx2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- closing ----------------------------------------------------------------------------------------------


def test_middleware_closes_with_the_http_client_of_its_client() -> None:
    """Closing a client or a copy closes the middleware, unless the copy has its own HTTP client."""
    recorder = Recorder()
    with wrap(OpenAI(api_key="key"), middleware=recorder) as client:
        client.with_options(http_client=httpx.Client()).close()
        assert recorder.events == []
    assert recorder.events == [("close",)]

    recorder = Recorder()
    wrap(OpenAI(api_key="key"), middleware=recorder).with_options(timeout=1).close()
    assert recorder.events == [("close",)]


async def test_async_middleware_closes_with_the_http_client_of_its_client() -> None:
    """The middleware of an async client is closed by the same rule."""
    recorder = AsyncRecorder()
    async with wrap(AsyncOpenAI(api_key="key"), middleware=recorder) as client:
        await client.with_options(http_client=httpx.AsyncClient()).close()
        assert recorder.events == []
    assert recorder.events == [("close",)]


# --- requests ---------------------------------------------------------------------------------------------


def test_retries_are_one_arrival(endpoint: Endpoint) -> None:
    """The SDK's own retries send the same body again inside one prepared call."""
    endpoint.answers.extend(
        [error(500, "busy", {"retry-after-ms": "1"}), error(429, "slow", {"retry-after-ms": "1"})]
    )
    with wrap(make_client(endpoint, max_retries=2), middleware=(recorder := Recorder())) as client:
        client.chat.completions.create(**conversation())
    assert event_names(recorder) == ["prepare", "begun", "settle", "close"]
    assert len(endpoint.arrived) == 3
    assert endpoint.arrived[0].body == endpoint.arrived[1].body == endpoint.arrived[2].body
    assert marks(endpoint.arrived[0].body)


def test_extra_body_is_merged_as_the_sdk_does(endpoint: Endpoint) -> None:
    """Messages in `extra_body` are read and marked, and the caller's dict stays unchanged."""
    asked = conversation()
    extra = {"messages": asked.pop("messages"), "top_k": 4}
    before = deepcopy(extra)
    for client in (make_client(endpoint), wrap(make_client(endpoint), middleware=Recorder())):
        client.chat.completions.create(**asked, messages=[], extra_body=extra)
        client.close()
    came, left = (arrival.body for arrival in endpoint.arrived)
    assert canonical(left) == canonical(came)
    assert left["top_k"] == 4
    assert marks(left)
    assert extra == before


def test_request_that_is_no_chat_completion_is_not_prepared(endpoint: Endpoint) -> None:
    """A request that is no chat completion is sent without a call of the middleware."""
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        client.post("/embeddings", body=conversation(), cast_to=object)
        client.post("/chat/completions/c1", body=conversation(), cast_to=object)
        client.post("/chat/completions", content=b'{"messages": []}', cast_to=object)
        with pytest.raises(openai.NotFoundError):
            client.models.list()
    assert event_names(recorder) == ["close"]
    assert not any(marks(arrival.body) for arrival in endpoint.arrived)


def test_body_without_a_marker_leaves_unchanged(endpoint: Endpoint) -> None:
    """If no marker is added, the SDK sends exactly the body of an unwrapped client."""
    asked = {**conversation(), "model": "gpt-none"}
    for client in (make_client(endpoint), wrap(make_client(endpoint), middleware=Recorder())):
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
def test_provider_and_model_are_read_from_the_url(
    endpoint: Endpoint, base: str, url: str, provider: str | None
) -> None:
    """With "auto" the URL names the provider, and for invocations the model, which stays out of the body."""
    asked = conversation()
    if "invocations" in url:
        del asked["model"]
    with wrap(
        make_client(endpoint, base_url=endpoint.url + base),
        middleware=(recorder := Recorder(provider="auto")),
    ) as client:
        client.post(url.format(endpoint.url), body=asked, cast_to=object)
    assert recorder.events[0] == ("prepare", provider)
    (arrival,) = endpoint.arrived
    assert canonical(arrival.body) == canonical(asked)
    assert bool(marks(arrival.body)) == (provider is not None)


def test_provider_of_the_settings_has_precedence_over_the_url(endpoint: Endpoint) -> None:
    """A provider in the settings holds for every URL."""
    with wrap(make_client(endpoint), middleware=(recorder := Recorder(provider="anthropic"))) as client:
        client.chat.completions.create(**conversation())
    assert recorder.events[0] == ("prepare", None)


# --- refusals and failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_refused_request_is_resent_without_markers(endpoint: Endpoint, stream: bool) -> None:
    """A 400 about added markers never reaches the caller: the original goes out once."""
    endpoint.answers.append(error(400, REFUSAL))
    with wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client:
        answer = client.chat.completions.create(**conversation(), stream=stream)
        assert len(list(answer) if stream else answer.choices) == (5 if stream else 1)
    first, second = (arrival.body for arrival in endpoint.arrived)
    assert marks(first)
    assert not marks(second)
    assert canonical(first) == canonical(second)
    assert event_names(recorder) == ["prepare", "refused", "begun", "settle", "close"]
    assert settlement(recorder)[0].cache_read == 4000


@pytest.mark.parametrize("stream", [False, True])
async def test_async_refused_request_is_resent_without_markers(endpoint: Endpoint, stream: bool) -> None:
    """The async client resends by the same rule."""
    endpoint.answers.append(error(400, REFUSAL))
    async with wrap(make_async_client(endpoint), middleware=(recorder := AsyncRecorder())) as client:
        answer = await client.chat.completions.create(**conversation(), stream=stream)
        assert len([chunk async for chunk in answer] if stream else answer.choices) == (5 if stream else 1)
    assert [bool(marks(arrival.body)) for arrival in endpoint.arrived] == [True, False]
    assert event_names(recorder) == ["prepare", "refused", "begun", "settle", "close"]
    assert settlement(recorder)[0].cache_read == 4000


def test_second_refusal_reaches_the_caller(endpoint: Endpoint) -> None:
    """A second refusal is raised as the SDK raises it."""
    endpoint.answers.extend([error(400, REFUSAL), error(400, REFUSAL)])
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.BadRequestError, match="cache_control") as raised,
    ):
        client.chat.completions.create(**conversation())
    assert not isinstance(raised.value.__context__, openai.OpenAIError)
    assert len(endpoint.arrived) == 2
    assert event_names(recorder) == ["prepare", "refused", "fail", "close"]


@pytest.mark.parametrize("status", [400, 401, 500])
def test_error_about_anything_else_reaches_the_caller(endpoint: Endpoint, status: int) -> None:
    """An error about anything but added markers passes after one request, and the call has failed."""
    endpoint.answers.append(error(status, "temperature: out of range"))
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder())) as client,
        pytest.raises(openai.APIStatusError, match="temperature"),
    ):
        client.chat.completions.create(**conversation())
    assert len(endpoint.arrived) == 1
    assert event_names(recorder) == ["prepare", "refused", "fail", "close"]


def test_refused_connection_is_a_failed_call() -> None:
    """The SDK's connection error passes, and the call has failed."""
    recorder = Recorder()
    with (
        wrap(
            OpenAI(base_url="http://127.0.0.1:9/v1", api_key="key", max_retries=0), middleware=recorder
        ) as client,
        pytest.raises(openai.APIConnectionError),
    ):
        client.chat.completions.create(**conversation())
    assert event_names(recorder) == ["prepare", "fail", "close"]


async def test_cancelled_call_fails_and_is_cancelled() -> None:
    """Cancelling a waiting call fails it, and the cancellation goes on."""
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
    assert event_names(recorder) == ["prepare", "fail", "close"]


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ("_merged", "client.body"),
        ("provider_at", "client.body"),
        ("OpenAIExchange._taking", "client.options"),
        ("UsageReader.feed", "client.usage"),
    ],
)
def test_exception_in_the_integration_is_counted_and_contained(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, broken: str, name: str
) -> None:
    """If the integration fails, the caller gets the answer, and the failure is counted."""

    def bug(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("bug")

    monkeypatch.setattr(f"{openai_exchange.__name__}.{broken}", bug)
    with (
        wrap(make_client(endpoint), middleware=(recorder := Recorder(provider="auto"))) as client,
        client.chat.completions.with_streaming_response.create(**conversation()) as response,
    ):
        assert response.parse().choices[0].message.content == TEXT
    assert ("count", name) in recorder.events
    assert (
        event_names(recorder).count("settle")
        == event_names(recorder).count("begun")
        == event_names(recorder).count("prepare")
    )
