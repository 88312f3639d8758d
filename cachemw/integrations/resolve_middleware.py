"""The middleware that a door is given, or builds from settings.

Lives here: what may be given together. Must not know: what the door does with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import ConfigError
from cachemw.settings import Settings

_Kind = TypeVar("_Kind", bound=Middleware | AsyncMiddleware)


def resolve_middleware(
    door: str,
    kind: type[_Kind],
    middleware: object,
    settings: Settings | None,
    clock: Callable[[], float] | None,
    fields: Mapping[str, Any],
    user: str | None = None,
) -> _Kind:
    """Return the middleware given, or one built of settings or their fields and an optional clock in seconds.

    `ConfigError`, which names the door, where they do not go together, or the middleware is not of the kind
    that the `user`, by default the door, needs.
    """
    if middleware is None:
        if settings is not None and fields:
            raise ConfigError(
                f"{door}: settings and {', '.join(sorted(fields))} both given; give one of them"
            )
        settings = Settings(**fields) if settings is None else settings
        return kind(settings, clock=clock)
    if settings is not None or fields or clock is not None:
        raise ConfigError(f"{door}: a middleware brings its own settings and clock; give only the middleware")
    if not isinstance(middleware, kind):
        raise ConfigError(
            f"{door}: middleware is {name_of(middleware)}; {user or door} needs {kind.__name__}"
        )
    return middleware


def name_of(thing: object) -> str:
    """Return what the class of a thing is called, for a message."""
    kind = type(thing)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
