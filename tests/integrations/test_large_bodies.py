"""Large requests through hosts on an event loop: they pass, and other tasks get turns meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest
from starlette.types import Message, Receive, Scope, Send

from benchmarks.large_bodies import PATH, bodies
from cachemw import AsyncCacheTransport, CacheMiddleware
from cachemw.core.request import json_budget
from cachemw.integrations.http.exchange import HttpExchange
from cachemw.slices import run_in_loop
from tests.clients.endpoint import completion
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks

MIB = 1 << 20
PATIENCE = 1.0
"""CPU seconds that a turn of the loop may take. Without a limit on values, each of the bodies takes 2 to 12."""
SLOW = {
    name: build
    for name, path, build in bodies(30 * MIB)
    if path == PATH and not name.startswith(("one", "read"))
}


@asynccontextmanager
async def turns_of_the_loop() -> AsyncIterator[list[float]]:
    """Collect the CPU seconds of each turn of the loop."""
    turns: list[float] = []

    async def beat() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            turns.append(now - last)
            last = now

    task = asyncio.ensure_future(beat())
    await asyncio.sleep(0)
    try:
        yield turns
    finally:
        await asyncio.sleep(0)
        task.cancel()


async def through_asgi(mw: AsyncRecorder, body: bytes) -> bytes:
    """Return what an app behind the ASGI middleware receives of a chat request."""
    arrived: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            arrived.append(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": orjson.dumps(completion())})

    parts = [body[start : start + MIB] for start in range(0, len(body), MIB)]

    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "POST", "path": PATH, "query_string": b"", "headers": []}
    await CacheMiddleware(app, middleware=mw)(scope, receive, send)
    return b"".join(arrived)


async def through_transport(mw: AsyncRecorder, body: bytes) -> bytes:
    """Return what the inner transport of an async client receives of a chat request."""
    arrived: list[bytes] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        arrived.append(request.content)
        return httpx2.Response(200, json=completion())

    transport = AsyncCacheTransport(httpx2.MockTransport(answer), middleware=mw)
    async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
        await client.post(f"http://localhost{PATH}", content=body)
    return arrived[0]


@pytest.fixture(params=[through_asgi, through_transport], ids=["asgi", "transport"])
def through(request: pytest.FixtureRequest) -> Any:
    """Return each host on an event loop."""
    return request.param


@pytest.mark.parametrize("name", SLOW)
async def test_request_that_is_slow_to_read_passes_without_holding_the_loop(name: str, through: Any) -> None:
    """A body of too many values reaches the app byte for byte, is counted, and is never prepared."""
    mw, body = AsyncRecorder(), SLOW[name]()
    async with turns_of_the_loop() as turns:
        arrived = await through(mw, body)
    assert arrived == body
    assert max(turns) < PATIENCE
    assert mw.events[0] == ("count", "pass.too_many_values")
    assert all(found[0] != "prepare" for found in mw.events)


async def test_large_request_is_marked_in_many_turns_of_the_loop(through: Any) -> None:
    """A body within the limits gets its markers, and the loop has a turn for each slice of it."""
    asked = conversation()
    asked["messages"][0]["content"] *= 160
    mw, body = AsyncRecorder(), orjson.dumps(asked)
    assert len(body) > 7 * MIB
    async with turns_of_the_loop() as turns:
        arrived = await through(mw, body)
    assert marks(orjson.loads(arrived)) > 0
    assert len(turns) > len(body) // json_budget._SLICE


async def test_each_step_of_a_large_request_takes_turns_of_the_loop() -> None:
    """Counting, parsing, checking and writing are steps with other tasks between them."""
    body = orjson.dumps({**conversation(), "metadata": {"x": "a" * 20 * MIB}})
    mw = AsyncRecorder()
    request: dict[str, Any] = {"method": "POST", "url": PATH, "headers": (), "body": body}
    async with turns_of_the_loop() as turns:
        chat = await run_in_loop(HttpExchange.reading(mw, **request))
    assert chat is not None
    assert len(turns) > len(body) // json_budget._SLICE + 2
    chat.call = await mw.prepare(chat.body, **chat.prepare_arguments)
    async with turns_of_the_loop() as turns:
        written = await run_in_loop(chat.sending())
    assert len(turns) >= 3
    assert written == chat.outgoing() == HttpExchange.outgoing(chat)


@pytest.mark.parametrize("name", SLOW)
def test_host_without_a_loop_has_the_same_limits(name: str) -> None:
    """A thread that reads a body in one go is bounded by the same limit."""
    mw, body = Recorder(), SLOW[name]()
    begun = time.thread_time()
    assert HttpExchange.of(mw, method="POST", url=PATH, headers=(), body=body) is None
    assert time.thread_time() - begun < PATIENCE
    assert mw.events == [("count", "pass.too_many_values")]


@pytest.mark.parametrize(
    ("body", "counted"),
    [
        (lambda: b'{"messages":[{"content":"' + b"a" * (33 * MIB) + b'"}]}', "pass.too_large"),
        (lambda: b'{"messages":[{"content":"' + b"\\n" * (4 * MIB) + b'"}]}', "pass.too_large"),
        (lambda: b'{"messages":[],"x":' + b"1" * 5 * MIB + b"}", "pass.not_json"),
        (lambda: b'{"messages":[],"x":' + b"1" * 10 * MIB + b"}", "pass.too_many_values"),
        (lambda: b'{"messages":[],"x":1e400}', "pass.not_json"),
        (lambda: b'{"messages":[],"x":1e' + b"9" * 5 * MIB + b"}", "pass.not_json"),
        (lambda: b'{"messages":' + b"[" * MIB, "pass.too_many_values"),
        (lambda: b'{"messages":' + b"[" * 50_000, "pass.not_json"),
        (lambda: b'{"messages":[],' + b'"x":1,' * 50_000 + b'"y":1}', "pass.not_json"),
    ],
    ids=range(9),
)
def test_hostile_value_passes_and_is_counted(body: Callable[[], bytes], counted: str) -> None:
    """Long or out-of-range numbers, nesting and repeated keys are counted, and cost no more than others."""
    mw = Recorder()
    assert HttpExchange.of(mw, method="POST", url=PATH, headers=(), body=body()) is None
    assert mw.events == [("count", counted)]
