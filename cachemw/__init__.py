"""Make LLM prompt caches pay: place breakpoints where they pay, and prove it from the returned usage."""

from cachemw.calls import Call
from cachemw.core.diagnose import Miss
from cachemw.core.plan import Breakpoint, Plan, Reason
from cachemw.core.receipt import Receipt
from cachemw.core.usage import Usage
from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.errors import BodyError, CachemwError, ConfigError, StoreError
from cachemw.integrations.asgi import CacheMiddleware
from cachemw.integrations.client import of, wrap
from cachemw.integrations.hooks import HttpHooks
from cachemw.integrations.transport import AsyncCacheTransport, CacheTransport
from cachemw.labelling import labels
from cachemw.ledger import Report, Row
from cachemw.settings import Settings

__all__ = [
    "AsyncCacheTransport",
    "AsyncMiddleware",
    "BodyError",
    "Breakpoint",
    "CacheMiddleware",
    "CacheTransport",
    "CachemwError",
    "Call",
    "ConfigError",
    "HttpHooks",
    "Middleware",
    "Miss",
    "Plan",
    "Reason",
    "Receipt",
    "Report",
    "Row",
    "Settings",
    "StoreError",
    "Usage",
    "labels",
    "of",
    "wrap",
]
