"""The simulated provider over HTTP: Databricks' paths, Claude's caching, answers of one sentence.

Contains: routes, credentials, clocks, streams, and the ledger of billed requests. Must not depend on: how a
prompt is read or billed (`cachemw.simulation`), prices, the middleware that it tests. A bearer token stands
for an organisation: requests share entries only under the same token and model.
"""

from __future__ import annotations

import math
import socket
import threading
import time
from asyncio import sleep
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.types import Model
from cachemw.simulation.answers import OUTPUT_TOKENS, chat_events, completion, error, message, message_events
from cachemw.simulation.anthropic_form import Wire
from cachemw.simulation.openai_cache import OpenAICache
from cachemw.simulation.options import Options, Refused, refuse
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import anthropic_usage, databricks_usage, openrouter_usage

CLOCK_HEADER = "x-cachemw-clock"
CHAT_PATHS = (
    "/serving-endpoints/chat/completions",
    "/serving-endpoints/{name}/invocations",
    "/ai-gateway/mlflow/v1/chat/completions",
    "/v1/chat/completions",
)
MESSAGES_PATHS = (
    "/serving-endpoints/anthropic/v1/messages",
    "/ai-gateway/anthropic/v1/messages",
    "/anthropic/v1/messages",
    "/v1/messages",
)
MODELS_PATHS = ("/serving-endpoints/models", "/ai-gateway/mlflow/v1/models", "/v1/models")


class BilledRequest(NamedTuple):
    """One answered or refused request, with its tokens by kind."""

    model: str
    wire: Wire
    status: int
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    uncached: int = 0
    output: int = 0


@dataclass(slots=True)
class Ledger:
    """The last 100,000 requests, and the sums of all requests: tokens by kind, `requests` and `refused`."""

    rows: deque[BilledRequest] = field(default_factory=lambda: deque(maxlen=100_000))
    totals: Counter[str] = field(default_factory=Counter)

    def add(self, row: BilledRequest) -> None:
        """Count one request."""
        self.rows.append(row)
        self.totals.update(dict(zip(BilledRequest._fields[3:], row[3:], strict=True)))
        self.totals["requests"] += 1
        self.totals["refused"] += row.status != 200


def build(
    options: Options | None = None,
    *,
    inclusive: bool = True,
    virtual_clock: bool = False,
    clock: Callable[[], float] = time.time,
    answer_after: float = 0.0,
    models: Callable[[str], Model | None] = find_model,
) -> Starlette:
    """Return the gateway as an ASGI app; `app.state.ledger` is its `Ledger`.

    Args:
        options: The provider's rules.
        inclusive: Databricks' `prompt_tokens` include cache reads and cache writes.
        virtual_clock: Take the time (seconds) from the `x-cachemw-clock` header of each request. Without a
            virtual clock, requests with this header are refused.
        clock: The time in seconds without a virtual clock.
        answer_after: Seconds until an answer begins.
        models: Finds a model's row by its name.
    """
    gateway = _Gateway(options or Options(), inclusive, virtual_clock, clock, answer_after, models)
    routes = [Route(path, gateway.chat, methods=["POST"]) for path in CHAT_PATHS]
    routes += [Route(path, gateway.messages, methods=["POST"]) for path in MESSAGES_PATHS]
    routes += [Route(path, _list_models, methods=["GET"]) for path in MODELS_PATHS]
    routes.append(Route("/healthz", _healthy, methods=["GET"]))
    app = Starlette(routes=routes)
    app.state.ledger = gateway.ledger
    return app


def serve(app: Starlette, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the gateway until interrupted."""
    uvicorn.run(app, host=host, port=port, log_level="warning")


@contextmanager
def running(app: Starlette) -> Iterator[str]:
    """Serve an app from a thread of this process; yield its URL, a free loopback port."""
    # asyncio switches Nagle's algorithm off only if the socket names its protocol; else answers wait 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


@dataclass(slots=True)
class _Gateway:
    options: Options
    inclusive: bool
    virtual_clock: bool
    clock: Callable[[], float]
    answer_after: float
    models: Callable[[str], Model | None]
    ledger: Ledger = field(default_factory=Ledger)
    caches: dict[tuple[str, str], ProviderCache | OpenAICache] = field(default_factory=dict)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, "chat")

    async def messages(self, request: Request) -> Response:
        return await self._answer(request, "messages")

    async def _answer(self, request: Request, wire: Wire) -> Response:
        name = ""
        try:
            organisation = _organisation(request)
            body = _body(await request.body())
            name = str(body.get("model") or request.path_params.get("name") or "")
            now = self._now(request)
            cache = self._cache(organisation, name)
            ticket = cache.begin(body, now, wire)
        except Refused as refused:
            self.ledger.add(BilledRequest(name, wire, refused.status))
            return _json(error(refused, wire, self.options.provider), refused.status)
        await sleep(self.answer_after)
        if body.get("stream") is True:
            usages = [self._usage(ticket, wire, tokens) for tokens in OUTPUT_TOKENS]
            every = self.options.provider == "databricks"
            events = chat_events(name, usages, every) if wire == "chat" else message_events(name, usages)
            stream = self._begun(events, cache, ticket, name, wire)
            return StreamingResponse(stream, media_type="text/event-stream")
        self._began(cache, ticket, name, wire)
        whole = completion if wire == "chat" else message
        return _json(whole(name, self._usage(ticket, wire, OUTPUT_TOKENS[-1])))

    async def _begun(
        self,
        events: Iterator[bytes],
        cache: ProviderCache | OpenAICache,
        ticket: Ticket,
        name: str,
        wire: Wire,
    ) -> AsyncIterator[bytes]:
        """Yield the events of a stream; the answer begins with the first."""
        self._began(cache, ticket, name, wire)
        for event in events:
            yield event

    def _began(self, cache: ProviderCache | OpenAICache, ticket: Ticket, name: str, wire: Wire) -> None:
        cache.answer_began(ticket, ticket.started if self.virtual_clock else self.clock())
        tokens = (
            ticket.cache_read,
            ticket.cache_write_5m,
            ticket.cache_write_1h,
            ticket.uncached,
            OUTPUT_TOKENS[-1],
        )
        self.ledger.add(BilledRequest(name, wire, 200, *tokens))

    def _now(self, request: Request) -> float:
        given = request.headers.get(CLOCK_HEADER)
        if not self.virtual_clock:
            if given is not None:
                refuse(f"{CLOCK_HEADER}: this gateway keeps its own time. Start it with --virtual-clock.")
            return self.clock()
        try:
            now = float(given if given is not None else "")
        except ValueError:
            now = math.nan
        if not math.isfinite(now):
            refuse(f"{CLOCK_HEADER}: this header, with the time in seconds, is required by the virtual clock")
        return now

    def _cache(self, organisation: str, name: str) -> ProviderCache | OpenAICache:
        model = self.models(name)
        if model is None:
            raise Refused(404, f"The given endpoint does not exist: {name!r}")
        key = (organisation, model.name)
        if key not in self.caches:
            automatic = self.options.provider == "openai" and model.caching == "automatic"
            self.caches[key] = (OpenAICache if automatic else ProviderCache)(model, self.options)
        return self.caches[key]

    def _usage(self, ticket: Ticket, wire: Wire, output_tokens: int) -> dict[str, Any]:
        if wire == "messages":
            return anthropic_usage(ticket, output_tokens)
        if self.options.provider == "databricks":
            return databricks_usage(ticket, output_tokens, self.inclusive)
        return openrouter_usage(ticket, output_tokens)


def _organisation(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    key = token.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
    if not key:
        raise Refused(401, "Credential was not sent or was of an unsupported type for this API.")
    return key


def _body(raw: bytes) -> Mapping[str, Any]:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        refuse("The request body is not valid JSON")
    if not isinstance(body, dict):
        refuse("The request body is not a JSON object")
    return body


def _json(data: Mapping[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(data), status, media_type="application/json")


async def _list_models(_request: Request) -> Response:
    names = [f"databricks-{name}" for name in MODELS if name.startswith("claude-")]
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "databricks"} for name in names]
    return _json({"object": "list", "data": rows})


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("ok")
