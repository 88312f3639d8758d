# Generated from _async_openai.py by scripts/unasync.py: change that file instead.
"""The hooks of `wrap` on a sync OpenAI client.

Contains: one exchange through `client.request`, and the observation of an answer that is still to be read. Must not
depend on: the form of the SDK's options and answers (`openai_exchange`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cachemw.engine import Middleware
from cachemw.integrations._sync_flow import ExchangeFlow
from cachemw.integrations.openai_exchange import OpenAIExchange
from cachemw.integrations.reply import Reply


def hook_sync(client: Any, mw: Middleware, root: Any) -> None:
    """Replace `request` and `close` of a client; `root` is the client that owns the HTTP client."""
    send, close_client = client.request, client.close

    def request(cast_to: Any, options: Any, **kwargs: Any) -> Any:
        chat = OpenAIExchange.of(mw, client, options)
        if chat is None:
            return send(cast_to, options, **kwargs)
        flow = ExchangeFlow(mw)
        chat.call = flow.prepare(chat.body, provider=chat.provider)

        def attempt() -> Reply:
            try:
                return Reply(True, send(cast_to, chat.outgoing(options), **kwargs))
            except BaseException as error:
                return chat.failed(error)

        reply = flow.send(attempt)
        try:
            if reply.error is not None:
                if reply.accepted:
                    flow.finish(chat.usage_of(None), complete=True)
                raise reply.error
            response = chat.unread(reply.value)
            if response is None:
                flow.finish(chat.usage_of(reply.value), complete=True)
            else:
                _observe(flow, chat, response)
            return reply.value
        finally:
            del reply  # the traceback of its error holds this frame

    def close() -> None:
        try:
            close_client()
        finally:
            if root.is_closed():
                mw.close()

    client.request, client.close = request, close


def _observe(flow: ExchangeFlow, chat: OpenAIExchange, response: Any) -> None:
    """Show each chunk of a response to the exchange as the application reads it, and report the end."""
    read, end = response.iter_bytes, response.close

    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        complete = False
        chat.pulling = True
        try:
            for chunk in read(chunk_size):
                chat.pulling = False
                chat.feed(chunk)
                yield chunk
                chat.pulling = True
            complete = True
        finally:
            chat.pulling = False
            finish(complete)

    def close() -> None:
        try:
            end()
        finally:
            finish(False)

    def finish(complete: bool) -> None:
        if chat.ends(response, "iter_bytes", "close"):
            usage = chat.usage()
            flow.finish(usage, complete=complete or chat.announced_end)

    response.iter_bytes, response.close = iter_bytes, close
