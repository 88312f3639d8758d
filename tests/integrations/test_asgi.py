"""`CacheMiddleware` around apps: what they see of a request, what clients see of an answer, what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

import cachemw
from cachemw import AsyncMiddleware, CacheMiddleware, ConfigError
from cachemw.apps import simulated_gateway
from cachemw.core.request.equality import canonical
from tests.apps.proxy.proxied import until
from tests.clients.endpoint import USAGE, chunks, completion, event
from tests.clients.recorder import AsyncRecorder, conversation, marks

PATH = "/v1/chat/completions"
REFUSAL = {"error": {"message": "messages.0.content.0: cache_control cannot be set for this block"}}


class Asked:
    """One request to an app, message by message; `sent` is what came back."""

    def __init__(
        self,
        app: ASGIApp,
        body: bytes,
        *,
        path: str = PATH,
        headers: Iterable[tuple[bytes, bytes]] = (),
        messages: Iterable[Message] | None = None,
    ) -> None:
        self.sent: list[Message] = []
        self.read = 0
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._waiting = list(whole if messages is None else messages)
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-length", b"%d" % len(body)), *headers],
        }
        self._app = app

    async def receive(self) -> Message:
        """Give the next message; after the last the client is gone."""
        self.read += 1
        return self._waiting.pop(0) if self._waiting else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take a message."""
        self.sent.append(message)

    async def run(self) -> Asked:
        """Call the app."""
        await self._app(self.scope, self.receive, self.send)
        return self

    @property
    def body(self) -> bytes:
        """Return the body that came."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Return the headers that came."""
        return dict(self.sent[0]["headers"])


def asking(app: ASGIApp, **given: Any) -> Asked:
    """Return a request with the conversation."""
    return Asked(app, json.dumps(conversation()).encode(), **given)


class App:
    """An app that writes down what it gets, and answers with what it is told, one answer after another."""

    def __init__(self, *answers: list[Message | BaseException]) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.messages: list[list[Message]] = []
        self._answers = list(answers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        self.scopes.append(scope)
        got: list[Message] = []
        self.messages.append(got)
        while True:
            got.append(await receive())
            if not got[-1].get("more_body", False):
                break
        self.bodies.append(b"".join(message.get("body", b"") for message in got))
        for message in self._answers.pop(0) if self._answers else answer(completion()):
            if isinstance(message, BaseException):
                raise message
            await send(message)


def start(status: int = 200) -> Message:
    """Return how an answer begins."""
    return {"type": "http.response.start", "status": status, "headers": [(b"x-app", b"1")]}


def part(body: bytes, *, more: bool = False) -> Message:
    """Return a part of an answer."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def answer(body: Any, status: int = 200) -> list[Any]:
    """Return a whole answer."""
    return [start(status), part(json.dumps(body).encode())]


def kinds(mw: AsyncRecorder) -> list[str]:
    """Return what was asked of the middleware, in order."""
    return [str(told[0]) for told in mw.events if told[0] != "count"]


async def test_a_request_is_rewritten_and_its_answer_watched() -> None:
    """The app gets markers and nothing else, with a length that is right; the answer is what the app said."""
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
    assert kinds(mw) == ["prepare", "begun", "settle"]
    assert asked.body == json.dumps(completion()).encode()
    assert asked.headers == {
        b"x-app": b"1", b"x-cachemw-decision": b"marked", b"x-cachemw-predicted-read": b"0",
    }  # fmt: skip
    receipt = mw.events[-1][1]
    assert receipt.usage.cache_read == USAGE["cache_read_input_tokens"]
    assert any("north" in str(name) for name in mw._shared.sums)


async def test_parts_of_a_stream_pass_at_once_as_the_same_objects() -> None:
    """None is held back or copied; the last usage counts."""
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
async def test_other_requests_pass_as_they_came(given: dict[str, Any]) -> None:
    """Their bytes are the same, no header is added, and nothing is asked of the middleware."""
    app, mw = App(), AsyncRecorder()
    asked = asking(CacheMiddleware(app, middleware=mw), **given)
    before = dict(asked.scope)
    await asked.run()
    assert app.bodies == [json.dumps(conversation()).encode()]
    assert app.scopes[0] == before
    assert asked.headers == {b"x-app": b"1"}
    assert kinds(mw) == []


async def test_labels_end_here_for_every_request() -> None:
    """They are removed from what is no chat request, too."""
    app = App()
    labelled = [(b"x-cachemw-label-team", b"north")]
    await asking(CacheMiddleware(app, provider="databricks"), path="/v1/files", headers=labelled).run()
    assert [name for name, _ in app.scopes[0]["headers"]] == [b"content-length"]


@pytest.mark.parametrize("announced", [True, False])
async def test_what_is_too_long_passes_unread(announced: bool) -> None:
    """The app gets every message in its order, read beforehand or not."""
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


async def test_a_client_that_leaves_while_it_sends_is_the_apps_to_see() -> None:
    """What came is given to the app, with the end of the connection behind it."""
    app, mw = App([]), AsyncRecorder()
    half: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    await asking(CacheMiddleware(app, middleware=mw), messages=half).run()
    assert app.messages[0] == half
    assert kinds(mw) == []


async def test_after_the_body_the_app_hears_of_a_disconnect() -> None:
    """`receive` goes on to the server's own."""
    heard: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.extend([await receive(), await receive()])

    asked = await asking(CacheMiddleware(app, provider="databricks")).run()
    assert [message["type"] for message in heard] == ["http.request", "http.disconnect"]
    assert asked.sent == []


async def test_a_refused_marker_is_sent_again_as_it_came() -> None:
    """The app is asked once more with the original bytes; the client sees the second answer only."""
    app, mw = App(answer(REFUSAL, 400), answer(completion())), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert [marks(json.loads(body)) > 0 for body in app.bodies] == [True, False]
    assert app.bodies[1] == json.dumps(conversation()).encode()
    assert app.scopes[0] is not app.scopes[1]
    assert [message["type"] for message in asked.sent] == ["http.response.start", "http.response.body"]
    assert asked.headers == {b"x-app": b"1", b"x-cachemw-decision": b"refused"}
    assert kinds(mw) == ["prepare", "refused", "begun", "settle"]


async def test_it_is_sent_again_once() -> None:
    """The second refusal goes to the client."""
    app, mw = App(answer(REFUSAL, 400), answer(REFUSAL, 400)), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert len(app.bodies) == 2
    assert asked.sent == answer(REFUSAL, 400)
    assert kinds(mw) == ["prepare", "refused", "fail"]


OTHER = json.dumps({"error": {"message": "max_tokens: too large"}}).encode()


@pytest.mark.parametrize(
    ("told", "refusals"),
    [
        pytest.param([start(400), part(OTHER)], 1, id="another reason"),
        pytest.param([start(400), part(OTHER[:9], more=True), part(OTHER[9:])], 1, id="in parts"),
        pytest.param([start(400), *[part(b"x" * 600_000, more=True)] * 3, part(b"")], 0, id="too long"),
        pytest.param([start(400), part(OTHER, more=True)], 0, id="half of it"),
        pytest.param([start(503), part(b"busy")], 0, id="another status"),
    ],
)
async def test_other_errors_pass_as_they_are(told: list[Message], refusals: int) -> None:
    """Each message reaches the client, and the call is forgotten."""
    app, mw = App(list(told)), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert asked.sent == told
    assert kinds(mw) == ["prepare", *["refused"] * refusals, "fail"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError()])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["fail"]),
        ([start()], ["begun", "settle"]),
        ([start(), part(b"data: {}\n\n", more=True)], ["begun", "settle"]),
        ([start(400)], ["fail"]),
    ],
    ids=["nothing", "start", "part", "held"],
)
async def test_an_app_that_fails_is_accounted_for(
    error: BaseException, before: list[Message], after: list[str]
) -> None:
    """Its exception passes; what had begun is settled as partial, the rest is forgotten."""
    app, mw = App([*before, error]), AsyncRecorder()
    with pytest.raises(type(error)):
        await asking(CacheMiddleware(app, middleware=mw)).run()
    assert kinds(mw) == ["prepare", *after]
    if after[-1] == "settle":
        assert mw.events[-1][2] is True


async def test_an_app_that_fails_after_a_refusal_is_not_asked_again() -> None:
    """What it raises once the refusal has been swallowed passes."""
    app, mw = App([*answer(REFUSAL, 400), RuntimeError("bug")]), AsyncRecorder()
    with pytest.raises(RuntimeError):
        await asking(CacheMiddleware(app, middleware=mw)).run()
    assert len(app.bodies) == 1
    assert kinds(mw) == ["prepare", "refused", "fail"]


class Slow(AsyncRecorder):
    """A middleware that takes its time to note a beginning and an end."""

    async def begun(self, call: Any) -> None:
        await asyncio.sleep(0.01)
        await super().begun(call)

    async def settle(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.01)
        return await super().settle(*args, **kwargs)

    async def fail(self, call: Any) -> None:
        await asyncio.sleep(0.01)
        await super().fail(call)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize(
    ("told", "after"),
    [
        pytest.param([start(), part(b"{}")], ["begun", "settle"], id="whole"),
        pytest.param(
            [start(), part(b"{}", more=True), RuntimeError("bug")], ["begun", "settle"], id="broken"
        ),
        pytest.param([start(503), part(b"busy")], ["fail"], id="failed"),
    ],
)
async def test_whoever_is_cancelled_is_accounted_for(
    told: list[Any], after: list[str], turn: int, times: int
) -> None:
    """Once, and to the end, however often and in whatever turn of the loop after its last part."""
    mw, loop = Slow(), asyncio.get_running_loop()

    def cancel(left: int, wait: int) -> None:
        if wait:
            loop.call_soon(cancel, left, wait - 1)
        elif left:
            task.cancel()
            loop.call_soon(cancel, left - 1, 1)

    class Left(Asked):
        async def send(self, message: Message) -> None:
            if message is told[1]:
                cancel(times, turn + 1)

    wrapped = CacheMiddleware(App(told), middleware=mw)
    asked = Left(wrapped, json.dumps(conversation()).encode())
    task = asyncio.create_task(asked.run())
    await asyncio.gather(task, return_exceptions=True)
    while wrapped._tasks:
        await asyncio.wait(set(wrapped._tasks))
    assert kinds(mw) == ["prepare", *after]


def test_a_loop_that_ends_settles_what_has_begun() -> None:
    """It cancels every task, ours too; the call has its end all the same."""
    mw = Slow()

    async def main() -> None:
        ended = asyncio.Event()

        class Told(Asked):
            async def send(self, message: Message) -> None:
                if message["type"] == "http.response.body":
                    ended.set()

        asked = Told(CacheMiddleware(App(), middleware=mw), json.dumps(conversation()).encode())
        running = asyncio.create_task(asked.run())
        await ended.wait()
        assert not running.done()

    asyncio.run(main())
    assert kinds(mw)[-1] == "settle"


async def test_credentials_in_the_query_tell_tenants_apart() -> None:
    """The same request with another key in its query starts from nothing."""
    app = CacheMiddleware(App(), provider="databricks")
    reads = []
    for query in (b"api-key=a", b"api-key=a", b"api-key=b"):
        asked = asking(app)
        asked.scope["query_string"] = query
        reads.append(int((await asked.run()).headers[b"x-cachemw-predicted-read"]))
    assert reads[0] == reads[2] == 0 < reads[1]


async def test_messages_of_another_kind_pass() -> None:
    """A file that the server is to send, or trailers."""
    other: Message = {"type": "http.response.pathsend", "path": "/x"}
    app, mw = App([start(), other]), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert asked.sent[1] == other
    assert kinds(mw) == ["prepare", "begun", "settle"]


@pytest.mark.parametrize(
    ("decide", "decision"),
    [({}, b"marked"), ({"mode": "observe"}, b"not_optimizing"), ({"min_tokens": 10**6}, b"below_minimum")],
)
async def test_the_decision_is_told(decide: dict[str, Any], decision: bytes) -> None:
    """By one word in a header of answers that succeed."""
    asked = await asking(CacheMiddleware(App(), provider="databricks", **decide)).run()
    assert asked.headers[b"x-cachemw-decision"] == decision


async def test_markers_of_the_client_are_told_apart() -> None:
    """Where all four are taken none of ours is added."""
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
async def test_a_function_names_the_tenant(namespace: Callable[[Scope], str | None], shared: bool) -> None:
    """Tenants of different names do not meet."""
    app = CacheMiddleware(App(), provider="databricks", namespace=namespace)
    reads = [
        int((await asking(app, headers=[(b"x-tenant", tenant)]).run()).headers[b"x-cachemw-predicted-read"])
        for tenant in (b"one", b"one", b"two")
    ]
    assert reads[0] == 0 < reads[1]
    assert (reads[2] > 0) is shared


async def test_without_a_tenant_a_request_passes_unmarked() -> None:
    """A function that fails is counted, and nobody's namespace is taken for the request's."""

    def broken(scope: Scope) -> str:
        raise LookupError

    app = App()
    wrapped = CacheMiddleware(app, provider="databricks", namespace=broken)
    asked = await asking(wrapped).run()
    assert app.bodies == [json.dumps(conversation()).encode()]
    assert asked.headers == {b"x-app": b"1"}
    assert cachemw.of(wrapped).counts == {"asgi.namespace": 1}


async def test_the_upstream_tells_the_provider_and_the_account() -> None:
    """The same key at another provider's host is somebody else; without a provider nothing is marked."""
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
        told = (await asking(app, headers=key).run()).headers
        decisions.append((told[b"x-cachemw-decision"], told[b"x-cachemw-predicted-read"]))
    assert decisions[0] == (b"provider_unknown", b"0")
    assert decisions[1:3] == [(b"marked", b"0")] * 2
    assert decisions[3][1] == b"0"


async def test_it_ends_with_the_app() -> None:
    """The middleware is closed when the app has shut down, and when it did not start."""
    for fails in (False, True):
        mw = AsyncRecorder()
        told: list[str] = []

        @asynccontextmanager
        async def life(app: Any, fails: bool = fails, told: list[str] = told) -> AsyncIterator[None]:
            if fails:
                raise RuntimeError("no start")
            told.append("started")
            yield
            told.append("ended")

        app = CacheMiddleware(Starlette(lifespan=life), middleware=mw)
        if fails:
            with pytest.raises(RuntimeError), TestClient(app):
                pass
        else:
            with TestClient(app):
                assert kinds(mw) == []
            assert told == ["started", "ended"]
        assert kinds(mw) == ["close"]


def test_websockets_pass() -> None:
    """They are the app's."""

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


def test_a_fastapi_gateway_over_http() -> None:
    """Added with `add_middleware`, with streams, behind a real server."""
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
        until(lambda: kinds(mw)[-1] == "settle", "it is settled")
        assert kinds(mw) == ["prepare", "begun", "settle"]


def test_starlettes_own_list_takes_it() -> None:
    """With the simulated provider as the gateway: the second request reads."""
    manual = "Returns are free within 30 days of delivery. " * 400
    messages = [{"role": "system", "content": manual}, {"role": "user", "content": "Until when?"}]
    wrapped = [Wrapped(CacheMiddleware, provider="databricks")]
    with TestClient(Starlette(routes=simulated_gateway.build().routes, middleware=wrapped)) as client:
        for _ in range(2):
            told = client.post(
                "/serving-endpoints/chat/completions",
                json={"model": "databricks-claude-sonnet-4-6", "messages": messages},
                headers={"authorization": "Bearer key"},
            )
    assert told.json()["usage"]["cache_read_input_tokens"] > 0


def test_what_does_not_go_together_is_said() -> None:
    """A sync middleware, or two ways of settings."""
    with pytest.raises(ConfigError, match="CacheMiddleware"):
        CacheMiddleware(App(), middleware=cachemw.Middleware())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CacheMiddleware"):
        CacheMiddleware(App(), settings=cachemw.Settings(), provider="databricks")
