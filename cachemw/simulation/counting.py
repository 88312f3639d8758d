"""The simulated provider's own token counter, independent of the planner's estimates.

Contains: tokens of one block from classes of characters and from image sizes, and the bias by which each
simulated model differs from every estimate. Must not depend on: requests, entries, the planner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import orjson

from cachemw.core.request.image_headers import pixels

# Tokens per byte of a class, fitted by hand to characters per token of the tokenizer up to Opus 4.6
# (measured November 2026: prose 4.2, Python 3.6, compact JSON 2.7, legal English 4.5, timestamps 1.6).
_WEIGHTS = (
    (b"abcdefghijklmnopqrstuvwxyz", 0.20),
    (b"ABCDEFGHIJKLMNOPQRSTUVWXYZ", 0.40),
    (b"0123456789", 0.62),
    (b" \t", 0.08),
    (b"\r\n", 0.50),
    (bytes(range(128, 256)), 0.45),
)
_PUNCTUATION = 0.85
# Opus 4.7 and later count about 1.3 times as many tokens (Anthropic, token counting, 2026).
_RATES: Mapping[str, float] = {"old": 1.0, "new": 1.3, "openai": 0.87}
FRAME = 4  # tokens around each block
TAIL = 4  # tokens after the last block, never stored: recorded requests show 0 to 9
_IMAGE_MOST = 1600  # width x height / 750 up to about this (Anthropic, vision, 2025)


def rate(name: str, tokenizer: Literal["old", "new", "openai"], seed: int) -> float:
    """Return a model's tokens per unbiased token: the rate of its tokenizer times 0.9 to 1.2, by seed."""
    drawn = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return _RATES[tokenizer] * (0.9 + 0.3 * int.from_bytes(drawn[:4], "big") / 2**32)


def text_tokens(text: str) -> float:
    """Return the unbiased token count of a text."""
    data = text.encode("utf-8", "surrogatepass")
    left, tokens = len(data), 0.0
    for characters, weight in _WEIGHTS:
        count = len(data) - len(data.translate(None, characters))
        left -= count
        tokens += weight * count
    return tokens + _PUNCTUATION * left


def block_tokens(block: Mapping[str, Any]) -> float:
    """Return the unbiased token count of one block in Anthropic form, its frame included."""
    kind = block.get("type")
    if kind == "text" and isinstance(block.get("text"), str):
        return FRAME + text_tokens(block["text"])
    if kind == "image":
        return FRAME + _image(block.get("source"))
    if kind == "tool_result" and isinstance(block.get("content"), list):
        return FRAME + sum(block_tokens(part) for part in block["content"] if isinstance(part, Mapping))
    if kind == "tool_use" and isinstance(block.get("input"), str):
        return FRAME + text_tokens(f"{block.get('name')}{block['input']}")
    return FRAME + text_tokens(orjson.dumps(block).decode())


def _image(source: Any) -> float:
    """Return an image's tokens by its pixels, or the maximum if its size cannot be read."""
    data = source.get("data") if isinstance(source, Mapping) else None
    found = pixels(data) if isinstance(data, str) else None
    if found is None:
        return _IMAGE_MOST
    width, height = found
    return min(_IMAGE_MOST, width * height / 750)
