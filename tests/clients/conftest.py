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
    """Give the running endpoint with no arrivals and no answers set."""
    _endpoint.reset()
    return _endpoint
