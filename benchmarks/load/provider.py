"""Serve the simulated provider with the faults that each request asks for, and record each request.

    python -m benchmarks.load.provider 9000

Contains: the faults, and one record for each request. Must not depend on: the proxy's decisions, the client.

A request names its fault in the header `x-chaos-fault`, so a client knows its due answer. The number in
`x-chaos-request` comes back in a header and inside the answer, so a client detects the answer to another request.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from benchmarks.load.bodies import breakpoints, digest
from cachemw.apps import simulated_gateway
from cachemw.apps.proxy import serving

PAID = "paid-"  # beginning of the keys that this provider accepts
SLOW = 1.5  # seconds until a slow answer begins
ERRORS = ("401", "429", "500")
_ANSWER_AFTER = 0.05
_USAGE = re.compile(rb'"usage":\{(?:[^{}]|\{[^{}]*\})*\}')
_COUNTS = tuple(
    re.compile(rb'"%s":(\d+)' % name)
    for name in (b"prompt_tokens", b"cache_read_input_tokens", b"cache_creation_input_tokens")
)

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(slots=True)
class Received:
    """One request at the provider: its key, its body without breakpoints, and the tokens that were billed."""

    number: int
    key: str
    digest: str
    breakpoints: list[str] = field(default_factory=list)
    status: int = 0
    prompt: int = 0
    read: int = 0
    written: int = 0


class Provider:
    """The simulated gateway behind faults."""

    def __init__(self) -> None:
        self._app = simulated_gateway.build(answer_after=_ANSWER_AFTER)
        self._received: list[Received] = []

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a request, or hand over the records and forget them."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        elif scope["path"] == "/received":
            rows, self._received = self._received, []
            await _answer(send, 200, orjson.dumps([asdict(row) for row in rows]))
        else:
            await self._chat(scope, receive, send)

    async def _chat(self, scope: Any, receive: Receive, send: Send) -> None:
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        body = await _read_body(receive)
        if body is None:
            return
        number = headers.get("x-chaos-request", "0")
        key = headers.get("authorization", "").removeprefix("Bearer ")
        row = Received(int(number), key, digest(body), breakpoints(body))
        self._received.append(row)
        fault, connection = headers.get("x-chaos-fault", ""), scope["extensions"][serving.CONNECTION]
        marked = [(b"x-chaos-request", number.encode())]
        if fault in ERRORS or not key.startswith(PAID):
            row.status = int(fault or 401)
            error = orjson.dumps({"error_code": "INJECTED", "message": f"fault {row.status}"})
            await _answer(send, row.status, error, marked)
        elif fault == "closed":
            await connection.drop()
        elif fault == "never":
            await _gone(receive)
        else:
            if fault == "slow":
                await asyncio.sleep(SLOW)
            altered = _Altered(send, receive, connection, row, fault)
            await self._app(scope, _again(body, receive), altered.send)  # type: ignore[arg-type]


class _Altered:
    """The answer of the gateway, numbered, recorded, and broken if the fault says so."""

    def __init__(self, send: Send, receive: Receive, connection: Any, row: Received, fault: str) -> None:
        self._send, self._receive, self._connection = send, receive, connection
        self._row, self._fault, self._over = row, fault, False

    async def send(self, message: dict[str, Any]) -> None:
        """Pass one message of the answer on."""
        if self._over:
            return
        if message["type"] == "http.response.start":
            self._row.status = message["status"]
            number = (b"x-chaos-request", b"%d" % self._row.number)
            await self._send({**message, "headers": [*message["headers"], number]})
            return
        body = message.get("body", b"")
        self._bill(body)
        body = numbered(body, self._row.number)
        if self._fault == "no usage":
            body = without_usage(body)
        if self._fault in ("half", "stall") and body:
            self._over = True
            await self._send(
                {"type": "http.response.body", "body": body[: len(body) // 2], "more_body": True}
            )
            if self._fault == "stall":
                await _gone(self._receive)
            else:
                await self._connection.drop(flush=1.0)
            return
        await self._send({**message, "body": body})

    def _bill(self, body: bytes) -> None:
        counts = [pattern.search(body) for pattern in _COUNTS]
        if counts[0] is not None:
            found = [0 if count is None else int(count[1]) for count in counts]
            self._row.prompt, self._row.read, self._row.written = found


def numbered(body: bytes, number: int) -> bytes:
    """Return a part of an answer with the request's number in its id, as long as it was."""
    return body.replace(b"chatcmpl-simulated", b"chatcmpl-%09d" % number)


def without_usage(body: bytes) -> bytes:
    """Return a part of an answer without usage, as long as it was."""
    return _USAGE.sub(lambda found: b'"usage":null'.ljust(len(found[0])), body)


async def _answer(
    send: Send, status: int, body: bytes, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(more or [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def _read_body(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    """Wait until the other end closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _again(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


if __name__ == "__main__":
    serving.serve(serving.config(Provider, drain=1), serving.listen("127.0.0.1", int(sys.argv[1])))
