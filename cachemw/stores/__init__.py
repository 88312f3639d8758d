"""Stores of prefix records and sums, and the functions that open one by its URL.

Contains: the store of each URL scheme. Must not depend on: the calls of a store. The library of a store is
imported only if a URL asks for it.
"""

from __future__ import annotations

from typing import Any

from cachemw.stores.memory import DEFAULT_MAX_PREFIXES, AsyncMemoryStore, MemoryStore
from cachemw.stores.protocol import AsyncStore, Store
from cachemw.stores.url import parse


def open_store(url: str, **options: Any) -> Store:
    """Open the store that a URL names. `cachemw.stores.url` lists the allowed URLs.

    The store connects at its first call.

    Args:
        url: The URL.
        options: Those of `RedisStoreBase`: `secret`, `timeout_ms`, `namespace`, `server_time`, `count`.

    Raises:
        ConfigError: The URL is not allowed.
    """
    scheme, parameters = parse(url)
    if scheme == "memory":
        return MemoryStore(int(parameters.get("max_prefixes", DEFAULT_MAX_PREFIXES)))
    from cachemw.stores.redis._sync import RedisStore

    return RedisStore(url, **options)


def open_async_store(url: str, **options: Any) -> AsyncStore:
    """Open a store for the async engine; see `open_store`."""
    scheme, parameters = parse(url)
    if scheme == "memory":
        return AsyncMemoryStore(int(parameters.get("max_prefixes", DEFAULT_MAX_PREFIXES)))
    from cachemw.stores.redis._async import AsyncRedisStore

    return AsyncRedisStore(url, **options)
