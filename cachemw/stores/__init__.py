"""Stores by URL."""
from typing import Any
from cachemw.stores.memory import AsyncMemoryStore, MemoryStore
from cachemw.stores.base import AsyncStore, Store
def open_store(url: str, *, secret: bytes, timeout_ms: int) -> Store:
    return MemoryStore()
def open_async_store(url: str, *, secret: bytes, timeout_ms: int) -> AsyncStore:
    return AsyncMemoryStore()
