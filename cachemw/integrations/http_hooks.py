"""Hooks for a host that shows requests and answers as they pass: `HttpHooks`.

Contains: callbacks for an intercepting proxy, a gateway's plugin or a filter. Must not depend on: any host; it must not
send, read or wait. Only the constructor raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cachemw.engine import Middleware
from cachemw.integrations._sync_flow import ExchangeFlow
from cachemw.integrations.http.exchange import Headers, HttpExchange
from cachemw.integrations.resolve_middleware import resolve_middleware
from cachemw.settings import Settings


class HttpHooks:
    """Place breakpoints in the chat requests that a host shows, and settle them by the answers it shows.

    Call `on_request` and `on_response` for each request, and for an answer that comes in pieces `on_chunk` for each piece
    and `on_end`. Give either a `middleware`, or `settings`, or the fields of `Settings` as keywords, the last two with
    an optional `clock` in seconds; `cachemw.of` returns the middleware. Any number of threads may use one. Raises
    `ConfigError` at construction.
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        middleware: Middleware | None = None,
        clock: Callable[[], float] | None = None,
        **settings_fields: Any,
    ) -> None:
        self._cachemw = resolve_middleware(
            "HttpHooks", Middleware, middleware, settings, clock, settings_fields
        )

    def on_request(
        self,
        body: bytes,
        headers: Headers,
        *,
        url: str,
        method: str = "POST",
        provider: str | None = None,
        namespace: str | None = None,
    ) -> HttpExchange | None:
        """Return the exchange whose `outgoing()` bytes are to be sent, or None if the request is to pass unchanged.

        `headers` are a mapping or pairs, text or bytes. Correct the content length in the request's headers, and keep
        the exchange for the other hooks. `provider` names the provider if `url` is only a path.
        """
        mw = self._cachemw
        chat = HttpExchange.of(mw, method=method, url=url, headers=headers, body=body, provider=provider)
        if chat is not None:
            chat.flow = flow = ExchangeFlow(mw)
            chat.call = flow.prepare(chat.body, namespace=namespace, **chat.prepare_arguments)
        return chat

    def on_response(
        self, chat: HttpExchange, status: int, headers: Headers, body: bytes | None = None
    ) -> bytes | None:
        """Take an answer, complete or as it begins; return the original request if it is to be sent once more.

        With `body`, which is as on the wire, the exchange is over, unless bytes are returned: then the provider refused
        an added marker. Send these bytes and show the answer here again, or call `on_end`.
        """
        verdict = chat.classify_response(status, headers)
        if verdict == "started":
            chat.flow.start()
        if body is None:
            return None
        if verdict == "refusable":
            refusal = chat.refusal(status, body)
            if refusal is not None and chat.flow.is_refused(refusal):
                return chat.outgoing()
        chat.feed(body)
        self.on_end(chat)
        return None

    def on_chunk(self, chat: HttpExchange, chunk: bytes) -> bytes:
        """Read the usage in a piece of the answer's body, as on the wire; return the same piece."""
        chat.feed(chunk)
        return chunk

    def on_end(self, chat: HttpExchange, *, complete: bool = True) -> None:
        """Report the end of the exchange; a second call changes nothing.

        `complete` is False if the answer broke off, or if the client did not read the rest.
        """
        chat.flow.finish(chat.usage(), complete=complete or chat.announced_end)

    def close(self) -> None:
        """Close the middleware, which finishes its queued store writes."""
        self._cachemw.close()
