"""Errors that the proxy answers itself, in the provider's format, as ASGI messages.

Contains: the format of an error. Must not depend on: the conditions under which an error occurs. Errors hold
no text of a request, of an answer or of a library's exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from cachemw.integrations.http.chat_routes import find_route

if TYPE_CHECKING:
    from starlette.types import Scope, Send

_ANTHROPIC = {
    400: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    501: "api_error",
    502: "api_error",
    504: "timeout_error",
}


class ProxyError(Exception):
    """The reason why a request has no answer of the upstream: a short `code`, and a message."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message

    def body(self, scope: Scope) -> bytes:
        """Return the error as JSON: in Anthropic's format on its path, in OpenAI's elsewhere."""
        route = find_route("POST", scope["path"])
        message, kind = f"cachemw: {self.message}", _ANTHROPIC[self.status]
        shape: dict[str, Any]
        if route is not None and route.wire == "messages":
            shape = {"type": "error", "error": {"type": kind, "message": message}}
        else:
            shape = {"error": {"message": message, "type": kind, "param": None, "code": self.code}}
        return orjson.dumps(shape)

    async def answer(self, scope: Scope, send: Send) -> None:
        """Send the error except for its end, which `end` sends; the connection closes after that."""
        body = self.body(scope)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def end(send: Send) -> None:
    """End an answer."""
    await send({"type": "http.response.body", "body": b"", "more_body": False})
