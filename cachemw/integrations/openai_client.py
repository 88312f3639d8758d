"""Wrap an `openai` client in place: `wrap`, `of`.

Here lives only translation between the SDK and the middleware: options to body, answer to usage. It must
not decide anything about breakpoints, and knows no other integration.

Where it hooks in, and why there. Every call style of the SDK (`create`, streamed or not, `parse`, the
`stream()` helper, `with_raw_response`, `with_streaming_response`, `post`) goes through the public method
`client.request` exactly once per logical call, with the SDK's retries inside, on majors 2 and 3 and in the
subclasses of Azure and Databricks. So it is replaced on the instance. The body is a dict there, after every
normalisation that a subclass makes and before it is serialised. The other points are worse: a patch of
`chat.completions.create` misses half of the styles and is lost on clients that build `chat` at each access;
`_prepare_options` is private, arrives once per retry and sees no answer; a transport would have to parse and
serialise the body again and can't tell a retry from a new call. Copies (`with_options`, `copy`) start
unhooked, so these two are replaced as well, and `close`.

How usage is read. An answer that the SDK has parsed is taken before the caller's own parser may refuse it.
An answer still unread is watched while the caller reads it: the HTTP response's decoding iterator, through
which lines, text, JSON and SDK streams all go, passes each chunk on as the same object, at once. Bytes read
below it (`iter_raw`) are not seen: such a call settles without usage. A stream that is dropped before its
first chunk and never closed is not settled; it expires with its TTL.

The middleware ends with the HTTP client that it serves: closing the wrapped client, or a copy that shares
its HTTP client, closes the middleware too, one that was given to `wrap` included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError
from cachemw.integrations.openai_exchange import OpenAIExchange
from cachemw.integrations.resolve_middleware import name_of, resolve_middleware
from cachemw.settings import Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from cachemw.integrations.asgi import CacheMiddleware
    from cachemw.integrations.http_hooks import HttpHooks
    from cachemw.integrations.transport import AsyncCacheTransport, CacheTransport

_Client = TypeVar("_Client")
_MARK = "_cachemw"


def wrap(
    client: _Client,
    *,
    settings: Settings | None = None,
    middleware: Middleware | AsyncMiddleware | None = None,
    clock: Callable[[], float] | None = None,
    **settings_fields: Any,
) -> _Client:
    """Let a middleware place breakpoints in every chat request of an OpenAI client; return the same client.

    Give either a `middleware`, or `settings`, or the fields of `Settings` as keywords (`store="redis://..."`),
    the last two with an optional `clock` in seconds. `ConfigError` where the client is none of `openai`, is
    wrapped already, or is sync while the middleware is async (or the reverse).
    """
    kind = _middleware_kind(client)
    if _MARK in vars(client):
        raise ConfigError("wrap: this client is wrapped already; cachemw.of(client) gives its middleware")
    given = resolve_middleware("wrap", kind, middleware, settings, clock, settings_fields, name_of(client))
    _install(client, given, root=client)
    return client


@overload
def of(client: OpenAI | CacheTransport | HttpHooks) -> Middleware: ...
@overload
def of(client: AsyncOpenAI | AsyncCacheTransport | CacheMiddleware) -> AsyncMiddleware: ...
def of(client: Any) -> Middleware | AsyncMiddleware:
    """Return the middleware of a wrapped client, its copy, a transport or hooks; `ConfigError` if it has none."""
    found = getattr(client, "__dict__", {}).get(_MARK)
    if found is None:
        raise ConfigError(f"of: this {name_of(client)} is not wrapped; call cachemw.wrap(client) first")
    return cast("Middleware | AsyncMiddleware", found)


def _middleware_kind(client: object) -> type[Middleware | AsyncMiddleware]:
    try:
        import openai
    except ImportError:
        raise ConfigError("wrap: the package openai is missing; pip install 'cachemw[openai]'") from None
    if isinstance(client, openai.OpenAI):
        return Middleware
    if isinstance(client, openai.AsyncOpenAI):
        return AsyncMiddleware
    raise ConfigError(f"wrap: client is {name_of(client)}; allowed are openai.OpenAI and openai.AsyncOpenAI")


def _install(client: Any, middleware: Middleware | AsyncMiddleware, *, root: Any) -> None:
    """Hook a client, or a copy of `root`, into the middleware."""
    if _MARK in vars(client):
        return

    def copying(copy: Callable[..., Any]) -> Callable[..., Any]:
        def copied(*args: Any, **kwargs: Any) -> Any:
            made = copy(*args, **kwargs)
            _install(made, middleware, root=root)
            return made

        return copied

    client.copy, client.with_options = copying(client.copy), copying(client.with_options)
    if isinstance(middleware, Middleware):
        _hook_sync(client, middleware, root)
    else:
        _hook_async(client, middleware, root)
    setattr(client, _MARK, middleware)


def _hook_sync(client: Any, mw: Middleware, root: Any) -> None:
    send, shut = client.request, client.close

    def request(cast_to: Any, options: Any, **kwargs: Any) -> Any:
        chat = OpenAIExchange.of(mw, client, options)
        if chat is None:
            return send(cast_to, options, **kwargs)
        chat.call = call = mw.prepare(chat.body, provider=chat.provider)
        while True:
            try:
                result = send(cast_to, chat.outgoing(options), **kwargs)
                break
            except BaseException as error:
                if chat.parsed is not None:
                    mw.begun(call)
                    mw.settle(call, chat.usage())
                    raise
                refusal = chat.refusal(error)
                if refusal is None or mw.refused(call, *refusal) is None:
                    mw.fail(call)
                    raise
        mw.begun(call)
        unread = chat.unread(result)
        if unread is None:
            mw.settle(call, chat.usage(result))
        else:
            watch(chat, unread)
        return result

    def watch(chat: OpenAIExchange, response: Any) -> None:
        read, end = response.iter_bytes, response.close

        def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
            whole = False
            chat.pulling = True
            try:
                for chunk in read(chunk_size):
                    chat.pulling = False
                    chat.feed(chunk)
                    yield chunk
                    chat.pulling = True
                whole = True
            finally:
                chat.pulling = False
                settle(whole)

        def close() -> None:
            try:
                end()
            finally:
                settle(False)

        def settle(whole: bool) -> None:
            if chat.ends(response, "iter_bytes", "close"):
                mw.settle(chat.call, chat.seen(), partial=not (whole or chat.reader.done))

        response.iter_bytes, response.close = iter_bytes, close

    def close() -> None:
        try:
            shut()
        finally:
            if root.is_closed():
                mw.close()

    client.request, client.close = request, close


def _hook_async(client: Any, mw: AsyncMiddleware, root: Any) -> None:
    send, shut = client.request, client.close

    async def request(cast_to: Any, options: Any, **kwargs: Any) -> Any:
        chat = OpenAIExchange.of(mw, client, options)
        if chat is None:
            return await send(cast_to, options, **kwargs)
        chat.call = call = await mw.prepare(chat.body, provider=chat.provider)
        while True:
            try:
                result = await send(cast_to, chat.outgoing(options), **kwargs)
                break
            except BaseException as error:
                if chat.parsed is not None:
                    await mw.begun(call)
                    await mw.settle(call, chat.usage())
                    raise
                refusal = chat.refusal(error)
                if refusal is None or await mw.refused(call, *refusal) is None:
                    await mw.fail(call)
                    raise
        await mw.begun(call)
        unread = chat.unread(result)
        if unread is None:
            await mw.settle(call, chat.usage(result))
        else:
            watch(chat, unread)
        return result

    def watch(chat: OpenAIExchange, response: Any) -> None:
        read, end = response.aiter_bytes, response.aclose

        async def aiter_bytes(chunk_size: int | None = None) -> AsyncIterator[bytes]:
            whole = False
            chat.pulling = True
            try:
                async for chunk in read(chunk_size):
                    chat.pulling = False
                    chat.feed(chunk)
                    yield chunk
                    chat.pulling = True
                whole = True
            finally:
                chat.pulling = False
                await settle(whole)

        async def aclose() -> None:
            try:
                await end()
            finally:
                await settle(False)

        async def settle(whole: bool) -> None:
            if chat.ends(response, "aiter_bytes", "aclose"):
                await mw.settle(chat.call, chat.seen(), partial=not (whole or chat.reader.done))

        response.aiter_bytes, response.aclose = aiter_bytes, aclose

    async def close() -> None:
        try:
            await shut()
        finally:
            if root.is_closed():
                await mw.close()

    client.request, client.close = request, close
