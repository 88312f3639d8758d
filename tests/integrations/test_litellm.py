"""LiteLLM's keywords and hooks without LiteLLM; the real one is in tests/clients/litellm."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from copy import deepcopy
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.request.equality import canonical
from cachemw.errors import ConfigError
from cachemw.integrations.litellm_request import labels, namespace, read, rewritten
from cachemw.settings import Settings
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

MARK = {"type": "ephemeral"}
SYSTEM = {"location": "message", "role": "system"}
LAST = {"location": "message", "index": -1}
TOOLS = {"location": "tool_config"}


def text(words: str, **more: Any) -> dict[str, Any]:
    """Return a text part."""
    return {"type": "text", "text": words, **more}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content, **more}


def asked(**more: Any) -> dict[str, Any]:
    """Return the keywords of one call."""
    return {
        "messages": [said("system", "S"), said("user", "q"), said("assistant", "a"), said("user", "r")],
        **more,
    }


def body_of(kwargs: dict[str, Any], route: str = "openai", call: str = "acompletion") -> Any:
    """Return the body that is prepared for a call on a route, None where there is none."""
    request = read(kwargs, call, route, "m", None, None)
    return request and request.body


def marked(value: Any, path: str = "") -> set[str]:
    """Return where markers stand."""
    found = {path} if isinstance(value, dict) and "cache_control" in value else set()
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(marked(inner, f"{path}.{key}".lstrip(".")) for key, inner in pairs))


# --- keywords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "base", "named", "provider"),
    [
        ("databricks", "https://proxy.example/serving-endpoints", None, "litellm-databricks"),
        ("anthropic", None, "openrouter", "anthropic"),
        ("openrouter", None, None, "openrouter"),
        ("openai", None, "databricks", "openai"),
        ("openai", "https://one.cloud.databricks.com/serving-endpoints", None, "databricks"),
        ("openai", "https://openrouter.ai/api/v1/", None, "openrouter"),
        ("openai", "https://gateway.example/v1", None, None),
        ("openai", "https://gateway.example/v1", "databricks", "databricks"),
        ("bedrock", None, None, None),
        ("bedrock", None, "litellm", "litellm"),
        ("gemini", None, None, "gemini"),
        ("deepseek", None, None, "deepseek"),
    ],
)
def test_the_provider_is_told_by_the_route(
    route: str, base: str | None, named: str | None, provider: str | None
) -> None:
    """LiteLLM's route tells it, the host of an OpenAI-compatible deployment, then what the user says."""
    request = read(asked(), "acompletion", route, "m", base, named)
    assert request is not None
    assert (request.provider, request.wire, request.body["model"]) == (provider, "chat", "m")


@pytest.mark.parametrize(
    ("kwargs", "call", "route"),
    [
        ({}, "acompletion", "openai"),
        ({"messages": "hello"}, "acompletion", "openai"),
        (asked(), "aembedding", "openai"),
        (asked(), "anthropic_messages", "databricks"),
        (asked(extra_body={"tools": []}), "acompletion", "openai"),
        (asked(extra_body={"messages": []}), "acompletion", "openai"),
    ],
)
def test_what_cannot_be_rewritten_is_no_request(kwargs: dict[str, Any], call: str, route: str) -> None:
    """Other calls, messages by position, content in `extra_body`, and what LiteLLM makes a chat call of."""
    assert body_of(kwargs, route, call) is None


def test_the_body_holds_the_prompt_and_what_keys_it() -> None:
    """No credential, no logging object; a class or an object stands for what LiteLLM makes of it."""

    class Shape:
        pass

    class Answer:
        def model_dump(self, exclude_none: bool) -> dict[str, Any]:
            assert exclude_none
            return said("assistant", "a")

    kwargs = asked(
        api_key="secret", litellm_logging_obj=object(), response_format=Shape, tools=None,
        extra_body={"thinking": {"type": "enabled"}, "top_k": 1}, tool_choice="auto",
    )  # fmt: skip
    kwargs["messages"].append(Answer())
    body = body_of(kwargs)
    assert body == {
        "model": "m",
        "messages": [*kwargs["messages"][:-1], said("assistant", "a")],
        "thinking": {"type": "enabled"},
        "tool_choice": "auto",
        "response_format": {"class": f"{Shape.__module__}.{Shape.__qualname__}"},
    }


def test_markers_that_litellm_drops_take_no_slot() -> None:
    """On the databricks route markers on tool definitions never arrive; on the others they are the client's."""
    tools = [{"type": "function", "function": {"name": "f", "cache_control": MARK}, "cache_control": MARK}]
    assert marks(body_of(asked(tools=tools), "databricks")) == 0
    assert marks(body_of(asked(tools=tools), "openrouter")) == 2
    assert marks(tools) == 2


def test_keywords_come_back_with_the_body() -> None:
    """Content is replaced, all else stays; None where nothing was added; the caller's are untouched."""
    kwargs = asked(api_key="k", stream=True)
    before = deepcopy(kwargs)
    request = read(kwargs, "acompletion", "openai", "m", None, None)
    assert request is not None
    assert rewritten(kwargs, request, request.body) is None
    messages = [said("system", [text("S", cache_control=MARK)]), *kwargs["messages"][1:]]
    sent = {**request.body, "messages": messages, "prompt_cache_key": "p"}
    assert rewritten(kwargs, request, sent) == {**before, "messages": messages, "prompt_cache_key": "p"}
    assert kwargs == before


# --- injection points -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "places"),
    [
        ([SYSTEM], {"messages.0.content.0"}),
        ([LAST], {"messages.3.content.0"}),
        ([{"location": "message", "role": "user"}], {"messages.1.content.0", "messages.3.content.0"}),
        ([{"location": "message", "index": "1"}], {"messages.1.content.0"}),
        ([{"location": "message", "index": 9}, {"location": "message", "index": -9}], set()),
        ([{"location": "message", "index": "x", "role": "system"}], {"messages.0.content.0"}),
        ([{"location": "message"}, {"location": "elsewhere"}, "odd"], set()),
        ([LAST, LAST, {"location": "message", "index": 3}], {"messages.3.content.0"}),
        ([{**SYSTEM, "index": 2}], {"messages.2.content.0"}),
        ([TOOLS], set()),
        ("odd", set()),
        (None, set()),
    ],
)
def test_points_are_read_as_litellm_reads_them(points: Any, places: set[str]) -> None:
    """By index before role, from the end too; text that is a string is marked as a part."""
    body = body_of(asked(cache_control_injection_points=points))
    assert marked(body) == places
    assert canonical(body)["messages"] == canonical(asked())["messages"]


@pytest.mark.parametrize(
    "content", [None, "", "  ", [], [text(" ")], ["odd"], [text("x", cache_control=MARK), text("y")]]
)
def test_nothing_is_marked_where_nothing_can_be(content: Any) -> None:
    """No blank text, no second marker on a message that has one."""
    kwargs = {"messages": [said("user", content)], "cache_control_injection_points": [LAST]}
    assert body_of(kwargs)["messages"] == kwargs["messages"]


def test_a_points_own_ttl_and_a_message_that_is_marked_beside_its_text() -> None:
    """`control` may ask for an hour; a marker beside the text is one, too."""
    hour = {**SYSTEM, "control": {"type": "ephemeral", "ttl": "1h"}}
    body = body_of(asked(cache_control_injection_points=[hour]))
    assert body["messages"][0]["content"][0]["cache_control"] == hour["control"]
    beside = {"messages": [said("user", "q", cache_control=MARK)], "cache_control_injection_points": [LAST]}
    assert body_of(beside)["messages"] == beside["messages"]


def test_points_for_tools_and_the_messages_wire() -> None:
    """Anthropic's route marks the last tool unless one is marked; a system section is a point's by its role."""
    tools = [{"name": "f"}, {"name": "g"}]
    points = [SYSTEM, TOOLS, LAST]
    kwargs = asked(system="S", tools=tools, cache_control_injection_points=points)
    expected = {"tools.1", "system.0", "messages.3.content.0"}
    assert marked(body_of(kwargs, "anthropic", "anthropic_messages")) == expected
    kwargs["system"] = [text("S"), text("T")]
    kwargs["tools"] = [{"name": "f", "cache_control": MARK}, {"name": "g"}]
    expected = {"tools.0", "system.1", "messages.3.content.0"}
    assert marked(body_of(kwargs, "anthropic", "anthropic_messages")) == expected
    assert "tools.1" not in marked(body_of(asked(tools=tools, cache_control_injection_points=points)))


def test_points_that_are_placed_are_taken_out() -> None:
    """Those for messages go; those that only LiteLLM can serve stay."""
    kwargs = asked(cache_control_injection_points=[SYSTEM, TOOLS])
    request = read(kwargs, "acompletion", "openai", "m", None, None)
    assert request is not None
    changed = rewritten(kwargs, request, {**request.body})
    assert changed is not None
    assert changed["cache_control_injection_points"] == [TOOLS]
    kwargs["cache_control_injection_points"] = [SYSTEM]
    changed = rewritten(kwargs, request, {**request.body})
    assert changed is not None
    assert "cache_control_injection_points" not in changed
    assert marked(changed["messages"]) == {"0.content.0"}


_CONTENT = st.one_of(
    st.sampled_from(["", "x"]),
    st.lists(st.sampled_from([text("x"), text(""), text("y", cache_control=MARK)]), max_size=3),
)
_MESSAGE = st.builds(said, st.sampled_from(["system", "user", "assistant"]), _CONTENT)
_POINT = st.sampled_from([SYSTEM, LAST, TOOLS, *({"location": "message", "index": n} for n in range(-2, 5))])


@given(st.lists(_MESSAGE, min_size=1, max_size=6), st.lists(_POINT, max_size=6), st.integers(0, 2))
def test_points_never_make_more_than_four(messages: Any, points: Any, tools: int) -> None:
    """Beside whatever the client marked itself, injected markers stop at four."""
    own = [{"name": "f", "cache_control": MARK}] * tools + [{"name": "g"}]
    kwargs = {"messages": messages, "tools": own, "cache_control_injection_points": points}
    before = marks(messages) + tools
    assert marks(body_of(kwargs, "anthropic")) <= max(before, 4)
    assert marks(messages) + tools == before


# --- whose call it is -------------------------------------------------------------------------------------


def test_a_namespace_for_each_key_or_team() -> None:
    """Hashed once more, the team before the key; the proxy's word before the client's; none without."""
    key = namespace({"metadata": {"user_api_key_hash": "k", "user_api_key_team_id": None}})
    team = namespace({"metadata": {"user_api_key_hash": "k", "user_api_key_team_id": "t"}})
    assert key is not None
    assert team is not None
    assert key.startswith("litellm-key-")
    assert team.startswith("litellm-team-")
    assert "k" not in key.removeprefix("litellm-key-")
    same = {"user_api_key_hash": "other", "user_api_key_team_id": "t"}
    assert namespace({"litellm_metadata": same, "metadata": {"user_api_key_team_id": "spoofed"}}) == team
    assert namespace({"metadata": {"user_api_key_hash": "l"}}) != key
    for nobody in ({}, {"metadata": None}, {"metadata": {"user_api_key_hash": ""}}):
        assert namespace(nobody) is None


def test_labels_are_in_the_metadata() -> None:
    """As `cachemw_labels`; None leaves those of the context."""
    assert labels({"metadata": {"cachemw_labels": {"app": "x"}}}) == {"app": "x"}
    assert labels({"metadata": {"cachemw_labels": "x"}}) is None
    assert labels({}) is None


# --- the hook, with a stand-in for LiteLLM's base class ---------------------------------------------------


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
    loggers.CustomLogger = type("CustomLogger", (), {})  # type: ignore[attr-defined]  # what a module holds
    monkeypatch.setitem(sys.modules, "litellm", litellm)
    monkeypatch.setitem(sys.modules, "litellm.integrations", integrations)
    monkeypatch.setitem(sys.modules, "litellm.integrations.custom_logger", loggers)
    monkeypatch.delitem(sys.modules, "cachemw.integrations.litellm", raising=False)
    yield importlib.import_module("cachemw.integrations.litellm")
    sys.modules.pop("cachemw.integrations.litellm", None)


class Logging:
    """What the hook needs of LiteLLM's logging object."""

    def __init__(self) -> None:
        self.model = "databricks/databricks-claude-sonnet-4"
        self.completion_start_time: object = None


def attempt(name: str = "1", **more: Any) -> dict[str, Any]:
    """Return the keywords of one attempt at a deployment."""
    kwargs = {key: value for key, value in conversation().items() if key != "model"}
    logging = Logging()
    return {**kwargs, "model": logging.model, "litellm_call_id": name, "litellm_logging_obj": logging, **more}


def made(module: Any, **fields: Any) -> tuple[Any, AsyncRecorder]:
    """Return a hook and the record of its middleware."""
    recorder = AsyncRecorder(provider="auto", **fields)
    return module.CacheHook(recorder), recorder


def told(recorder: AsyncRecorder) -> list[str]:
    """Return what the middleware was told, without counts."""
    return [event[0] for event in recorder.events if event[0] != "count"]


CALL = SimpleNamespace(value="acompletion")
USAGE = {"usage": {"prompt_tokens": 5000, "completion_tokens": 7, "cache_read_input_tokens": 4000}}


async def test_an_answer_from_its_request_to_its_usage(module: Any) -> None:
    """Prepared with markers, begun with the answer, settled with the event, once."""
    hook, recorder = made(module)
    kwargs = attempt()
    sent = await hook.async_pre_call_deployment_hook(kwargs, CALL)
    assert 0 < marks(sent["messages"]) <= 4
    assert {key for key in sent if sent[key] is not kwargs[key]} <= {"messages", "tools"}
    await hook.async_post_call_success_deployment_hook(sent, object(), CALL)
    data = {"litellm_call_id": "1"}
    for _ in range(2):
        await hook.async_log_success_event(data, USAGE, None, None)
    await hook.async_log_failure_event(data, None, None, None)
    assert told(recorder) == ["prepare", "begun", "settle"]
    assert recorder.events[-1][1].usage.cache_read == 4000


async def test_a_stream_through_the_proxy(module: Any) -> None:
    """Chunks pass as they are, the first begins the call, a client that goes away ends it."""

    async def chunks() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    hook, recorder = made(module)
    data, other = attempt(), attempt("2")
    await hook.async_pre_call_deployment_hook(data, CALL)
    stream = hook.async_post_call_streaming_iterator_hook(None, chunks(), data)
    assert [chunk async for chunk in stream] == ["a", "b"]
    assert told(recorder) == ["prepare", "begun"]
    await hook.async_pre_call_deployment_hook(other, CALL)
    stream = hook.async_post_call_streaming_iterator_hook(None, chunks(), other)
    assert await anext(stream) == "a"
    await stream.aclose()
    assert told(recorder)[2:] == ["prepare", "begun", "settle"]
    assert recorder.counts["settle.partial"] == 1
    unknown = hook.async_post_call_streaming_iterator_hook(None, chunks(), {})
    assert [chunk async for chunk in unknown] == ["a", "b"]


async def test_failures(module: Any) -> None:
    """An attempt that failed is failed; a 400 about a marker is remembered; a broken stream is partial."""
    hook, recorder = made(module)
    refusal = ValueError("messages.0.content.0: cache_control cannot be set for this block")
    refusal.status_code = 400  # type: ignore[attr-defined]  # as LiteLLM's errors have it
    for error in (ValueError("boom"), refusal):
        kwargs = attempt()
        await hook.async_pre_call_deployment_hook(kwargs, CALL)
        await hook.async_post_call_failure_deployment_hook(kwargs, error, CALL)
        await hook.async_log_failure_event(kwargs, None, None, None)
    assert told(recorder) == ["prepare", "fail", "prepare", "refused", "fail"]
    for begun in (None, 1.0):
        kwargs = attempt()
        await hook.async_pre_call_deployment_hook(kwargs, CALL)
        kwargs["litellm_logging_obj"].completion_start_time = begun
        await hook.async_log_failure_event(kwargs, None, None, None)
    assert told(recorder)[5:] == ["prepare", "fail", "prepare", "settle"]


async def test_attempts_with_one_id_follow_each_other(module: Any) -> None:
    """Where no failure is told of the one before, the next attempt fails it."""
    hook, recorder = made(module)
    first, second = attempt(), attempt()
    await hook.async_pre_call_deployment_hook(first, CALL)
    await hook.async_pre_call_deployment_hook(second, CALL)
    assert told(recorder) == ["prepare", "fail", "prepare"]
    await hook.async_log_success_event(second, USAGE, None, None)
    assert told(recorder)[-1] == "settle"


async def test_streams_of_the_sdk_are_looked_after_at_the_next_call(module: Any) -> None:
    """LiteLLM notes the first chunk on its logging object; the call of an object that is gone is gone."""
    hook, recorder = made(module)
    kwargs = attempt()
    await hook.async_pre_call_deployment_hook(kwargs, CALL)
    kwargs["litellm_logging_obj"].completion_start_time = 1.0
    await hook.async_pre_call_deployment_hook(attempt("2"), CALL)
    assert told(recorder) == ["prepare", "begun", "prepare"]
    await hook.async_log_success_event({"litellm_call_id": "2"}, USAGE, None, None)
    assert told(recorder)[-1] == "prepare"


async def test_litellms_own_store_of_answers(module: Any) -> None:
    """Its key is that of the request as it came; an answer out of it is no call."""
    module.litellm.cache = SimpleNamespace(get_cache_key=lambda **kwargs: f"key-{marks(kwargs['messages'])}")
    hook, recorder = made(module)
    kwargs = attempt()
    sent = await hook.async_pre_call_deployment_hook(kwargs, CALL)
    assert sent["cache_key"] == "key-0"
    await hook.async_log_success_event({**kwargs, "cache_hit": True}, USAGE, None, None)
    assert told(recorder) == ["prepare", "fail"]
    sent = await hook.async_pre_call_deployment_hook(attempt("2", cache_key="own"), CALL)
    assert sent["cache_key"] == "own"


async def test_a_failure_of_ours_changes_nothing(module: Any) -> None:
    """What can't be read is counted, and the request goes on."""
    hook, recorder = made(module)
    assert await hook.async_pre_call_deployment_hook({"model": "databricks/x"}, CALL) is None
    assert await hook.async_pre_call_deployment_hook({}, CALL) is None
    nameless = {key: value for key, value in attempt().items() if key != "litellm_call_id"}
    assert await hook.async_pre_call_deployment_hook(nameless, CALL) is None
    assert recorder.counts["litellm.request"] == 2
    for answered in (hook.async_log_success_event, hook.async_log_failure_event):
        await answered({}, None, None, None)


async def test_namespaces(module: Any) -> None:
    """The virtual key's, unless the user names one for all."""

    class Spaced(AsyncRecorder):
        async def prepare(self, body: Any, labels: Any = None, namespace: Any = None, **kwargs: Any) -> Any:
            self.events.append((namespace, labels))
            return await super().prepare(body, labels, namespace, **kwargs)

    data = {"user_api_key_hash": "k", "cachemw_labels": {"app": "x"}}
    for fields, expected in (({}, namespace({"metadata": data})), ({"namespace": "mine"}, None)):
        recorder = Spaced(provider="auto", **fields)
        await module.CacheHook(recorder).async_pre_call_deployment_hook(attempt(metadata=data), CALL)
        assert recorder.events[0] == (expected, {"app": "x"})


def test_construction(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings, fields, or an async middleware on "auto"; `hook` is built of the environment when asked for."""
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


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the hook without litellm names the command that installs it; `import cachemw` needs none."""
    monkeypatch.setitem(sys.modules, "litellm", None)
    monkeypatch.delitem(sys.modules, "cachemw.integrations.litellm", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'cachemw\[litellm\]'"):
        importlib.import_module("cachemw.integrations.litellm")


async def test_a_cancelled_call_is_not_held_up(module: Any) -> None:
    """A `BaseException` passes through the hook."""

    class Stuck(AsyncRecorder):
        async def prepare(self, body: Any, *args: Any, **kwargs: Any) -> Any:
            await asyncio.sleep(10)

    task = asyncio.create_task(
        module.CacheHook(Stuck(provider="auto")).async_pre_call_deployment_hook(attempt(), CALL)
    )
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
