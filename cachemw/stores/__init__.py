"""Where prefixes are remembered: stores, and how one is opened by its URL.

Lives here: which store a URL's scheme means. Must not know: what a store does. A store's library is
imported when a URL asks for it, never before.
"""

from __future__ import annotations

from typing import Any

from cachemw.stores.memory import DEFAULT_MAX_PREFIXES, AsyncMemoryStore, MemoryStore
from cachemw.stores.protocol import AsyncStore, Store
from cachemw.stores.url import parse


def open_store(url: str, **options: Any) -> Store:
    """Open the store that a URL names: see `cachemw.stores.url` for what a URL may be.

    `options` are those of `RedisStore`: `secret`, which keys the hashes that leave the process, `timeout_ms`,
    `namespace`, `server_time`, `count`. Nothing is connected yet. Raises `ConfigError` for a URL that isn't
    allowed.
    """
    scheme, parameters = parse(url)
    if scheme == "memory":
        return MemoryStore(int(parameters.get("max_prefixes", DEFAULT_MAX_PREFIXES)))
    from cachemw.stores.redis.store import RedisStore

    return RedisStore(url, **options)


def open_async_store(url: str, **options: Any) -> AsyncStore:
    """Open the same for the async engine: see `open_store`."""
    scheme, parameters = parse(url)
    if scheme == "memory":
        return AsyncMemoryStore(int(parameters.get("max_prefixes", DEFAULT_MAX_PREFIXES)))
    from cachemw.stores.redis.store import AsyncRedisStore

    return AsyncRedisStore(url, **options)
