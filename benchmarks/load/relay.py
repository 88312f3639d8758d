"""Relay TCP connections to other ports until the relay is to partition them.

    python -m benchmarks.load.relay 7001:6001 7002:6002

Contains: one relay for each pair of ports. Must not depend on: the relayed bytes. A line on stdin sets the mode: `pass`,
`refuse` closes every connection, and each new one at once; `blackhole` keeps them open and lets no byte through.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

import uvloop


class Relay:
    """Relays in one mode."""

    def __init__(self) -> None:
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._open: set[asyncio.StreamWriter] = set()

    def set(self, mode: str) -> None:
        """Set the mode of all relays."""
        self._refusing = mode == "refuse"
        (self._passing.clear if mode == "blackhole" else self._passing.set)()
        if self._refusing:
            for writer in self._open:
                writer.transport.abort()

    async def serve(self, port: int, target: int) -> None:
        """Relay connections from one port to another."""

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._relayed(reader, writer, target)

        server = await asyncio.start_server(one, "127.0.0.1", port)
        await server.serve_forever()

    async def _relayed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: int) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self._open.add(writer)
        with suppress(OSError):
            await self._passing.wait()
            there, back = await asyncio.open_connection("127.0.0.1", target)
            self._open.add(back)
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
            self._open.discard(back)
            back.close()
        self._open.discard(writer)
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


async def _main(pairs: list[str]) -> None:
    relay, loop = Relay(), asyncio.get_running_loop()

    def command() -> None:
        if line := sys.stdin.readline():
            relay.set(line.strip())
        else:
            loop.remove_reader(sys.stdin)

    loop.add_reader(sys.stdin, command)
    await asyncio.gather(*(relay.serve(*map(int, pair.split(":"))) for pair in pairs))


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1:]))
