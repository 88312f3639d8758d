"""Content-encodings are undone however the bytes are cut, and never without bound."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard

from cachemw.integrations.http import content_decoding
from cachemw.integrations.http.content_decoding import CHUNK, MEMBERS, RATIO, BudgetError, Decoder, readable
from tests.work import lines_run, peak_memory

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
def test_packed_bytes_in_any_cut_are_decoded(case: str, size: int) -> None:
    """The decoded bytes equal the original, with any chunks."""
    encoding, pack = PACKED[case]
    packed, decoder = pack(TEXT), Decoder(encoding)
    chunks = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert b"".join(piece for chunk in chunks for piece in decoder.feed(chunk)) == TEXT


def test_zstandard_is_decoded_by_the_older_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zstandard is read by `zstandard` if neither Python nor the backport has it."""
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    packed, decoder = zstandard.compress(TEXT) * 2, Decoder("zstd")
    chunks = [packed[start : start + 5] for start in range(0, len(packed), 5)]
    assert b"".join(piece for chunk in chunks for piece in decoder.feed(chunk)) == TEXT * 2


def test_encoding_without_a_library_is_a_lookup_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown encoding, or one without its library, is a `LookupError`; `readable` omits it."""
    assert readable() == ["gzip", "x-gzip", "deflate", "br", "zstd"]
    monkeypatch.setitem(sys.modules, "brotli", None)
    for encoding in ("br", "compress", "gzip, br"):
        with pytest.raises(LookupError):
            Decoder(encoding)
    assert readable() == ["gzip", "x-gzip", "deflate", "zstd"]


@pytest.fixture(params=["", "older library"])
def libraries(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Zstandard read by each of its libraries."""
    if request.param:
        for name in ("compression.zstd", "backports.zstd"):
            monkeypatch.setitem(sys.modules, name, None)


def _decoded(decoder: Decoder, chunk: bytes) -> tuple[int, bool]:
    """Return how many bytes a chunk gave, and whether it was over the budget."""
    count = 0
    try:
        for piece in decoder.feed(chunk):
            count += len(piece)
    except BudgetError:
        return count, True
    return count, False


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_decoder_of_a_bomb_stops_at_the_budget_of_its_chunk(encoding: str) -> None:
    """A chunk gives no more than its size can explain, in memory of a few pieces."""
    bomb = PACKED[encoding][1](bytes(12 << 20))[:16_384]
    decoder = Decoder(encoding)
    found: list[tuple[int, bool]] = []
    assert peak_memory(lambda: found.append(_decoded(decoder, bomb))) < 12 << 20
    assert found[0][0] <= CHUNK + RATIO * len(bomb)
    assert found[0][1]


def test_decoder_of_a_long_answer_stops_at_the_budget_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budget of an answer holds over its chunks, and all of the budget can be used."""
    monkeypatch.setattr(content_decoding, "MOST", 1_000_000)
    packed, decoder = gzip.compress(TEXT * 100, mtime=0), Decoder("gzip")
    found = [_decoded(decoder, packed[start : start + 100]) for start in range(0, len(packed), 100)]
    stopped = [over for _, over in found].index(True)
    assert stopped > 0
    assert 900_000 < sum(count for count, _ in found[: stopped + 1]) <= 1_000_000


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("encoding", "member"),
    [
        ("gzip", gzip.compress(b"", mtime=0)),
        ("gzip", gzip.compress(b"x", mtime=0)),
        ("deflate", zlib.compress(b"")),
        ("zstd", zstandard.compress(b"")),
        ("zstd", b"\x50\x2a\x4d\x18\0\0\0\0"),  # a frame to be skipped
    ],
)
def test_work_on_many_members_is_bounded_and_linear(encoding: str, member: bytes) -> None:
    """Twice the members in one chunk run twice the lines, without copies; too many end the reading."""

    def run(count: int) -> int:
        decoder = Decoder(encoding)
        return lines_run(lambda: list(decoder.feed(member * count)))

    assert run(MEMBERS) < 2.2 * run(MEMBERS // 2)
    assert _decoded(Decoder(encoding), member * MEMBERS)[1] is False
    assert _decoded(Decoder(encoding), member * (MEMBERS + 1))[1] is True


def test_bytes_given_to_zlib_for_many_members_grow_with_the_members(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes after the end of a member are given again to the next, but never all remaining bytes."""
    given, opened = 0, zlib.decompressobj

    class Counting:
        """Count the bytes that a decompressor gets."""

        def __init__(self, window: int) -> None:
            self._real = opened(window)

        def decompress(self, chunk: bytes, most: int) -> bytes:
            nonlocal given
            given += len(chunk)
            return self._real.decompress(chunk, most)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    monkeypatch.setattr(zlib, "decompressobj", Counting)
    members = gzip.compress(b"", mtime=0) * MEMBERS
    assert list(Decoder("gzip").feed(members)) == []
    assert len(members) < given < 16 * len(members)


def test_decoder_of_more_encodings_than_hosts_use_is_refused() -> None:
    """A long list of encodings is refused, and none of them is opened."""
    packed = TEXT
    for _ in range(3):
        packed = gzip.compress(packed)
    assert b"".join(Decoder("gzip, gzip, gzip").feed(packed)) == TEXT
    with pytest.raises(LookupError):
        Decoder(", ".join(["gzip"] * 4))
    with pytest.raises(LookupError):
        Decoder("gzip," * 100_000)


def test_budget_counts_the_output_of_inner_encodings() -> None:
    """An answer whose outermost encoding hides a bomb from the inner ones is over the budget."""
    empties = zlib.compress(gzip.compress(b"", mtime=0) * 4_000_000)
    assert _decoded(Decoder("gzip, deflate"), empties)[1] is True


@pytest.mark.parametrize("text", [b"", b"x", TEXT, bytes(range(256)) * 50])
@pytest.mark.parametrize("level", range(-1, 10))
def test_deflate_of_either_form_is_told_apart_by_its_first_bytes(text: bytes, level: int) -> None:
    """Every level of zlib's own format and of the bare one is recognised, byte by byte."""
    for window in (zlib.MAX_WBITS, 9, -zlib.MAX_WBITS, -9):
        packing = zlib.compressobj(level, zlib.DEFLATED, window)
        packed, decoder = packing.compress(text) + packing.flush(), Decoder("deflate")
        found = [piece for byte in packed for piece in decoder.feed(bytes([byte]))]
        assert b"".join(found) == text


@pytest.mark.parametrize("case", [case for case in PACKED if case not in ("none", "identity", "zstd")])
def test_bytes_at_the_edge_of_a_piece_are_decoded(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Answers about as long as some pieces are decoded to their end."""
    monkeypatch.setattr(content_decoding, "PIECE", 5_000)
    encoding, pack = PACKED[case]
    for size in (*range(4_900, 5_300), *range(9_900, 10_300)):
        text = b"A" * size
        assert b"".join(Decoder(encoding).feed(pack(text))) == text, size


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_malformed_bytes_raise_an_exception(encoding: str) -> None:
    """Bytes of another format raise, at any chunk that shows it."""
    decoder = Decoder(encoding)
    with pytest.raises(Exception, match=r".+"):
        list(decoder.feed(b'{"usage": {"prompt_tokens": 1}}' * 9))
