"""Fixtures of the proxy tests: an HTTP client, and the proxy in front of the shared endpoint."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.apps.proxy.proxied import PATIENCE, Proxied, proxying
from tests.clients.endpoint import Endpoint


@pytest.fixture
def proxied(endpoint: Endpoint) -> Iterator[Proxied]:
    """Run the proxy in front of the endpoint, with empty statistics."""
    with proxying(endpoint.url) as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """Return a client that ignores the environment."""
    with httpx2.Client(trust_env=False, timeout=PATIENCE) as client:
        yield client
