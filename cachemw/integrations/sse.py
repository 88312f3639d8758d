"""Read the usage out of an answer while its bytes pass by.

Here lives `UsageReader`: decoded bytes in, usage out. It does no I/O, holds nothing back, and must not
know clients, proxies or HTTP: whoever passes an answer on shows it each chunk and forwards that chunk as
it came. It reads server-sent events and plain JSON alike, told apart by the first byte, since hosts do not
always label them.
"""

from __future__ import annotations

from typing import Any

import orjson

from cachemw.core.usage import fold

MAX_EVENT = 1 << 20
"""Bytes of one event beyond which it is skipped: usage comes in small ones."""
MAX_BODY = 16 << 20
"""Bytes of a JSON answer beyond which its usage is given up."""


class UsageReader:
    """Find the last usage in the bytes of one answer.

    `feed` takes decoded bytes cut anywhere; `finish` takes up what no line end closed. Afterwards (and for a
    broken stream at any time) `answer` is `{"model": ..., "usage": ...}`, or None where no usage was seen.
    Gateways that repeat the usage in every chunk count their tokens once: later usage replaces earlier.
    `done` says that the stream announced its own end. Nothing raises on malformed input: it is passed over.
    """

    def __init__(self) -> None:
        self.done = False
        self._usage: object = None
        self._model: str | None = None
        self._body: list[bytes] | None = None
        self._started = False
        self._after_cr = False
        self._line = bytearray()
        self._event: list[bytes] = []
        self._size = 0

    @property
    def answer(self) -> dict[str, Any] | None:
        """Return model and usage as a response would hold them, None where there was no usage."""
        return None if self._usage is None else {"model": self._model, "usage": self._usage}

    def feed(self, chunk: bytes) -> None:
        """Read one chunk of the decoded answer."""
        if not self._started:
            chunk = chunk.lstrip()
            if not chunk:
                return
            self._started = True
            self._body = [] if chunk.startswith(b"{") else None
        if self._body is None:
            self._lines(chunk)
        elif self._fits(chunk, MAX_BODY):
            self._body.append(chunk)

    def finish(self) -> None:
        """Take up what the last line end left open."""
        if self._body is not None:
            whole = b"".join(self._body)
            self._body = []
            self._take(whole)
        else:
            self._end_line()
            self._end_event()

    def _lines(self, chunk: bytes) -> None:
        for piece in chunk.splitlines(keepends=True):
            second_half = self._after_cr and piece == b"\n"
            self._after_cr = piece.endswith(b"\r")
            if second_half:
                continue
            text = piece.rstrip(b"\r\n")
            if self._fits(text, MAX_EVENT):
                self._line += text
            if len(text) < len(piece):
                self._end_line()

    def _fits(self, more: bytes, most: int) -> bool:
        self._size += len(more)
        if self._size <= most:
            return True
        self._line.clear()
        self._event.clear()
        if self._body:
            self._body.clear()
        return False

    def _end_line(self) -> None:
        line = bytes(self._line)
        self._line.clear()
        if not line:
            self._end_event()
        elif line.startswith(b"data:"):
            self._event.append(line[5:].removeprefix(b" "))
        else:
            self._size -= len(line)

    def _end_event(self) -> None:
        data = b"\n".join(self._event)
        self._event.clear()
        self._size = 0
        if data.startswith(b"[DONE]"):
            self.done = True
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        if b'"usage"' not in data and b'"message_stop"' not in data:
            return
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            return
        if not isinstance(found, dict):
            return
        if found.get("type") == "message_stop":  # Anthropic's last event
            self.done = True
            return
        self._usage = fold(self._usage, found)
        message = found.get("message")
        model = found.get("model") or (message.get("model") if isinstance(message, dict) else None)
        if isinstance(model, str):
            self._model = model
