"""Requests and responses of httpx and httpx2, seen by one piece of code.

Contains: translation between a request object and an exchange. Must not depend on: sync or async, how anything is sent.
Neither library is imported here: the request shows which one it belongs to.
"""

from __future__ import annotations

import sys
from typing import Any

from cachemw.integrations.guard import Engine, Guard
from cachemw.integrations.http.exchange import HttpExchange, take_labels
from cachemw.slices import Slices

MAX_ERROR = 1 << 20
"""Bytes of a 400 beyond which it is no refusal of a marker, and is read no further."""
_LENGTHS = (b"content-length", b"transfer-encoding")


def library_of(request: Any) -> Any:
    """Return the module, httpx or httpx2, that a request belongs to."""
    roots = (kind.__module__.partition(".")[0] for kind in type(request).__mro__)
    return sys.modules[next(root for root in roots if root in ("httpx", "httpx2"))]


def read_request(library: Any, mw: Engine, request: Any) -> Slices[HttpExchange | None]:
    """Read a request in slices; None if it is no chat request, or if its body is streamed."""
    if not isinstance(request.stream, library.ByteStream):
        return None
    body = b"".join(request.stream)
    reading = HttpExchange.reading(
        mw, method=request.method, url=str(request.url), headers=request.headers.raw, body=body
    )
    return (yield from reading)


def outgoing_request(library: Any, mw: Engine, request: Any, chat: HttpExchange | None) -> Slices[Any]:
    """Return the request for the inner transport: the request itself if nothing in it changes."""
    with Guard(mw, "http.request"):
        labels, headers = take_labels(request.headers.raw)
        stream = request.stream
        if chat is not None and chat.changed:
            body = yield from chat.sending()
            headers = [pair for pair in headers if pair[0].lower() not in _LENGTHS]
            headers.append((b"Content-Length", str(len(body)).encode()))
            stream = library.ByteStream(body)
        elif not labels:
            return request
        return library.Request(
            request.method, request.url, headers=headers, stream=stream, extensions=request.extensions
        )
    return request


def feed_bytes(library: Any, chat: HttpExchange, response: Any) -> bool:
    """Show the exchange a body that is already in memory, such as a mock's; False if it is still to be read."""
    if not isinstance(response.stream, library.ByteStream):
        return False
    for chunk in response.stream:
        chat.feed(chunk)
    return True
