"""An ASGI app that records its requests, and requests to it message by message.

Contains: helpers of the ASGI tests. Must not depend on: any test module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.clients.endpoint import completion
from tests.clients.recorder import AsyncRecorder, conversation

PATH = "/v1/chat/completions"


class Asked:
    """One request to an app, message by message; `sent` holds the messages of the answer."""

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
        """Return the next message; after the last one the client has disconnected."""
        self.read += 1
        return self._waiting.pop(0) if self._waiting else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Record a message."""
        self.sent.append(message)

    async def run(self) -> Asked:
        """Call the app."""
        await self._app(self.scope, self.receive, self.send)
        return self

    @property
    def body(self) -> bytes:
        """Return the body of the answer."""
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Return the headers of the answer."""
        return dict(self.sent[0]["headers"])


def asking(app: ASGIApp, **given: Any) -> Asked:
    """Return a request with the conversation."""
    return Asked(app, json.dumps(conversation()).encode(), **given)


class App:
    """An app that records its requests, and gives the prepared answers one after another."""

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
    """Return the first message of an answer."""
    return {"type": "http.response.start", "status": status, "headers": [(b"x-app", b"1")]}


def part(body: bytes, *, more: bool = False) -> Message:
    """Return a part of an answer."""
    return {"type": "http.response.body", "body": body, "more_body": more}


def answer(body: Any, status: int = 200) -> list[Any]:
    """Return all messages of an answer."""
    return [start(status), part(json.dumps(body).encode())]


def event_names(mw: AsyncRecorder) -> list[str]:
    """Return the names of the calls that the middleware got, in order."""
    return [str(found[0]) for found in mw.events if found[0] != "count"]
