"""The contract with the SDK: each call style, sync and async, is caught on the clients that are installed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cachemw.core.planner.plan import Reason
from cachemw.core.request.equality import canonical
from cachemw.integrations.openai_client import wrap
from tests.clients.clients import CHANGING, CLIENTS
from tests.clients.endpoint import TEXT, Endpoint
from tests.clients.recorder import AsyncRecorder, Event, Recorder, conversation, marks
from tests.clients.styles import STYLES

TWINS = pytest.mark.parametrize("twin", [Recorder, AsyncRecorder], ids=["sync", "async"])
_Kind = type[Recorder | AsyncRecorder]


def _call(style: str, client: str, url: str, arguments: dict[str, Any], kind: _Kind, recorder: Any) -> str:
    """Make one call in a style with a fresh client, wrapped where a recorder is given."""
    make = CLIENTS[client].make

    def wrapped(made: Any) -> Any:
        return made if recorder is None else wrap(made, middleware=recorder)

    async def asynchronous() -> str:
        async with make(True, url) as made:
            return await STYLES[style][1](wrapped(made), arguments)

    if kind is AsyncRecorder:
        return asyncio.run(asynchronous())
    with make(False, url) as made:
        return STYLES[style][0](wrapped(made), arguments)


@TWINS
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("client", CLIENTS)
def test_call_in_each_style_is_caught(endpoint: Endpoint, client: str, style: str, twin: _Kind) -> None:
    """One request arrives, equal but for markers; usage is settled once; the caller's objects stay unchanged."""
    bare, arguments, recorder = conversation(), conversation(), twin()
    if client in CHANGING and style == "with_options":
        with pytest.raises((TypeError, ValueError)):  # it makes a client without its workspace
            _call(style, client, endpoint.url, bare, twin, None)
        pytest.skip("with_options of databricks-openai itself fails")
    assert _call(style, client, endpoint.url, bare, twin, None) == TEXT
    assert _call(style, client, endpoint.url, arguments, twin, recorder) == TEXT

    bare_body, marked_body = (arrival.body for arrival in endpoint.arrived)
    assert marks(bare_body) == 0 < marks(marked_body)
    assert canonical(marked_body) == canonical(bare_body)
    assert arguments == bare  # databricks-openai changes the caller's tools by itself
    assert arguments == conversation() or client in CHANGING
    assert {arrival.path for arrival in endpoint.arrived} == {CLIENTS[client].path}
    assert "key" in {endpoint.arrived[1].headers.get(name, "")[-3:] for name in ("authorization", "api-key")}
    assert _names(recorder.events) == ["prepare", "begun", "settle", "close"]
    _, receipt, partial = recorder.events[2]
    assert not partial
    assert (receipt.usage.cache_read, receipt.usage.cache_write_5m) == (4000, 900)
    assert (receipt.usage.uncached, receipt.usage.output) == (100, 7)


NAMES = {
    "databricks-claude-sonnet-4": True,
    "system.ai.claude-sonnet-4": True,
    "main.prod.support": True,
    "main.test.support": False,
}


@TWINS
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "azure"])
def test_call_with_each_model_name_is_marked_if_known(
    endpoint: Endpoint, client: str, model: str, twin: _Kind
) -> None:
    """Databricks' own names with and without `system.ai.`, and the user's own model services by `models`."""
    recorder = twin(provider="auto", models={"main.prod.*": "claude-sonnet-4"})
    arguments = {**conversation(), "model": model}
    assert _call("create", client, endpoint.url, arguments, twin, recorder) == TEXT
    (arrival,) = endpoint.arrived
    assert arrival.body["model"] == model
    assert (marks(arrival.body) > 0) == NAMES[model]
    assert recorder.events[0] == ("prepare", "databricks")
    assert recorder.counts.get(f"skip.{Reason.MODEL_UNKNOWN}", 0) == (not NAMES[model])


def _names(events: list[Event]) -> list[str]:
    return [event[0] for event in events]
