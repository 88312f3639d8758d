"""Read the usage of an answer while its bytes pass.

Contains: `UsageReader`, decoded bytes in and usage out. Must not depend on: I/O, clients, proxies, HTTP. The integration
shows it each chunk and forwards that chunk unchanged. It reads server-sent events and plain JSON alike; the first byte
decides, since hosts do not always label them.
"""

from __future__ import annotations

from typing import Any

import orjson

from cachemw.core.billing.usage import merge_chunk

MAX_EVENT = 1 << 20
"""Bytes of one event beyond which it is skipped: usage comes in small events."""
MAX_BODY = 8 << 20
"""Bytes of a JSON answer beyond which its usage is given up."""
# Parsing an event costs the reader this many bytes of a credit, to which each byte of the answer adds one. A stream of
# many smaller events, which no host sends, uses up the credit, and further events are skipped.
_EVENT, _CREDIT = 128, 128 * 1_000
# An event without any of these tokens has no usage, and does not end the stream.
_TOKENS = (b'"usage"', b'"message_stop"', b"[DONE]")


class UsageReader:
    """Find the last usage in the bytes of one answer.

    `feed` takes decoded bytes cut anywhere; `finish` reads an event that no line end has closed. Afterwards (and for a
    broken stream at any time) `answer` is `{"model": ..., "usage": ...}`, or None if there was no usage. Gateways that
    repeat the usage in every chunk count their tokens once: later usage replaces earlier. `done` is True if the stream
    announced its own end, `too_large` if skipped bytes may have held usage. Malformed input is skipped, never an error.
    The work is proportional to the bytes, however they are cut into chunks, lines and events.
    """

    def __init__(self) -> None:
        self.done = False
        self.too_large = False
        self._usage: object = None
        self._model: str | None = None
        self._body: list[bytes] | None = None
        self._started = False
        self._after_cr = False
        self._open = bytearray()  # the event that no blank line has ended, its line ends as "\n"
        self._size = 0  # of the open event, or of the body
        self._ended_line = False
        self._credit = _CREDIT

    @property
    def answer(self) -> dict[str, Any] | None:
        """Return model and usage in the shape of a response, or None if there was no usage."""
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
            self._events(chunk)
        elif self._fits(chunk, MAX_BODY):
            self._body.append(chunk)

    def finish(self) -> None:
        """Read the event, or the JSON body, that no line end has closed."""
        if self._body is None:
            self._end_event(b"")
        elif self._body:
            whole = b"".join(self._body)
            self._body = []
            self._take(whole)

    def _events(self, chunk: bytes) -> None:
        """Find the ends of events, and read those that hold a token."""
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        if not chunk:
            self._after_cr = False
            return
        self._credit += len(chunk)
        self._after_cr = chunk.endswith(b"\r")
        text = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        first = 0 if self._ended_line and text.startswith(b"\n") else text.find(b"\n\n")
        last = text.rfind(b"\n\n") if first >= 0 else -1
        if first >= 0:
            self._end_event(text[:first])
            if last > first:
                self._complete(text[first:last])
            text = text[max(last + 2, first + 1) :]
        if self._fits(text, MAX_EVENT):
            self._open += text
        self._ended_line = text.endswith(b"\n") if text else first >= 0

    def _complete(self, text: bytes) -> None:
        """Read those of some complete events that hold a token."""
        found: list[int] = []
        for token in _TOKENS:
            at = text.find(token)
            while at >= 0:
                found.append(at)
                at = text.find(token, at + len(token))
        end = 0
        for at in sorted(found):
            if at >= end:
                start = max(text.rfind(b"\n\n", end, at), end)
                end = text.find(b"\n\n", at)
                end = len(text) if end < 0 else end
                self._event(text[start:end])

    def _fits(self, more: bytes, most: int) -> bool:
        self._size += len(more)
        if self._size <= most:
            return True
        self.too_large = True
        self._open.clear()
        if self._body:
            self._body.clear()
        return False

    def _end_event(self, rest: bytes) -> None:
        if self._fits(rest, MAX_EVENT):
            self._event(bytes(self._open + rest))
        self._open.clear()
        self._size = 0

    def _event(self, text: bytes) -> None:
        """Read the data of one event."""
        if len(text) > MAX_EVENT:
            self.too_large = True
            return
        if not (b'"usage"' in text or b'"message_stop"' in text or b"[DONE]" in text):
            return
        self._credit -= _EVENT
        if self._credit < 0:
            self.too_large = True
            return
        lines = [line[5:].removeprefix(b" ") for line in text.split(b"\n") if line.startswith(b"data:")]
        data = b"\n".join(lines)
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
        self._usage = merge_chunk(self._usage, found)
        message = found.get("message")
        model = found.get("model") or (message.get("model") if isinstance(message, dict) else None)
        if isinstance(model, str):
            self._model = model
