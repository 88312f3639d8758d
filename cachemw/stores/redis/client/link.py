"""Calls to Redis, whatever its topology: commands in, replies out, within a time.

Lives here: a call as a whole, sync and async. Must not know: key names, scripts, what a store is.

A call's commands are sent together, to every server that it takes, before any answer is read. Nothing is sent
twice, except where a server said that it did not run it: a call whose answer was lost may have been counted.
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

# Longer than it takes until a first packet that was lost is sent again.
CONNECT_PATIENCE = 2.0
# In so many parts is an async call's time counted, see `_bounded`.
_PARTS = 10


class RedisClient:
    """Reach what a URL names; any number of threads may call at once.

    `url` is one that `cachemw.stores.url` lets pass. Nothing is connected before the first call. A connection
    that a call did not get in time goes on being opened in the background, each wait of it bounded by
    `connect_patience` seconds. `clustered` says that no command may name keys of two slots. Commands of one
    call must not build on each other: one that a server did not run at once is run after the others.
    """

    def __init__(self, url: str, *, connect_patience: float = CONNECT_PATIENCE) -> None:
        self._target, self._patience = target(url), connect_patience
        self.clustered = self._target.kind == "cluster"
        self._reset()

    def _reset(self) -> None:
        self._servers = ClusterNodes(self._target, self._patience)
        self._process = os.getpid()

    def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """Return the replies in order, a server's refusal (`ResponseError`) in a reply's place, within `seconds`.

        Raises what redis-py, the network or the clock says where an answer is missing.
        """
        if self._process != os.getpid():
            # A fork has its parent's sockets, and must not send over them.
            self._reset()
        servers, call, deadline = self._servers, CommandBatch(commands), time.monotonic() + seconds
        for _ in range(MAX_REDIRECTS):
            groups = servers.grouped(call.errands, deadline, seconds)
            for refusal, address in call.answered(groups, servers.send(groups, deadline, seconds)):
                servers.note(refusal, address)
            if not call.errands:
                break
        return call.replies

    def close(self) -> None:
        """Disconnect; a call after this connects for itself alone."""
        if self._process == os.getpid():
            self._servers.close()


class AsyncRedisClient:
    """`Link`, awaited; one event loop uses it at a time.

    `seconds` are those in which the loop got round to it: see `_bounded`.
    """

    def __init__(self, url: str, *, connect_patience: float = CONNECT_PATIENCE) -> None:
        self._target, self._patience = target(url), connect_patience
        self.clustered = self._target.kind == "cluster"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: AsyncClusterNodes

    async def execute(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """See `Link.execute`."""
        # Connections die with the loop that opened them: another `asyncio.run` needs its own.
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._servers = (
                asyncio.get_running_loop(),
                AsyncClusterNodes(self._target, self._patience),
            )
        servers, call = self._servers, CommandBatch(commands)
        async with _bounded(seconds) as limit:
            for _ in range(MAX_REDIRECTS):
                groups = await servers.grouped(call.errands, limit, seconds)
                for refusal, address in call.answered(groups, await servers.send(groups, limit, seconds)):
                    await servers.note(refusal, address)
                if not call.errands:
                    break
        return call.replies

    async def close(self) -> None:
        """See `Link.close`."""
        if self._loop is asyncio.get_running_loop():
            await self._servers.close()


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[asyncio.Timeout]:
    """Raise `TimeoutError` where what is inside takes longer, by time in which the loop got round to it.

    A loop that is busy for longer than that would give up on answers that have long been there. So the time
    is counted in parts, and however late the end of one is seen, it counts once.
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
