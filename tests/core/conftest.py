"""A fixture that changes one tuning constant for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from benchmarks.tuned import tuned


@pytest.fixture
def tune() -> Iterator[Callable[[str, float], None]]:
    """Return a function that sets a constant, such as "planner.margin_5m", until the end of the test."""
    with ExitStack() as changes:
        yield lambda name, value: changes.enter_context(tuned(name, value))
