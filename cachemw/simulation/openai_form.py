"""Translate OpenAI chat bodies to Anthropic's format, as a gateway in front of Claude does.

Contains: the place of each part of a chat body, and the bodies that only Databricks refuses. Markers stay on
their block. Must not depend on: digests, tokens, entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from cachemw.simulation.options import Options, refuse

Block: TypeAlias = Mapping[str, Any]
Message: TypeAlias = tuple[str, list[Block]]
Prompt: TypeAlias = tuple[list[Block], list[Block], list[Message]]

_SYSTEM = ("system", "developer")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "cache_control"}
_TOOL_KEYS = {"type", "function", "cache_control"}
EMPTY_MESSAGE = "all messages must have non-empty content except for the optional final assistant message"


def from_chat(body: Mapping[str, Any], options: Options, keeps_late_system: bool) -> Prompt:
    """Return tools, system blocks and messages (role, blocks) of a chat body; the body is not changed.

    Raises `Refused` if it is no chat body, or one that the provider refuses.
    """
    tools = [
        _tool(index, tool, options) for index, tool in enumerate(objects(body.get("tools") or (), "tools"))
    ]
    system: list[Block] = []
    messages: list[Message] = []
    results_of: int | None = None  # index of the user message that collects a run of tool messages
    for index, message in enumerate(objects(body.get("messages"), "messages")):
        role = message.get("role")
        if role in _SYSTEM:
            blocks = _with_rest(message, _parts(message.get("content"), index))
            if not messages or not keeps_late_system:
                if messages and options.mid_system == "refuse":
                    refuse("role 'system' is not supported on this model")
                system += blocks
                continue
            role = "system"
        elif role == "tool":
            result = _with_rest(message, [_tool_result(index, message)])
            if results_of is None:
                results_of = len(messages)
                messages.append(("user", []))
            messages[results_of][1].extend(result)
            continue
        elif role == "assistant":
            blocks = _with_rest(message, _assistant(index, message))
        elif role == "user":
            if options.provider == "databricks" and message.get("name") is not None:
                refuse(f"messages.{index}.name: Extra inputs are not permitted")
            blocks = _with_rest(message, _parts(message.get("content"), index))
        else:
            refuse(f"messages.{index}.role: Input should be 'system', 'user', 'assistant' or 'tool'")
        if not blocks:
            refuse(f"messages.{index}: {EMPTY_MESSAGE}")
        results_of = None
        messages.append((role, blocks))
    return tools, system, messages


def objects(value: Any, where: str) -> Sequence[Mapping[str, Any]]:
    """Return a list of JSON objects, or refuse."""
    if value is None:
        refuse(f"{where}: Field required")
    if not isinstance(value, (list, tuple)):
        refuse(f"{where}: Input should be a valid list")
    for index, item in enumerate(value):
        if not isinstance(item, Mapping):
            refuse(f"{where}.{index}: Input should be a valid dictionary")
    return value


def blocks_of(content: Any, where: str) -> list[Block]:
    """Return a string as a list of one text block, and a list as it is."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(objects(content, where))


def _parts(content: Any, index: int) -> list[Block]:
    return [_part(part) for part in blocks_of(content, f"messages.{index}.content")]


def _part(part: Block) -> Block:
    kind = part.get("type")
    if kind == "image_url":
        return {**_without(part, "image_url"), "type": "image", "source": _image(part.get("image_url"))}
    if kind == "reasoning":
        summary = part.get("summary")
        first = summary[0] if isinstance(summary, list) and summary else None
        hidden = isinstance(first, Mapping) and first.get("type") == "summary_encrypted_text"
        return {**part, "type": "redacted_thinking" if hidden else "thinking"}
    if kind == "file":
        return {**part, "type": "document"}
    return part


def _image(value: Any) -> Block:
    """Return an Anthropic image source; other keys beside the URL are kept as content."""
    rest: Block = _without(value, "url") if isinstance(value, Mapping) else {}
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or not url.startswith("data:"):
        return {**rest, "type": "url", "url": url}
    media, _, data = url.removeprefix("data:").partition(",")
    return {**rest, "type": "base64", "media_type": media.removesuffix(";base64"), "data": data}


def _assistant(index: int, message: Block) -> list[Block]:
    content, calls = message.get("content"), message.get("tool_calls") or ()
    if content is None or (content == "" and calls):
        blocks: list[Block] = []
    else:
        blocks = _parts(content, index)
    for call in objects(calls, f"messages.{index}.tool_calls"):
        function = call.get("function")
        if isinstance(function, Mapping):
            # A marker inside `function` does not count (Databricks, model services, 2026).
            inner = {"input" if key == "arguments" else key: value for key, value in function.items()}
            inner.pop("cache_control", None)
            blocks.append({**inner, **_without(call, "function"), "type": "tool_use"})
        else:
            blocks.append({**call, "type": "tool_use"})
    return blocks


def _tool_result(index: int, message: Block) -> Block:
    content = message.get("content")
    inner = [] if content is None else _parts(content, index)
    return {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": inner}


def _tool(index: int, tool: Block, options: Options) -> Block:
    """Return a tool definition with its function's fields on one level; both levels may hold the marker."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    if options.provider == "databricks" and function.get("strict", tool.get("strict")) is not None:
        refuse(f"tools.{index}.strict: Extra inputs are not permitted")
    flat = {"input_schema" if key == "parameters" else key: value for key, value in function.items()}
    control = tool.get("cache_control")
    if control is not None:
        flat["cache_control"] = control
    rest = {key: value for key, value in tool.items() if key not in _TOOL_KEYS and value is not None}
    return {**flat, "tool": rest} if rest else flat


def _with_rest(message: Block, blocks: list[Block]) -> list[Block]:
    """Return the blocks with the message's other keys as content of the first one."""
    if blocks and not message.keys() <= _MESSAGE_KEYS:
        rest = {
            key: value for key, value in message.items() if key not in _MESSAGE_KEYS and value is not None
        }
        blocks[0] = {**blocks[0], "message": rest or None}
    return blocks


def _without(value: Block, key: str) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if name != key}
