"""Recorded files: both formats as requests, and one sentence about each line with neither format."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from cachemw.apps.demo.conversations import bodies, read
from cachemw.errors import ConfigError

USER = {"role": "user", "content": "Where is it?"}
ASSISTANT = {"role": "assistant", "content": "Here."}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
TALK = {"id": "1", "family": "talk", "tools": [TOOL], "messages": [USER, ASSISTANT, USER, ASSISTANT, USER]}
BODY = {"model": "claude-sonnet-4-6", "messages": [USER], "max_tokens": 5}


def written(path: Path, *lines: Any) -> Path:
    """Write lines, objects as JSON, and return the path."""
    texts = [line if isinstance(line, bytes) else orjson.dumps(line) for line in lines]
    path.write_bytes(b"\n".join(texts))
    return path


def test_conversation_has_a_request_before_each_answer(tmp_path: Path) -> None:
    """Request k holds the tools and the messages before the k-th assistant message."""
    (talk,) = read(written(tmp_path / "a.jsonl", TALK), default="some-model")
    assert talk.family == "talk"
    assert talk.requests == (
        {"model": "some-model", "tools": [TOOL], "messages": [USER]},
        {"model": "some-model", "tools": [TOOL], "messages": [USER, ASSISTANT, USER]},
    )


def test_empty_answer_ends_a_request(tmp_path: Path) -> None:
    """An assistant message without content stands for an answer that was not recorded."""
    silent = {"family": "one", "tools": [], "messages": [USER, {"role": "assistant", "content": ""}]}
    (talk,) = read(written(tmp_path / "a.jsonl", silent), default="m")
    assert talk.requests == ({"model": "m", "messages": [USER]},)


def test_gzip_file_with_blank_lines_is_read(tmp_path: Path) -> None:
    """A .gz file reads like the plain file, and blank lines are skipped."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(orjson.dumps(TALK) + b"\n\n  \n" + orjson.dumps(TALK) + b"\n"))
    assert len(read(path, default="m")) == 2


def test_bodies_keep_their_model_and_keys(tmp_path: Path) -> None:
    """A request body is unchanged; a given model replaces its own."""
    path = written(tmp_path / "a.jsonl", BODY, BODY)
    assert [talk.requests for talk in read(path, default="m")] == [(BODY,), (BODY,)]
    assert read(path, "other")[0].requests == ({**BODY, "model": "other"},)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([b'{"id"'], "line 1: expected a JSON object, got unexpected end"),
        ([TALK, b"\xff\xfe"], "line 2: expected a JSON object, got"),
        ([b"NaN"], "line 1: expected a JSON object, got"),
        ([b"[" * 100_000], "line 1: expected a JSON object, got"),
        ([BODY, b"", [1]], "line 3: expected a JSON object, got a list"),
        ([{"a": 1}], "line 1: expected a conversation (id, family, messages) or a request body (model, mess"),
        ([{"a": 1}], "got an object with the keys: a"),
        ([{}], "got an object with the keys: none"),
        ([{**BODY, "id": "1"}], "line 1: expected a conversation"),
        (
            [TALK, BODY],
            "line 2: expected a conversation (id, family, messages) like the lines before, got a req",
        ),
        ([BODY, TALK], "line 2: expected a request body (model, messages) like the lines before, got a conv"),
        ([{**BODY, "model": 5}], "line 1: expected model to be a string, got a number"),
        ([{**BODY, "messages": {}}], "line 1: expected messages to be a list of objects, got an object"),
        ([{**BODY, "messages": []}], "line 1: expected messages to hold at least one, got an empty list"),
        ([{**BODY, "messages": ["x"]}], "line 1: expected messages[0] to be an object, got a string"),
        (
            [{**BODY, "messages": [{"role": "bot"}]}],
            "expected messages[0].role to be one of system, developer",
        ),
        ([{**BODY, "messages": [{"role": ""}]}], "assistant, tool, got an empty string"),
        (
            [{**BODY, "messages": [{**USER, "content": 1}]}],
            "expected messages[0].content to be a list of obj",
        ),
        (
            [{**BODY, "messages": [{**USER, "content": [None]}]}],
            "messages[0].content[0] to be an object, got null",
        ),
        ([{**BODY, "messages": [{**ASSISTANT, "tool_calls": 1}]}], "messages[0].tool_calls to be a list"),
        ([{**BODY, "tools": "x"}], "line 1: expected tools to be a list of objects, got a string"),
        ([{**TALK, "tools": [True]}], "line 1: expected tools[0] to be an object, got a boolean"),
        ([{**TALK, "family": None}], "line 1: expected family to be a string, got null"),
        (
            [{**TALK, "messages": [USER]}],
            "line 1: expected an assistant message after the first message, got none",
        ),
        (
            [{**TALK, "messages": [ASSISTANT]}],
            "line 1: expected an assistant message after the first message",
        ),
        ([], "line 1: expected a conversation"),
        ([], "got the end of the file"),
    ],
)
def test_wrong_line_is_named_with_the_expected_format(tmp_path: Path, lines: list[Any], words: str) -> None:
    """The error has the file, the line, the expected and the found value."""
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path / "some.jsonl", *lines), default="m")
    assert str(caught.value).startswith("some.jsonl line ")
    assert words in str(caught.value)


def test_error_about_a_line_quotes_no_prompt(tmp_path: Path) -> None:
    """The sentence about a wrong line holds kinds and keys only."""
    secret = {**BODY, "messages": [{"role": "my secret role", "content": "my secret"}]}
    with pytest.raises(ConfigError) as caught:
        read(written(tmp_path / "a.jsonl", secret))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"no gzip", gzip.compress(b"{}" * 99, mtime=0)[:-9], b"\x1f\x8b\x08" + b"\x99" * 40]
)
def test_damaged_gzip_file_is_a_config_error(tmp_path: Path, raw: bytes) -> None:
    """A file that cannot be decompressed is bad input."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"a\.jsonl\.gz: the file cannot be read: it is no gzip file"):
        read(path)


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "No such file"), (".", "Is a directory")])
def test_missing_file_is_a_config_error(tmp_path: Path, name: str, words: str) -> None:
    """A missing file and a directory are bad input."""
    with pytest.raises(ConfigError, match=words):
        read(tmp_path / name)


def test_bodies_are_read_from_one_object_or_from_lines(tmp_path: Path) -> None:
    """A single body may span many lines; several bodies stand on one line each."""
    path = tmp_path / "a.json"
    path.write_bytes(orjson.dumps(BODY, option=orjson.OPT_INDENT_2))
    assert bodies(path) == [BODY]
    assert bodies(written(tmp_path / "b.jsonl", BODY, BODY)) == [BODY, BODY]


@pytest.mark.parametrize("line", [TALK, [BODY], 3, b'{"model"'])
def test_line_that_is_no_body_is_a_config_error(tmp_path: Path, line: Any) -> None:
    """Conversations, lists and broken JSON are no request bodies."""
    with pytest.raises(ConfigError, match=r"^a\.json.*: expected a (request body|JSON object)"):
        bodies(written(tmp_path / "a.json", line))
