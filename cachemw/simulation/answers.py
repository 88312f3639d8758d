"""Answers and errors of the simulated provider, in OpenAI's, Databricks' and Anthropic's shapes.

Contains: one sentence, whole or as a stream of server-sent events, and the errors. Must not depend on: HTTP,
the billing of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from cachemw.simulation.anthropic_form import Wire
from cachemw.simulation.options import Refused

OUTPUT_TOKENS = (3, 6)  # cumulative, at each piece of the answer
_ANSWER = ("This answer", " is simulated.")
_ERROR_NAMES = {  # by status: Databricks' name, then Anthropic's and OpenAI's
    400: ("BAD_REQUEST", "invalid_request_error"),
    401: ("UNAUTHENTICATED", "authentication_error"),
    404: ("RESOURCE_DOES_NOT_EXIST", "not_found_error"),
}


def completion(name: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole chat completion."""
    said = {"role": "assistant", "content": "".join(_ANSWER)}
    choice = {"index": 0, "message": said, "finish_reason": "stop", "logprobs": None}
    return {**_head(name, "chat.completion"), "choices": [choice], "usage": usage}


def chat_events(name: str, usages: list[dict[str, Any]], every: bool) -> Iterator[bytes]:
    """Yield server-sent events; `every` event has usage (Databricks), or an extra last one has it."""
    head = _head(name, "chat.completion.chunk")
    for piece, usage in zip(_ANSWER, usages, strict=True):
        choice = {"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}
        yield _event({**head, "choices": [choice], "usage": usage if every else None})
    choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield _event({**head, "choices": [choice], "usage": usages[-1] if every else None})
    if not every:
        yield _event({**head, "choices": [], "usage": usages[-1]})
    yield b"data: [DONE]\n\n"


def _head(name: str, kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-simulated", "object": kind, "created": 0, "model": name}


def message(name: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a whole Anthropic message."""
    text = {"type": "text", "text": "".join(_ANSWER)}
    return {**_opening(name, usage), "content": [text], "stop_reason": "end_turn"}


def _opening(name: str, usage: Mapping[str, Any]) -> dict[str, Any]:
    head = {"id": "msg_simulated", "type": "message", "role": "assistant", "model": name, "content": []}
    return {**head, "stop_reason": None, "stop_sequence": None, "usage": usage}


def message_events(name: str, usages: list[dict[str, Any]]) -> Iterator[bytes]:
    """Yield Anthropic's events, with usage in the first and cumulative usage in the last but one."""
    deltas = [
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
        for piece in _ANSWER
    ]
    events: tuple[dict[str, Any], ...] = (
        {"type": "message_start", "message": _opening(name, usages[0])},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *deltas,
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": usages[-1],
        },
        {"type": "message_stop"},
    )
    for event in events:
        yield f"event: {event['type']}\n".encode() + _event(event)


def error(refused: Refused, wire: Wire, provider: str) -> dict[str, Any]:
    """Return the body of an error in the format of the wire and the provider."""
    databricks, other = _ERROR_NAMES[refused.status]
    inner = {"type": other, "message": refused.message}
    if wire == "messages":
        return {"type": "error", "error": inner}
    if provider == "databricks":
        return {"error_code": databricks, "message": refused.message}
    return {"error": {**inner, "param": None, "code": other}}


def _event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"
