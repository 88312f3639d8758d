"""The endpoint of the client tests, for the tests of apps."""

from tests.clients.conftest import _endpoint, endpoint

__all__ = ["_endpoint", "endpoint"]
