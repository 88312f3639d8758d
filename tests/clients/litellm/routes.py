"""LiteLLM's four routes in front of the recording endpoint, its answers, and the parts of requests to compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from starlette.responses import Response, StreamingResponse

from cachemw.simulation.answers import message, message_events
from tests.clients.endpoint import Answer, events, plain
from tests.clients.recorder import conversation


class Route(NamedTuple):
    """A model as LiteLLM names it, the path below the endpoint, and the provider's row."""

    model: str
    path: str
    row: str


ROUTES = {
    "databricks": Route("databricks/databricks-claude-sonnet-4", "/serving-endpoints", "litellm-databricks"),
    "openai": Route("openai/databricks-claude-sonnet-4", "/serving-endpoints", "databricks"),
    "openrouter": Route("openrouter/anthropic/claude-sonnet-4", "/api/v1", "openrouter"),
    "anthropic": Route("anthropic/claude-sonnet-4-20250514", "", "anthropic"),
}
NATIVE = {
    "input_tokens": 100,
    "output_tokens": 7,
    "cache_read_input_tokens": 4000,
    "cache_creation_input_tokens": 900,
}
BILLED = (4000, 900, 100, 7)  # cache read, cache write, uncached, output: of every answer here


def deployment(name: str, url: str) -> dict[str, Any]:
    """Return LiteLLM's parameters for a route's deployment."""
    route = ROUTES[name]
    return {"model": route.model, "api_base": f"{url}{route.path}", "api_key": "key"}


def chat_arguments() -> dict[str, Any]:
    """Return a conversation that is worth marking, for a route's model."""
    return {key: value for key, value in conversation().items() if key != "model"}


def answer(name: str) -> Answer:
    """Return the endpoint's answer in the shape of a route's provider."""
    return native if name == "anthropic" else lambda body: (events() if body.get("stream") else plain())(body)


def native(body: dict[str, Any]) -> Response:
    """Answer as Anthropic does."""
    if body.get("stream"):
        return StreamingResponse(message_events("claude", [NATIVE, NATIVE]), media_type="text/event-stream")
    return Response(json.dumps(message("claude", NATIVE)), media_type="application/json")


def marked(body: Any) -> list[str]:
    """Return the text of each marked part of a body in any wire format, else its name or id."""
    return sorted(
        str(thing.get("text") or thing.get("name") or thing.get("id") or thing["function"]["name"])
        for thing in _objects(body)
        if "cache_control" in thing
    )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(inner)
