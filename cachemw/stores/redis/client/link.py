"""Calls to Redis in any topology: commands in, replies out, within a deadline.

Contains: a call as a whole, sync and async. Must not depend on: key names, scripts, the store.

The client sends the commands of a call to all servers before it reads the first reply. It sends a command
again only if the server refused to run it: a command whose reply was lost may have been counted.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cachemw.stores.redis.client.routes import MAX_REDIRECTS, CommandBatch
from cachemw.stores.redis.client.servers import AsyncClusterNodes, ClusterNodes
from cachemw.stores.redis.commands import Command
from cachemw.stores.url import target

# Seconds. TCP sends a lost first packet again after one.
CONNECT_PATIENCE = 2.0
# The number of parts in which the deadline of an async call is counted, see `_bounded`.
_PARTS = 10


class RedisClient:
    """Send commands to the servers of a URL. Any number of threads may use one.

    `url` is one that `cachemw.stores.url` accepts. The first call opens the first connection. If a connection
    is not open before the deadline of a call, a background thread continues to open it; `connect_patience` in
    seconds bounds each of its waits. If `clustered` is True, a command may name keys of one slot only. The
    commands of a call must be
    independent: a command that was redirected runs after the rest.
    """

    def __init__(self, url: str, *, connect_patience: float = CONNECT_PATIENCE) -> None:
        self._target, self._patience = target(url), connect_patience
        self.clustered = self._target.kind == "cluster"
        self._reset()

    def _reset(self) -> None:
        self._servers = ClusterNodes(self._target, self._patience)
        self._process = os.getpid()

    def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Return the replies in order, within `seconds`. A refused command's reply is its `ResponseError`.

        Raises the error of redis-py, of the network or `TimeoutError` if a reply is missing.
        """
        if self._process != os.getpid():
            # A forked child has copies of its parent's sockets and must not send over them.
            self._reset()
        servers, call, deadline = self._servers, CommandBatch(commands), time.monotonic() + seconds
        for _ in range(MAX_REDIRECTS):
            groups = servers.grouped(call.pending, deadline, seconds)
            for refusal, address in call.answered(groups, servers.send(groups, deadline, seconds)):
                servers.note(refusal, address)
            if not call.pending:
                break
        return call.replies

    def close(self) -> None:
        """Close all connections. A later call opens its own connection and closes it at its end."""
        if self._process == os.getpid():
            self._servers.close()


class AsyncRedisClient:
    """`RedisClient` for the tasks of one event loop at a time.

    The deadline counts only seconds in which the event loop was able to run the call, see `_bounded`.
    """

    def __init__(self, url: str, *, connect_patience: float = CONNECT_PATIENCE) -> None:
        self._target, self._patience = target(url), connect_patience
        self.clustered = self._target.kind == "cluster"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: AsyncClusterNodes

    async def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """See `RedisClient.execute`."""
        # Connections belong to the loop that opened them, so another `asyncio.run` needs its own.
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._servers = (
                asyncio.get_running_loop(),
                AsyncClusterNodes(self._target, self._patience),
            )
        servers, call = self._servers, CommandBatch(commands)
        async with _bounded(seconds) as limit:
            for _ in range(MAX_REDIRECTS):
                groups = await servers.grouped(call.pending, limit, seconds)
                for refusal, address in call.answered(groups, await servers.send(groups, limit, seconds)):
                    await servers.note(refusal, address)
                if not call.pending:
                    break
        return call.replies

    async def close(self) -> None:
        """See `RedisClient.close`."""
        if self._loop is asyncio.get_running_loop():
            await self._servers.close()


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Raise `TimeoutError` if the block takes longer than `seconds`, not counting a busy loop.

    After a long busy period, a plain timeout would expire although the reply had arrived. So the time is
    counted in parts, and each part counts once, however late the loop sees its end.
    """
    loop, left = asyncio.get_running_loop(), _PARTS
    timer: asyncio.TimerHandle

    def count() -> None:
        nonlocal left, timer
        left -= 1
        if left:
            timer = loop.call_later(seconds / _PARTS, count)
        else:
            limit.reschedule(loop.time())

    async with asyncio.timeout(None) as limit:
        timer = loop.call_later(seconds / _PARTS, count)
        try:
            yield limit
        finally:
            timer.cancel()
