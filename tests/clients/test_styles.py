"""The contract with the SDK: each call style, sync and async, is caught on the `openai` that is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from cachemw.core.markers import canonical
from cachemw.integrations.client import wrap
from tests.clients.endpoint import TEXT, Endpoint
from tests.clients.recorder import AsyncRecorder, Event, Recorder, conversation, marks
from tests.clients.styles import STYLES

Clients = Callable[[bool, str], Any]


def _openai(is_async: bool, url: str) -> Any:
    return (AsyncOpenAI if is_async else OpenAI)(
        base_url=f"{url}/serving-endpoints", api_key="key", max_retries=0
    )


def _azure(is_async: bool, url: str) -> Any:
    kind = AsyncAzureOpenAI if is_async else AzureOpenAI
    return kind(azure_endpoint=url, api_version="2025-01-01", api_key="key", max_retries=0)


def _databricks(is_async: bool, url: str) -> Any:
    package = pytest.importorskip("databricks_openai", reason="databricks-openai is not installed")
    workspace = pytest.importorskip("databricks.sdk").WorkspaceClient(host=url, token="key")
    return (package.AsyncDatabricksOpenAI if is_async else package.DatabricksOpenAI)(
        workspace_client=workspace
    )


CLIENTS: dict[str, Clients] = {"openai": _openai, "azure": _azure, "databricks": _databricks}


def _call(style: str, make: Clients, url: str, asked: dict[str, Any], recorder: Any) -> str:
    """Make one call in a style with a fresh client, wrapped where a recorder is given."""

    async def asynchronous() -> str:
        async with make(True, url) as client:
            return await STYLES[style][1](
                client if recorder is None else wrap(client, middleware=recorder), asked
            )

    if recorder is None or isinstance(recorder, Recorder):
        with make(False, url) as client:
            return STYLES[style][0](client if recorder is None else wrap(client, middleware=recorder), asked)
    return asyncio.run(asynchronous())


@pytest.mark.parametrize("colour", [Recorder, AsyncRecorder], ids=["sync", "async"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("client", CLIENTS)
def test_caught(endpoint: Endpoint, client: str, style: str, colour: type[Recorder | AsyncRecorder]) -> None:
    """One arrival, annotated and otherwise the same; usage settled once; the caller's objects untouched."""
    if (client, style) == ("databricks", "with_options"):
        pytest.skip("with_options of databricks-openai itself fails")
    bare, asked, recorder = conversation(), conversation(), colour()
    assert _call(style, CLIENTS[client], endpoint.url, bare, None) == TEXT
    assert _call(style, CLIENTS[client], endpoint.url, asked, recorder) == TEXT

    came, left = (arrival.body for arrival in endpoint.arrived)
    assert marks(came) == 0 < marks(left)
    assert canonical(left) == canonical(came)
    assert asked == bare  # databricks-openai changes the caller's tools by itself
    assert asked == conversation() or client == "databricks"
    assert _names(recorder.events) == ["prepare", "begun", "settle", "close"]
    _, receipt, partial = recorder.events[2]
    assert not partial
    assert (receipt.usage.read, receipt.usage.write_5m, receipt.usage.plain) == (4000, 900, 100)
    assert receipt.usage.output == 7


def _names(events: list[Event]) -> list[str]:
    return [event[0] for event in events]
