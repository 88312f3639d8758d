"""Strands: `AnthropicModel` with `CacheConfig(strategy="auto", tools_ttl=True)`, its own request builder.

The request has Anthropic's shape, so its markers can be read off it. A body's own markers are left out, as this
setting strips them. Results of one turn make one user message, as its agent loop does; a system
message after the first message of another role becomes a user message.
"""

from __future__ import annotations

import base64
from itertools import groupby
from typing import Any

from strands.models import CacheConfig
from strands.models.anthropic import AnthropicModel

_MODEL = AnthropicModel(
    client_args={"api_key": "unused"},
    model_id="claude-sonnet-4-5",
    max_tokens=1024,
    cache_config=CacheConfig(strategy="auto", tools_ttl=True),
)


def send(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request as Strands sends it to Anthropic."""
    messages: list[Any] = body["messages"]
    rest = next(
        (i for i, m in enumerate(messages) if m["role"] not in ("system", "developer")), len(messages)
    )
    system: list[Any] = [block for message in messages[:rest] for block in _blocks(message.get("content"))]
    history: list[Any] = []
    for role, run in groupby(messages[rest:], lambda message: message["role"]):
        turns = [_turn(message) for message in run]
        if role == "tool":
            history.append({"role": "user", "content": [block for turn in turns for block in turn]})
        else:
            name = "assistant" if role == "assistant" else "user"
            history += [{"role": name, "content": turn} for turn in turns]
    tools: list[Any] = [
        {
            "name": tool["function"]["name"],
            "description": tool["function"]["description"],
            "inputSchema": {"json": tool["function"]["parameters"]},
        }
        for tool in body.get("tools") or ()
    ]
    return _MODEL.format_request(history, tools, system_prompt_content=system)


def _turn(message: dict[str, Any]) -> list[dict[str, Any]]:
    blocks = _blocks(message.get("content"))
    if message["role"] == "tool":
        return [
            {"toolResult": {"toolUseId": message["tool_call_id"], "status": "success", "content": blocks}}
        ]
    calls = message.get("tool_calls") or ()
    return blocks + [{"toolUse": {"toolUseId": call["id"], "name": "called", "input": {}}} for call in calls]


def _blocks(content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, list):
        return [{"text": content}] if content else []
    return [_block(part) for part in content]


def _block(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"text": part["text"]}
    if part["type"] == "image_url":
        data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
        return {"image": {"format": "png", "source": {"bytes": data}}}
    summary = part["summary"][0]
    if summary["type"] == "summary_encrypted_text":
        return {"reasoningContent": {"redactedContent": summary["data"].encode()}}
    return {"reasoningContent": {"reasoningText": {"text": summary["text"], "signature": "s"}}}
