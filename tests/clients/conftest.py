"""One endpoint for all tests of a worker, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.endpoint import Endpoint, running


@pytest.fixture(scope="session")
def _endpoint() -> Iterator[Endpoint]:
    with running() as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(_endpoint: Endpoint) -> Endpoint:
    """Return the running endpoint without arrivals and prepared answers."""
    _endpoint.reset()
    return _endpoint
