"""`CacheMiddleware` around apps: requests that apps get, answers that clients get, tenants and servers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware as Wrapped
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

import cachemw
from cachemw import AsyncMiddleware, CacheMiddleware, ConfigError
from cachemw.apps import simulated_gateway
from cachemw.core.request.equality import canonical
from tests.apps.proxy.proxied import until
from tests.clients.endpoint import USAGE, chunks, completion, event
from tests.clients.recorder import AsyncRecorder, conversation, marks
from tests.integrations.asgi_apps import PATH, App, Asked, asking, event_names, part, start


async def test_chat_request_gets_markers_and_its_answer_settles() -> None:
    """The app gets markers, nothing else, and the right length; the client gets the app's answer."""
    app, mw = App(), AsyncRecorder()
    asked = await asking(
        CacheMiddleware(app, middleware=mw),
        headers=[(b"x-cachemw-label-team", b"north"), (b"x-other", b"1"), (b"transfer-encoding", b"chunked")],
    ).run()
    sent = json.loads(app.bodies[0])
    assert marks(sent) > 0
    assert canonical(sent) == canonical(conversation())
    headers = dict(app.scopes[0]["headers"])
    assert headers == {b"x-other": b"1", b"content-length": b"%d" % len(app.bodies[0])}
    assert event_names(mw) == ["prepare", "begun", "settle"]
    assert asked.body == json.dumps(completion()).encode()
    assert asked.headers == {
        b"x-app": b"1", b"x-cachemw-decision": b"marked", b"x-cachemw-predicted-read": b"0",
    }  # fmt: skip
    receipt = mw.events[-1][1]
    assert receipt.usage.cache_read == USAGE["cache_read_input_tokens"]
    assert any("north" in str(name) for name in mw._shared.sums)


async def test_parts_of_a_stream_pass_at_once_as_the_same_objects() -> None:
    """No part is delayed or copied; the last usage counts."""
    parts = [event(chunk) for chunk in chunks()]
    app = App([start(), *(part(one, more=True) for one in parts), part(b"")])
    mw = AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert all(got["body"] is one for got, one in zip(asked.sent[1:], parts, strict=False))
    assert mw.events[-1][1].usage.output == USAGE["completion_tokens"]


@pytest.mark.parametrize(
    "given",
    [
        {"path": "/v1/embeddings"},
        {"path": "/v1/messages/count_tokens"},
        {"headers": [(b"content-encoding", b"gzip")]},
    ],
)
async def test_request_that_is_no_chat_request_passes_unchanged(given: dict[str, Any]) -> None:
    """Its bytes stay, no header is added, and the middleware gets no call."""
    app, mw = App(), AsyncRecorder()
    asked = asking(CacheMiddleware(app, middleware=mw), **given)
    before = dict(asked.scope)
    await asked.run()
    assert app.bodies == [json.dumps(conversation()).encode()]
    assert app.scopes[0] == before
    assert asked.headers == {b"x-app": b"1"}
    assert event_names(mw) == []


async def test_label_headers_are_removed_from_every_request() -> None:
    """Label headers are removed from requests of all kinds."""
    app = App()
    labelled = [(b"x-cachemw-label-team", b"north")]
    await asking(CacheMiddleware(app, provider="databricks"), path="/v1/files", headers=labelled).run()
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"content-length"]


@pytest.mark.parametrize("announced", [True, False])
async def test_body_over_the_limit_passes_unread(announced: bool) -> None:
    """The app gets every message in order, announced by its length or not."""
    app = App()
    parts = [part(b"x" * 10, more=True) | {"type": "http.request"} for _ in range(4)]
    parts.append({"type": "http.request", "body": b"y", "more_body": False})
    asked = Asked(
        CacheMiddleware(app, provider="databricks", max_body=25),
        b"x" * 41 if announced else b"",
        messages=parts,
    )
    await asked.run()
    assert app.messages[0] == parts


async def test_client_that_disconnects_while_sending_is_passed_to_the_app() -> None:
    """The app gets the messages so far, and the disconnect after them."""
    app, mw = App([]), AsyncRecorder()
    half: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    await asking(CacheMiddleware(app, middleware=mw), messages=half).run()
    assert app.messages[0] == half
    assert event_names(mw) == []


async def test_disconnect_after_the_body_reaches_the_app() -> None:
    """`receive` continues with the server's own messages."""
    received: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        received.extend([await receive(), await receive()])

    asked = await asking(CacheMiddleware(app, provider="databricks")).run()
    assert [message["type"] for message in received] == ["http.request", "http.disconnect"]
    assert asked.sent == []


async def test_credentials_in_the_query_separate_tenants() -> None:
    """The same request with another key in its query finds no entry."""
    app = CacheMiddleware(App(), provider="databricks")
    reads = []
    for query in (b"api-key=a", b"api-key=a", b"api-key=b"):
        asked = asking(app)
        asked.scope["query_string"] = query
        reads.append(int((await asked.run()).headers[b"x-cachemw-predicted-read"]))
    assert reads[0] == reads[2] == 0 < reads[1]


async def test_messages_of_unknown_types_pass() -> None:
    """A message that names a file to send, or trailers, passes."""
    other: Message = {"type": "http.response.pathsend", "path": "/x"}
    app, mw = App([start(), other]), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert asked.sent[1] == other
    assert event_names(mw) == ["prepare", "begun", "settle"]


@pytest.mark.parametrize(
    ("decide", "decision"),
    [({}, b"marked"), ({"mode": "observe"}, b"not_optimizing"), ({"min_tokens": 10**6}, b"below_minimum")],
)
async def test_decision_is_reported_in_a_header(decide: dict[str, Any], decision: bytes) -> None:
    """Answers that succeed have the decision as one word in a header."""
    asked = await asking(CacheMiddleware(App(), provider="databricks", **decide)).run()
    assert asked.headers[b"x-cachemw-decision"] == decision


async def test_request_with_four_client_markers_gets_no_more() -> None:
    """If all four slots are taken, no marker is added."""
    body = conversation()
    for message in body["messages"][1:5]:
        message["cache_control"] = {"type": "ephemeral"}
    body["messages"][0]["content"] = [
        {"type": "text", "text": body["messages"][0]["content"], "cache_control": {"type": "ephemeral"}}
    ]
    app = App()
    asked = await Asked(CacheMiddleware(app, provider="databricks"), json.dumps(body).encode()).run()
    assert asked.headers[b"x-cachemw-decision"] in (b"no_slot", b"none", b"not_worth_it")
    assert app.bodies[0] == json.dumps(body).encode()


NAMESPACES: list[tuple[Callable[[Scope], str | None], bool]] = [
    (lambda scope: dict(scope["headers"])[b"x-tenant"].decode(), False),
    (lambda scope: None, True),
    (lambda scope: "everybody", True),
]


@pytest.mark.parametrize(("namespace", "shared"), NAMESPACES, ids=["each", "none", "one"])
async def test_namespace_function_separates_tenants(
    namespace: Callable[[Scope], str | None], shared: bool
) -> None:
    """Tenants of different names share no entry."""
    app = CacheMiddleware(App(), provider="databricks", namespace=namespace)
    reads = [
        int((await asking(app, headers=[(b"x-tenant", tenant)]).run()).headers[b"x-cachemw-predicted-read"])
        for tenant in (b"one", b"one", b"two")
    ]
    assert reads[0] == 0 < reads[1]
    assert (reads[2] > 0) is shared


async def test_request_without_a_namespace_passes_unmarked() -> None:
    """A function that fails is counted, and no other namespace is used for the request."""

    def broken(scope: Scope) -> str:
        raise LookupError

    app = App()
    wrapped = CacheMiddleware(app, provider="databricks", namespace=broken)
    asked = await asking(wrapped).run()
    assert app.bodies == [json.dumps(conversation()).encode()]
    assert asked.headers == {b"x-app": b"1"}
    assert cachemw.of(wrapped).counts == {"asgi.namespace": 1}


async def test_upstream_names_the_provider_and_separates_accounts() -> None:
    """The same key at another host is another account; without a provider no marker is added."""
    mw = AsyncMiddleware()
    key = [(b"authorization", b"Bearer key")]
    decisions = []
    for upstream in (
        "",
        "https://a.cloud.databricks.com",
        "https://b.cloud.databricks.com",
        "https://openrouter.ai/api",
    ):
        app = CacheMiddleware(App(), middleware=mw, upstream=upstream)
        found = (await asking(app, headers=key).run()).headers
        decisions.append((found[b"x-cachemw-decision"], found[b"x-cachemw-predicted-read"]))
    assert decisions[0] == (b"provider_unknown", b"0")
    assert decisions[1:3] == [(b"marked", b"0")] * 2
    assert decisions[3][1] == b"0"


async def test_middleware_closes_with_the_app() -> None:
    """The middleware is closed when the app has shut down, and when the app did not start."""
    for fails in (False, True):
        mw = AsyncRecorder()
        phases: list[str] = []

        @asynccontextmanager
        async def life(app: Any, fails: bool = fails, phases: list[str] = phases) -> AsyncIterator[None]:
            if fails:
                raise RuntimeError("no start")
            phases.append("started")
            yield
            phases.append("ended")

        app = CacheMiddleware(Starlette(lifespan=life), middleware=mw)
        if fails:
            with pytest.raises(RuntimeError), TestClient(app):
                pass
        else:
            with TestClient(app):
                assert event_names(mw) == []
            assert phases == ["started", "ended"]
        assert event_names(mw) == ["close"]


def test_websocket_passes_to_the_app() -> None:
    """Websockets pass to the app."""

    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(await socket.receive_text())
        await socket.close()

    with (
        TestClient(
            CacheMiddleware(Starlette(routes=[WebSocketRoute("/ws", echo)]), provider="databricks")
        ) as client,
        client.websocket_connect("/ws") as socket,
    ):
        socket.send_text("hello")
        assert socket.receive_text() == "hello"


def test_fastapi_gateway_streams_through_add_middleware() -> None:
    """Streams work behind a real server with `add_middleware`."""
    mw = AsyncRecorder()
    app = FastAPI()
    arrived: list[Any] = []

    @app.post(PATH)
    async def serve(request: Request) -> StreamingResponse:
        arrived.append(await request.json())

        async def parts() -> AsyncIterator[bytes]:
            for chunk in chunks():
                yield event(chunk)
            yield event(b"[DONE]")

        return StreamingResponse(parts(), media_type="text/event-stream")

    app.add_middleware(CacheMiddleware, middleware=mw)
    with simulated_gateway.running(app) as url, httpx2.Client(trust_env=False) as client:
        answered = client.post(url + PATH, json={**conversation(), "stream": True})
        assert answered.text.endswith("data: [DONE]\n\n")
        assert answered.headers["x-cachemw-decision"] == "marked"
        assert marks(arrived[0]) > 0
        until(lambda: event_names(mw)[-1] == "settle", "the call is not settled", 60.0)
        assert event_names(mw) == ["prepare", "begun", "settle"]


def test_middleware_in_starlettes_list_marks_requests() -> None:
    """With the simulated provider as the gateway, the second request reads."""
    manual = "Returns are free within 30 days of delivery. " * 400
    messages = [{"role": "system", "content": manual}, {"role": "user", "content": "Until when?"}]
    wrapped = [Wrapped(CacheMiddleware, provider="databricks")]
    with TestClient(Starlette(routes=simulated_gateway.build().routes, middleware=wrapped)) as client:
        for _ in range(2):
            answered = client.post(
                "/serving-endpoints/chat/completions",
                json={"model": "databricks-claude-sonnet-4-6", "messages": messages},
                headers={"authorization": "Bearer key"},
            )
    assert answered.json()["usage"]["cache_read_input_tokens"] > 0


def test_wrong_arguments_of_the_middleware_are_config_errors() -> None:
    """A sync middleware, or settings given twice, are a `ConfigError`."""
    with pytest.raises(ConfigError, match="CacheMiddleware"):
        CacheMiddleware(App(), middleware=cachemw.Middleware())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CacheMiddleware"):
        CacheMiddleware(App(), settings=cachemw.Settings(), provider="databricks")
