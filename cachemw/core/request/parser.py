"""Read a request body as blocks in the order the provider sees them: tools, system, messages.

Contains: the sections of a body, the order in which the provider sees them, and the parameters that change
the key of an entry; `message_blocks` reads a single message. Must not depend on: stores, prices, plans.

A message or tool is read once: its blocks are kept in a bounded memo under the hash of its bytes, so a
conversation that grows by a turn costs little more than hashing it. The memo holds no text. Each namespace
has its own memo, under hashes that a random key of the process seeds. So no tenant can change the reading of
another tenant's message. An item enters the memo only once the provider has accepted its request, so a
request without a valid credential leaves no trace.

Work is bounded: bodies of too many items or parts raise `BodyError`, and `Parser.steps` pauses between slices
of work, so that an event loop can serve other requests meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import isfinite
from typing import Any, Literal, NamedTuple, TypeAlias, cast

from cachemw.core.fair_table import FairTable
from cachemw.core.request.canonical_json import Json, canonical_json, hash_values
from cachemw.core.request.message_blocks import (
    Block,
    ParsedMessage,
    Path,
    ReadingContext,
    chat_message,
    envelope,
    marker_ttl,
    native_message,
    system_block,
    tool,
)
from cachemw.core.request.tokens import Counter
from cachemw.core.rules.types import Kind, Model, Ttl
from cachemw.errors import BodyError
from cachemw.slices import Slices, run

WireFormat = Literal["chat", "messages"]

# Request parameters that are part of an entry's key (Anthropic, prompt caching, August 2026).
# A change of these loses everything; of the second group, all but the tools; of the third, the messages.
_ROOT_KEYS = (
    "thinking", "reasoning", "reasoning_effort", "output_config", "response_format", "output_format",
    "functions",
)  # fmt: skip
_SYSTEM_KEYS = ("speed", "web_search_options")
_MESSAGE_KEYS = ("tool_choice", "parallel_tool_calls", "disable_parallel_tool_use", "function_call")

_MEMO_LIMIT = 32_768
# The places in which a value is read: equal bytes are different blocks in another place.
_TOOL, _SYSTEM, _CHAT, _NATIVE = range(4)

# Limits of the messages, tools and system entries of one request, and of their blocks. The first is far above
# every real conversation (Anthropic takes 100,000 messages, but no context window holds so many turns).
MOST_ITEMS = 10_000
MOST_BLOCKS = 20_000
# Limits of a slice of work: values, new values and blocks among them, bytes of JSON. Each takes a few
# milliseconds.
_SLICE_VALUES, _SLICE_NEW, _SLICE_BYTES = 256, 256, 1 << 20

Reader = Callable[[Any, ReadingContext], ParsedMessage]
MemoEntry: TypeAlias = tuple[bytes, ParsedMessage]


class ContentKeys(NamedTuple):
    """The keys of content hashes: `memo` for hashes that stay in the process, `digests` for those of blocks.

    `memo` is random for each process. `digests` is the same for all workers that share a store.
    """

    memo: bytes = b""
    digests: bytes = b""


class _Seeds(NamedTuple):
    memo: tuple[int, int, int, int]  # by shape
    digests: int


@dataclass(slots=True)
class ParsedRequest:
    """A request as columns: `blocks[k]` stands in item `items[k]` of its section.

    `tools_end` and `system_end` are the numbers of blocks up to the end of those sections. `root`,
    `system_params` and `params` are the canonical bytes of the parameters that key everything, everything
    except the tools, and the messages. `client_marker_count` counts all markers of the client;
    `automatic_marker` is the TTL of a top-level one. `seed` keys the digests of blocks and prefixes.
    `new_items` are the items that the memo did not hold.
    """

    wire: WireFormat
    model: str
    seed: int = 0
    new_items: list[MemoEntry] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    tools_end: int = 0
    system_end: int = 0
    root: bytes = b""
    system_params: bytes = b""
    params: bytes = b""
    client_marker_count: int = 0
    automatic_marker: Ttl | None = None

    def path(self, index: int) -> Path:
        """Return the path of block `index` in the body."""
        if index < self.tools_end:
            section = "tools"
        elif self.wire == "messages" and index < self.system_end:
            return ("system",) if self.items[index] < 0 else ("system", self.items[index])
        else:
            section = "messages"
        return (section, self.items[index]) + self.blocks[index].marker_path


class Parser:
    """Read bodies, and remember the blocks of each message and tool.

    One thread at a time may call `learn`; any number may read meanwhile.
    """

    def __init__(self, counter: Counter | None = None, keys: ContentKeys | None = None) -> None:
        self._counter = counter
        self._memo: FairTable[bytes, ParsedMessage] = FairTable(_MEMO_LIMIT)
        self._keys = keys or ContentKeys()
        self._seeds = lru_cache(1024)(self._seeds_of)

    def parse(
        self, body: Json, model: Model, wire: WireFormat = "chat", namespace: str = ""
    ) -> ParsedRequest:
        """Return the body's blocks in the provider's order, reading it at once; see `steps`."""
        return run(self.steps(body, model, wire, namespace))

    def steps(self, body: Json, model: Model, wire: WireFormat, namespace: str) -> Slices[ParsedRequest]:
        """Read a body in slices and return its blocks in the provider's order.

        Raises `BodyError` with a short reason for a body that is no chat request, or too large to read.
        """
        tools, system, messages = _sections(body, wire)
        if len(tools) + len(system) + len(messages) > MOST_ITEMS:
            raise BodyError("too_many_items")
        name = body.get("model")
        if not isinstance(name, str):
            raise BodyError("bad_model")
        if not all(isfinite(value) for value in body.values() if isinstance(value, float)):
            raise BodyError("not_json")
        seeds = self._seeds(namespace)
        parsed = ParsedRequest(wire, name, seeds.digests)
        memo = self._memo.read(namespace)
        tool_items = yield from self._items(parsed, memo, tools, tool, seeds.memo[_TOOL])
        system_items = yield from self._items(parsed, memo, system, system_block, seeds.memo[_SYSTEM])
        reader, shape = (chat_message, _CHAT) if wire == "chat" else (native_message, _NATIVE)
        items = yield from self._items(parsed, memo, messages, reader, seeds.memo[shape])
        _add(parsed, enumerate(tool_items))
        parsed.tools_end = len(parsed.blocks)
        whole = isinstance(body.get("system"), str)
        _add(parsed, [(-1, item) for item in system_items] if whole else enumerate(system_items))
        rest = list(enumerate(items))
        if wire == "chat":
            lead = next((index for index, item in rest if item.role != "system"), len(rest))
            _add(parsed, rest[:lead])
            rest = rest[lead:]
            if not model.mid_system:
                _add(parsed, [(index, item) for index, item in rest if item.role == "system"])
                rest = [(index, item) for index, item in rest if item.role != "system"]
        parsed.system_end = len(parsed.blocks)
        _add(parsed, rest, strip=_last_turn(items) if model.thinking == "stripped" else 0)
        if not parsed.blocks:
            raise BodyError("no_content")
        if len(parsed.blocks) > MOST_BLOCKS:
            raise BodyError("too_many_blocks")
        _read_parameters(parsed, body, items)
        return parsed

    def learn(self, namespace: str, parsed: ParsedRequest) -> None:
        """Remember the items of a request, once the provider has accepted it."""
        if parsed.new_items:
            self._memo.put(namespace, parsed.new_items)

    def _items(
        self,
        parsed: ParsedRequest,
        memo: Mapping[bytes, ParsedMessage],
        values: Sequence[Any],
        read: Reader,
        seed: int,
    ) -> Slices[list[ParsedMessage]]:
        """Read values in slices, and add the unknown ones to `parsed.new_items`."""
        items: list[ParsedMessage] = []
        reading = ReadingContext(parsed.seed, self._counter)
        size = new_blocks = new_in_slice = 0
        for start in range(0, len(values), _SLICE_VALUES):
            part = values[start : start + _SLICE_VALUES]
            hashes, bytes_read = hash_values(part, seed)
            size += bytes_read
            if size > _SLICE_BYTES:
                size = 0
                yield
            found = list(map(memo.get, hashes))
            if not all(found):
                for index, item in enumerate(found):
                    if item is None:
                        canonical_json(part[index])
                        if bytes_read > _SLICE_BYTES:
                            yield
                        found[index] = item = read(part[index], reading)
                        parsed.new_items.append((hashes[index], item))
                        new_blocks += len(item.blocks)
                        if new_blocks > MOST_BLOCKS:
                            raise BodyError("too_many_blocks")
                        new_in_slice += 1 + len(item.blocks)
                        if new_in_slice >= _SLICE_NEW:
                            new_in_slice = 0
                            yield
            items += cast("list[ParsedMessage]", found)
        return items

    def _seeds_of(self, namespace: str) -> _Seeds:
        tenant = namespace.encode("utf-8", "surrogatepass")
        memo = [_seed(self._keys.memo, b"%d" % shape + tenant) for shape in range(4)]
        return _Seeds((memo[0], memo[1], memo[2], memo[3]), _seed(self._keys.digests, b"blocks" + tenant))


def _seed(key: bytes, text: bytes) -> int:
    """Return a seed (64 bits) that only holders of the key can compute from a text."""
    return int.from_bytes(blake2b(text, key=blake2b(key).digest()[:64], digest_size=8).digest())


def _read_parameters(parsed: ParsedRequest, body: Json, items: Sequence[ParsedMessage]) -> None:
    """Store the parameters that key an entry, and the client's top-level marker."""
    parsed.root = _parameters(body, _ROOT_KEYS)
    parsed.system_params = _parameters(body, _SYSTEM_KEYS)
    parsed.params = _parameters(body, _MESSAGE_KEYS)
    if any(item.has_citations for item in items):
        parsed.system_params += b"cited"
    if any(item.has_image for item in items):
        parsed.params += b"image"
    parsed.automatic_marker = marker_ttl(body)
    parsed.client_marker_count += parsed.automatic_marker is not None


def _add(parsed: ParsedRequest, numbered: Iterable[tuple[int, ParsedMessage]], *, strip: int = 0) -> None:
    """Add the blocks of items, without the assistant's thinking in items before `strip`."""
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
        owned += item.client_marker_count
    parsed.client_marker_count += owned


def _sections(body: Json, wire: WireFormat) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
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
    # An effort of "high" is the default, so it equals a missing effort.
    if isinstance(config, dict):
        if config.get("effort") == "high":
            del config["effort"]
        if not config:
            del present["output_config"]
    return canonical_json(present) if present else b""


def _last_turn(items: Sequence[ParsedMessage]) -> int:
    """Return the index of the last message by the user that is no tool result."""
    return next((i for i in range(len(items) - 1, -1, -1) if items[i].starts_user_turn), 0)
