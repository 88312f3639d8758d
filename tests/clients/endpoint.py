"""A chat endpoint on loopback. It gives the prepared answers and records the requests.

The endpoint does not validate or cache requests; the simulated gateway does.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

USAGE = {
    "prompt_tokens": 5000,
    "completion_tokens": 7,
    "total_tokens": 5007,
    "cache_read_input_tokens": 4000,
    "cache_creation_input_tokens": 900,
}
TEXT = "Your flight leaves at nine."
Answer = Callable[[dict[str, Any]], Response]


@dataclass(frozen=True)
class Arrival:
    """One request as it came over the wire."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Endpoint:
    """The running endpoint. `answers` go out first in, first out; after them come default answers."""

    url: str
    arrived: list[Arrival] = field(default_factory=list)
    answers: deque[Answer] = field(default_factory=deque)

    def reset(self) -> None:
        """Forget arrivals and answers."""
        self.arrived.clear()
        self.answers.clear()

    async def handle(self, request: Request) -> Response:
        """Remember the request and give the next answer."""
        if request.method != "POST":
            return JSONResponse({"error": "not found"}, status_code=404)
        body = json.loads(await request.body())
        self.arrived.append(Arrival(request.url.path, dict(request.headers), body))
        answer = self.answers.popleft() if self.answers else (events() if body.get("stream") else plain())
        return answer(body)


def completion(
    usage: dict[str, Any] | None = USAGE, text: str = TEXT, reason: str = "stop"
) -> dict[str, Any]:
    """Return a completion."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": reason, "logprobs": None}]
    answer = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "served-claude",
        "choices": choices,
    }
    return answer if usage is None else {**answer, "usage": usage}


def chunks(usage: dict[str, Any] | None = USAGE) -> list[dict[str, Any]]:
    """Return the chunks of a stream. Usage, if given, is in each chunk and grows to its last value."""
    found = []
    words = TEXT.split(" ")
    for n, word in enumerate(words):
        delta = {"role": "assistant", "content": word if n == 0 else f" {word}"}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if n == len(words) - 1 else None}
        chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "served-claude"}
        chunk["choices"] = [choice]
        if usage is not None:
            chunk["usage"] = {**usage, "completion_tokens": usage["completion_tokens"] - len(words) + n + 1}
        found.append(chunk)
    return found


def event(data: Any) -> bytes:
    """Return one server-sent event."""
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def plain(usage: dict[str, Any] | None = USAGE, *, zipped: bool = False, **completed: str) -> Answer:
    """Answer with a completion that is not streamed."""

    def answer(body: dict[str, Any]) -> Response:
        content = json.dumps(completion(usage, **completed)).encode()
        if not zipped:
            return Response(content, media_type="application/json")
        return Response(
            gzip.compress(content), media_type="application/json", headers={"content-encoding": "gzip"}
        )

    return answer


def events(
    usage: dict[str, Any] | None = USAGE,
    *,
    broken_after: int | None = None,
    zipped: bool = False,
    done: bool = True,
) -> Answer:
    """Answer with a stream of chunks, cut off after `broken_after` of them by closing the connection."""

    async def parts() -> AsyncIterator[bytes]:
        for n, chunk in enumerate(chunks(usage)):
            if n == broken_after:
                raise ConnectionResetError
            yield event(chunk)
        if done:
            yield event(b"[DONE]")

    async def compressed() -> AsyncIterator[bytes]:
        yield gzip.compress(b"".join([part async for part in parts()]))

    def answer(body: dict[str, Any]) -> Response:
        if zipped:
            return StreamingResponse(
                compressed(), media_type="text/event-stream", headers={"content-encoding": "gzip"}
            )
        return StreamingResponse(parts(), media_type="text/event-stream")

    return answer


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Answer:
    """Answer with an error in the Databricks shape."""
    detail = {"error_code": "BAD_REQUEST", "message": message}
    return lambda body: JSONResponse(detail, status_code=status, headers=headers)


@contextmanager
def running() -> Iterator[Endpoint]:
    """Run an endpoint on a free port in its own thread."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    endpoint = Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        # No routes: a request to a proxy has a URL as its path.
        answer = await endpoint.handle(Request(scope, receive))
        await answer(scope, receive, send)

    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield endpoint
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
