"""Make LLM prompt caches pay: place breakpoints where they pay, and prove it from the returned usage.

Some names are imported at their first use, so that `import cachemw` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from cachemw.core.billing.usage import read_usage
    from cachemw.core.rules.lookup import find_model, provider_of
    from cachemw.integrations.http.sse_usage import UsageReader

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
    "UsageReader",
    "find_model",
    "labels",
    "of",
    "provider_of",
    "read_usage",
    "wrap",
]

_LAZY = {
    "UsageReader": "cachemw.integrations.http.sse_usage",
    "find_model": "cachemw.core.rules.lookup",
    "provider_of": "cachemw.core.rules.lookup",
    "read_usage": "cachemw.core.billing.usage",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module 'cachemw' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    """Return all names, those too that are not imported yet."""
    return sorted({*globals(), *__all__})
