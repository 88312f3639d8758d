"""Token estimates: the length of a block for a model, its error, and its correction by usage.

Contains: ratios, image sizes, calibration, the optional tiktoken counter. Must not depend on: wire formats,
stores, prices. A *size* is an estimate in tokens of the older Claude tokenizer; a model's `Calibration` turns
sizes into that model's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cachemw.core.request.image_headers import pixels
from cachemw.core.rules.types import Kind
from cachemw.core.tuning import TOKENS

Counter = Callable[[str], int]

# Tokens per UTF-8 byte, from recorded usage of coding agents and offline counts of the v3 Claude
# tokenizer (November 2026): prose 0.24, user text 0.26, code 0.28-0.35, compact JSON 0.28-0.37.
_PER_BYTE: dict[Kind, float] = {
    Kind.TOOL: 0.28,
    Kind.TEXT: 0.26,
    Kind.DOCUMENT: 0.26,
    Kind.REASONING: 0.26,
    Kind.TOOL_CALL: 0.30,
    Kind.TOOL_RESULT: 0.32,
    Kind.OPAQUE: 0.28,
}
# Anthropic's vision guide: width x height / 750, images above about 1,600 tokens are scaled down.
_IMAGE_MAX = 1600
# The newer tokenizer gives 1.0-1.35x the tokens of the older one (Anthropic, August 2026).
_SCALE = {"old": 1.0, "new": 1.25, "openai": 0.9}
_PER_O200K = 1.2
# tiktoken 0.14 overflows its stack on a million spaces, and takes 50 ms for 50,000 Chinese characters. It
# takes at most 1.5 ms for 8,192 characters of any tried kind (one letter, spaces, line ends, base64, Thai,
# Chinese).
_PIECE = 8_192
_PIECES = 8


def estimate(kind: Kind, length: int) -> float:
    """Return the size of `length` UTF-8 bytes of a text or JSON block of this kind."""
    return length * _PER_BYTE[kind]


def image_size(data: str) -> float:
    """Return the size of a base64 image by its pixels; the largest size if they cannot be read."""
    found = pixels(data)
    if found is None:
        return _IMAGE_MAX
    width, height = found
    return float(min(width * height / 750, _IMAGE_MAX))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turn sizes into one model's tokens.

    `scale` multiplies a size. `spread` is the relative error of a total either way; it falls with each
    returned usage (`count`).
    """

    scale: float
    spread: float = TOKENS.first_spread
    count: int = 0

    @classmethod
    def start(cls, tokenizer: Literal["old", "new", "openai"]) -> Calibration:
        """Return the calibration before any usage."""
        return cls(_SCALE[tokenizer], TOKENS.first_spread)

    def learn(self, size: float, tokens: int) -> Calibration:
        """Return the calibration after the provider counted a request of `size` as `tokens`.

        The first answers move the scale most; later ones follow a drift in the traffic. The spread is a
        running mean of the errors, with a lower bound.
        """
        if size < TOKENS.least_tokens or tokens < TOKENS.least_tokens:
            return self
        measured = min(max(tokens / size, 0.1), 10.0)
        weight = 1.0 / min(self.count + 1, TOKENS.window)
        error = TOKENS.error_factor * abs(measured / self.scale - 1)
        spread = self.spread + (error - self.spread) * 1.0 / min(self.count + 2, TOKENS.window)
        return replace(
            self,
            scale=self.scale + (measured - self.scale) * weight,
            spread=min(max(spread, TOKENS.least_spread), TOKENS.first_spread),
            count=self.count + 1,
        )


def load_counter() -> Counter:
    """Load tiktoken's encoding and return a counter of sizes.

    Call this off the request path: tiktoken may download the encoding's file at first use, and raises the
    errors of its HTTP client. The counter itself runs on the request path. It counts eight evenly spread
    parts of a text of more than 65,536 characters, and extrapolates. Claude's own tokenizer is not public. By
    offline comparison the older family has 1.2 times the tokens of o200k (November 2026).
    """
    import tiktoken

    encoding = tiktoken.get_encoding("o200k_base")

    def count(text: str) -> int:
        last = max(len(text) - _PIECE, 0)
        step = max(last / (_PIECES - 1), _PIECE)
        starts = [round(step * number) for number in range(_PIECES)]
        pieces = [text[start : start + _PIECE] for start in starts]
        counted = sum(len(encoding.encode_ordinary(piece)) for piece in pieces)
        return round(counted * len(text) / max(sum(map(len, pieces)), 1) * _PER_O200K)

    return count
