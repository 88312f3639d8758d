"""The proxy: clients send requests to it as to the provider, and it adds breakpoints to chat requests.

Contains: options, the proxy's own two paths, and the limits of a request. Must not depend on: how a request
is marked (`integrations.asgi`), passed on (`reverse_proxy`) or served (`serving`).

The proxy itself answers GET and HEAD of exactly /healthz and /readyz, without a query: no provider's API has
these paths. All other requests go to the upstream.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from cachemw.apps.proxy.connection import CONNECTION, is_http_1_0, without_chunks
from cachemw.apps.proxy.problems import ProxyError, end
from cachemw.apps.proxy.reverse_proxy import Limits, ReverseProxy
from cachemw.apps.proxy.serving import Drain, config, freeze_loaded, keep_memory, listen, serve
from cachemw.errors import ConfigError
from cachemw.integrations.asgi import MAX_BODY, CacheMiddleware, own_namespace
from cachemw.settings import Settings

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

_LINGER = 2.0  # seconds for which the rest of a refused request is read, so that its sender reads the answer


@dataclass(frozen=True)
class ProxyOptions:
    """The options of the proxy. Raises `ConfigError`.

    `upstream` is the provider's base URL; the paths of requests follow its own. `namespace_header` names the
    tenant; a gateway in front of the proxy sets it, and it is not passed on. `env_proxy`: reach the upstream
    through the proxy that the environment names. `drain_delay`: seconds after SIGTERM in which new requests
    are still accepted while /readyz answers 503. `max_body` is in bytes. `config` is a TOML file; `fields`
    are settings that override it.
    """

    upstream: str
    namespace_header: str | None = None
    max_body: int = MAX_BODY
    limits: Limits = field(default_factory=Limits)
    drain_delay: float = 0.0
    env_proxy: bool = False
    config: Path | None = None
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.upstream)
            right = url.scheme in ("http", "https") and url.hostname and url.port != 0
        except ValueError:
            right = False
        if not right or url.query or url.fragment or url.username is not None:
            raise ConfigError(
                f"upstream: {_without_secrets(self.upstream)!r} is not allowed; give the base URL of the provider:"
                " http:// or https:// with a host, without user, query and fragment"
            )
        name = self.namespace_header
        if name is not None and not name.replace("-", "").replace("_", "").isalnum():
            raise ConfigError(
                f"namespace header: {name!r} is not allowed; give a header's name, such as x-tenant"
            )

    def settings(self) -> Settings:
        """Return the settings of the middleware."""
        return Settings.load(self.config, **self.fields) if self.config else Settings(**self.fields)


class Proxy:
    """The proxy as an ASGI app."""

    def __init__(self, options: ProxyOptions) -> None:
        settings = options.settings()
        self._limits = options.limits
        self._max_body = options.max_body
        self._drain = Drain(options.drain_delay)
        header = (options.namespace_header or "").lower().encode()
        upstream = ReverseProxy(options.upstream, options.limits, dropped=[header], proxy=_proxy(options))
        self._app = CacheMiddleware(
            upstream,
            settings=settings,
            upstream=options.upstream,
            namespace=_namespace(header, own_namespace(settings, options.upstream)),
            max_body=options.max_body,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the app."""
        if scope["type"] == "lifespan":
            keep_memory()
            freeze_loaded()
            self._drain.listen()
            await self._app(scope, receive, send)
        else:
            try:
                await self._serve(scope, receive, without_chunks(scope, send) if is_http_1_0(scope) else send)
            except asyncio.CancelledError:
                if not self._drain.begun:
                    raise
                await scope["extensions"][CONNECTION].drop()

    async def _health(self, scope: Scope, send: Send) -> None:
        draining = self._drain.begun and scope["raw_path"] == b"/readyz"
        body = b"draining" if draining else b"ok"
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 503 if draining else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await self._body(scope, receive)
        except ProxyError as error:
            await error.answer(scope, send)
            await _discard(receive, self._max_body)
            await end(send)
            return
        if body is None:
            return
        own = scope["raw_path"] in (b"/healthz", b"/readyz") and not scope["query_string"]
        if own and scope["method"] in ("GET", "HEAD"):
            await self._health(scope, send)
            return
        try:
            await self._app(scope, _at_once(body, receive), send)
        except ProxyError as error:
            await error.answer(scope, send)
            await end(send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the request's body, None if the client disconnects first. Raises `ProxyError`."""
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if announced.isdigit() and int(announced) > self._max_body:
            raise self._too_large()
        parts: list[bytes] = []
        size, now = 0, asyncio.get_running_loop().time
        latest = now() + self._limits.first_byte
        try:
            async with asyncio.timeout_at(latest) as patience:
                while True:
                    patience.reschedule(min(latest, now() + self._limits.idle))
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message["body"])
                    size += len(message["body"])
                    if size > self._max_body:
                        raise self._too_large()
                    if not message["more_body"]:
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise ProxyError(
                408,
                "request_timeout",
                "The request did not arrive in time. Send it again, or raise --idle-timeout.",
            ) from None

    def _too_large(self) -> ProxyError:
        return ProxyError(
            413,
            "request_too_large",
            f"The request is larger than {self._max_body} bytes. Send a smaller one, or raise --max-body.",
        )


def run(options: ProxyOptions, *, host: str, port: int, workers: int, drain: int) -> None:
    """Serve the proxy until SIGTERM; answers under way then have `drain` seconds. Raises `ConfigError`."""
    serve(config(functools.partial(Proxy, options), workers=workers, drain=drain), listen(host, port))


def _namespace(header: bytes, own: Callable[[Scope], str | None]) -> Callable[[Scope], str | None]:
    """Return the tenant that the header names, else the `own` one; a header sent twice is a tenant apart."""
    if not header:
        return own

    def namespace(scope: Scope) -> str | None:
        named = b",".join([value for name, value in scope["headers"] if name == header])
        return named.decode("latin-1") or own(scope)

    return namespace


def _at_once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that returns the whole body at once."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def whole() -> Message:
        return waiting.pop() if waiting else await receive()

    return whole


async def _discard(receive: Receive, most: int) -> None:
    """Read and drop the rest of a refused request: many clients read no answer before they have sent it."""
    left = most
    try:
        async with asyncio.timeout(_LINGER):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message["more_body"]:
                    return
    except TimeoutError:
        return


def _proxy(options: ProxyOptions) -> str | None:
    url = urlsplit(options.upstream)
    if not options.env_proxy or proxy_bypass(url.netloc):
        return None
    return getproxies().get(url.scheme)


def _without_secrets(url: str) -> str:
    """Return a URL without the password and the query, which may hold a key."""
    front, at, rest = url.rpartition("@")
    bare, *hidden = re.split(r"[?#]", rest, maxsplit=1)
    shown = f"{front.partition('//')[0]}//...@{bare}" if at else bare
    return f"{shown}?..." if hidden else shown
