"""The hooks of `wrap` on an async OpenAI client.

Contains: one exchange through `client.request`, and the observation of an answer that is still to be read. Must not
depend on: the form of the SDK's options and answers (`openai_exchange`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from cachemw.engine import AsyncMiddleware
from cachemw.integrations._async_flow import AsyncExchangeFlow
from cachemw.integrations.openai_exchange import OpenAIExchange
from cachemw.integrations.reply import Reply


def hook_async(client: Any, mw: AsyncMiddleware, root: Any) -> None:
    """Replace `request` and `close` of a client; `root` is the client that owns the HTTP client."""
    send, close_client = client.request, client.close

    async def request(cast_to: Any, options: Any, **kwargs: Any) -> Any:
        chat = OpenAIExchange.of(mw, client, options)
        if chat is None:
            return await send(cast_to, options, **kwargs)
        flow = AsyncExchangeFlow(mw)
        chat.call = await flow.prepare(chat.body, provider=chat.provider)

        async def attempt() -> Reply:
            try:
                return Reply(True, await send(cast_to, chat.outgoing(options), **kwargs))
            except BaseException as error:
                return chat.failed(error)

        reply = await flow.send(attempt)
        try:
            if reply.error is not None:
                if reply.accepted:
                    await flow.finish(chat.usage_of(None), complete=True)
                raise reply.error
            response = chat.unread(reply.value)
            if response is None:
                await flow.finish(chat.usage_of(reply.value), complete=True)
            else:
                _observe(flow, chat, response)
            return reply.value
        finally:
            del reply  # the traceback of its error holds this frame

    async def close() -> None:
        try:
            await close_client()
        finally:
            if root.is_closed():
                await mw.close()

    client.request, client.close = request, close


def _observe(flow: AsyncExchangeFlow, chat: OpenAIExchange, response: Any) -> None:
    """Show each chunk of a response to the exchange as the application reads it, and report the end."""
    read, end = response.aiter_bytes, response.aclose

    async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
        complete = False
        chat.pulling = True
        try:
            async for chunk in read(chunk_size):
                chat.pulling = False
                chat.feed(chunk)
                yield chunk
                chat.pulling = True
            complete = True
        finally:
            chat.pulling = False
            await finish(complete)

    async def aclose() -> None:
        try:
            await end()
        finally:
            await finish(False)

    async def finish(complete: bool) -> None:
        if chat.ends(response, "aiter_bytes", "aclose"):
            usage = chat.usage()
            await flow.finish(usage, complete=complete or chat.announced_end)

    response.aiter_bytes, response.aclose = aiter_bytes, aclose
