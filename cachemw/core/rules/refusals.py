"""Read a provider's 400 about a marker: is it about one, and which kind of block was refused?

Lives here: the wording of refusals, seen in public reports of 2025 and 2026 (no provider documents
them). Must not know: what was sent.
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
# A refusal of the number, the order, the TTL or of one blank text says nothing about a kind.
_LOOKED = 1 << 16
"""Characters of an error's text that are searched: providers' own have some hundred."""
_NOT_A_KIND = re.compile(r"maximum of \d+ blocks|must not come after|empty text|\.ttl\b", re.IGNORECASE)


def about_markers(text: str) -> bool:
    """Say whether an error's text is about `cache_control`, or one of OpenAI's hints."""
    text = text[:_LOOKED]
    return "cache_control" in text or "prompt_cache_breakpoint" in text or about_key(text)


def about_key(text: str) -> bool:
    """Say whether an error's text is about `prompt_cache_key`."""
    return "prompt_cache_key" in text[:_LOOKED]


def refuses_hour(text: str) -> bool:
    """Say whether an error's text is that a marker's TTL isn't taken (order is another matter)."""
    text = text[:_LOOKED]
    return bool(re.search(r"\.ttl\b", text)) and "must not come after" not in text


def refused_kinds(text: str, marked: Collection[Kind]) -> frozenset[Kind]:
    """Return the kinds, among those that were marked, that the text says can't be.

    All of them where the text names none: a gateway that refuses markers as such is then asked at
    most once for each kind. None where it names another: that marker was the client's.
    """
    text = text[:_LOOKED]
    if _NOT_A_KIND.search(text):
        return frozenset()
    for pattern, kind in _PLACES:
        if re.search(pattern, text, re.IGNORECASE):
            return frozenset({kind} & set(marked))
    return frozenset(marked)
