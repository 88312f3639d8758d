"""Read recorded conversations and request bodies from files with one JSON object a line.

Contains: the two formats and the errors about a line that has neither. Must not depend on: the use of the
requests, their times. Errors name keys and kinds of values; they never quote a value.

A conversation is `{"id", "family", "tools", "messages"}`. The messages before each of its assistant messages
are one request, and that message is the recorded answer (empty if none was recorded). A request body is
`{"model", "messages", ...}` as sent to chat completions. All lines of a file have the same format; a file may
be compressed (`.gz`).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from cachemw.errors import ConfigError
from cachemw.simulation.traffic import Body, Conversation, turns

_ROLES = ("system", "developer", "user", "assistant", "tool")
_CONVERSATION = "a conversation (id, family, messages)"
_BODY = "a request body (model, messages)"


def read(path: Path, model: str | None = None, default: str = "") -> list[Conversation]:
    """Return the conversations of a file; each request body becomes one of the family "requests".

    `model` replaces the model of every request. `default` is the model of conversations, which name none.
    Raises `ConfigError` with the line and the expected format.
    """
    found: list[Conversation] = []
    kinds: set[str] = set()
    for where, value in _lines(path, _load(path)):
        kind = _kind(value, where)
        if kinds - {kind}:
            raise _wrong(where, f"{kinds.pop()} like the lines before", kind)
        kinds.add(kind)
        if kind == _BODY:
            body = value if model is None else {**value, "model": model}
            found.append(Conversation("requests", (_body(body, where),)))
        else:
            found.append(_conversation(value, where, model or default))
    if not found:
        raise _wrong(f"{path.name} line 1", f"{_CONVERSATION} or {_BODY}", "the end of the file")
    return found


def bodies(path: Path) -> list[Body]:
    """Return the request bodies of a file: one on each line, or a single one over many lines.

    Raises `ConfigError`.
    """
    raw = _load(path)
    try:
        values = iter([(path.name, orjson.loads(raw))])
    except orjson.JSONDecodeError:
        values = _lines(path, raw)
    found = []
    for where, value in values:
        if (kind := _kind(value, where)) != _BODY:
            raise _wrong(where, _BODY, kind)
        found.append(_body(value, where))
    return found


def _load(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "it is no gzip file, or it is damaged"
        raise ConfigError(f"{path}: the file cannot be read: {reason}") from None


def _lines(path: Path, raw: bytes) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each line; blank lines are skipped."""
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            where = f"{path.name} line {number}"
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise _wrong(where, "a JSON object", f"{error.msg} (column {error.colno})") from None
            yield where, value


def _kind(value: Any, where: str) -> str:
    if not isinstance(value, dict):
        raise _wrong(where, "a JSON object", _named(value))
    if "messages" in value and "model" in value and not value.keys() & {"id", "family"}:
        return _BODY
    if "messages" in value and "family" in value and "model" not in value:
        return _CONVERSATION
    keys = ", ".join(str(key)[:30] for key in list(value)[:8]) or "none"
    raise _wrong(where, f"{_CONVERSATION} or {_BODY}", f"an object with the keys: {keys}")


def _conversation(value: Mapping[str, Any], where: str, model: str) -> Conversation:
    family = value["family"]
    if not isinstance(family, str):
        raise _wrong(where, "family to be a string", _named(family))
    tools = _objects(value.get("tools") or [], "tools", where)
    requests = turns(model, _messages(value["messages"], where), tools)
    if not requests:
        raise _wrong(where, "an assistant message after the first message", "none")
    return Conversation(family, requests)


def _body(value: Mapping[str, Any], where: str) -> Body:
    if not isinstance(value["model"], str):
        raise _wrong(where, "model to be a string", _named(value["model"]))
    _messages(value["messages"], where)
    _objects(value.get("tools") or [], "tools", where)
    return value


def _messages(value: Any, where: str) -> list[Mapping[str, Any]]:
    messages = _objects(value, "messages", where)
    if not messages:
        raise _wrong(where, "messages to hold at least one", "an empty list")
    for index, message in enumerate(messages):
        at, content = f"messages[{index}]", message.get("content")
        if message.get("role") not in _ROLES:
            raise _wrong(where, f"{at}.role to be one of {', '.join(_ROLES)}", _named(message.get("role")))
        if content is not None and not isinstance(content, str):
            _objects(content, f"{at}.content", where)
        _objects(message.get("tool_calls") or [], f"{at}.tool_calls", where)
    return messages


def _objects(value: Any, name: str, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise _wrong(where, f"{name} to be a list of objects", _named(value))
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise _wrong(where, f"{name}[{index}] to be an object", _named(item))
    return value


def _named(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if isinstance(value, str) and not value:
        return "an empty string"
    return kinds.get(type(value), "a number")


def _wrong(where: str, expected: str, got: str) -> ConfigError:
    return ConfigError(f"{where}: expected {expected}, got {got}")
