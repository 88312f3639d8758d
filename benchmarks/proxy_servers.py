"""The servers that the proxy is measured against, each a process of its own: an upstream, and bare pass-throughs.

    python -m benchmarks.proxy_servers upstream 9000
    python -m benchmarks.proxy_servers httpx2 9001 http://127.0.0.1:9000
    python -m benchmarks.proxy_servers aiohttp 9002 http://127.0.0.1:9000

Contains: their answers. Must not depend on: the measurements. A bare pass-through is a starlette route that reads the
body, sends it on by the named client, and streams the answer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import httpx2
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

MODEL = "databricks-claude-sonnet-4-6"
ANSWER = (
    b'{"id":"c1","object":"chat.completion","created":1,"model":"%s","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"At nine."},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,"completion_tokens":3,'
    b'"total_tokens":1003,"cache_read_input_tokens":0,"cache_creation_input_tokens":0}}' % MODEL.encode()
)
STREAM = b'"stream":true'
PARTS, GAP = 40, 0.1  # parts of a stream: their number, and seconds between two
PART = (
    b'data: {"id":"c1","object":"chat.completion.chunk","created":1,"model":"%s","choices":[{"index":0,"delta":'
    b'{"content":"%s"}}],"usage":{"prompt_tokens":1000,"completion_tokens":3}}\n\n'
    % (MODEL.encode(), b"word " * 50)
)
_HOP = {"host", "connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "content-length"}


class Upstream(asyncio.Protocol):
    """Answer every request at once, and one with `"stream":true` in parts over some seconds."""

    def connection_made(self, transport: Any) -> None:
        """Begin a connection."""
        self.transport = transport
        self.head = self.tail = b""
        self.left = -1
        self.streams = False

    def data_received(self, data: bytes) -> None:
        """Answer once a request is complete."""
        if self.left < 0:
            self.head += data
            head, found, body = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            _, _, length = head.lower().partition(b"content-length:")
            self.left = int(length.partition(b"\r\n")[0] or 0)
            data = body
        self.left -= len(data)
        self.streams = self.streams or STREAM in self.tail + data
        self.tail = data[-len(STREAM) :]
        if self.left <= 0:
            streams, self.head, self.tail, self.left, self.streams = self.streams, b"", b"", -1, False
            if streams:
                self.streaming = asyncio.ensure_future(self.stream())
            else:
                kind = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                self.transport.write(kind + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    async def stream(self) -> None:
        """Send the parts of a stream."""
        kind = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        self.transport.write(kind + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(PARTS):
            if self.transport.is_closing():
                return
            self.transport.write(b"%x\r\n" % len(PART) + PART + b"\r\n")
            await asyncio.sleep(GAP)
        self.transport.write(b"0\r\n\r\n")


def _client(library: str) -> Any:
    """Return a client without limits on connections and times."""
    if library == "aiohttp":
        return aiohttp.ClientSession(
            auto_decompress=False, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout()
        )
    return httpx2.AsyncClient(trust_env=False, timeout=None, limits=httpx2.Limits(max_connections=None))


def bare(library: str, upstream: str) -> Starlette:
    """Return a pass-through on starlette and an HTTP client."""

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.client = await stack.enter_async_context(_client(library))
            yield

    async def by_httpx2(request: Request) -> StreamingResponse:
        body = await request.body()
        headers = [pair for pair in request.headers.items() if pair[0] not in _HOP]
        url = upstream + request.url.path
        client: httpx2.AsyncClient = request.app.state.client
        answer = await client.send(
            client.build_request(request.method, url, headers=headers, content=body), stream=True
        )

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()

        kept = {k: v for k, v in answer.headers.items() if k not in _HOP}
        return StreamingResponse(parts(), answer.status_code, kept)

    async def by_aiohttp(request: Request) -> StreamingResponse:
        body = await request.body()
        headers = [pair for pair in request.headers.items() if pair[0] not in _HOP]
        answer = await request.app.state.client.request(
            request.method, upstream + request.url.path, headers=headers, data=body
        )

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in answer.content.iter_any():
                    yield part
            finally:
                answer.release()

        kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
        return StreamingResponse(parts(), answer.status, kept)

    async def ready(_request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    pass_on = by_aiohttp if library == "aiohttp" else by_httpx2
    routes = [Route("/readyz", ready), Route("/{path:path}", pass_on, methods=["POST"])]
    return Starlette(routes=routes, lifespan=life)


async def _serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    server, port, *upstream = sys.argv[1:]
    if server == "upstream":
        uvloop.run(_serve(int(port)))
    else:
        uvicorn.run(bare(server, upstream[0]), port=int(port), log_level="warning", access_log=False)
