"""`HttpHooks`: an exchange that a host reports piece by piece, in the orders of real hosts."""

from __future__ import annotations

import gzip
import json
from typing import Any

import orjson
import pytest

import cachemw
from cachemw import ConfigError, HttpHooks
from cachemw.core.request.equality import canonical
from cachemw.integrations.http.exchange import HttpExchange
from tests.clients.endpoint import chunks, completion, event
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

URL = "https://dbc-1.cloud.databricks.com/serving-endpoints/chat/completions"
RAW = orjson.dumps(conversation())
REFUSAL = b'{"message": "messages.0.content.0: cache_control cannot be set for this block"}'


@pytest.fixture
def recorder() -> Recorder:
    """Return a middleware that records the calls of its methods."""
    return Recorder(provider="auto")


@pytest.fixture
def hooks(recorder: Recorder) -> HttpHooks:
    """Return hooks over the recorder."""
    return HttpHooks(middleware=recorder)


def begun_exchange(hooks: HttpHooks, **more: Any) -> HttpExchange:
    """Return the exchange of a chat request."""
    chat = hooks.on_request(RAW, {"x-cachemw-label-team": "north"}, url=URL, **more)
    assert chat is not None
    return chat


def event_names(recorder: Recorder) -> list[str]:
    """Return the names of the calls that the middleware got."""
    return [name for name, *_ in recorder.events if name != "count"]


@pytest.mark.parametrize("zipped", [False, True])
def test_answer_in_one_piece_settles_in_one_call(hooks: HttpHooks, recorder: Recorder, zipped: bool) -> None:
    """Markers leave, and the answer settles in one call, compressed or not."""
    chat = begun_exchange(hooks)
    sent = orjson.loads(chat.outgoing())
    assert marks(sent) > 0
    assert canonical(sent) == canonical(conversation())
    body = json.dumps(completion()).encode()
    headers = {"content-encoding": "gzip"} if zipped else {}
    assert hooks.on_response(chat, 200, headers, gzip.compress(body) if zipped else body) is None
    assert event_names(recorder) == ["prepare", "begun", "settle"]
    _, receipt, partial = recorder.events[-1]
    assert (receipt.usage.cache_read, partial) == (4000, False)
    assert [dict(row.labels) for row in recorder.report().rows] == [{"team": "north"}]
    hooks.close()
    assert event_names(recorder)[-1] == "close"


@pytest.mark.parametrize(
    ("ended", "complete", "partial"), [(True, True, False), (True, False, False), (False, False, True)]
)
def test_answer_in_pieces_settles_at_its_end(
    hooks: HttpHooks, recorder: Recorder, ended: bool, complete: bool, partial: bool
) -> None:
    """Each piece comes back as the same object; the stream, or else the host, says if it is complete."""
    chat = begun_exchange(hooks)
    assert hooks.on_response(chat, 200, []) is None
    assert event_names(recorder) == ["prepare", "begun"]
    for piece in [event(chunk) for chunk in chunks()] + ([event(b"[DONE]")] if ended else []):
        assert hooks.on_chunk(chat, piece) is piece
    hooks.on_end(chat, complete=complete)
    hooks.on_end(chat)
    (settled, again) = [found for found in recorder.events if found[0] == "settle"]
    assert (settled[1].usage.cache_read, settled[2]) == (4000, partial)
    assert again[1] is settled[1]


def test_exchange_without_an_answer_fails(hooks: HttpHooks, recorder: Recorder) -> None:
    """An exchange that ends before an answer has failed, and so has an answer with an error."""
    hooks.on_end(begun_exchange(hooks), complete=False)
    assert hooks.on_response(begun_exchange(hooks), 503, [], b"later") is None
    chat = begun_exchange(hooks)
    assert hooks.on_response(chat, 400, []) is None
    hooks.on_end(chat)
    assert event_names(recorder) == ["prepare", "fail"] * 3


def test_refusal_gives_the_original_once(hooks: HttpHooks, recorder: Recorder) -> None:
    """The original is returned once to be resent, and its answer is settled."""
    chat = begun_exchange(hooks)
    assert hooks.on_response(chat, 400, [], REFUSAL) == RAW
    assert hooks.on_response(chat, 200, [], json.dumps(completion()).encode()) is None
    assert event_names(recorder) == ["prepare", "refused", "begun", "settle"]
    another = begun_exchange(hooks)
    assert hooks.on_response(another, 400, [], b"max_tokens: too large") is None
    assert event_names(recorder)[-3:] == ["prepare", "refused", "fail"]


def test_namespace_and_provider_of_the_host_are_used(hooks: HttpHooks, recorder: Recorder) -> None:
    """A host names the tenant, and the provider of a path without a host name."""
    for namespace in ("a", "b"):
        chat = hooks.on_request(
            RAW, [], url="/v1/chat/completions", provider="openrouter", namespace=namespace
        )
        assert chat is not None
        assert chat.call.plan.breakpoints
        assert not chat.call.plan.cache_read
        hooks.on_response(chat, 200, [], json.dumps(completion()).encode())
    assert recorder.events[0] == ("prepare", "openrouter")
    assert recorder.report().totals.calls == 2  # of both namespaces


def test_request_that_is_no_chat_request_is_not_prepared(hooks: HttpHooks, recorder: Recorder) -> None:
    """A request that is no chat request has no exchange, and the middleware gets no call."""
    assert hooks.on_request(RAW, [], url=URL, method="PUT") is None
    assert hooks.on_request(b"", [], url="https://llm.example.com/v1/models", method="GET") is None
    assert recorder.events == []


def test_wrong_arguments_of_hooks_are_config_errors() -> None:
    """Hooks take fields of `Settings` or a middleware, which must be a sync one."""
    hooks = HttpHooks(provider="databricks")
    assert cachemw.of(hooks).settings.provider == "databricks"
    hooks.close()
    with pytest.raises(
        ConfigError, match=r"HttpHooks: middleware is .*AsyncRecorder; HttpHooks needs Middleware"
    ):
        HttpHooks(middleware=AsyncRecorder())  # type: ignore[arg-type]
