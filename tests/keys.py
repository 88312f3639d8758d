"""Middlewares of one process that hash alike, as workers with one secret on one server do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from cachemw.engine import base


@contextmanager
def equal_keys() -> Iterator[None]:
    """Give each middleware that is made inside the same key of hashes, so that several can share a memory store."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "os", SimpleNamespace(urandom=bytes))
        yield
