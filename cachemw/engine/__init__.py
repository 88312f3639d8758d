"""The middleware."""

from cachemw.engine.middleware import AsyncMiddleware, Middleware

__all__ = ["AsyncMiddleware", "Middleware"]
