"""The stores that all workers share: Redis, Valkey and whatever else speaks their protocol.

Lives here: connections, and the one place where the client library's errors become `StoreError`.
Must not know: key names, record formats (commands.py), clocks.

Nothing is sent twice: a call whose answer was lost may have been counted, so it is not repeated. A
connection that the server dropped is found out before it is used again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.retry import Retry

from cachemw.core.reuse import Prefix
from cachemw.errors import StoreError
from cachemw.stores.base import Arrival, Entry
from cachemw.stores.commands import Command, Commands, checked, records, sums, with_text


class RedisStore:
    """Keep records and sums in Redis; for threads.

    `url` is one that `cachemw.stores.url.check_redis` let pass. `timeout_ms` bounds connecting and
    each answer. Nothing is connected before the first call.
    """

    local = False

    def __init__(self, url: str, *, secret: bytes | None, timeout_ms: int) -> None:
        self._commands = Commands(secret)
        self._client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), **_options(timeout_ms))

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
            again = unknown_scripts(replies)
            if again:
                texts = self._execute([with_text(commands[index]) for index in again])
                replies = replaced(replies, again, texts)
            return replies
        except Exception as error:
            raise StoreError(type(error).__name__) from None

    def _execute(self, commands: list[Command]) -> list[Any]:
        with self._client.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return pipeline.execute(raise_on_error=False)
