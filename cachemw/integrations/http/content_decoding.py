"""Decode a content-encoding chunk by chunk, to read the usage of an answer on its way to the client.

Contains: the decoders. Must not depend on: the content of the bytes. gzip and deflate are always available; br and zstd
if a library for them is installed, the same libraries that httpx and httpx2 use.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeAlias

Feed: TypeAlias = Callable[[bytes], Iterator[bytes]]

PIECE = 1 << 20
"""Bytes that are decoded at once: a small chunk can decode to a huge one."""
CHUNK, RATIO = 1 << 20, 64
"""Decoded bytes that any chunk may give, and those that each of its bytes may add. Streams that repeat their usage in
each event shrink to a 41st with gzip if they are compressed as a whole, and less if compressed event by event."""
MOST = 64 << 20
"""Decoded bytes of one answer."""
MEMBERS = 4_096
"""Members or frames, each compressed by itself, of one answer: each costs some microseconds, however short."""
_STAGES = 3
# The bytes after the end of a member are copied for the next, so slices are short. 256 bytes of zstd can give 8 MB.
_SLICE = 256
# RFC 9659: no more may be needed for zstd as a content-encoding.
_ZSTD_WINDOW_LOG = 23


class BudgetError(Exception):
    """An answer gives more decoded bytes or members than its size can explain, or than one answer may."""


class _Budget:
    """Count down the bytes and members that one answer may still have, in all of its encodings together."""

    def __init__(self) -> None:
        self._bytes, self._of_chunk, self._members = MOST, 0, MEMBERS

    def begin_chunk(self, size: int) -> None:
        self._of_chunk = CHUNK + RATIO * size

    def spend(self, piece: bytes) -> None:
        self._bytes -= len(piece)
        self._of_chunk -= len(piece)
        if self._bytes < 0 or self._of_chunk < 0:
            raise BudgetError

    def begin_member(self) -> None:
        self._members -= 1
        if self._members < 0:
            raise BudgetError


class Decoder:
    """Decode the bytes of one answer; `content_encoding` is the header's value, "" for none.

    Raises `LookupError` for an encoding without a decoder. `feed` raises `BudgetError`, or the library's own exception
    on malformed input; after either, the decoder is of no further use.
    """

    def __init__(self, content_encoding: str = "") -> None:
        names = [name.strip().lower() for name in content_encoding.split(",", _STAGES)]
        if len(names) > _STAGES:
            raise LookupError("too many content-encodings")
        self._budget = _Budget()
        self._stages = [_OPEN[name](self._budget) for name in reversed(names) if name not in ("", "identity")]

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Decode the next bytes of the answer, and yield the result in pieces."""
        self._budget.begin_chunk(len(chunk))
        return _through(self._stages, self._budget, chunk)


def readable() -> list[str]:
    """Return the content-encodings that have a decoder, for an `accept-encoding` header."""
    found = []
    for name, opened in _OPEN.items():
        with suppress(LookupError):
            opened(_Budget())
            found.append(name)
    return found


def _through(stages: list[Feed], budget: _Budget, chunk: bytes) -> Iterator[bytes]:
    if not stages:
        yield chunk
        return
    for start in range(0, len(chunk), _SLICE):
        for piece in stages[0](chunk[start : start + _SLICE]):
            budget.spend(piece)
            yield from _through(stages[1:], budget, piece)


def _gzip(budget: _Budget) -> Feed:
    return _members(budget, lambda: zlib.decompressobj(zlib.MAX_WBITS | 16))


def _deflate(budget: _Budget) -> Feed:
    """Decode zlib's format, which "deflate" should be, or the bare one, which it often is, by the first bytes."""
    head = b""
    inner: Feed | None = None

    def feed(chunk: bytes) -> Iterator[bytes]:
        nonlocal head, inner
        if inner is None:
            head += chunk
            if len(head) < 2:
                return
            chunk = head
            zlibs = head[0] & 15 == 8 and int.from_bytes(head[:2], "big") % 31 == 0
            inner = _members(budget, lambda: zlib.decompressobj(zlib.MAX_WBITS if zlibs else -zlib.MAX_WBITS))
        yield from inner(chunk)

    return feed


def _members(budget: _Budget, opened: Callable[[], Any]) -> Feed:
    """Decode members one after the other, each with a decompressor of zlib's or zstd's interface."""
    decoder: Any = None

    def feed(chunk: bytes) -> Iterator[bytes]:
        nonlocal decoder
        piece = b""
        while chunk or len(piece) == PIECE:  # a full piece may not be the last one
            if decoder is None or decoder.eof:
                if not chunk:
                    return
                budget.begin_member()
                decoder = opened()
            piece = decoder.decompress(chunk, PIECE)
            if piece:
                yield piece
            chunk = decoder.unused_data if decoder.eof else getattr(decoder, "unconsumed_tail", b"")

    return feed


def _brotli(_budget: _Budget) -> Feed:
    decoder: Any = _library("brotli").Decompressor()

    def feed(chunk: bytes) -> Iterator[bytes]:
        while piece := decoder.process(chunk, output_buffer_limit=PIECE):
            yield piece
            chunk = b""

    return feed


def _zstd(budget: _Budget) -> Feed:
    library = _library("compression.zstd", "backports.zstd", "zstandard")
    if library.__name__ == "zstandard":
        whole = library.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG)
        return _members(budget, lambda: _Unbounded(whole.decompressobj()))
    options = {library.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return _members(budget, lambda: library.ZstdDecompressor(options=options))


class _Unbounded:
    """Give a decompressor of `zstandard`, which does not bound its output, the interface of zlib's."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decoder.unused_data)

    def decompress(self, chunk: bytes, _most: int) -> bytes:
        return bytes(self._decoder.decompress(chunk)) if chunk else b""


def _library(*names: str) -> Any:
    for name in names:
        with suppress(ImportError):
            return import_module(name)
    raise LookupError(names[-1])


_OPEN: dict[str, Callable[[_Budget], Feed]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
