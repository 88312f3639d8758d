"""Equal hash keys for middlewares of one process, as for workers with one secret on one server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from cachemw.engine import base


@contextmanager
def equal_keys() -> Iterator[None]:
    """Give every middleware made in the block the same hash key, so that several can share a memory store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "os", SimpleNamespace(urandom=bytes))
        yield
