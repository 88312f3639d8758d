"""Count and suppress failures of cachemw in an integration.

Contains: `Guard`, the only place that does so. Must not depend on: the guarded code, clients, HTTP.
"""

from __future__ import annotations

from typing import TypeAlias

from cachemw.engine import AsyncMiddleware, Middleware

Engine: TypeAlias = Middleware | AsyncMiddleware


class Guard:
    """Count an `Exception` under the name of the failed part and go on; let a `BaseException` pass."""

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
