"""All data of requests that a middleware and its store keep, as plain values that tests compare."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from cachemw.core.fair_table import FairTable

_FINAL = (str, bytes, int, float, bool, type(None))


def plain(value: Any, leave: Callable[[str], bool] = lambda name: False) -> Any:
    """Return the contents of a value as strings, numbers, lists and dicts, through all package objects.

    Attributes whose "Class.name" satisfies `leave` are left out. Locks, functions and other foreign objects
    become the names of their classes.
    """
    return _plain(value, leave, ())


def _plain(value: Any, leave: Callable[[str], bool], above: tuple[int, ...]) -> Any:
    if isinstance(value, _FINAL):
        return value
    if id(value) in above:
        return "..."
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return [(_plain(key, leave, above), _plain(held, leave, above)) for key, held in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_plain(held, leave, above)) for held in value)
    if isinstance(value, (list, tuple, deque)):
        return [_plain(held, leave, above) for held in value]
    if isinstance(value, FairTable):
        tables = {name: _plain(table, leave, above) for name, table in value._tables.items() if table}
        return "FairTable", dict(sorted(tables.items()))
    kind = type(value)
    if not kind.__module__.startswith("cachemw"):
        return kind.__name__
    names = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]
    held = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(
        value, "__dict__", {}
    )
    return kind.__name__, {
        name: _plain(part, leave, above)
        for name, part in held.items()
        if not leave(f"{kind.__name__}.{name}")
    }


def in_store(store: Any) -> Any:
    """Return the contents of a memory store, sync or async: records, announcements and sums."""
    return plain(getattr(store, "_store", store), {"MemoryStore._kept", "MemoryStore.local"}.__contains__)


def announcements(store: Any) -> int:
    """Return how many prefixes without a record are announced in a memory store."""
    return len(getattr(store, "_store", store)._records._pending)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places at which two plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for name in one for found in differences(one[name], other[name], f"{where}.{name}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for at, (a, b) in pairs for found in differences(a, b, f"{where}[{at}]")]
    return [] if type(one) is type(other) and one == other else [f"{where}: {one!r:.200} and {other!r:.200}"]
