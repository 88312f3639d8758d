"""Read a request body as blocks in the order the provider sees them: tools, system, messages.

Lives here: which parts of a body are sections, which order the provider gives them, and which
parameters change the key of an entry; `core.wire` knows the shape of a single message. Must not
know: stores, prices, plans.

A message or tool is read once: its blocks are kept in a bounded memo under the hash of its bytes,
so a conversation that grows by a turn costs little more than hashing it. Nothing in the memo holds text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Literal, cast

from cachemw.core.providers import Kind, Model, Ttl
from cachemw.core.tokens import Counter
from cachemw.core.wire import (
    Block,
    Item,
    Json,
    Path,
    chat_message,
    dump,
    envelope,
    keys,
    marker_ttl,
    native_message,
    system_block,
    tool,
)  # fmt: skip
from cachemw.errors import BodyError

Wire = Literal["chat", "messages"]

# Request parameters that are part of an entry's key (Anthropic, prompt caching, August 2026).
# A change of these loses everything; of the second group, all but the tools; of the third, the messages.
_ROOT_KEYS = (
    "thinking", "reasoning", "reasoning_effort", "output_config", "response_format", "output_format",
    "functions",
)  # fmt: skip
_SYSTEM_KEYS = ("speed", "web_search_options")
_MESSAGE_KEYS = ("tool_choice", "parallel_tool_calls", "disable_parallel_tool_use", "function_call")

_MEMO_LIMIT = 32_768
# Seeds of the memo's hashes: the same bytes are read otherwise in another place.
_TOOL, _SYSTEM, _CHAT, _NATIVE = range(4)

Reader = Callable[[Any, Counter | None], Item]


@dataclass(slots=True)
class Parsed:
    """A request as columns: `blocks[k]` stands in item `items[k]` of section `sections`.

    `tools` and `system` are the numbers of blocks up to the end of those sections. `root`,
    `system_params` and `params` are the canonical bytes of what keys everything, everything but the
    tools, and the messages. `owned` counts all of the client's markers; `automatic` is the TTL of a
    top-level one.
    """

    wire: Wire
    model: str
    blocks: list[Block] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    tools: int = 0
    system: int = 0
    root: bytes = b""
    system_params: bytes = b""
    params: bytes = b""
    owned: int = 0
    automatic: Ttl | None = None

    def path(self, index: int) -> Path:
        """Return where block `index` stands in the body."""
        if index < self.tools:
            section = "tools"
        elif self.wire == "messages" and index < self.system:
            return ("system",) if self.items[index] < 0 else ("system", self.items[index])
        else:
            section = "messages"
        return (section, self.items[index]) + self.blocks[index].sub


class Parser:
    """Read bodies, remembering what each message and tool was read as."""

    def __init__(self, counter: Counter | None = None) -> None:
        self._counter = counter
        self._memo: dict[bytes, Item] = {}

    def parse(self, body: Json, model: Model, wire: Wire = "chat") -> Parsed:
        """Return the body's blocks in the provider's order.

        Raises `BodyError` with a short reason where the body is no chat request.
        """
        tools, system, messages = _sections(body, wire)
        name = body.get("model")
        if not isinstance(name, str):
            raise BodyError("bad_model")
        if not all(isfinite(value) for value in body.values() if isinstance(value, float)):
            raise BodyError("not_json")
        parsed = Parsed(wire, name)
        _add(parsed, enumerate(self._items(tools, tool, _TOOL)))
        parsed.tools = len(parsed.blocks)
        blocks = self._items(system, system_block, _SYSTEM)
        whole = isinstance(body.get("system"), str)
        _add(parsed, [(-1, block) for block in blocks] if whole else enumerate(blocks))

        items = self._items(
            messages, *((chat_message, _CHAT) if wire == "chat" else (native_message, _NATIVE))
        )
        rest = list(enumerate(items))
        if wire == "chat":
            lead = next((index for index, item in rest if item.role != "system"), len(rest))
            _add(parsed, rest[:lead])
            rest = rest[lead:]
            if not model.mid_system:
                _add(parsed, [(index, item) for index, item in rest if item.role == "system"])
                rest = [(index, item) for index, item in rest if item.role != "system"]
        parsed.system = len(parsed.blocks)
        _add(parsed, rest, strip=_last_turn(items) if model.thinking == "stripped" else 0)
        if not parsed.blocks:
            raise BodyError("no_content")

        parsed.root = _parameters(body, _ROOT_KEYS)
        parsed.system_params = _parameters(body, _SYSTEM_KEYS)
        parsed.params = _parameters(body, _MESSAGE_KEYS)
        if any(item.cited for item in items):
            parsed.system_params += b"cited"
        if any(item.image for item in items):
            parsed.params += b"image"
        parsed.automatic = marker_ttl(body)
        parsed.owned += parsed.automatic is not None
        return parsed

    def _items(self, values: Sequence[Any], read: Reader, shape: int) -> list[Item]:
        memo, found = self._memo, keys(values, shape)
        items = list(map(memo.get, found))
        if not all(items):
            for index, (key, value) in enumerate(zip(found, values, strict=True)):
                items[index] = memo.get(key) or self._read(key, value, read)
        return cast("list[Item]", items)

    def _read(self, key: bytes, value: Any, read: Reader) -> Item:
        dump(value)
        if len(self._memo) >= _MEMO_LIMIT:
            self._memo.clear()
        item = self._memo[key] = read(value, self._counter)
        return item


def _add(parsed: Parsed, numbered: Iterable[tuple[int, Item]], *, strip: int = 0) -> None:
    """Add the blocks of items; those of a number below `strip` without the assistant's thinking."""
    blocks, items, owned = parsed.blocks, parsed.items, 0
    for index, item in numbered:
        added = item.blocks
        if index < strip:
            added = tuple(
                [block for block in added if block.kind is not Kind.REASONING or block.role != "assistant"]
            )
        if len(added) == 1:
            blocks.append(added[0])
            items.append(index)
        else:
            blocks.extend(added)
            items.extend([index] * len(added))
        owned += item.owned
    parsed.owned += owned


def _sections(body: Json, wire: Wire) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    if not isinstance(body, Mapping):
        raise BodyError("not_a_mapping")
    messages = body.get("messages")
    if not isinstance(messages, (list, tuple)) or not messages:
        raise BodyError("no_messages")
    tools = body.get("tools") or ()
    if not isinstance(tools, (list, tuple)):
        raise BodyError("bad_tools")
    system: Any = ()
    if wire == "messages":
        system = body.get("system") or ()
        if isinstance(system, str):
            system = (system,) if system else ()
        elif not isinstance(system, (list, tuple)) or any(isinstance(block, str) for block in system):
            raise BodyError("bad_system")
    return tools, system, messages


def _parameters(body: Json, keys: tuple[str, ...]) -> bytes:
    present = {
        key: envelope(value) if isinstance(value, Mapping) else value
        for key in keys
        if (value := body.get(key)) is not None
    }
    config = present.get("output_config")
    # An effort of "high" is the default: sending it is the same as leaving it out.
    if isinstance(config, dict):
        if config.get("effort") == "high":
            del config["effort"]
        if not config:
            del present["output_config"]
    return dump(present) if present else b""


def _last_turn(items: Sequence[Item]) -> int:
    """Return the index of the last message that is the user's own, not a tool's result."""
    return next((i for i in range(len(items) - 1, -1, -1) if items[i].turn), 0)
