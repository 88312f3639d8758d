"""Parts of chat bodies, and the positions that the provider reads from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachemw.core.rules.types import Model
from cachemw.simulation.anthropic_form import Wire
from cachemw.simulation.options import Options
from cachemw.simulation.provider import Position, ProviderCache

KEPT = Model("claude-kept", 1024, None, mid_system=True)
STRIPPED = Model("claude-stripped", 1024, None, thinking="stripped")
EPHEMERAL = {"type": "ephemeral"}
Body = dict[str, Any]
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
IMAGE: Body = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
THOUGHT: Body = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm.", "signature": "s"}]}
HIDDEN: Body = {"type": "reasoning", "summary": [{"type": "summary_encrypted_text", "data": "x"}]}


def read(body: Mapping[str, Any], wire: Wire = "chat", model: Model = KEPT, **options: Any) -> list[Position]:
    """Return a body's positions."""
    return list(ProviderCache(model, Options(**options)).positions(body, wire))


def user(*content: Any, **rest: Any) -> Body:
    """Return a user message of one string or of parts."""
    only = len(content) == 1 and isinstance(content[0], str)
    return {"role": "user", "content": content[0] if only else list(content), **rest}


def text(words: str, **rest: Any) -> Body:
    """Return a text part."""
    return {"type": "text", "text": words, **rest}


def call(number: int, arguments: str = "{}", **rest: Any) -> Body:
    """Return a tool call."""
    return {
        "id": f"c{number}",
        "type": "function",
        "function": {"name": "look", "arguments": arguments},
        **rest,
    }


def tool(name: str, **schema: Any) -> Body:
    """Return a tool definition."""
    parameters = {"type": "object", "properties": schema}
    return {"type": "function", "function": {"name": name, "description": "Looks.", "parameters": parameters}}
