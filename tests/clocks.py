"""A clock that tests move, and middlewares that use it."""

from __future__ import annotations

from typing import Any

import cachemw


class Clock:
    """A clock that only tests move."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def clocked(kind: Any = cachemw.Middleware, **chosen: Any) -> Any:
    """Return a middleware with its own clock, `mw.clock`."""
    clock = Clock()
    mw = kind(**chosen, clock=clock)
    mw.clock = clock
    return mw
