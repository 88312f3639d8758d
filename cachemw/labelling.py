"""Labels: those of the calls made inside a block, and how many there may be, and how long.

Lives here: the context and the limits. Must not know: what labels are for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from cachemw.errors import ConfigError

OTHER = "other"
_labels: ContextVar[Mapping[str, str]] = ContextVar("cachemw_labels", default={})  # noqa: B039  # never changed


@contextmanager
def labels(**values: str) -> Iterator[None]:
    """Label the calls that are made inside, such as `with cachemw.labels(app="support"):`.

    Labels of an outer block stay unless they are set again.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            raise ConfigError(f"labels: {name} is {value!r}; a string is needed")
    token = _labels.set({**_labels.get(), **values})
    try:
        yield
    finally:
        _labels.reset(token)


def current() -> Mapping[str, str]:
    """Return the labels of the block that runs now."""
    return _labels.get()


class Limits:
    """Let through at most `count` label names, and values of each, none longer than `length`."""

    def __init__(self, count: int, length: int) -> None:
        self._count, self._length = count, length
        self._values: dict[str, set[str]] = {}

    def apply(self, labels: Mapping[Any, Any]) -> tuple[dict[str, str], int]:
        """Return labels within the limits, and how many were cut to "other" (no string, too long, too many)."""
        limited: dict[str, str] = {}
        cut = 0
        for name, value in labels.items():
            kept_name = isinstance(value, str) and self._fits(name, self._values)
            values = self._values.setdefault(name, set()) if kept_name else set()
            kept_value = kept_name and self._fits(value, values)
            if kept_value:
                values.add(value)
            cut += not kept_value
            limited[name if kept_name else OTHER] = value if kept_value else OTHER
        return limited, cut

    def _fits(self, text: Any, known: Any) -> bool:
        if not isinstance(text, str):
            return False
        return text in known or text == OTHER or (len(text) <= self._length and len(known) < self._count)
