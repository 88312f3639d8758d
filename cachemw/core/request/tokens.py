"""Token estimates: how long a block is for a model, how wrong that may be, and how usage corrects it.

Lives here: ratios, image sizes, calibration, the optional tiktoken counter. Must not know: wire
shapes, stores, prices. A *size* is an estimate in tokens of the older Claude tokenizer; a model's
`Calibration` turns sizes into that model's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from cachemw.core.request.image_headers import pixels
from cachemw.core.rules.types import Kind

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
# tiktoken 0.14 overflows its stack on a million spaces, and takes 50 ms for 50,000 Chinese characters: for 8,192
# of any that were tried (one letter, spaces, line ends, base64, Thai, Chinese) it takes 1.5 ms at most.
_PIECE = 8_192
_PIECES = 8
_SPREAD = 0.30


def estimate(kind: Kind, length: int) -> float:
    """Return the size of `length` UTF-8 bytes of a text or JSON block of this kind."""
    return length * _PER_BYTE[kind]


def image_size(data: str) -> float:
    """Return the size of a base64 image by its pixels; the largest size where they can't be read."""
    found = pixels(data)
    if found is None:
        return _IMAGE_MAX
    width, height = found
    return float(min(width * height / 750, _IMAGE_MAX))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Turn sizes into one model's tokens.

    `scale` multiplies a size; `spread` is the relative error that a total may have either way, and
    falls with each usage that was returned (`count`).
    """

    scale: float
    spread: float = _SPREAD
    count: int = 0

    @classmethod
    def start(cls, tokenizer: Literal["old", "new", "openai"]) -> Calibration:
        """Return what is assumed before any usage was seen."""
        return cls(_SCALE[tokenizer])

    def learn(self, size: float, tokens: int) -> Calibration:
        """Return the calibration after a request of `size` was counted as `tokens` by the provider.

        The first answers move the scale most; later ones follow a drift in the traffic. The spread
        is a running mean of the errors that were made, never below 3 %.
        """
        if size < 50 or tokens < 50:
            return self
        seen = min(max(tokens / size, 0.1), 10.0)
        weight = 1.0 / min(self.count + 1, 20)
        error = abs(seen / self.scale - 1)
        spread = self.spread + (2.0 * error - self.spread) * 1.0 / min(self.count + 2, 20)
        return replace(
            self,
            scale=self.scale + (seen - self.scale) * weight,
            spread=min(max(spread, 0.03), _SPREAD),
            count=self.count + 1,
        )


def load_counter() -> Counter:
    """Load tiktoken's encoding and return a counter of sizes.

    tiktoken may download the encoding's file at first use and raises what its HTTP client raises where it
    can't; call this off the request path. The counter itself is called on it: of a text of more than 65,536
    characters it counts eight parts, evenly spread, and takes the rest to be like them. Claude's own tokenizer is not public: o200k counts times 1.2 are
    what offline comparison showed for the older family (November 2026).
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
