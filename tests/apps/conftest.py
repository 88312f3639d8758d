"""The endpoint of the client tests, here too."""

from tests.clients.conftest import _endpoint, endpoint

__all__ = ["_endpoint", "endpoint"]
