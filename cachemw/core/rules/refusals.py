"""Read a provider's 400: is it about a marker, and which kind of block was refused?

Contains: the wording of refusals in public reports of 2025 and 2026 (no provider documents them). Must not
depend on: the request that was sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from cachemw.core.rules.types import Kind

_PLACES: tuple[tuple[str, Kind], ...] = (
    (r"thinking|reasoning", Kind.REASONING),
    (r"\btools?\.\d+|tool definition", Kind.TOOL),
    (r"tool_result|\brole ['\"]?tool\b", Kind.TOOL_RESULT),
    (r"tool_use|tool_calls?", Kind.TOOL_CALL),
    (r"\bimage(_url)?\b", Kind.IMAGE),
    (r"\bdocument\b", Kind.DOCUMENT),
    (r"\btext\b|\bsystem\.\d+", Kind.TEXT),
)
_LOOKED = 1 << 16
"""Characters of an error's text that are searched: providers' own have some hundred."""
# A refusal of the number, the order, the TTL or of one blank text refuses no kind.
_NOT_A_KIND = re.compile(r"maximum of \d+ blocks|must not come after|empty text|\.ttl\b", re.IGNORECASE)


def about_markers(text: str) -> bool:
    """Return True if an error's text is about `cache_control` or one of OpenAI's hints."""
    text = text[:_LOOKED]
    return "cache_control" in text or "prompt_cache_breakpoint" in text or about_key(text)


def about_key(text: str) -> bool:
    """Return True if an error's text is about `prompt_cache_key`."""
    return "prompt_cache_key" in text[:_LOOKED]


def refuses_hour(text: str) -> bool:
    """Return True if an error's text refuses the TTL of a marker (not the order of TTLs)."""
    text = text[:_LOOKED]
    return bool(re.search(r"\.ttl\b", text)) and "must not come after" not in text


def refused_kinds(text: str, marked: Collection[Kind]) -> frozenset[Kind]:
    """Return the kinds, among the marked ones, on which the text refuses a marker.

    The result has all marked kinds if the text names no kind: a gateway that refuses all markers is then
    asked at most once for each kind. It is empty if the text names another kind, since that marker was the
    client's.
    """
    text = text[:_LOOKED]
    if _NOT_A_KIND.search(text):
        return frozenset()
    for pattern, kind in _PLACES:
        if re.search(pattern, text, re.IGNORECASE):
            return frozenset({kind} & set(marked))
    return frozenset(marked)
