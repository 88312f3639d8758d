"""Prompts and credentials in each integration: no trace in logs, counts, events, reports and memory.

The store server and `wrap` are in `tests/stores/redis/test_secrets.py`. This module has the transport, the
ASGI middleware, the proxy and the middleware itself, with answers that quote the request, and with failures.

"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import string
from collections.abc import Callable, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import httpx2
import pytest
from starlette.responses import JSONResponse, Response

import cachemw
from cachemw import AsyncCacheTransport, AsyncMiddleware, CacheMiddleware, CacheTransport, Middleware
from tests.apps.proxy.proxied import PATIENCE, QUICK, proxying, raw
from tests.clients.endpoint import Endpoint, completion, events
from tests.integrations.asgi_apps import App, Asked, answer, part, start
from tests.stores.redis.test_secrets import found

MODEL = "databricks-claude-sonnet-4-6"
CHAT = "/serving-endpoints/chat/completions"
_drawn = random.Random(20_261_201)


def text(words: int) -> str:
    """Return random words that occur in no other place."""
    return " ".join("".join(_drawn.choices(string.ascii_letters, k=9)) for _ in range(words))


CREDENTIALS = {
    "authorization": f"Bearer {text(1)}{text(1)}",
    "x-api-key": text(2).replace(" ", "-"),
    "cookie": f"session={text(2).replace(' ', '')}",
    "x-custom": text(2),
}
QUERY = text(2).replace(" ", "")
PROMPTS = {"system": text(2_500), "question": text(20), "tool": text(40), "user": text(2).replace(" ", "_")}
CANARIES = {
    name: value.encode()
    for name, value in {
        **PROMPTS,
        **{k: v.removeprefix("Bearer ") for k, v in CREDENTIALS.items()},
        "query": QUERY,
    }.items()
}


def body(**more: Any) -> dict[str, Any]:
    """Return a request that is long enough to be marked."""
    function = {"name": "look", "description": PROMPTS["tool"], "parameters": {"type": "object"}}
    messages = [
        {"role": "system", "content": PROMPTS["system"]},
        {"role": "user", "content": PROMPTS["question"]},
    ]
    tools = [{"type": "function", "function": function}]
    return {"model": MODEL, "messages": messages, "tools": tools, "user": PROMPTS["user"], **more}


def echo(status: int, word: str = "") -> Callable[[dict[str, Any]], Response]:
    """Answer with an error that quotes the request and its credentials, as some gateways do."""

    def answered(asked: dict[str, Any]) -> Response:
        said = f"{word} cannot be: {json.dumps(asked)} {json.dumps(CREDENTIALS)}"
        return JSONResponse({"error": {"message": said}}, status_code=status, headers={"x-echo": said[-200:]})

    return answered


def html(_asked: dict[str, Any]) -> Response:
    """Answer with a success that is not JSON and quotes the prompt."""
    return Response(json.dumps(PROMPTS) + "{", media_type="application/json")


ANSWERS = {
    "plain": None,
    "refusal": echo(400, "messages.0.content.0: cache_control"),
    "bad request": echo(400, "temperature"),
    "unauthorized": echo(401),
    "failure": echo(500),
    "no JSON": html,
    "broken stream": events(broken_after=1),
}
each_answer = pytest.mark.parametrize("kind", ANSWERS)


@pytest.fixture
def collected(caplog: pytest.LogCaptureFixture) -> Iterator[list[object]]:
    """Collect events and other values; at the end no canary may be in them, or in any log line."""
    caplog.set_level(logging.DEBUG, logger="cachemw")
    caplog.set_level(logging.WARNING)
    collected: list[object] = []
    yield collected
    assert collected
    assert found("\n".join([caplog.text, *map(repr, collected)]).encode(), CANARIES) == set()


def texts_of(*roots: object) -> bytes:
    """Return all text that is reachable from objects, without code, modules and running frames."""
    code = (type, ModuleType, CodeType, FrameType, BuiltinFunctionType, asyncio.AbstractEventLoop)
    seen: set[int] = set()
    waiting, kept = list(roots), []
    while waiting:
        at = waiting.pop()
        if id(at) in seen or isinstance(at, code):
            continue
        seen.add(id(at))
        if isinstance(at, str):
            kept.append(at.encode("utf-8", "replace"))
        elif isinstance(at, (bytes, bytearray)):
            kept.append(bytes(at))
        elif isinstance(at, FunctionType):
            waiting += at.__closure__ or ()
        else:
            waiting += gc.get_referents(at)
    return b"\n".join(kept)


def assert_no_canary(mw: Any) -> None:
    """Check that memory, counts and report of an idle middleware hold no canary."""
    gc.collect()
    assert found(texts_of(mw), CANARIES) == set()
    assert found(repr([mw, mw.settings, mw.counts, vars(mw._shell.store)]).encode(), CANARIES) == set()


def middleware(mw: type[Any], collected: list[object], **more: Any) -> Any:
    """Return a middleware with a hook and all opt-ins."""
    fields: dict[str, Any] = {
        "provider": "databricks",
        "coalesce": True,
        "split_text": True,
        "sort_tools": True,
    }
    return mw(cachemw.Settings(**{**fields, **more}), hooks=[collected.append])


# --- the transport ------------------------------------------------------------------------------------------


@each_answer
def test_transport_leaves_no_canary(endpoint: Endpoint, collected: list[object], kind: str) -> None:
    """Answers that quote the request and broken answers leave no trace."""
    mw = middleware(Middleware, collected)
    given = {"trust_env": False, "headers": CREDENTIALS, "timeout": PATIENCE}
    with httpx2.Client(transport=CacheTransport(middleware=mw), **given) as client:
        for _ in range(3):
            if (reply := ANSWERS[kind]) is not None:
                endpoint.answers.append(reply)
            try:
                client.post(f"{endpoint.url}{CHAT}?key={QUERY}", json=body(stream=kind == "broken stream"))
            except httpx2.TransportError as error:
                collected.append(error)
        collected += [mw.report(), mw.report("process"), mw.counts]
        assert_no_canary(mw)
    assert endpoint.arrived[0].headers["x-custom"] == CREDENTIALS["x-custom"]


@each_answer
async def test_async_transport_leaves_no_canary(
    endpoint: Endpoint, collected: list[object], kind: str
) -> None:
    """The same rule holds for the async transport."""
    mw = middleware(AsyncMiddleware, collected)
    given = {"trust_env": False, "headers": CREDENTIALS, "timeout": PATIENCE}
    async with httpx2.AsyncClient(transport=AsyncCacheTransport(middleware=mw), **given) as client:
        for _ in range(3):
            if (reply := ANSWERS[kind]) is not None:
                endpoint.answers.append(reply)
            try:
                await client.post(
                    f"{endpoint.url}{CHAT}?key={QUERY}", json=body(stream=kind == "broken stream")
                )
            except httpx2.TransportError as error:
                collected.append(error)
        collected += [await mw.report(), await mw.report("process"), mw.counts]
        assert_no_canary(mw)


# --- the ASGI middleware ------------------------------------------------------------------------------------


async def test_asgi_leaves_no_canary(collected: list[object]) -> None:
    """Namespaces are hashes of credentials; answers, errors and disconnects leave neither."""
    mw = middleware(AsyncMiddleware, collected)
    said = f"messages.0.content.0: cache_control cannot be: {PROMPTS['system']} {CREDENTIALS}"
    app = App(
        answer(completion()),
        answer({"error": {"message": said}}, 400),
        answer(completion()),
        answer({"error": {"message": said}}, 500),
        [start(), part(said.encode(), more=True), RuntimeError("the app failed")],
        answer(completion()),
    )
    wrapped = CacheMiddleware(app, middleware=mw, upstream="https://gateway.example")
    headers = [(name.encode(), value.encode()) for name, value in CREDENTIALS.items()]
    for number in range(5):
        asked = Asked(wrapped, json.dumps(body()).encode(), path=CHAT, headers=headers)
        asked.scope["query_string"] = f"key={QUERY}".encode()
        try:
            await asked.run()
        except RuntimeError as error:
            assert number == 3
            collected.append(error)
        added = [pair for pair in asked.sent[0]["headers"] if pair[0].startswith(b"x-cachemw")]
        collected.append(added)
    await Asked(wrapped, json.dumps(body()).encode(), path=CHAT, headers=headers, messages=[]).run()
    collected += [await mw.report(), mw.counts]
    app.scopes.clear()
    del asked
    assert_no_canary(mw)


# --- the proxy ----------------------------------------------------------------------------------------------


@each_answer
def test_proxy_leaves_no_canary(
    endpoint: Endpoint, collected: list[object], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The process logs and keeps no part of requests, credentials and answers."""
    with (
        proxying(endpoint.url) as running,
        httpx2.Client(trust_env=False, timeout=PATIENCE, headers=CREDENTIALS) as client,
    ):
        for _ in range(3):
            if (reply := ANSWERS[kind]) is not None:
                endpoint.answers.append(reply)
            try:
                client.post(f"{running.url}{CHAT}?key={QUERY}", json=body(stream=kind == "broken stream"))
            except httpx2.TransportError as error:
                collected.append(error)
        collected.append(running.mw.counts)
        assert_no_canary(running.mw)
    collected.append(capfd.readouterr())


BROKEN = {
    "closed": b"",
    "no HTTP": json.dumps(PROMPTS).encode(),
    "odd status": b"HTTP/1.1 999 " + PROMPTS["user"].encode() + b"\r\n\r\n",
    "odd header": b"HTTP/1.1 200 OK\r\n" + PROMPTS["user"].encode() + b" x: 1\r\ncontent-length: 0\r\n\r\n",
    "odd cookie": b"HTTP/1.1 200 OK\r\nset-cookie: " + PROMPTS["user"].encode() + b"[]=1\r\nset-cookie: a@{"
    + QUERY.encode() + b"}=1\r\ncontent-length: 0\r\n\r\n",
    "odd length": b"HTTP/1.1 200 OK\r\ncontent-length: " + QUERY.encode() + b"\r\n\r\n",
    "odd chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + QUERY.encode() + b"\r\n",
    "too short": b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n" + QUERY.encode(),
    "odd redirect": b"HTTP/1.1 302 Found\r\nlocation: http://[" + QUERY.encode() + b"\r\ncontent-length: 0\r\n\r\n",
    "odd type": b"HTTP/1.1 200 OK\r\ncontent-type: " + QUERY.encode() + b"\r\ncontent-encoding: gzip\r\n"
    b"content-length: 3\r\n\r\nabc",
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN)
def test_proxy_before_broken_upstream_leaves_no_canary(
    collected: list[object], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A fixed sentence reports an upstream that is not HTTP, without its text."""
    head = [
        f"POST {CHAT}?key={QUERY} HTTP/1.1",
        "host: proxy",
        *(f"{k}: {v}" for k, v in CREDENTIALS.items()),
    ]
    sent = json.dumps(body()).encode()
    request = (
        "\r\n".join([*head, f"content-length: {len(sent)}", "connection: close"]).encode()
        + b"\r\n\r\n"
        + sent
    )
    with raw(BROKEN[kind]) as upstream, proxying(upstream.url, limits=QUICK) as running:
        got = running.ask(request)
        collected.append(running.mw.counts)
        assert_no_canary(running.mw)
    assert upstream.arrived
    if got.startswith(b"HTTP/1.1 5"):
        collected.append(got)
    collected.append(capfd.readouterr())


@pytest.mark.parametrize(
    "request_line",
    [
        f"POST {CHAT}?key={QUERY} HTTP/9.9",
        f"POST *{QUERY} HTTP/1.1",
        f"{QUERY} / HTTP/1.1",
        f"CONNECT {QUERY}:443 HTTP/1.1",
        f"POST http://[{QUERY}/ HTTP/1.1",
        f"POST //{QUERY}@[ HTTP/1.1",
    ],
)
def test_proxy_refused_request_leaves_no_canary(
    endpoint: Endpoint, collected: list[object], request_line: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A request that is not HTTP, or that cannot be passed on, is answered and logged without its text."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in CREDENTIALS.items())
    with proxying(endpoint.url, limits=QUICK) as running:
        got = running.ask(f"{request_line}\r\nhost: proxy\r\n{headers}connection: close\r\n\r\n".encode())
        collected.append(running.mw.counts)
        assert_no_canary(running.mw)
    if b" 404 " not in got.split(b"\r\n")[0]:
        collected.append(got)
    collected.append(capfd.readouterr())


# --- failures of cachemw ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, cachemw.ConfigError])
def test_failure_that_quotes_the_prompt_is_counted_by_class_only(
    collected: list[object], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text of an exception inside the middleware or in a hook is kept nowhere."""

    def fail(*_: object, **__: object) -> None:
        raise error(PROMPTS["system"])

    mw = middleware(Middleware, collected)
    mw._shared.hooks = (*mw._shared.hooks, fail)
    call = mw.prepare(body())
    mw.settle(call, {"prompt_tokens": 9})
    monkeypatch.setattr(mw._flow.planner, "forecast_and_plan", fail)
    passed = mw.prepare(sent := body())
    assert passed.body is sent
    mw.fail(passed)
    monkeypatch.undo()
    collected += [mw.report("process"), mw.counts, passed, call]
    assert sum(mw.counts[name] for name in mw.counts if name.startswith("error.hook.")) > 0
    del call, passed, sent
    mw._shared.hooks = ()
    assert_no_canary(mw)


def test_call_and_its_events_show_no_prompt(collected: list[object]) -> None:
    """The repr of a call, plan, receipt or event leaves out the body, because applications log them."""
    mw = middleware(Middleware, collected)
    call = mw.prepare(body(), {"app": "support"})
    receipt = mw.settle(call, {"prompt_tokens": 9_000, "cache_creation_input_tokens": 8_000})
    collected += [call, call.plan, call.plan.explain(), receipt]
    assert "support" in repr(call)
    assert call.plan.breakpoints


def test_search_through_memory_finds_a_held_prompt(collected: list[object]) -> None:
    """The search finds the prompt of a call that is still held."""
    mw = middleware(Middleware, collected)
    call = mw.prepare(body())
    assert {"system", "question", "tool", "user"} <= found(texts_of(mw, call), CANARIES)
    closed: Mapping[str, object] = {"held": lambda: call}
    assert "system" in found(texts_of(closed), CANARIES)
    mw.fail(call)
