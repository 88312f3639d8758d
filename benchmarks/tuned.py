"""Change one tuning constant for a while.

Contains: a context manager. Must not depend on: which constants there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cachemw.core.tuning import GROUPS


@contextmanager
def tuned(name: str, value: float) -> Iterator[None]:
    """Set a constant, named by group and field, and restore it at the end.

    The groups are frozen, so that no code changes a constant by accident; this helper goes around that.
    """
    group, _, field = name.partition(".")
    before = getattr(GROUPS[group], field)
    object.__setattr__(GROUPS[group], field, value)
    try:
        yield
    finally:
        object.__setattr__(GROUPS[group], field, before)
