"""LiteLLM's hooks without LiteLLM; tests/clients/litellm has the real one."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from cachemw.errors import ConfigError
from cachemw.integrations.litellm_request import namespace
from cachemw.settings import Settings
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Import the hook's module with a stand-in for the three names of LiteLLM that it uses."""
    litellm, integrations, loggers = (ModuleType(name) for name in ("litellm", "a", "b"))
    stand_in: Any = litellm
    stand_in.cache = None
    stand_in.get_llm_provider = lambda name, provider, base: (
        name.partition("/")[2],
        name.partition("/")[0],
        None,
        base,
    )
    loggers.CustomLogger = type("CustomLogger", (), {})  # type: ignore[attr-defined]  # an attribute of a module
    monkeypatch.setitem(sys.modules, "litellm", litellm)
    monkeypatch.setitem(sys.modules, "litellm.integrations", integrations)
    monkeypatch.setitem(sys.modules, "litellm.integrations.custom_logger", loggers)
    monkeypatch.delitem(sys.modules, "cachemw.integrations.litellm", raising=False)
    yield importlib.import_module("cachemw.integrations.litellm")
    sys.modules.pop("cachemw.integrations.litellm", None)


class Logging:
    """The part of LiteLLM's logging object that the hook uses."""

    def __init__(self) -> None:
        self.model = "databricks/databricks-claude-sonnet-4"
        self.completion_start_time: object = None


def attempt(name: str = "1", **more: Any) -> dict[str, Any]:
    """Return the keywords of one attempt at a deployment."""
    kwargs = {key: value for key, value in conversation().items() if key != "model"}
    logging = Logging()
    return {**kwargs, "model": logging.model, "litellm_call_id": name, "litellm_logging_obj": logging, **more}


def make_hook(module: Any, **fields: Any) -> tuple[Any, AsyncRecorder]:
    """Return a hook and the record of its middleware."""
    recorder = AsyncRecorder(provider="auto", **fields)
    return module.CacheHook(recorder), recorder


def event_names(recorder: AsyncRecorder) -> list[str]:
    """Return the names of the calls that the middleware got, without counts."""
    return [event[0] for event in recorder.events if event[0] != "count"]


CALL = SimpleNamespace(value="acompletion")

USAGE = {"usage": {"prompt_tokens": 5000, "completion_tokens": 7, "cache_read_input_tokens": 4000}}


async def test_call_is_prepared_begun_and_settled_once(module: Any) -> None:
    """A call is prepared with markers, begins with the answer, and settles once with the event."""
    hook, recorder = make_hook(module)
    kwargs = attempt()
    sent = await hook.async_pre_call_deployment_hook(kwargs, CALL)
    assert 0 < marks(sent["messages"]) <= 4
    assert {key for key in sent if sent[key] is not kwargs[key]} <= {"messages", "tools"}
    await hook.async_post_call_success_deployment_hook(sent, object(), CALL)
    data = {"litellm_call_id": "1"}
    for _ in range(2):
        await hook.async_log_success_event(data, USAGE, None, None)
    await hook.async_log_failure_event(data, None, None, None)
    assert event_names(recorder) == ["prepare", "begun", "settle"]
    assert recorder.events[-1][1].usage.cache_read == 4000


async def test_stream_of_the_proxy_passes_and_settles_its_call(module: Any) -> None:
    """Chunks pass unchanged, the first begins the call, and a client that disconnects ends it."""

    async def chunks() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    hook, recorder = make_hook(module)
    data, other = attempt(), attempt("2")
    await hook.async_pre_call_deployment_hook(data, CALL)
    stream = hook.async_post_call_streaming_iterator_hook(None, chunks(), data)
    assert [chunk async for chunk in stream] == ["a", "b"]
    assert event_names(recorder) == ["prepare", "begun"]
    await hook.async_pre_call_deployment_hook(other, CALL)
    stream = hook.async_post_call_streaming_iterator_hook(None, chunks(), other)
    assert await anext(stream) == "a"
    await stream.aclose()
    assert event_names(recorder)[2:] == ["prepare", "begun", "settle"]
    assert recorder.counts["settle.partial"] == 1
    unknown = hook.async_post_call_streaming_iterator_hook(None, chunks(), {})
    assert [chunk async for chunk in unknown] == ["a", "b"]


async def test_failed_attempt_is_failed_refused_or_settled(module: Any) -> None:
    """An attempt that failed is failed; a 400 about a marker is learned; a broken stream is partial."""
    hook, recorder = make_hook(module)
    refusal = ValueError("messages.0.content.0: cache_control cannot be set for this block")
    refusal.status_code = 400  # type: ignore[attr-defined]  # as LiteLLM's errors have it
    for error in (ValueError("boom"), refusal):
        kwargs = attempt()
        await hook.async_pre_call_deployment_hook(kwargs, CALL)
        await hook.async_post_call_failure_deployment_hook(kwargs, error, CALL)
        await hook.async_log_failure_event(kwargs, None, None, None)
    assert event_names(recorder) == ["prepare", "fail", "prepare", "refused", "fail"]
    for begun in (None, 1.0):
        kwargs = attempt()
        await hook.async_pre_call_deployment_hook(kwargs, CALL)
        kwargs["litellm_logging_obj"].completion_start_time = begun
        await hook.async_log_failure_event(kwargs, None, None, None)
    assert event_names(recorder)[5:] == ["prepare", "fail", "prepare", "settle"]


async def test_next_attempt_with_the_same_id_fails_the_one_before(module: Any) -> None:
    """An attempt without a reported failure fails when the next attempt with its id begins."""
    hook, recorder = make_hook(module)
    first, second = attempt(), attempt()
    await hook.async_pre_call_deployment_hook(first, CALL)
    await hook.async_pre_call_deployment_hook(second, CALL)
    assert event_names(recorder) == ["prepare", "fail", "prepare"]
    await hook.async_log_success_event(second, USAGE, None, None)
    assert event_names(recorder)[-1] == "settle"


async def test_stream_of_the_sdk_is_begun_at_the_next_call(module: Any) -> None:
    """LiteLLM notes the first chunk on its logging object; a collected object ends its call."""
    hook, recorder = make_hook(module)
    kwargs = attempt()
    await hook.async_pre_call_deployment_hook(kwargs, CALL)
    kwargs["litellm_logging_obj"].completion_start_time = 1.0
    await hook.async_pre_call_deployment_hook(attempt("2"), CALL)
    assert event_names(recorder) == ["prepare", "begun", "prepare"]
    await hook.async_log_success_event({"litellm_call_id": "2"}, USAGE, None, None)
    assert event_names(recorder)[-1] == "prepare"


async def test_answer_from_litellms_cache_is_no_call(module: Any) -> None:
    """The cache key is that of the original request, and an answer from LiteLLM's cache is no call."""
    module.litellm.cache = SimpleNamespace(get_cache_key=lambda **kwargs: f"key-{marks(kwargs['messages'])}")
    hook, recorder = make_hook(module)
    kwargs = attempt()
    sent = await hook.async_pre_call_deployment_hook(kwargs, CALL)
    assert sent["cache_key"] == "key-0"
    await hook.async_log_success_event({**kwargs, "cache_hit": True}, USAGE, None, None)
    assert event_names(recorder) == ["prepare", "fail"]
    sent = await hook.async_pre_call_deployment_hook(attempt("2", cache_key="own"), CALL)
    assert sent["cache_key"] == "own"


async def test_request_that_cannot_be_read_passes_and_is_counted(module: Any) -> None:
    """A request that can't be read is counted, and goes on."""
    hook, recorder = make_hook(module)
    assert await hook.async_pre_call_deployment_hook({"model": "databricks/x"}, CALL) is None
    assert await hook.async_pre_call_deployment_hook({}, CALL) is None
    nameless = {key: value for key, value in attempt().items() if key != "litellm_call_id"}
    assert await hook.async_pre_call_deployment_hook(nameless, CALL) is None
    assert recorder.counts["litellm.request"] == 2
    for answered in (hook.async_log_success_event, hook.async_log_failure_event):
        await answered({}, None, None, None)


async def test_namespace_is_that_of_the_virtual_key_unless_set(module: Any) -> None:
    """The virtual key names the namespace, unless the settings name one for all."""

    class Spaced(AsyncRecorder):
        async def prepare(self, body: Any, labels: Any = None, namespace: Any = None, **kwargs: Any) -> Any:
            self.events.append((namespace, labels))
            return await super().prepare(body, labels, namespace, **kwargs)

    data = {"user_api_key_hash": "k", "cachemw_labels": {"app": "x"}}
    for fields, expected in (({}, namespace({"metadata": data})), ({"namespace": "mine"}, None)):
        recorder = Spaced(provider="auto", **fields)
        await module.CacheHook(recorder).async_pre_call_deployment_hook(attempt(metadata=data), CALL)
        assert recorder.events[0] == (expected, {"app": "x"})


def test_hook_is_made_of_settings_fields_or_a_middleware(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hook` is made of the environment on first use; wrong arguments are a `ConfigError`."""
    monkeypatch.setenv("CACHEMW_MODE", "observe")
    assert module.hook is module.hook
    assert module.hook.middleware.settings.mode == "observe"
    given = module.CacheHook(settings=Settings(provider="databricks"), middleware=None)
    assert (given.middleware.settings.provider, given._named) == ("auto", "databricks")
    assert module.CacheHook(mode="off").middleware.settings.mode == "off"
    with pytest.raises(ConfigError, match="'databricks'; 'auto' is needed"):
        module.CacheHook(AsyncRecorder(provider="databricks"))
    with pytest.raises(ConfigError, match="AsyncMiddleware"):
        module.CacheHook(Recorder(provider="auto"))
    with pytest.raises(ConfigError, match="only the middleware"):
        module.CacheHook(AsyncRecorder(provider="auto"), mode="off")
    with pytest.raises(ConfigError, match="both given"):
        module.CacheHook(settings=Settings(), mode="off")
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = module.other


def test_missing_litellm_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the hook without litellm names the package to install; `import cachemw` needs none."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.delitem(sys.modules, "cachemw.integrations.litellm", raising=False)
    with pytest.raises(ConfigError, match=r"package litellm is missing. Run `pip install '\.\[litellm\]'`"):
        importlib.import_module("cachemw.integrations.litellm")


async def test_cancellation_passes_through_the_hook(module: Any) -> None:
    """A `BaseException` passes through the hook."""

    class Stuck(AsyncRecorder):
        async def prepare(self, body: Any, *args: Any, **kwargs: Any) -> Any:
            await asyncio.Event().wait()

    task = asyncio.create_task(
        module.CacheHook(Stuck(provider="auto")).async_pre_call_deployment_hook(attempt(), CALL)
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
