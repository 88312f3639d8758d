"""Wrap an `openai` client in place: `wrap`, `of`.

Contains: the choice and installation of hooks. Must not depend on: breakpoints, other integrations.

The hooks replace the public method `client.request` on the instance. Every call style of the SDK goes through it exactly
once per logical call: `create`, streamed or not, `parse`, the `stream()` helper, `with_raw_response`,
`with_streaming_response` and `post`, with the SDK's retries inside, on majors 2 and 3 and in the subclasses of Azure and
Databricks. The body is a dict there, after every normalisation of a subclass and before it is serialised. Other points
are worse. A patch of `chat.completions.create` misses half of the styles, and is lost on clients that build `chat` at
each access. `_prepare_options` is private, runs once per retry and sees no answer. A transport would have to parse and
serialise the body again, and cannot tell a retry from a new call. Copies (`with_options`, `copy`) start without hooks,
so both methods are replaced as well, and `close`.

An answer that the SDK has parsed is taken before the caller's own parser may reject it. An answer that is still unread
is observed while the application reads it: the decoding iterator of the HTTP response, through which lines, text, JSON
and SDK streams all go, passes each chunk on at once. Bytes read below it (`iter_raw`) are not seen, so such a call
settles without usage. A stream that is dropped before its first chunk and never closed is not settled.

The middleware ends with the HTTP client that it serves. Closing the wrapped client, or a copy that shares its HTTP
client, closes the middleware too, even one that was given to `wrap`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError, missing_package
from cachemw.integrations._async_openai import hook_async
from cachemw.integrations._sync_openai import hook_sync
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
        raise missing_package("wrap", "openai", "openai") from None
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
        hook_sync(client, middleware, root)
    else:
        hook_async(client, middleware, root)
    setattr(client, _MARK, middleware)
