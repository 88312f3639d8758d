"""The middleware. `flow` has the order of a call; `sync` and `aio` run it on threads and on an event loop."""

from cachemw.engine.aio import AsyncMiddleware
from cachemw.engine.sync import Middleware

__all__ = ["AsyncMiddleware", "Middleware"]
