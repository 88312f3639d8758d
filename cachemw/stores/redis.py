"""The stores that all workers share: Redis, Valkey and whatever else speaks their protocol.

Lives here: connections, and the one place where the client library's errors become `StoreError`.
Must not know: key names, record formats (commands.py), clocks.

Nothing is sent twice: a call whose answer was lost may have been counted. A connection that the
server has closed is found out, and opened again, before a call is sent over it.
"""
# ruff: noqa: ARG002 - a store takes what the protocol says, used or not

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
from cachemw.stores.commands import Command, Commands, checked, records, sums, with_text


class RedisStore:
    """Keep records and sums in Redis; any number of threads may use one.

    `url` is one that `cachemw.stores.url.parse` let pass. `timeout_ms` bounds each wait: for one of
    the 50 connections (`max_connections` in the URL), for connecting, and for an answer. Nothing is
    connected before the first call.
    """

    local = False

    def __init__(self, url: str, *, secret: bytes | None, timeout_ms: int) -> None:
        self._commands = Commands(secret)
        pool = redis.BlockingConnectionPool.from_url(url, retry=Retry(NoBackoff(), 0), **_options(timeout_ms))
        self._client: Any = redis.Redis.from_pool(pool)

    def observe(self, arrival: Arrival, now: float | None) -> list[Prefix | None]:
        """See `Store.observe`."""
        return records(self._send(self._commands.observe(arrival, now)))

    def write(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float | None
    ) -> None:
        """See `Store.write`."""
        checked(self._send(self._commands.write(namespace, root, trunk, entries)))

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
    """`RedisStore`, awaited; one event loop uses it at a time."""

    local = False

    def __init__(self, url: str, *, secret: bytes | None, timeout_ms: int) -> None:
        self._commands = Commands(secret)
        self._url, self._options = url, _options(timeout_ms)
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
            self._url, retry=AsyncRetry(NoBackoff(), 0), **self._options
        )
        return redis.asyncio.Redis.from_pool(pool)


def _options(timeout_ms: int) -> dict[str, Any]:
    # Protocol 2 spares a connection's first round trip, and replies have one shape in every version.
    seconds = timeout_ms / 1000
    return {
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "protocol": 2,
    }


def _unknown(replies: Sequence[Any]) -> list[int]:
    return [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
