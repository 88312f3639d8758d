<<<<<<< HEAD
"""A clock that tests move, and middlewares on that clock."""
=======
"""A clock that tests move, and middlewares that use it."""
>>>>>>> main

from __future__ import annotations

from typing import Any

import cachemw


class Clock:
<<<<<<< HEAD
    """A clock that moves only when a test sets it."""
=======
    """A clock that only tests move."""
>>>>>>> main

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def clocked(kind: Any = cachemw.Middleware, **chosen: Any) -> Any:
    """Return a middleware with its own clock, `mw.clock`."""
    clock = Clock()
    mw = kind(**chosen, clock=clock)
    mw.clock = clock
    return mw
