"""Clients of the test endpoint, and the record of their middleware.

Contains: helpers of the tests of the OpenAI integration. Must not depend on: any test module.
"""

from __future__ import annotations

from typing import Any

from openai import AsyncOpenAI, OpenAI

from tests.clients.endpoint import Endpoint
from tests.clients.recorder import AsyncRecorder, Recorder


def make_client(endpoint: Endpoint, **kwargs: Any) -> OpenAI:
    """Return a client of the endpoint without retries."""
    return OpenAI(**{"base_url": f"{endpoint.url}/v1", "api_key": "key", "max_retries": 0, **kwargs})


def make_async_client(endpoint: Endpoint, **kwargs: Any) -> AsyncOpenAI:
    """Return an async client of the endpoint without retries."""
    return AsyncOpenAI(**{"base_url": f"{endpoint.url}/v1", "api_key": "key", "max_retries": 0, **kwargs})


def event_names(recorder: Recorder | AsyncRecorder) -> list[str]:
    """Return the names of the calls that the middleware got."""
    return [found[0] for found in recorder.events]


def settlement(recorder: Recorder | AsyncRecorder) -> tuple[Any, bool]:
    """Return usage and `partial` of the only settlement."""
    ((_, receipt, partial),) = [found for found in recorder.events if found[0] == "settle"]
    return receipt.usage, partial
