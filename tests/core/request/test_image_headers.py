"""Width and height from the heads of real images, and from heads that an attacker wrote."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cachemw.core.request.image_headers import HEAD, pixels, read_pixels
from cachemw.core.request.tokens import image_size
from tests.work import lines_run, peak_memory

# Pillow 13 wrote these heads, of images of 1037 by 223 pixels. Each ends two bytes after its size.
QUANTISED = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwcKDcpLDAxNDQ0Hyc5PTgyPC4zNDL/"
REAL = {
    "png": "iVBORw0KGgoAAAANSUhEUgAABA0AAADfCAI=",
    "jpeg, CMYK": "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwAIBgYHBgUIBwcHCQkICgwUDQwLCwwZEhMPFB0aHx4dGhwcICQuJyAiLCMcHCg3KSwwMTQ0NB8nOT04MjwuMzQy/8AAFAgA3wQN",
    "jpeg, grey": QUANTISED + "wAALCADfBA0B",
    "jpeg, progressive": QUANTISED + "wgALCADfBA0B",
    "gif": "R0lGODdhDQTfAIIA",
    "webp, lossy": "UklGRuoBAABXRUJQVlA4IN4BAACwNACdASoNBN8APm0=",
    "webp, lossless": "UklGRjIAAABXRUJQVlA4TCYAAAAvDIQ3AAdQ",
    "webp, lossless with alpha": "UklGRjIAAABXRUJQVlA4TCYAAAAvDIQ3EAdQ",
    "webp, alpha": "UklGRiACAABXRUJQVlA4WAoAAAAQAAAADAQA3gAAQUw=",
    "webp, animated": "UklGRl7mAQBXRUJQVlA4WAoAAAACAAAADAQA3gAAQU4=",
}
OTHERS = {
    "tiff": "SUkqAAgAAAAKAAABBAABAAAADQQAAAEBBAABAAAA3wAAAAIBAwADAA==",
    "bmp": "Qk0OlwoAAAAAADYAAAAoAAAADQQAAN8AAAABABgAAAAAANiWCgDEDg==",
    "avif": "AAAAIGZ0eXBhdmlmAAAAAGF2aWZtaWYxbWlhZk1BMUIAAADrbWV0YQ==",
    "jpeg 2000": "AAAADGpQICANCocKAAAAFGZ0eXBqcDIgAAAAAGpwMiAAAAAtanAyaA==",
    "svg": base64.b64encode(b"<svg width='1037' height='223'/>").decode(),
}
SIZE = (1037, 223)


def segment(marker: int, payload: bytes) -> bytes:
    """Return one JPEG segment."""
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(payload)) + payload


FRAME = segment(0xC0, b"\x08" + struct.pack(">HH", SIZE[1], SIZE[0]) + b"\x03")
START = b"\xff\xd8"


def heif_bomb(items: int) -> bytes:
    """Return an HEIF image whose item table announces 65,535 extents of no bytes for each item."""

    def box(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I4s", 8 + len(payload), kind) + payload

    table = bytes([2, 0, 0, 0, 0, 0]) + struct.pack(">I", items)
    table += b"".join(struct.pack(">IHHH", item, 0, 0, 65535) for item in range(items))
    return box(b"ftyp", b"heic\0\0\0\0heic") + box(b"meta", b"\0\0\0\0" + box(b"iloc", table))


def boundless_fill() -> bytes:
    """Return a JPEG that holds fill bytes only."""
    return START + b"\xff" * HEAD


def boundless_segments() -> bytes:
    """Return a JPEG of as many empty segments as fit."""
    return START + segment(0xE1, b"") * (HEAD // 4)


@pytest.mark.parametrize("name", REAL)
def test_pixels_of_a_real_image_are_its_width_and_height(name: str) -> None:
    """Each format that providers accept is read, from no more bytes than its header has."""
    assert pixels(REAL[name]) == SIZE
    head = base64.b64decode(REAL[name])
    assert read_pixels(head + bytes(1000)) == SIZE


@pytest.mark.parametrize("name", REAL)
def test_pixels_of_a_truncated_header_are_unknown(name: str) -> None:
    """A header that ends before its last byte gives no size, wherever it ends."""
    head = base64.b64decode(REAL[name])
    found = [read_pixels(head[:length]) for length in range(len(head) + 1)]
    assert found[-1] == SIZE
    assert set(found) == {None, SIZE}
    assert found.index(SIZE) >= len(head) - 9


@pytest.mark.parametrize("name", OTHERS)
def test_pixels_of_another_format_are_unknown(name: str) -> None:
    """A format that no provider accepts has no size, so the largest one counts."""
    assert pixels(OTHERS[name]) is None
    assert image_size(OTHERS[name]) == 1600


@pytest.mark.parametrize(
    "head",
    [
        START + segment(0xE0, b"JFIF") + FRAME,
        START + segment(0xE1, bytes(30_000)) + segment(0xDB, bytes(65)) + FRAME,
        START + segment(0xE2, bytes(300)) * 100 + FRAME,
        START + b"\xff\xff\xff" + FRAME,
        START + b"\xff\x01\xff\xd0" + FRAME,
        START + segment(0xC4, bytes(40)) + FRAME,
        START + FRAME.replace(b"\xc0", b"\xcf", 1),
    ],
)
def test_pixels_of_a_jpeg_skip_segments_before_the_frame(head: bytes) -> None:
    """Segments, fill bytes and markers without a segment may stand before a JPEG's frame header."""
    assert read_pixels(head) == SIZE


@pytest.mark.parametrize(
    "head",
    [
        START,
        START + b"\0" + FRAME,
        START + segment(0xDA, b"") + FRAME,
        START + b"\xff\xd9" + FRAME,
        START + b"\xff\xe0\0\0" + FRAME,
        START + b"\xff\xe0\0\1" + FRAME,
        START + b"\xff\xe0\xff\xff" + FRAME,
        START + segment(0xE2, b"") * 200 + FRAME,
        FRAME,
        START + segment(0xC0, b"\x08" + struct.pack(">HH", 0, 100)),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIDAT" + struct.pack(">II", *SIZE),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 0, 5),
        b"GIF88a" + struct.pack("<HH", *SIZE),
        b"GIF89a" + struct.pack("<HH", 5, 0),
        b"RIFF\0\0\0\0WAVEVP8X" + bytes(14),
        b"RIFF\0\0\0\0WEBPVP8?" + bytes(14),
        b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2e" + bytes(14),
        b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0" + bytes(14),
    ],
)
def test_pixels_of_a_malformed_header_are_unknown(head: bytes) -> None:
    """A header that contradicts its format gives no size."""
    assert read_pixels(head) is None


@pytest.mark.parametrize("text", ["", "A", "=", "====", "not base64!", "\ud800", "é", "AAAA" * HEAD])
def test_pixels_of_a_text_that_is_no_image_are_unknown(text: str) -> None:
    """Any text may stand in the place of an image."""
    assert pixels(text) is None


def test_pixels_of_wrapped_base64_are_read() -> None:
    """Base64 that was wrapped into lines has the size that it has in one line."""
    assert pixels(base64.encodebytes(base64.b64decode(REAL["jpeg, grey"])).decode()) == SIZE


@pytest.mark.parametrize(
    "image",
    [
        heif_bomb(100),
        heif_bomb(3500),
        boundless_fill(),
        boundless_segments(),
        START + b"\xff\x01" * HEAD,
        b"RIFF" + b"\xff" * HEAD,
        b"\x89PNG\r\n\x1a\n" + b"\xff" * HEAD,
    ],
    ids=["heif", "heif, large", "fill bytes", "segments", "markers", "webp", "png"],
)
def test_work_on_a_hostile_image_is_bounded(image: bytes) -> None:
    """No image, however it was made, costs more than a few hundred lines and its own head's memory."""
    text = base64.b64encode(image).decode()
    assert lines_run(lambda: image_size(text)) < 1_500
    assert peak_memory(lambda: image_size(text)) < 4 * HEAD


@given(
    st.binary(max_size=120),
    st.sampled_from([b"", *(base64.b64decode(head)[:24] for head in REAL.values()), START]),
)
@example(b"", b"RIFF\0\0\0\0WEBPVP8L")
def test_pixels_of_any_bytes_are_positive_or_unknown(rest: bytes, head: bytes) -> None:
    """Arbitrary bytes give two positive numbers or none, and raise nothing."""
    found = read_pixels(head + rest)
    assert found is None or min(found) > 0
    assert pixels(base64.b64encode(head + rest).decode()) == found


@given(st.text(max_size=80))
def test_pixels_of_any_text_raise_nothing(text: str) -> None:
    """Arbitrary text is an image of unknown size, or of a positive one."""
    found = pixels(text)
    assert found is None or min(found) > 0
