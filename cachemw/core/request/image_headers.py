"""Width and height of an image, from the first bytes of its base64 text.

Contains: the headers of PNG, JPEG, GIF and WebP, the formats that providers accept. Must not depend on:
tokens, wire shapes. Clients choose these bytes, so the work is bounded by constants of this module: no count
or length in the image decides how often a loop turns or how much is read.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable

HEAD = 48_000
"""Characters of base64 in which the size is looked for; a multiple of four."""
# A photo has some 10 segments before its size, one with a large colour profile some 20.
_SEGMENTS = 128

Pixels = tuple[int, int]


def pixels(text: str) -> Pixels | None:
    """Return the width and height of a base64 image, None if its head does not hold them."""
    try:
        return read_pixels(base64.b64decode(text[:HEAD] + "=="))
    except ValueError:
        return None


def read_pixels(head: bytes) -> Pixels | None:
    """Return the width and height in the first bytes of an image, None if there are none."""
    for signature, read in _FORMATS:
        if head.startswith(signature):
            try:
                found = read(head)
            except (struct.error, IndexError):  # the head ends too early
                return None
            return found if found is not None and min(found) > 0 else None
    return None


def _png(head: bytes) -> Pixels | None:
    width, height = struct.unpack_from(">II", head, 16)
    return (width, height) if head[12:16] == b"IHDR" else None


def _gif(head: bytes) -> Pixels | None:
    width, height = struct.unpack_from("<HH", head, 6)
    return (width, height) if head[4:6] in (b"7a", b"9a") else None


def _webp(head: bytes) -> Pixels | None:
    form = head[8:16]
    if form == b"WEBPVP8X":
        packed = int.from_bytes(_exactly(head, 24, 6), "little")
        return 1 + (packed & 0xFFFFFF), 1 + (packed >> 24)
    if form == b"WEBPVP8L" and head[20] == 0x2F:
        packed = int.from_bytes(_exactly(head, 21, 4), "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    if form == b"WEBPVP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg(head: bytes) -> Pixels | None:
    at = 2
    for _ in range(_SEGMENTS):
        if head[at] != 0xFF:
            return None
        marker = head[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 5)
            return width, height
        elif 0xD8 <= marker <= 0xDA:  # the image begins again, ends, or its data begin
            return None
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:  # a marker without a segment
            at += 2
        else:
            (length,) = struct.unpack_from(">H", head, at + 2)
            if length < 2:
                return None
            at += 2 + length
    return None


def _exactly(head: bytes, start: int, count: int) -> bytes:
    if len(head) < start + count:
        raise IndexError(start)
    return head[start : start + count]


_FORMATS: tuple[tuple[bytes, Callable[[bytes], Pixels | None]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"GIF8", _gif),
    (b"RIFF", _webp),
)
