"""Content-encodings are undone however the bytes are cut, and never without bound."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from cachemw.integrations import decoding
from cachemw.integrations.decoding import Decoder, readable

TEXT = b"".join(b'data: {"usage": {"prompt_tokens": %d}}\n\n' % n for n in range(400))


def _bare(text: bytes) -> bytes:
    packed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packed.compress(text) + packed.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "none": ("", bytes),
    "identity": ("identity", bytes),
    "gzip": ("gzip", gzip.compress),
    "gzip, two members": ("GZIP", lambda text: gzip.compress(text[:99]) + gzip.compress(text[99:])),
    "deflate": ("deflate", zlib.compress),
    "deflate, bare": ("deflate", _bare),
    "br": ("br", brotli.compress),
    "zstd": ("zstd", zstandard.compress),
    "zstd, two frames": (
        "zstd",
        lambda text: zstandard.compress(text[:99]) + zstandard.compress(text[99:]),
    ),
    "one in another": ("gzip, br", lambda text: brotli.compress(gzip.compress(text))),
}


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("case", PACKED)
def test_undone_however_it_is_cut(case: str, size: int) -> None:
    """What was packed comes out, whatever the chunks."""
    encoding, pack = PACKED[case]
    packed, decoder = pack(TEXT), Decoder(encoding)
    chunks = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert b"".join(piece for chunk in chunks for piece in decoder.feed(chunk)) == TEXT


def test_the_older_library_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zstandard is read by `zstandard` where neither Python nor the backport has it."""
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    packed, decoder = zstandard.compress(TEXT) * 2, Decoder("zstd")
    chunks = [packed[start : start + 5] for start in range(0, len(packed), 5)]
    assert b"".join(piece for chunk in chunks for piece in decoder.feed(chunk)) == TEXT * 2


def test_what_there_is_no_library_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoding without its library, or of no known name, is a `LookupError`; `readable` leaves it out."""
    assert readable() == ["gzip", "x-gzip", "deflate", "br", "zstd"]
    monkeypatch.setitem(sys.modules, "brotli", None)
    for encoding in ("br", "compress", "gzip, br"):
        with pytest.raises(LookupError):
            Decoder(encoding)
    assert readable() == ["gzip", "x-gzip", "deflate", "zstd"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd"])
def test_a_small_answer_that_holds_a_huge_one(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Pieces are bounded, and so is all that is looked at."""
    monkeypatch.setattr(decoding, "PIECE", 100_000)
    monkeypatch.setattr(decoding, "MOST", 1_050_000)
    decoder = Decoder(encoding)
    pieces = list(decoder.feed(PACKED[encoding][1](bytes(3_000_000))))
    assert 800_000 < sum(map(len, pieces)) <= 1_050_000
    assert max(map(len, pieces)) <= 400_000
    assert list(decoder.feed(b"")) == []


@pytest.mark.parametrize("case", [case for case in PACKED if case not in ("none", "identity", "zstd")])
def test_nothing_is_lost_at_the_edge_of_a_piece(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """What is as long as some pieces, or nearly, comes out to its end, though its last bytes went in long before."""
    monkeypatch.setattr(decoding, "PIECE", 5_000)
    encoding, pack = PACKED[case]
    for size in (*range(4_900, 5_300), *range(9_900, 10_300)):
        text = b"A" * size
        assert b"".join(Decoder(encoding).feed(pack(text))) == text, size


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_malformed_bytes_raise(encoding: str) -> None:
    """What is no such format raises, on whatever chunk that shows."""
    decoder = Decoder(encoding)
    with pytest.raises(Exception, match=r".+"):
        list(decoder.feed(b'{"usage": {"prompt_tokens": 1}}' * 9))
