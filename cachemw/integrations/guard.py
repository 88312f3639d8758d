"""Count and swallow failures of ours in an integration: the one place that does.

Lives here: `Guard`. Must not know: what is guarded, clients, HTTP.
"""

from __future__ import annotations

from typing import TypeAlias

from cachemw.engine import AsyncMiddleware, Middleware

Engine: TypeAlias = Middleware | AsyncMiddleware


class Guard:
    """Count an `Exception` under the name of what failed and go on; a `BaseException` passes."""

    def __init__(self, mw: Engine, what: str) -> None:
        self._mw = mw
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        self._mw.count(self._what)
        return True
