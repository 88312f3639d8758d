"""A middleware for ASGI gateways: starlette, FastAPI, any other, and the proxy of cachemw.

Contains: translation between ASGI messages and an exchange. Must not depend on: the place where the app sends a request.
The whole body of a request is read before the app sees it. An answer passes chunk by chunk, and `HttpExchange` reads
each chunk once it has gone out. Only a 400 to a changed request is held back until it is complete: if it names an added
marker, the app is called once more with the original body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cachemw.engine import AsyncMiddleware
from cachemw.engine.shared import hash_key
from cachemw.integrations._async_flow import AsyncExchangeFlow
from cachemw.integrations.guard import Guard
from cachemw.integrations.http.chat_routes import find_route
from cachemw.integrations.http.exchange import LABEL, HttpExchange, take_labels
from cachemw.integrations.http.tenants import tenants
from cachemw.integrations.resolve_middleware import resolve_middleware
from cachemw.settings import Settings
from cachemw.slices import run_in_loop

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 << 20
"""Bytes of a request beyond which it passes unread."""
_MAX_ERROR = 1 << 20
_LENGTHS = frozenset({b"content-length", b"transfer-encoding"})
_LABEL = LABEL.encode()


class CacheMiddleware:
    """Place breakpoints in the chat requests that an ASGI app receives.

    Give either a `middleware`, or `settings`, or the fields of `Settings` as keywords, the last two with an optional
    `clock` in seconds. `upstream` is the base URL where the app sends requests: it identifies the provider and
    separates accounts. `namespace` returns the tenant of a request from its scope (None: the namespace of the settings);
    the default is the namespace that the settings set, else one for each credential. Requests longer than `max_body`
    bytes pass unread. The middleware closes when the app has shut down.

    Successful answers get the headers `x-cachemw-decision` and `x-cachemw-predicted-read` (tokens).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings | None = None,
        middleware: AsyncMiddleware | None = None,
        clock: Callable[[], float] | None = None,
        upstream: str = "",
        namespace: Callable[[Scope], str | None] | None = None,
        max_body: int = MAX_BODY,
        **settings_fields: Any,
    ) -> None:
        self.app = app
        self._cachemw = mw = resolve_middleware(
            "CacheMiddleware", AsyncMiddleware, middleware, settings, clock, settings_fields
        )
        self._upstream = upstream.rstrip("/")
        self._namespace = namespace or own_namespace(mw.settings, upstream)
        self._max_body = max_body
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the app."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._closing(send))
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        url = self._upstream + (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
        headers = scope["headers"]
        if any(name.startswith(_LABEL) for name, _ in headers):
            scope = {**scope, "headers": take_labels(headers)[1]}
        if find_route(scope["method"], url) is None or _announced(headers) > self._max_body:
            await self.app(scope, receive, send)
            return
        received, body = await _read(receive, self._max_body)
        chat = None if body is None else await self._prepared(scope, url, headers, body)
        if chat is None:
            await self.app(scope, _replay(received, receive), send)
        else:
            await self._converse(chat, scope, received, receive, send)

    async def _prepared(
        self, scope: Scope, url: str, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> HttpExchange | None:
        """Return the exchange with its call, or None if the request or its tenant cannot be read."""
        mw = self._cachemw
        chat = await run_in_loop(
            HttpExchange.reading(mw, method=scope["method"], url=url, headers=headers, body=body)
        )
        if chat is None:
            return None
        with Guard(mw, "asgi.namespace"):
            namespace = self._namespace(scope)
            chat.flow = flow = AsyncExchangeFlow(mw)
            chat.call = await flow.prepare(chat.body, namespace=namespace, **chat.prepare_arguments)
            return chat
        return None

    async def _converse(
        self, chat: HttpExchange, scope: Scope, received: list[Message], receive: Receive, send: Send
    ) -> None:
        again = True
        while again:
            answer = _Answer(chat, send, self._tasks)
            try:
                asked, messages = await _asked(chat, scope, received)
                await self.app(asked, _replay(messages, receive), answer.send)
                again = answer.refused
                if not again:
                    await answer.release()
            except BaseException:
                again = False
                raise
            finally:
                if not again:
                    await answer.finish(False)

    def _closing(self, send: Send) -> Send:
        async def closing(message: Message) -> None:
            if message["type"].startswith(("lifespan.shutdown.", "lifespan.startup.failed")):
                await self._cachemw.close()
            await send(message)

        return closing


class _Answer:
    """One answer of the app on its way out. `refused` is True if it was dropped, and the app is to be called again."""

    def __init__(self, chat: HttpExchange, send: Send, tasks: set[asyncio.Task[None]]) -> None:
        self.refused = False
        self._chat = chat
        self._send = send
        self._tasks = tasks
        self._held: list[Message] = []
        self._size = 0
        self._start_report: asyncio.Task[None] | None = None
        self._finish_report: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        """Pass a message on, or keep it while it may be a refusal."""
        if message["type"] == "http.response.start":
            await self._start(message)
        elif self._held:
            await self._hold(message)
        else:
            await self._send(message)
            if message["type"] == "http.response.body":
                self._chat.feed(bytes(message.get("body", b"")))
                if not message.get("more_body", False):
                    await self.finish(True)

    async def release(self) -> None:
        """Pass on the messages that were held back."""
        held, self._held = self._held, []
        for message in held:
            await self._send(message)

    async def finish(self, complete: bool) -> None:
        """Report the end of the answer, once; `complete` is True if it ended by itself."""
        if self._finish_report is None:
            self._finish_report = self._task(self._account(complete))
        # Shield the accounting task: cancelling the request cancels only this wait.
        await asyncio.shield(self._finish_report)

    async def _account(self, complete: bool) -> None:
        chat = self._chat
        try:
            if self._start_report is not None:
                await self._start_report
        finally:  # a loop that ends cancels every task there is
            await chat.flow.finish(chat.usage(), complete=complete or chat.announced_end)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start work that must outlive the request, and keep a reference: a loop holds its tasks weakly."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self, message: Message) -> None:
        verdict = self._chat.classify_response(message["status"], message.get("headers", ()))
        if verdict == "refusable":
            self._held.append(message)
        elif verdict == "started":
            # Only a client that the provider lets in may learn what is known of a namespace.
            await self._send(
                {**message, "headers": [*message.get("headers", ()), *_decision_headers(self._chat)]}
            )
            # The report runs as a task, so that the body is not held up. The loop may end before it runs.
            self._chat.flow.started = True
            self._start_report = self._task(self._chat.flow.start())
        else:
            await self._send(message)

    async def _hold(self, message: Message) -> None:
        self._held.append(message)
        self._size += len(message.get("body", b""))
        more = message.get("more_body", False)
        if more and self._size <= _MAX_ERROR:
            return
        start, *parts = self._held
        error = b"".join([part.get("body", b"") for part in parts])
        refusal = None if more else self._chat.refusal(start["status"], error)
        if refusal is not None and await self._chat.flow.is_refused(refusal):
            self.refused = True
            self._held.clear()
        else:
            await self.finish(False)
            await self.release()


def own_namespace(settings: Settings, upstream: str) -> Callable[[Scope], str | None]:
    """Return a function from a scope to its namespace: that of the settings if set, else that of the credentials."""
    if "namespace" in settings.model_fields_set:
        return lambda _scope: None
    named = tenants(urlsplit(upstream).netloc.rpartition("@")[2].lower(), hash_key(settings))
    return lambda scope: named(scope["headers"], scope.get("query_string", b""))


async def _asked(chat: HttpExchange, scope: Scope, received: list[Message]) -> tuple[Scope, list[Message]]:
    """Return a scope of its own for the app, and the messages with the body."""
    if not chat.changed:
        return dict(scope), received
    body = await run_in_loop(chat.sending())
    headers = [pair for pair in scope["headers"] if pair[0] not in _LENGTHS]
    headers.append((b"content-length", b"%d" % len(body)))
    return {**scope, "headers": headers}, [{"type": "http.request", "body": body, "more_body": False}]


def _decision_headers(chat: HttpExchange) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers that describe the decision."""
    plan = chat.call.plan
    if chat.call.body is not chat.body and not chat.changed:
        yield b"x-cachemw-decision", b"refused"
        return
    decision = plan.skipped or ("marked" if plan.added else "none")
    yield b"x-cachemw-decision", decision.encode()
    yield b"x-cachemw-predicted-read", b"%d" % plan.cache_read


def _announced(headers: list[tuple[bytes, bytes]]) -> int:
    length = next((value for name, value in headers if name == b"content-length"), b"")
    return int(length) if length.isdigit() else 0


async def _read(receive: Receive, most: int) -> tuple[list[Message], bytes | None]:
    """Return a request's messages and its body, the body None if it breaks off or is too long."""
    received: list[Message] = []
    size = 0
    while True:
        message = await receive()
        received.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or size > most:
            return received, None
        if not message.get("more_body", False):
            parts = [part.get("body", b"") for part in received]
            return received, parts[0] if len(parts) == 1 else b"".join(parts)


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives these messages first."""
    waiting = iter(messages)

    async def replay() -> Message:
        for message in waiting:
            return message
        return await receive()

    return replay
