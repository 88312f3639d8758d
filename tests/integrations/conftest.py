"""Fixtures of the integration tests: the endpoint of the client tests, and the HTTP libraries."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.conftest import _endpoint, endpoint
from tests.integrations.transport_clients import Integration


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> Any:
    """Return each HTTP library, or skip the test if it is not installed."""
    return pytest.importorskip(request.param, reason=f"{request.param} is not installed")


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def integration(library: Any, request: pytest.FixtureRequest) -> Integration:
    """Return each library, sync and async."""
    return Integration(library, request.param)


__all__ = ["_endpoint", "endpoint", "integration", "library"]
