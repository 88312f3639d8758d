"""Undo a content-encoding chunk by chunk, for whoever only looks at an answer that passes.

Lives here: which decoders there are. Must not know: what is in the bytes. gzip and deflate are always
there; br and zstd where a library for them is installed, the ones that httpx and httpx2 use too.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeAlias

Feed: TypeAlias = Callable[[bytes], Iterator[bytes]]

PIECE = 1 << 20
"""Bytes that are decoded at once: a small answer can hold a huge one."""
MOST = 64 << 20
"""Decoded bytes of one answer beyond which nothing more is looked at."""


class Decoder:
    """Decode the bytes of one answer; `content_encoding` is the header's value, "" for none.

    Raises `LookupError` for an encoding that can't be undone here, and in `feed` whatever the library
    raises on malformed input.
    """

    def __init__(self, content_encoding: str = "") -> None:
        names = [name.strip().lower() for name in content_encoding.split(",")]
        self._stages = [_OPEN[name]() for name in reversed(names) if name not in ("", "identity")]
        self._left = MOST

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what the next bytes of the answer decode to, in pieces."""
        if not self._stages:
            yield chunk
            return
        for piece in _through(self._stages, chunk):
            self._left -= len(piece)
            if self._left < 0:
                return
            yield piece


def readable() -> list[str]:
    """Return the content-encodings that can be undone here, for an `accept-encoding` of one's own."""
    found = []
    for name, opened in _OPEN.items():
        with suppress(LookupError):
            opened()
            found.append(name)
    return found


def _through(stages: list[Feed], chunk: bytes) -> Iterator[bytes]:
    if not stages:
        yield chunk
        return
    for piece in stages[0](chunk):
        yield from _through(stages[1:], piece)


def _zlib(*windows: int) -> Feed:
    """Decode by the first of these window sizes that the bytes are taken by."""
    first, *others = windows
    decoder = zlib.decompressobj(first)
    head = b""  # what was read before anything came out

    def feed(chunk: bytes) -> Iterator[bytes]:
        nonlocal decoder, head
        piece = b""
        while chunk or len(piece) == PIECE:  # a full piece may not be all that was decoded
            if decoder.eof:  # another member follows
                decoder = zlib.decompressobj(first)
            if others:
                head += chunk
            try:
                piece = decoder.decompress(chunk, PIECE)
            except zlib.error:
                if not others:
                    raise
                decoder = zlib.decompressobj(others.pop())
                piece = decoder.decompress(head, PIECE)
            if piece:
                others.clear()
                yield piece
            chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail

    return feed


def _brotli() -> Feed:
    decoder: Any = _library("brotli").Decompressor()

    def feed(chunk: bytes) -> Iterator[bytes]:
        while piece := decoder.process(chunk, output_buffer_limit=PIECE):
            yield piece
            chunk = b""

    return feed


def _zstd() -> Feed:
    library = _library("compression.zstd", "backports.zstd", "zstandard")
    if library.__name__ == "zstandard":
        whole: Any = library.ZstdDecompressor().decompressobj(read_across_frames=True)
        return lambda chunk: iter([whole.decompress(chunk)])
    decoder: Any = library.ZstdDecompressor()

    def feed(chunk: bytes) -> Iterator[bytes]:
        nonlocal decoder
        while chunk or not (decoder.eof or decoder.needs_input):
            if decoder.eof:  # another frame follows
                decoder = library.ZstdDecompressor()
            if piece := decoder.decompress(chunk, PIECE):
                yield piece
            chunk = decoder.unused_data if decoder.eof else b""

    return feed


def _library(*names: str) -> Any:
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise LookupError(names[-1])


_OPEN: dict[str, Callable[[], Feed]] = {
    "gzip": lambda: _zlib(zlib.MAX_WBITS | 16),
    "x-gzip": lambda: _zlib(zlib.MAX_WBITS | 16),
    # "deflate" should be zlib's format and often is the bare one.
    "deflate": lambda: _zlib(zlib.MAX_WBITS, -zlib.MAX_WBITS),
    "br": _brotli,
    "zstd": _zstd,
}
