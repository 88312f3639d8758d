"""Send requests over raw connections, and note how each ended.

Contains: a client of HTTP/1.1 with a pool of connections. Must not depend on: bodies, expected answers.
The client knows the local port of each connection, by which the harness finds the worker that served it. Libraries
hide that port for a failed request.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

PATH = "/serving-endpoints/chat/completions"


@dataclass(slots=True)
class Answer:
    """How one request ended. `status` is 0 where no answer began; `complete` is True if it came to its end."""

    began: float = 0.0
    ended: float = 0.0
    port: int = 0
    status: int = 0
    complete: bool = False
    number: str = ""
    body: bytes = b""
    error: str = ""


class _Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.port: int = writer.get_extra_info("sockname")[1]

    @property
    def usable(self) -> bool:
        return not (self.reader.at_eof() or self.reader.exception() or self.writer.is_closing())

    async def ask(self, message: bytes, answer: Answer) -> bool:
        """Exchange one request and answer; return whether the connection can serve another."""
        self.writer.write(message)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        answer.status, answer.number = int(lines[0].split(" ")[1]), headers.get("x-chaos-request", "")
        if "chunked" in headers.get("transfer-encoding", ""):
            while size := int(await self.reader.readline() or b"?", 16):
                answer.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            answer.body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        answer.complete = True
        return headers.get("connection") != "close"


class Client:
    """Clients of one server: as many connections as concurrent requests."""

    def __init__(self, port: int, deadline: float) -> None:
        self._port, self._deadline = port, deadline
        self._idle: list[_Wire] = []

    async def ask(self, message: bytes, leave_after: float | None = None) -> Answer:
        """Send a request and wait for its answer, at most until the deadline. Never raises, however the request ends.

        With `leave_after` the client closes the connection after so many seconds, as an impatient one does.
        """
        answer, wire, kept = Answer(began=time.time()), None, False
        patience = self._deadline if leave_after is None else leave_after
        try:
            async with asyncio.timeout(patience):
                wire = await self._connected()
                answer.port = wire.port
                kept = await wire.ask(message, answer)
        except TimeoutError:
            answer.error = "deadline" if leave_after is None else "left"
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            answer.error = type(error).__name__
        answer.ended = time.time()
        if wire is not None and kept:
            self._idle.append(wire)
        elif wire is not None:
            wire.writer.transport.abort()
        return answer

    async def _connected(self) -> _Wire:
        while self._idle:
            if (wire := self._idle.pop()).usable:
                return wire
            wire.writer.transport.abort()
        return _Wire(*await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20))

    def close(self) -> None:
        """End all connections."""
        for wire in self._idle:
            wire.writer.transport.abort()
        self._idle.clear()


def message(headers: dict[str, str], body: bytes, path: str = PATH) -> bytes:
    """Return a request as it goes over the wire."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{''.join(lines)}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
