"""The middleware that an integration is given, or builds from settings.

Contains: the check of arguments that exclude each other. Must not depend on: any integration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError
from cachemw.settings import Settings

_Kind = TypeVar("_Kind", bound=Middleware | AsyncMiddleware)


def resolve_middleware(
    integration: str,
    kind: type[_Kind],
    middleware: object,
    settings: Settings | None,
    clock: Callable[[], float] | None,
    fields: Mapping[str, Any],
    user: str | None = None,
) -> _Kind:
    """Return the given middleware, or a new one of settings or their fields and an optional clock in seconds.

    Raises `ConfigError`, which names the integration, if the arguments exclude each other, or if the middleware is not
    of the kind that the `user`, by default the integration, needs.
    """
    if middleware is None:
        if settings is not None and fields:
            raise ConfigError(
                f"{integration}: settings and {', '.join(sorted(fields))} both given; give one of them"
            )
        settings = Settings(**fields) if settings is None else settings
        return kind(settings, clock=clock)
    if settings is not None or fields or clock is not None:
        raise ConfigError(
            f"{integration}: a middleware brings its own settings and clock; give only the middleware"
        )
    if not isinstance(middleware, kind):
        raise ConfigError(
            f"{integration}: middleware is {name_of(middleware)}; {user or integration} needs {kind.__name__}"
        )
    return middleware


def name_of(thing: object) -> str:
    """Return the name of an object's class, for a message."""
    kind = type(thing)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
