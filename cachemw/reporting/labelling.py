"""Labels: the labels of calls inside a block, and the limits of their number and length.

Contains: the context and the limits. Must not depend on: the use of labels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeAlias

from cachemw.core.fair_table import FairTable
from cachemw.errors import ConfigError

OTHER = "other"
Labels: TypeAlias = tuple[tuple[str, str], ...]
_SETS = 500
# Names of labels, and sets of labels, over all namespaces.
_NAMES, _ALL_SETS = 4_096, 20_000
_NO_VALUES: frozenset[str] = frozenset()
_labels: ContextVar[Mapping[str, str]] = ContextVar("cachemw_labels", default={})  # noqa: B039  # never changed


@contextmanager
def labels(**values: str) -> Iterator[None]:
    """Label the calls made inside the block, for example `with cachemw.labels(app="support"):`.

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
    """Return the labels of the current block."""
    return _labels.get()


class LabelLimits:
    """Accept at most `count` label names per namespace, and values of each, none longer than `length`.

    A label takes room only once `learn` is called, after the provider has accepted its request. So refused
    requests take no room from other labels. One namespace has at most `_SETS` different sets of labels, so
    that a report has few rows.
    """

    def __init__(self, count: int, length: int) -> None:
        self._count, self._length = count, length
        self._values: FairTable[str, set[str]] = FairTable(_NAMES)
        self._sets: FairTable[Labels, None] = FairTable(_ALL_SETS)

    def apply(self, namespace: str, labels: Mapping[Any, Any]) -> tuple[dict[str, str], int]:
        """Return labels within the limits, and the number of labels replaced by "other"."""
        known = self._values.read(namespace)
        limited: dict[str, str] = {}
        cut = 0
        for name, value in labels.items():
            kept_name = isinstance(value, str) and self._fits(name, {*known, *limited} - {OTHER})
            values = known.get(name, _NO_VALUES) if kept_name else _NO_VALUES
            kept_value = kept_name and self._fits(value, values)
            cut += not kept_value
            limited[name if kept_name else OTHER] = value if kept_value else OTHER
        sets = self._sets.read(namespace)
        if len(sets) >= _SETS and limited and _set(limited) not in sets:
            return dict.fromkeys(limited, OTHER), len(limited)
        return limited, cut

    def learn(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Take room for labels that `apply` accepted."""
        kept = _set({name: value for name, value in labels.items() if OTHER not in (name, value)})
        if not kept or kept in self._sets.read(namespace):
            return
        known = self._values.read(namespace)
        self._values.put(namespace, [(name, {*known.get(name, ()), value}) for name, value in kept])
        self._sets.put(namespace, [(kept, None)])

    def _fits(self, text: Any, known: Collection[str]) -> bool:
        if not isinstance(text, str):
            return False
        return text in known or text == OTHER or (len(text) <= self._length and len(known) < self._count)


def _set(labels: Mapping[str, str]) -> Labels:
    return tuple(sorted(labels.items()))
