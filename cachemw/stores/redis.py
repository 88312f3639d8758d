"""The stores that all workers share: Redis, Valkey and whatever else speaks their protocol.

Lives here: connections, and the one place where the client library's errors become `StoreError`.
Must not know: key names, record formats (commands.py), clocks.

Nothing is sent twice: a call whose answer was lost may have been counted. A connection that the
server has closed is found out, and opened again, before a call is sent over it.
"""
# ruff: noqa: ARG002 - a store takes what the protocol says, used or not

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError
from redis.retry import Retry

from cachemw.core.reuse import Prefix
from cachemw.errors import StoreError
from cachemw.stores.base import Arrival, Entry
from cachemw.stores.commands import Command, Commands, checked, peeked, records, sums, with_text

# In so many parts is a call's time counted, see `_bounded`.
_PARTS = 10


class RedisStore:
    """Keep records and sums in Redis; any number of threads may use one.

    `url` is one that `cachemw.stores.url.parse` let pass. `timeout_ms` bounds each wait: for one of
    the 50 connections (`max_connections` in the URL), for connecting, and for an answer. Nothing is
    connected before the first call.
    """

    local = False

    def __init__(self, url: str, *, secret: bytes | None, timeout_ms: int) -> None:
        self._commands = Commands(secret)
        pool = redis.BlockingConnectionPool.from_url(
            url, retry=Retry(NoBackoff(), 0), **_options(timeout_ms / 1000)
        )
        self._client: Any = redis.Redis.from_pool(pool)

    def observe(self, arrival: Arrival, now: float | None) -> list[Prefix | None]:
        """See `Store.observe`."""
        return records(self._send(self._commands.observe(arrival, now)))

    def write(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float | None
    ) -> None:
        """See `Store.write`."""
        checked(self._send(self._commands.write(namespace, root, trunk, entries)))

    def peek(self, arrival: Arrival, now: float) -> list[Prefix | None]:
        """See `Store.peek`."""
        return peeked(self._send(self._commands.peek(arrival)), now)

    def claim(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float) -> bool:
        """See `Store.claim`."""
        got: list[Entry] = []
        for command, group in self._commands.claims(namespace, root, trunk, entries, now):
            if checked(self._send([command]))[0] != 1:
                self.write(namespace, root, trunk, [entry.announced(0.0) for entry in got], now)
                return False
            got += group
        return True

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        checked(self._send(self._commands.add(namespace, table, amounts, keep)))

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        return sums(self._send(self._commands.read(namespace, tables)))

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    def _send(self, commands: list[Command]) -> list[Any]:
        try:
            replies = self._execute(commands)
            for unknown in _unknown(replies):
                replies[unknown] = self._execute([with_text(commands[unknown])])[0]
            return replies
        except Exception as error:
            raise StoreError(type(error).__name__) from None

    def _execute(self, commands: list[Command]) -> list[Any]:
        if len(commands) == 1:
            try:
                return [self._client.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(pipeline.execute(raise_on_error=False))


class AsyncRedisStore:
    """`RedisStore`, awaited; one event loop uses it at a time.

    `timeout_ms` bounds a call as a whole, less what the loop was busy with else.
    """

    local = False

    def __init__(self, url: str, *, secret: bytes | None, timeout_ms: int) -> None:
        self._commands = Commands(secret)
        self._url, self._seconds = url, timeout_ms / 1000
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None

    async def observe(self, arrival: Arrival, now: float | None) -> list[Prefix | None]:
        """See `Store.observe`."""
        return records(await self._send(self._commands.observe(arrival, now)))

    async def write(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float | None
    ) -> None:
        """See `Store.write`."""
        checked(await self._send(self._commands.write(namespace, root, trunk, entries)))

    async def peek(self, arrival: Arrival, now: float) -> list[Prefix | None]:
        """See `Store.peek`."""
        return peeked(await self._send(self._commands.peek(arrival)), now)

    async def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float
    ) -> bool:
        """See `Store.claim`."""
        got: list[Entry] = []
        for command, group in self._commands.claims(namespace, root, trunk, entries, now):
            if checked(await self._send([command]))[0] != 1:
                await self.write(namespace, root, trunk, [entry.announced(0.0) for entry in got], now)
                return False
            got += group
        return True

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        checked(await self._send(self._commands.add(namespace, table, amounts, keep)))

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        return sums(await self._send(self._commands.read(namespace, tables)))

    async def close(self) -> None:
        """See `Store.close`."""
        if self._loop is asyncio.get_running_loop():
            await self._client.aclose()

    async def _send(self, commands: list[Command]) -> list[Any]:
        try:
            async with _bounded(self._seconds):
                replies = await self._execute(commands)
                for unknown in _unknown(replies):
                    replies[unknown] = (await self._execute([with_text(commands[unknown])]))[0]
                return replies
        except Exception as error:
            raise StoreError(type(error).__name__) from None

    async def _execute(self, commands: list[Command]) -> list[Any]:
        # Connections die with the loop that opened them: another `asyncio.run` needs its own.
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._client = asyncio.get_running_loop(), self._connect()
        if len(commands) == 1:
            try:
                return [await self._client.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        async with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return list(await pipeline.execute(raise_on_error=False))

    def _connect(self) -> Any:
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            self._url, retry=AsyncRetry(NoBackoff(), 0), **_options(None)
        )
        return redis.asyncio.Redis.from_pool(pool)


@asynccontextmanager
async def _bounded(seconds: float) -> AsyncIterator[None]:
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
            yield
        finally:
            timer.cancel()


def _options(seconds: float | None) -> dict[str, Any]:
    # Protocol 2 spares a connection's first round trip, and replies have one shape in every version.
    return {
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "protocol": 2,
    }


def _unknown(replies: Sequence[Any]) -> list[int]:
    return [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
