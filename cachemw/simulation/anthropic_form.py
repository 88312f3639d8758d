"""A request in the form that Claude gets: tools, system blocks and message blocks, each with its digest.

Contains: the content of a body, the parameters that belong to an entry's key, and the removal of old
thinking. Must not depend on: entries, time, and the planner's reading of bodies, because tests compare the
two.

Content is everything except markers. The order of keys is ignored, except in tool schemas and in the input of
tool calls; the `arguments` of a call are compared as a string. A role belongs to its blocks; the boundary
between two messages of one role does not count. A Databricks `reasoning` part is one thinking block, with any
number of summaries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from cachemw.core.rules.types import Model, Ttl
from cachemw.simulation import marker_rules
from cachemw.simulation.openai_form import (
    EMPTY_MESSAGE,
    Block,
    Message,
    Prompt,
    blocks_of,
    from_chat,
    objects,
)
from cachemw.simulation.options import Options, refuse

Wire = Literal["chat", "messages"]
Section = Literal["tools", "system", "messages"]

_ORDERED = ("input_schema", "input")  # the order of keys in these values is content
_NO_FORCED_TOOL = ("opus-5-5", "fable-5-1")  # Anthropic model pages, October 2026


class Content(NamedTuple):
    """One block: its place in the body for Anthropic, its digest (32 bytes), its marker."""

    place: marker_rules.Place
    role: str
    block: Block
    digest: bytes
    marker: Ttl | None


@dataclass(frozen=True, slots=True)
class Form:
    """A whole request; each section's key holds the parameters that its entries depend on."""

    contents: Mapping[Section, list[Content]]
    keys: Mapping[Section, bytes]


def form(body: Mapping[str, Any], wire: Wire, model: Model, options: Options) -> Form:
    """Return a body's form. Raises `Refused` with the provider's text if the provider refuses the body."""
    keeps_late = options.mid_system == "keep" or (options.mid_system == "model" and model.mid_system)
    read = from_chat if wire == "chat" else _from_messages
    tools, system, messages = read(body, options, keeps_late)
    _refuse_forced_tool(body.get("tool_choice"), model)
    explicit = model.caching == "explicit"

    def content(place: marker_rules.Place, role: str, block: Block) -> Content:
        _refuse_odd(block, place, options)
        marker = marker_rules.read(block, place, options) if explicit else None
        bare = marker_rules.bare(block)
        return Content(place, role, bare, _digest(role, bare), marker)

    contents: dict[Section, list[Content]] = {
        "tools": [content(("tools", index), "tools", block) for index, block in enumerate(tools)],
        "system": [content(("system", index), "system", block) for index, block in enumerate(system)],
        "messages": [content(*item) for item in _in_prompt(messages, model.thinking == "stripped")],
    }
    if explicit and body.get("cache_control") is not None:
        _mark_automatically(marker_rules.automatic(body["cache_control"], options), contents)
    return Form(contents, _keys(body, model, options, messages))


def _from_messages(body: Mapping[str, Any], options: Options, keeps_late_system: bool) -> Prompt:
    """Read an Anthropic Messages body: strings become blocks, and all else stays."""
    system = [] if body.get("system") is None else blocks_of(body["system"], "system")
    messages: list[Message] = []
    for index, message in enumerate(objects(body.get("messages"), "messages")):
        role = message.get("role")
        blocks = blocks_of(message.get("content"), f"messages.{index}.content")
        if role == "system" and not keeps_late_system:
            if options.mid_system != "hoist":
                refuse("role 'system' is not supported on this model")
            system += blocks
            continue
        if role not in ("user", "assistant", "system"):
            refuse(f"messages.{index}.role: Input should be 'user' or 'assistant'")
        if not blocks:
            refuse(f"messages.{index}: {EMPTY_MESSAGE}")
        messages.append((role, blocks))
    return list(objects(body.get("tools") or (), "tools")), system, messages


def _in_prompt(messages: list[Message], strips: bool) -> Iterator[tuple[marker_rules.Place, str, Block]]:
    """Yield the blocks of the prompt; `strips` leaves out thinking before the user's last turn."""
    turn = -1
    if strips:
        for index, (role, blocks) in enumerate(messages):
            if role == "user" and any(block.get("type") != "tool_result" for block in blocks):
                turn = index
    for index, (role, blocks) in enumerate(messages):
        old = index < turn and role == "assistant"
        for number, block in enumerate(blocks):
            if not (old and block.get("type") in marker_rules.THINKING):
                yield ("messages", index, "content", number), role, block


def _mark_automatically(ttl: Ttl, contents: Mapping[Section, list[Content]]) -> None:
    """Mark the last block that takes an automatic marker, if there is one."""
    for section in (contents["messages"], contents["system"], contents["tools"]):
        for index in range(len(section) - 1, -1, -1):
            content = section[index]
            if content.marker == ttl:
                return
            if content.marker is not None:
                refuse(f"cache_control: ttl='{ttl}' conflicts with ttl='{content.marker}' on the last block")
            if marker_rules.takes_automatic(content.block):
                section[index] = content._replace(marker=ttl)
                return


def _refuse_odd(block: Block, place: marker_rules.Place, options: Options) -> None:
    """Refuse blocks that the provider refuses with and without a marker."""
    text = block.get("text")
    if block.get("type") == "text" and not isinstance(text, str):
        refuse(f"{marker_rules.named(place, 'text')}.text: Input should be a valid string")
    if block.get("type") == "text" and text == "" and options.provider in ("databricks", "anthropic"):
        refuse(f"{place[0]}: text content blocks must be non-empty")
    source = block.get("source")
    if options.provider == "databricks" and isinstance(source, Mapping) and source.get("type") == "url":
        refuse(f"{marker_rules.named(place, block.get('type'))}.source.type: Input should be 'base64'")


def _refuse_forced_tool(choice: Any, model: Model) -> None:
    kind = choice.get("type") if isinstance(choice, Mapping) else choice
    if kind in ("any", "tool", "required", "function") and model.name.replace(".", "-").endswith(
        _NO_FORCED_TOOL
    ):
        refuse('tool_choice: type "tool" and "any" are not supported for this model.')


def _digest(role: str, block: Block) -> bytes:
    ordered = {key: orjson.Fragment(_json(block[key])) for key in _ORDERED if key in block}
    return hashlib.sha256(_json([role, {**block, **ordered} if ordered else block], sort=True)).digest()


def _keys(
    body: Mapping[str, Any], model: Model, options: Options, messages: list[Message]
) -> dict[Section, bytes]:
    """Return the parameters that an entry depends on, by section (Anthropic, prompt caching, August 2026).

    The effort `high` is the default, so it equals no effort.
    """
    config = body.get("output_config")
    config = config if isinstance(config, Mapping) else {}
    efforts = [
        None if effort == "high" else effort
        for effort in (config.get("effort"), body.get("reasoning_effort"))
    ]
    thinking = [body.get("thinking"), body.get("reasoning"), *efforts]
    output = [body.get("response_format"), body.get("output_format"), config.get("format")]
    blocks = [block for _, blocks in messages for block in blocks]
    inner = [part for block in blocks if isinstance(block.get("content"), list) for part in block["content"]]
    images = any(isinstance(part, Mapping) and part.get("type") == "image" for part in (*blocks, *inner))
    cited = any("citations" in block for block in blocks)
    everything = thinking if options.thinking_scope == "all" else []
    last = thinking if options.thinking_scope == "messages" else []
    return {
        "tools": _json([model.name, everything, output]),
        "system": _json([body.get("speed"), body.get("web_search_options"), cited]),
        "messages": _json([body.get("tool_choice"), body.get("parallel_tool_calls"), images, last]),
    }


def _json(value: Any, sort: bool = False) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort else 0)
    except (TypeError, ValueError, RecursionError):
        refuse("The request body is not valid JSON")
