"""The provider's rules for markers: the blocks that take one, its values, and the 400s.

Contains: everything about `cache_control` in a single request. The texts of the 400s were reported by users
of several projects (2025 and 2026); for a tool definition and for a part inside a tool result only the
pattern is known. Must not depend on: digests, tokens, entries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachemw.core.rules.types import Ttl
from cachemw.simulation.options import Options, refuse

Block = Mapping[str, Any]
Place = tuple[str | int, ...]

THINKING = frozenset({"thinking", "redacted_thinking"})
_MARKABLE = frozenset({
    "text", "image", "document", "search_result", "tool_use", "tool_result", "server_tool_use",
    "web_search_tool_result", "web_fetch_tool_result", "container_upload", "tool_reference", "compaction",
})  # fmt: skip


def is_blank(block: Block) -> bool:
    """Return True if a block is a text of white space only."""
    text = block.get("text")
    return block.get("type") == "text" and isinstance(text, str) and not text.strip()


def named(place: Place, kind: object) -> str:
    """Return a block's name in the provider's 400s: `messages.3.content.0.text`, `system.1`, `tools.0`."""
    name = ".".join(map(str, place))
    return f"{name}.{kind}" if place[0] == "messages" else name


def bare(block: Block) -> Block:
    """Return a block without its markers; the string in a tool result becomes one text block."""
    outer: Block = _without_marker(block)
    inner = block.get("content")
    if block.get("type") != "tool_result" or not isinstance(inner, (str, list)):
        return outer
    parts = [{"type": "text", "text": inner}] if isinstance(inner, str) else map(_without_marker, inner)
    return {**outer, "content": list(parts)}


def read(block: Block, place: Place, options: Options) -> Ttl | None:
    """Return the TTL of a block's marker, or None. Raises `Refused` if the block takes no marker."""
    control = block.get("cache_control")
    inner = block.get("content")
    if block.get("type") == "tool_result" and isinstance(inner, list):
        lifted = _inner_marker(inner, named(place, "tool_result"))
        control = lifted if control is None else control
    if control is None:
        return None
    name = named(place, block.get("type"))
    _refuse_ineligible(block, place, name, options)
    return _ttl(control, f"{name}.cache_control", options)


def automatic(control: Any, options: Options) -> Ttl:
    """Return the TTL of a marker at the top of a body. Raises `Refused` if the provider takes none there."""
    if options.provider == "databricks":
        refuse("cache_control: Extra inputs are not permitted")
    return _ttl(control, "cache_control", options)


def takes_automatic(block: Block) -> bool:
    """Return True if automatic caching may end on this block."""
    return block.get("type") not in THINKING and not is_blank(block)


def check(marked: Sequence[tuple[Place, str, Ttl]], options: Options) -> None:
    """Refuse too many markers (place, type, TTL, in the prompt's order), and a 1h one after a 5m one."""
    if len(marked) > options.max_markers:
        refuse(
            f"A maximum of {options.max_markers} blocks with cache_control may be provided. Found {len(marked)}."
        )
    short = False
    for place, kind, ttl in marked:
        if short and ttl == "1h":
            refuse(
                f"{named(place, kind)}.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' "
                "cache_control block. Note that blocks are processed in the following order: "
                "`tools`, `system`, `messages`."
            )
        short = short or ttl == "5m"


def _without_marker(block: Any) -> Any:
    """Return a block without its marker and without null fields, which gateways leave out."""
    if isinstance(block, Mapping) and ("cache_control" in block or None in block.values()):
        return {key: value for key, value in block.items() if key != "cache_control" and value is not None}
    return block


def _inner_marker(parts: Sequence[Any], name: str) -> Any:
    """Return the marker of the last part inside a tool result: it counts as the result's own marker."""
    for number, part in enumerate(parts):
        control = part.get("cache_control") if isinstance(part, Mapping) else None
        if control is None:
            continue
        at = f"{name}.content.{number}.{part.get('type')}"
        if number < len(parts) - 1:
            refuse(f"{at}.cache_control: Extra inputs are not permitted")
        if is_blank(part):
            refuse(f"{at}: cache_control cannot be set for empty text blocks")
        return control
    return None


def _refuse_ineligible(block: Block, place: Place, name: str, options: Options) -> None:
    kind = block.get("type")
    if is_blank(block):
        refuse(f"{name}: cache_control cannot be set for empty text blocks")
    accepted = (
        options.tool_markers
        if place[0] == "tools"
        else options.reasoning_markers
        if kind in THINKING
        else kind in _MARKABLE and (kind != "tool_result" or options.tool_result_markers)
    )
    if not accepted:
        refuse(f"{name}.cache_control: Extra inputs are not permitted")


def _ttl(control: Any, at: str, options: Options) -> Ttl:
    if not isinstance(control, Mapping):
        refuse(f"{at}: Input should be a valid dictionary")
    if control.get("type") != "ephemeral":
        refuse(f"{at}.type: Input should be 'ephemeral'")
    for key in control:
        if key not in ("type", "ttl"):
            refuse(f"{at}.ephemeral.{key}: Extra inputs are not permitted")
    ttl = control.get("ttl")
    if ttl is not None and not options.supports_1h:
        refuse(f"{at}.ephemeral.ttl: Extra inputs are not permitted")
    if ttl not in (None, "5m", "1h"):
        refuse(f"{at}.ephemeral.ttl: Input should be '5m' or '1h'")
    return "1h" if ttl == "1h" else "5m"
