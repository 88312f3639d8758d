"""One exchange over HTTP: chat requests, the bytes that leave, and the usage in the answer."""

from __future__ import annotations

import gzip
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.request.equality import canonical
from cachemw.engine import Middleware
from cachemw.integrations.http import chat_routes
from cachemw.integrations.http import exchange as http
from cachemw.integrations.http.chat_routes import Route, find_route, provider_at
from cachemw.integrations.http.exchange import Headers, HttpExchange, take_labels
from cachemw.reporting.labelling import labels
from tests.clients.endpoint import USAGE, chunks, completion, event
from tests.clients.recorder import Recorder, conversation, marks
from tests.work import peak_memory

URL = "https://dbc-1.cloud.databricks.com/serving-endpoints/chat/completions"
REFUSAL = b'{"message": "messages.0.content.0: cache_control cannot be set for this block"}'


def make_exchange(
    mw: Any, body: bytes, *, method: str = "POST", url: str = URL, headers: Headers = (), **more: Any
) -> HttpExchange | None:
    """Return the exchange of a request, or None if it is no chat request."""
    return HttpExchange.of(mw, method=method, url=url, headers=headers, body=body, **more)


def request_bytes(body: Any = None) -> bytes:
    """Return a body as JSON, by default the conversation."""
    return orjson.dumps(conversation() if body is None else body)


def prepared_exchange(mw: Middleware, body: bytes | None = None, **more: Any) -> HttpExchange:
    """Return an exchange whose call is prepared."""
    exchange = make_exchange(mw, request_bytes() if body is None else body, **more)
    assert exchange is not None
    exchange.call = mw.prepare(exchange.body, **exchange.prepare_arguments)
    return exchange


# --- requests ---------------------------------------------------------------------------------------------

SYSTEM = "Answer politely, check the booking, never guess. " * 400
MESSAGES = {
    "model": "claude-sonnet-4-6",
    "max_tokens": 9,
    "system": SYSTEM,
    "messages": [{"role": "user", "content": "Hi"}],
}


@pytest.mark.parametrize(
    ("url", "wire", "provider"),
    [
        (URL, "chat", "databricks"),
        ("https://llm.example.com/serving-endpoints/my%20model/invocations?x=1", "chat", "databricks"),
        ("https://openrouter.ai/api/v1/chat/completions/", "chat", "openrouter"),
        ("/v1/chat/completions", "chat", None),
        ("https://api.anthropic.com/v1/messages", "messages", "anthropic"),
        ("https://api.anthropic.com/v1/messages?beta=true", "messages", "anthropic"),
        ("https://api.anthropic.com/v1/chat/completions", "chat", "anthropic-openai"),
        ("http://localhost:1/ai-gateway/anthropic/v1/messages", "messages", "databricks"),
        ("https://api.anthropic.com/v1/messages/count_tokens", None, None),
        ("https://api.anthropic.com/v1/messages/batches", None, None),
        ("https://api.openai.com/v1/embeddings", None, None),
        ("https://api.openai.com/v1/models?next=/chat/completions", None, None),
    ],
)
def test_path_names_the_shape_and_host_the_provider(url: str, wire: str | None, provider: str | None) -> None:
    """A request on any other path has no exchange."""
    exchange = make_exchange(Recorder(), request_bytes(), url=url)
    assert (exchange and exchange.wire) == wire
    if exchange is not None:
        assert exchange.provider == provider
        assert exchange.prepare_arguments == {"labels": {}, "provider": provider, "wire": wire}


def test_provider_of_the_host_program_has_precedence() -> None:
    """A host program may name the provider of a path without a host name."""
    exchange = make_exchange(Recorder(), request_bytes(), url="/v1/chat/completions", provider="openrouter")
    assert exchange is not None
    assert exchange.provider == "openrouter"


@pytest.mark.parametrize(
    ("body", "more", "counted"),
    [
        (request_bytes(), {"method": "GET"}, None),
        (b"", {}, "pass.not_json"),
        (b"{", {}, "pass.not_json"),
        (b"\xef\xbb\xbf{}", {}, "pass.not_json"),
        (gzip.compress(request_bytes(), mtime=0), {"headers": {"Content-Encoding": "gzip"}}, "pass.sealed"),
        (request_bytes(), {"headers": [(b"Content-Digest", b"sha-256=:x:")]}, "pass.sealed"),
        (b'{"messages": [], "top_p": NaN}', {}, "pass.not_json"),
        (b'{"messages": [{"role": "user", "role": "system"}]}', {}, "pass.not_json"),
        (b'{"messages": [{"content": "\\ud800"}]}', {}, "pass.not_json"),
        (b"[" * 999, {}, "pass.not_json"),
        (b"[1]", {}, None),
        (b'{"dataframe_split": {}}', {}, None),
        (b'{"messages": "hello"}', {}, None),
    ],
)
def test_unreadable_or_sealed_body_has_no_exchange(body: bytes, more: Any, counted: str | None) -> None:
    """A body that is no chat request, or can't be written again with the same values, stays unchanged."""
    mw = Recorder()
    assert make_exchange(mw, body, **more) is None
    assert mw.events == ([("count", counted)] if counted else [])


def test_labels_of_headers_override_those_of_the_context() -> None:
    """Labels of the enclosing block hold, and a header's label wins."""
    with labels(team="south", app="chat"):
        exchange = make_exchange(
            Recorder(), request_bytes(), headers={"X-Cachemw-Label-Team": "north", "x-other": "1"}
        )
    assert exchange is not None
    assert exchange.labels == {"team": "north", "app": "chat"}


@pytest.mark.parametrize("kind", [str, str.encode])
def test_label_headers_are_removed_and_others_keep_their_order(kind: Any) -> None:
    """Headers of text or bytes stay in order, also repeated ones."""
    given = [("Host", "x"), ("X-CACHEMW-Label-app", "a b"), ("cookie", "1"), ("cookie", "2")]
    found, kept = take_labels([(kind(name), kind(value)) for name, value in given])
    assert found == {"app": "a b"}
    assert kept == [(kind(name), kind(value)) for name, value in given if "cachemw" not in name.lower()]


# --- outgoing bodies --------------------------------------------------------------------------------------


def test_outgoing_body_has_markers_added_only() -> None:
    """Markers are added and all else stays."""
    exchange = prepared_exchange(Recorder())
    sent = orjson.loads(exchange.outgoing())
    assert exchange.changed
    assert marks(sent) > 0
    assert canonical(sent) == canonical(conversation())


def test_model_of_the_path_stays_out_of_the_body() -> None:
    """Databricks' invocations name the model in the path: it is used for the plan, and not sent."""
    body = conversation()
    model = body.pop("model")
    exchange = prepared_exchange(
        Recorder(), request_bytes(body), url=f"/serving-endpoints/{model}/invocations"
    )
    assert exchange.body["model"] == model
    sent = orjson.loads(exchange.outgoing())
    assert marks(sent) > 0
    assert canonical(sent) == canonical(body)


def test_body_without_a_marker_leaves_as_the_same_bytes() -> None:
    """A short prompt leaves as the bytes that arrived, with their spacing."""
    body = b'{ "model": "claude-sonnet-4-6", "messages": [ {"role":"user","content":"caf\\u00e9"} ] }'
    exchange = prepared_exchange(Recorder(), body)
    assert not exchange.changed
    assert exchange.outgoing() is body


@pytest.mark.parametrize("number", ["123456789012345678901234567890", "18446744073709551616", "1e400"])
@pytest.mark.parametrize("place", ["beside", "in a message", "in a tool"])
def test_number_that_cannot_be_rewritten_keeps_the_body(number: str, place: str) -> None:
    """A number that the serialiser can't write again keeps the whole body unchanged and unplanned."""
    body = conversation()
    {"beside": body, "in a message": body["messages"][1], "in a tool": body["tools"][0]}[place]["x"] = (
        "NUMBER"
    )
    raw = request_bytes(body).replace(b'"NUMBER"', number.encode())
    exchange = make_exchange(mw := Recorder(), raw)
    if exchange is not None:
        exchange.call = mw.prepare(exchange.body, **exchange.prepare_arguments)
        assert exchange.call.plan.skipped == "unreadable"
        assert exchange.outgoing() is raw
    assert ("count", "pass.not_json") in mw.events or mw.counts["pass.not_json"] == 1


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)


@given(extra=_json, spaced=st.booleans(), ascii_only=st.booleans())
def test_every_json_value_survives(extra: Any, spaced: bool, ascii_only: bool) -> None:
    """All other values of a body come out equal and in order, in any notation."""
    try:
        orjson.dumps(extra)
    except TypeError:  # a lone surrogate as a key
        return
    asked = {**conversation(), "extra": extra}
    raw = json.dumps(asked, ensure_ascii=ascii_only, indent=1 if spaced else None).encode()
    exchange = prepared_exchange(Middleware(provider="databricks"), raw)
    sent = orjson.loads(exchange.outgoing())
    assert marks(sent) > 0
    assert json.dumps(sent["extra"]) == json.dumps(extra)
    assert canonical(sent) == canonical(asked)


# --- answers ----------------------------------------------------------------------------------------------


def test_answer_in_one_piece_gives_its_usage() -> None:
    """A 2xx begins the call; its usage is found, compressed or not."""
    whole = json.dumps(completion()).encode()
    for encoding, sent in [("", whole), ("gzip", gzip.compress(whole))]:
        exchange = prepared_exchange(Recorder())
        assert exchange.classify_response(200, {"Content-Encoding": encoding}) == "started"
        exchange.feed(sent)
        assert exchange.usage() == {"model": "served-claude", "usage": USAGE}


def test_stream_announces_its_end() -> None:
    """Usage is there after any chunk that held it, and the end is known once the stream announces it."""
    exchange = prepared_exchange(Recorder())
    assert exchange.classify_response(200, []) == "started"
    for chunk in chunks():
        exchange.feed(event(chunk))
    assert not exchange.announced_end
    assert exchange.usage() == {"model": "served-claude", "usage": USAGE}
    exchange.feed(event(b"[DONE]"))
    assert exchange.announced_end


def test_usage_of_messages_events_is_merged() -> None:
    """Anthropic's usage comes in parts; its last event is the end."""
    exchange = prepared_exchange(Recorder(provider="anthropic"), request_bytes(MESSAGES), url="/v1/messages")
    assert marks(orjson.loads(exchange.outgoing())) > 0
    exchange.classify_response(200, [])
    started = {
        "model": "claude",
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 90, "output_tokens": 1},
    }
    for data in (
        {"type": "message_start", "message": started},
        {"type": "message_delta", "usage": {"output_tokens": 12}},
        {"type": "message_stop"},
    ):
        exchange.feed(event(data))
    usage = {"input_tokens": 5, "cache_read_input_tokens": 90, "output_tokens": 12}
    assert exchange.usage() == {"model": "claude", "usage": usage}
    assert exchange.announced_end


@pytest.mark.parametrize(
    ("status", "verdict"), [(204, "started"), (302, "failed"), (404, "failed"), (503, "failed")]
)
def test_status_classifies_the_answer(status: int, verdict: str) -> None:
    """Every 2xx begins; a status other than 400 is no refusal."""
    assert prepared_exchange(Recorder()).classify_response(status, []) == verdict


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_refusal_gives_the_original_once(encoding: str) -> None:
    """After a 400 about an added marker the middleware is asked once, and the original goes next."""
    mw = Recorder()
    exchange = prepared_exchange(mw)
    assert exchange.classify_response(400, {"content-encoding": encoding}) == "refusable"
    refusal = exchange.refusal(400, gzip.compress(REFUSAL) if encoding else REFUSAL)
    assert refusal == (400, REFUSAL.decode())
    assert mw.refused(exchange.call, *refusal) is not None
    assert exchange.outgoing() is exchange.original
    assert exchange.classify_response(400, []) == "failed"
    assert exchange.refusal(400, REFUSAL) is None


def test_400_to_an_unchanged_request_is_no_refusal() -> None:
    """A request without added markers can't be refused for them."""
    exchange = prepared_exchange(Recorder(), b'{"model": "claude-sonnet-4-6", "messages": []}')
    assert exchange.classify_response(400, []) == "failed"


def test_undecodable_answer_is_counted_and_passes() -> None:
    """An unknown encoding, or malformed bytes: no usage, one count, and no error is a refusal."""
    mw = Recorder()
    exchange = prepared_exchange(mw)
    assert exchange.classify_response(400, {"content-encoding": "compress"}) == "refusable"
    assert exchange.refusal(400, b"") is None
    assert exchange.classify_response(200, {"content-encoding": "compress"}) == "started"
    exchange.feed(b"x")
    assert exchange.classify_response(200, {"content-encoding": "gzip"}) == "started"
    exchange.feed(b"no gzip")
    exchange.feed(b"at all")
    assert exchange.usage() is None
    counted = [name for kind, name in mw.events if kind == "count"]
    assert counted == ["http.encoding", "http.encoding", "http.usage"]


@pytest.mark.parametrize(
    ("broken", "name"),
    [
        ("find_route", "http.body"),
        ("orjson", "http.body"),
        ("Decoder", "http.answer"),
        ("UsageReader.feed", "http.usage"),
        ("UsageReader.finish", "http.usage"),
    ],
)
def test_exception_in_the_exchange_is_counted_and_contained(
    monkeypatch: pytest.MonkeyPatch, broken: str, name: str
) -> None:
    """If the exchange fails, the bytes go on unchanged."""

    def bug(*args: Any) -> Any:
        raise RuntimeError("bug")

    monkeypatch.setattr(f"{http.__name__}.{broken}", bug)
    mw = Recorder()
    exchange = make_exchange(mw, request_bytes())
    if exchange is not None:
        exchange.call = mw.prepare(exchange.body, **exchange.prepare_arguments)
        assert (exchange.outgoing() == exchange.original) == (broken == "orjson")
        assert exchange.classify_response(200, []) == "started"
        exchange.feed(b'{"usage": {"prompt_tokens": 1}}')
        assert (exchange.usage() is None) == (name != "http.body")
    assert ("count", name) in mw.events


# --- hostile answers and addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "answer"),
    [
        ("gzip", gzip.compress(b"", mtime=0) * 10_000),
        ("gzip", gzip.compress(bytes(20 << 20), mtime=0)),
        ("", b'{"choices": "' + b"x" * (9 << 20) + b'", "usage": {"prompt_tokens": 5}}'),
        ("", b"data: " + b"x" * (2 << 20)),
    ],
    ids=["members", "bomb", "json", "event"],
)
def test_answer_over_the_budget_is_counted_once_and_settles_without_usage(
    encoding: str, answer: bytes
) -> None:
    """Reading stops, one counter has it, and later bytes of the answer are not examined."""
    mw = Recorder()
    exchange = prepared_exchange(mw)
    assert exchange.classify_response(200, {"content-encoding": encoding}) == "started"
    for start in range(0, len(answer), 1 << 20):
        exchange.feed(answer[start : start + (1 << 20)])
    assert exchange.usage() is None
    assert exchange.usage() is None
    assert [name for kind, name in mw.events if kind == "count"] == ["http.too_large"]


def test_refusal_in_a_bomb_is_read_at_its_beginning() -> None:
    """A 400 is decoded no further than a refusal is long."""
    exchange = prepared_exchange(Recorder())
    exchange.classify_response(400, {"content-encoding": "gzip"})
    refusal = exchange.refusal(400, gzip.compress(REFUSAL + bytes(50 << 20)))
    assert refusal is not None
    assert refusal[1].startswith(REFUSAL.decode())
    assert len(refusal[1]) == 1 << 16


@pytest.mark.parametrize(
    ("url", "route"),
    [
        ("/v1/chat/completions", Route("chat")), ("chat/completions/", Route("chat")), ("https://a.com/x/chat/completions?a=/b#c", Route("chat")),
        ("/v1/messages", Route("messages")), ("v1/messages/#x?y", Route("messages")), ("/serving-endpoints/a%20b/invocations", Route("chat", "a b")),
        ("/chat/completions//", None), ("/v1/messages/batches", None), ("/v1/messages/count_tokens", None), ("/xv1/messages", None),
        ("/messages", None), ("/xchat/completions", None), ("//invocations", None), ("invocations", None), ("", None), ("?/chat/completions", None),
        ("/" * 1_000_000, None), ("/a/invocations" * 100_000 + "/x", None),
    ],
)  # fmt: skip
def test_route_is_found_by_the_end_of_the_path(url: str, route: Route | None) -> None:
    """Only the last parts of a path count; the query and the fragment do not."""
    assert find_route("post", url) == route
    assert find_route("GET", url) is None


def test_memory_for_long_urls_is_bounded() -> None:
    """Clients choose URLs: long ones are not kept at their full length."""
    chat_routes._provider_at.cache_clear()
    urls = [f"https://api.anthropic.com/{number}/{'x' * 50_000}" for number in range(300)]
    held = peak_memory(lambda: [(find_route("POST", url), provider_at(url)) for url in urls])
    assert held < 3 << 20
    assert provider_at(urls[0]) == "anthropic"
