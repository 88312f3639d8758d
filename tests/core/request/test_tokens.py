"""Sizes, their calibration by usage, and tiktoken's counts."""

from __future__ import annotations

import base64
import importlib.util
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.request.tokens import Calibration, estimate, image_size, load_counter
from cachemw.core.rules.types import Kind


def png(width: int, height: int) -> str:
    """Return the head of a PNG of this size, as base64."""
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x06"
    ).decode()


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.IMAGE])
def test_estimate_is_proportional_to_bytes(kind: Kind) -> None:
    """A size is proportional to the bytes, two to five bytes a token."""
    assert estimate(kind, 0) == 0
    assert estimate(kind, 2000) == 2 * estimate(kind, 1000)
    assert 200 < estimate(kind, 1000) < 500


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [(750, 1, 1), (200, 150, 40), (1000, 750, 1000), (1092, 1092, 1589.952), (4000, 3000, 1600)],
)
def test_image_size_follows_pixels(width: int, height: int, tokens: float) -> None:
    """The size is width times height over 750, up to that of a scaled-down image."""
    assert image_size(png(width, height)) == pytest.approx(tokens)


@pytest.mark.parametrize(
    "data",
    [
        "",
        "A",
        "====",
        "not base64 at all!",
        "\ud800",
        "é",
        png(0, 5),
        png(5, 5)[:20],
        "R0lGODlh",
        "AAAA" * 20_000,
    ],
)
def test_unreadable_image_has_the_largest_size(data: str) -> None:
    """A text that is no head of an image has the largest size."""
    assert image_size(data) == 1600


@given(
    st.binary(max_size=80),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"II*\x00", b"<svg width='", b"RIFF\x24\0\0\0WEBPVP8 "]),
)
def test_any_image_has_a_bounded_size(data: bytes, head: bytes) -> None:
    """Any bytes have a size within the bounds."""
    assert 0 < image_size(base64.b64encode(head + data).decode()) <= 1600


def test_first_usage_sets_the_scale() -> None:
    """One answer sets the scale, for any assumed one."""
    for start in ("old", "new", "openai"):
        assert Calibration.start(start).learn(1000, 1300).scale == pytest.approx(1.3)
    assert Calibration.start("new").scale > Calibration.start("old").scale > Calibration.start("openai").scale


def test_usage_that_agrees_narrows_the_spread() -> None:
    """Each answer that fits the estimate lowers the spread, never below its floor."""
    calibration = Calibration.start("old")
    seen = [calibration.spread]
    for _ in range(60):
        calibration = calibration.learn(1000, 1100)
        seen.append(calibration.spread)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 0.03
    assert calibration.scale == pytest.approx(1.1)
    assert calibration.count == 60


def test_usage_that_disagrees_widens_the_spread() -> None:
    """A content that is counted otherwise raises the spread, never above its first value."""
    calibration = Calibration(1.0, 0.03, 50)
    for tokens in (1500, 700, 1500, 700, 1500, 700, 1500, 700):
        calibration = calibration.learn(1000, tokens)
    assert 0.2 < calibration.spread <= 0.3


def test_drift_of_the_scale_is_followed() -> None:
    """A hundred answers later an old scale is forgotten."""
    calibration = Calibration.start("old")
    for tokens in [1000] * 100 + [1300] * 100:
        calibration = calibration.learn(1000, tokens)
    assert calibration.scale == pytest.approx(1.3, abs=0.01)


@pytest.mark.parametrize(("size", "tokens"), [(49, 1000), (1000, 49), (0, 0), (0, 1000)])
def test_tiny_request_teaches_nothing(size: float, tokens: int) -> None:
    """A request that is mostly overhead says nothing about text."""
    calibration = Calibration.start("old")
    assert calibration.learn(size, tokens) is calibration


@given(st.lists(st.tuples(st.floats(0, 1e9), st.integers(0, 10**9)), max_size=30))
def test_calibration_after_any_answers_is_bounded(answers: list[tuple[float, int]]) -> None:
    """No answer takes the scale or the spread out of bounds."""
    calibration = Calibration.start("new")
    for size, tokens in answers:
        calibration = calibration.learn(size, tokens)
        assert 0.1 <= calibration.scale <= 10
        assert 0.03 <= calibration.spread <= 0.3


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tiktoken find its encodings in a package that ships them, never on the network."""
    found = importlib.util.find_spec("llama_index")
    places = list(found.submodule_search_locations or ()) if found else []
    folders = [folder for place in places if (folder := Path(place) / "core/_static/tiktoken_cache").is_dir()]
    if not folders:
        pytest.skip("llama-index-core, which ships tiktoken's encodings, is not installed")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folders[0]))


@pytest.mark.usefixtures("encodings")
@pytest.mark.parametrize("text", [" " * 1_000_000, "a" * 300_000, "é" * 120_001])
def test_counter_survives_monotonous_texts(text: str) -> None:
    """Texts on which the encoder itself overflows its stack are counted in pieces."""
    assert 0 < load_counter()(text) < len(text.encode())


@pytest.mark.usefixtures("encodings")
def test_counter_scales_exact_counts() -> None:
    """The counter gives sizes: exact counts of the encoding, times the factor of Claude's tokenizer."""
    counter = load_counter()
    text = "The quick brown fox jumps over the lazy dog. <|endoftext|> " * 50
    import tiktoken

    exact = len(tiktoken.get_encoding("o200k_base").encode_ordinary(text))
    assert counter(text) == round(exact * 1.2)
    assert counter("") == 0
    assert counter(text) == pytest.approx(estimate(Kind.TEXT, len(text)), rel=0.4)


@pytest.mark.usefixtures("encodings")
def test_counter_with_a_text_up_to_the_limit_counts_every_character() -> None:
    """A text of up to 65,536 characters is counted whole: its parts neither overlap nor leave a gap."""
    counter = load_counter()
    for length in (8_192, 8_193, 40_000, 65_535, 65_536):
        words = ("word " * length)[:length]
        assert counter(words) == pytest.approx(1.2 * length / 5, rel=0.01)
        marked = "1" * (length // 2) + words[: length - length // 2]
        assert counter(marked) > counter(words)


@pytest.mark.usefixtures("encodings")
@pytest.mark.parametrize("size", [70_000, 1_000_000, 20_000_000])
def test_counter_with_a_long_text_encodes_eight_parts_of_it(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work does not grow with the text, the estimate does, and all places of the text count."""
    import tiktoken

    encoded: list[str] = []
    encoding = tiktoken.get_encoding("o200k_base")

    class Watched:
        def encode_ordinary(self, text: str) -> list[int]:
            encoded.append(text)
            return encoding.encode_ordinary(text)

    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: Watched())
    text = ("The quick brown fox jumps over the lazy dog. " * (size // 45 + 1))[:size]
    assert load_counter()(text) == pytest.approx(1.2 * size / 4.5, rel=0.02)
    assert sum(map(len, encoded)) == 65_536
    encoded.clear()
    load_counter()("a" * (size // 2) + "b" * (size // 2))
    assert sum("a" in part for part in encoded) == sum("b" in part for part in encoded) == 4


def test_counter_that_cannot_load_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of tiktoken's loading is raised to the caller, off the request path."""
    import tiktoken

    def refuse(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setattr(tiktoken, "get_encoding", refuse)
    with pytest.raises(ConnectionError):
        load_counter()
