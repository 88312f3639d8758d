"""`HttpHooks`: an exchange that is told piece by piece, in the orders in which hosts tell it."""

from __future__ import annotations

import gzip
import json
from typing import Any

import orjson
import pytest

import cachemw
from cachemw import ConfigError, HttpHooks
from cachemw.core.request.markers import canonical
from cachemw.integrations.http.exchange import HttpExchange
from tests.clients.endpoint import chunks, completion, event
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

URL = "https://dbc-1.cloud.databricks.com/serving-endpoints/chat/completions"
RAW = orjson.dumps(conversation())
REFUSAL = b'{"message": "messages.0.content.0: cache_control cannot be set for this block"}'


@pytest.fixture
def recorder() -> Recorder:
    """Give the middleware, which writes down what is asked of it."""
    return Recorder(provider="auto")


@pytest.fixture
def hooks(recorder: Recorder) -> HttpHooks:
    """Give hooks over it."""
    return HttpHooks(middleware=recorder)


def _sent(hooks: HttpHooks, **more: Any) -> HttpExchange:
    chat = hooks.on_request(RAW, {"x-cachemw-label-team": "north"}, url=URL, **more)
    assert chat is not None
    return chat


def _names(recorder: Recorder) -> list[str]:
    return [name for name, *_ in recorder.events if name != "count"]


@pytest.mark.parametrize("zipped", [False, True])
def test_an_answer_given_whole(hooks: HttpHooks, recorder: Recorder, zipped: bool) -> None:
    """Markers leave; the answer is settled in one call, as its bytes are on the wire."""
    chat = _sent(hooks)
    sent = orjson.loads(chat.outgoing())
    assert marks(sent) > 0
    assert canonical(sent) == canonical(conversation())
    body = json.dumps(completion()).encode()
    headers = {"content-encoding": "gzip"} if zipped else {}
    assert hooks.on_response(chat, 200, headers, gzip.compress(body) if zipped else body) is None
    assert _names(recorder) == ["prepare", "begun", "settle"]
    _, receipt, partial = recorder.events[-1]
    assert (receipt.usage.cache_read, partial) == (4000, False)
    assert [dict(row.labels) for row in recorder.report().rows] == [{"team": "north"}]
    hooks.close()
    assert _names(recorder)[-1] == "close"


@pytest.mark.parametrize(
    ("ended", "whole", "partial"), [(True, True, False), (True, False, False), (False, False, True)]
)
def test_an_answer_in_pieces(
    hooks: HttpHooks, recorder: Recorder, ended: bool, whole: bool, partial: bool
) -> None:
    """Each piece comes back as the same object; how it ended is what the stream, else the host, says."""
    chat = _sent(hooks)
    assert hooks.on_response(chat, 200, []) is None
    assert _names(recorder) == ["prepare", "begun"]
    for piece in [event(chunk) for chunk in chunks()] + ([event(b"[DONE]")] if ended else []):
        assert hooks.on_chunk(chat, piece) is piece
    hooks.on_end(chat, complete=whole)
    hooks.on_end(chat)
    (settled, again) = [found for found in recorder.events if found[0] == "settle"]
    assert (settled[1].usage.cache_read, settled[2]) == (4000, partial)
    assert again[1] is settled[1]


def test_no_answer(hooks: HttpHooks, recorder: Recorder) -> None:
    """What ends before an answer began has failed; so has what was answered with an error."""
    hooks.on_end(_sent(hooks), complete=False)
    assert hooks.on_response(_sent(hooks), 503, [], b"later") is None
    chat = _sent(hooks)
    assert hooks.on_response(chat, 400, []) is None
    hooks.on_end(chat)
    assert _names(recorder) == ["prepare", "fail"] * 3


def test_a_refused_marker(hooks: HttpHooks, recorder: Recorder) -> None:
    """The original is given once to be sent again, and what that is answered with is settled."""
    chat = _sent(hooks)
    assert hooks.on_response(chat, 400, [], REFUSAL) == RAW
    assert hooks.on_response(chat, 200, [], json.dumps(completion()).encode()) is None
    assert _names(recorder) == ["prepare", "refused", "begun", "settle"]
    another = _sent(hooks)
    assert hooks.on_response(another, 400, [], b"max_tokens: too large") is None
    assert _names(recorder)[-3:] == ["prepare", "refused", "fail"]


def test_tenants_and_providers(hooks: HttpHooks, recorder: Recorder) -> None:
    """A host says whose request it is, and where a path alone goes."""
    for namespace in ("a", "b"):
        chat = hooks.on_request(
            RAW, [], url="/v1/chat/completions", provider="openrouter", namespace=namespace
        )
        assert chat is not None
        assert chat.call.plan.breakpoints
        assert not chat.call.plan.cache_read
        hooks.on_response(chat, 200, [], json.dumps(completion()).encode())
    assert recorder.events[0] == ("prepare", "openrouter")
    assert recorder.report().totals.calls == 2  # whoever they were served for


def test_everything_else_passes(hooks: HttpHooks, recorder: Recorder) -> None:
    """No chat request: nothing to keep, nothing is asked."""
    assert hooks.on_request(RAW, [], url=URL, method="PUT") is None
    assert hooks.on_request(b"", [], url="https://llm.example.com/v1/models", method="GET") is None
    assert recorder.events == []


def test_settings_and_mistakes() -> None:
    """Fields of `Settings` or a middleware, which must be no async one."""
    hooks = HttpHooks(provider="databricks")
    assert cachemw.of(hooks).settings.provider == "databricks"
    hooks.close()
    with pytest.raises(
        ConfigError, match=r"HttpHooks: middleware is .*AsyncRecorder; HttpHooks needs Middleware"
    ):
        HttpHooks(middleware=AsyncRecorder())  # type: ignore[arg-type]
