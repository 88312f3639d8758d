"""The usage reader: events and JSON in any cut, endless or broken, and the last usage."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.integrations.http import sse_usage
from cachemw.integrations.http.sse_usage import UsageReader
from tests.work import lines_run, peak_memory

FIRST = {"prompt_tokens": 5000, "completion_tokens": 1}
LAST = {"prompt_tokens": 5000, "completion_tokens": 9, "cache_read_input_tokens": 4000}


def _data(value: Any) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _chunk(usage: Any, text: str = "hi") -> dict[str, Any]:
    return {"model": "m", "choices": [{"delta": {"content": text}}], "usage": usage}


def _read(raw: bytes, *cuts: int) -> UsageReader:
    reader = UsageReader()
    edges = [0, *sorted(cuts), len(raw)]
    for start, end in itertools.pairwise(edges):
        reader.feed(raw[start:end])
    reader.finish()
    return reader


STREAM = (
    ": ping\n\nevent: chunk\n"
    + _data(_chunk(FIRST))
    + _data(_chunk(LAST, "é\r"))
    + _data(_chunk(None))
    + "data: [DONE]\n\n"
)


@pytest.mark.parametrize(
    ("raw", "usage", "done"),
    [
        (STREAM, LAST, True),
        (STREAM.replace("\n", "\r\n"), LAST, True),
        (STREAM.replace("\n", "\r"), LAST, True),
        (_data(_chunk(LAST)).rstrip(), LAST, False),
        (_data(_chunk(LAST)).replace("data: ", "data:"), LAST, False),
        ('data: {"usage":\ndata: {"prompt_tokens": 3}}\n\n', {"prompt_tokens": 3}, False),
        (_data(_chunk(LAST)) + 'data: {"usage": broken\n\ndata: "usage"\n\ndata: ["usage"]\n\n', LAST, False),
        (_data({"error": {"message": "no"}}), None, False),
        (_data(_chunk(None)) + _data({"text": 'say "usage" to me'}), None, False),
        (_data({"type": "message_start", "message": {"model": "m", "usage": LAST}}), LAST, False),
        (json.dumps(_chunk(LAST)), LAST, False),
        ("\n " + json.dumps(_chunk(LAST), indent=1), LAST, False),
        (json.dumps(_chunk(LAST))[:-1], None, False),
        (json.dumps({"choices": []}), None, False),
        ("", None, False),
        ("<html>usage</html>", None, False),
    ],
)
def test_usage_is_read_from_any_form_of_an_answer(raw: str, usage: dict[str, Any] | None, done: bool) -> None:
    """The last usage counts, with any line ends and shapes; unreadable parts are skipped."""
    reader = _read(raw.encode())
    assert (reader.answer or {}).get("usage") == usage
    assert reader.done is done


def test_answer_has_the_model() -> None:
    """The answer names the model that served it."""
    assert _read(STREAM.encode()).answer == {"model": "m", "usage": LAST}


@given(
    st.sampled_from(
        [STREAM, STREAM.replace("\n", "\r\n"), STREAM.replace("\n", "\r"), json.dumps(_chunk(LAST))]
    ),
    st.lists(st.integers(0, 500), max_size=40),
)
def test_usage_of_an_answer_in_any_cut_is_the_same(raw: str, cuts: list[int]) -> None:
    """Chunks may be cut anywhere, also inside a character or a line end."""
    whole = _read(raw.encode())
    cut = _read(raw.encode(), *(cut for cut in cuts if cut <= len(raw.encode())))
    assert (cut.answer, cut.done) == (whole.answer, whole.done)


@given(st.lists(st.binary(max_size=30), max_size=20))
def test_noise_is_read_without_usage_or_error(noise: list[bytes]) -> None:
    """Bytes that are no answer are read without an error and without usage."""
    reader = UsageReader()
    for chunk in noise:
        reader.feed(chunk)
    reader.finish()
    assert reader.answer is None


@pytest.mark.parametrize("piece", [b"x" * 4096, b"data: x\n"])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    """An endless line or event is dropped, not kept, and the usage after it is still found."""
    monkeypatch.setattr(sse_usage, "MAX_EVENT", 100_000)
    reader = UsageReader()
    reader.feed(b"data: ")
    for _ in range(20):
        for _ in range(50_000 // len(piece)):
            reader.feed(piece)
        assert len(reader._open) <= 100_000
    assert reader.too_large
    reader.feed(b"\n\n" + _data(_chunk(LAST)).encode())
    assert reader.answer == {"model": "m", "usage": LAST}


def test_json_answer_over_the_limit_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JSON answer over the limit settles without usage and is not kept."""
    monkeypatch.setattr(sse_usage, "MAX_BODY", 1000)
    raw = json.dumps(_chunk(LAST, "x" * 2000)).encode()
    reader = UsageReader()
    for start in range(0, len(raw), 100):
        reader.feed(raw[start : start + 100])
    assert not reader._body
    assert reader.too_large
    reader.finish()
    assert reader.answer is None


USAGE = _data(_chunk(LAST)).encode()


@pytest.mark.parametrize(
    "answer",
    [
        b"data: " + b"x" * 400_000,
        b"\n" * 400_000,
        b"\r\n" * 200_000,
        b"data: x\n\n" * 40_000,
        b"data: x\n" * 40_000,
        b"\n\n" * 100_000 + b'data: "usage"' + b"\n\n" * 100_000,
    ],
    ids=["one line", "blank lines", "CRLF", "tiny events", "one event", "one token"],
)
def test_lines_run_for_an_answer_in_one_chunk_do_not_grow_with_its_lines(answer: bytes) -> None:
    """Lines without a token are searched by the interpreter's own code, with no Python line for each."""
    reader = UsageReader()
    assert lines_run(lambda: reader.feed(b"data: x\n" + answer + b"\n\n" + USAGE)) < 300
    assert reader.answer == {"model": "m", "usage": LAST}


@pytest.mark.parametrize(
    "piece",
    [b"x", b"\n", b"\r", b"data: x\n\n", b'data: "usage"\n\n', b'data: {"usage": {}}\n\n', USAGE, b'"usage"'],
)
def test_lines_run_for_many_chunks_grow_with_the_chunks(piece: bytes) -> None:
    """Twice the chunks run twice the lines, as pieces of one event or as one event each."""

    def read(count: int) -> int:
        reader = UsageReader()
        reader.feed(b"data: ")
        return lines_run(lambda: [reader.feed(piece) for _ in range(count)])

    assert read(2_000) < 2.2 * read(1_000)


@pytest.mark.parametrize(
    "piece", [b'data: "usage"\n\n', b'data: {"usage": {}}\n\n', b'"usage"', b'"usage"\n', b"data:\n", USAGE]
)
def test_lines_run_for_many_tokens_in_one_chunk_grow_with_the_tokens(piece: bytes) -> None:
    """Twice the events that hold a token run twice the lines, also in one chunk."""

    def read(count: int) -> int:
        reader = UsageReader()
        return lines_run(lambda: reader.feed(b"data: x\n" + piece * count))

    assert read(2_000) < 2.2 * read(1_000)


def test_memory_for_an_answer_of_blank_lines_is_a_few_times_its_size() -> None:
    """A chunk of line ends makes no object for each of them."""
    reader = UsageReader()
    answer = b"data: x" + b"\n" * 1_000_000
    assert peak_memory(lambda: reader.feed(answer)) < 4 * len(answer)
