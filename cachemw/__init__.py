"""Make LLM prompt caches pay: place breakpoints where they pay, and prove it from the returned usage."""

from cachemw.core.billing.diagnose import Miss
from cachemw.core.billing.receipt import Receipt
from cachemw.core.billing.usage import Usage
from cachemw.core.planner.plan import Breakpoint, Plan, Reason
from cachemw.engine import AsyncMiddleware, Middleware
from cachemw.engine.call import Call
from cachemw.errors import BodyError, CachemwError, ConfigError, StoreError
from cachemw.integrations.asgi import CacheMiddleware
from cachemw.integrations.http_hooks import HttpHooks
from cachemw.integrations.openai_client import of, wrap
from cachemw.integrations.transport import AsyncCacheTransport, CacheTransport
from cachemw.reporting.labelling import labels
from cachemw.reporting.ledger import Report, Row
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
