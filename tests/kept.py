"""Everything that a middleware and its store keep of requests, as plain values that tests compare."""

from __future__ import annotations

from typing import Any

from cachemw.core.fair_table import FairTable


def plain(value: Any) -> Any:
    """Return a value without fair tables: each becomes its entries by namespace, oldest first."""
    if isinstance(value, FairTable):
        return {name: [*table.items()] for name, table in value._tables.items() if table}
    return value


def in_store(store: Any) -> dict[str, Any]:
    """Return copies of the records, announcements and sums of a memory store, sync or async."""
    store = getattr(store, "_store", store)
    return {
        "records": plain(store._records._records),
        "pending": plain(store._records._pending),
        "sums": {key: dict(sums) for key, sums in store._tables.items()},
    }
