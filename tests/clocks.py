"""A clock that tests move, and middlewares that go by it."""

from __future__ import annotations

from typing import Any

import cachemw


class Clock:
    """Time that only tests move."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def clocked(kind: Any = cachemw.Middleware, **chosen: Any) -> Any:
    """Return a middleware with a clock of its own, `mw.clock`."""
    clock = Clock()
    mw = kind(**chosen, clock=clock)
    mw.clock = clock
    return mw
