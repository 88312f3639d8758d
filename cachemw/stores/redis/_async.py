"""The store that workers share: Redis, Valkey and other servers with their protocol.

Contains: the calls of a store. Must not depend on: connections and topologies (`client`), key names and
record formats (`commands`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachemw.core.hash_types import PrefixHash
from cachemw.core.reuse.record import PrefixRecord
from cachemw.errors import StoreError
from cachemw.stores.protocol import Arrival, CacheEntry
from cachemw.stores.redis.client.link import AsyncRedisClient
from cachemw.stores.redis.commands import Command, Commands, peeked, records, sums
from cachemw.stores.redis.shared import RedisStoreBase, Steps


class AsyncRedisStore(RedisStoreBase):
    """Keep records and sums in Redis. The tasks of one event loop at a time may use one.

    `url` is one that `cachemw.stores.url.parse` accepts. The first call opens the first connection. `options`
    are the arguments of `RedisStoreBase`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**options)
        self._client = AsyncRedisClient(url)
        self._commands = Commands(self._secret, clustered=self._client.clustered)

    async def lookup(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.lookup`."""
        names, shared = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.peek(names, now)
        hot = self._near.answer_locally(names[:shared], now) if 0 < shared < len(names) else None
        asked, shared = (names, shared) if hot is None else (names[shared:], 0)
        try:
            replies = await self._execute(self._commands.peek(asked), self._seconds)
            found = self._shift_to_local_clock(peeked(replies, now + self._skew))
        except StoreError:
            return self._near.peek(names, now)
        return (hot or []) + self._near.lookup_reply(asked, shared, found, now)

    async def observe(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.observe`; no request waits for it."""
        names, shared = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.observe(names, now)
        counted: list[PrefixRecord | None] = []
        if 0 < shared < len(names) and (hot := self._near.count(names[:shared], now)) is not None:
            counted, names, shared = hot, names[shared:], 0
        known, sent = self._near.snapshot_known(names), self._clock()
        commands = self._commands.observe(names, self._server_timestamp_arg(now))
        try:
            server_time, found = records(await self._execute(commands, self._patience))
        except StoreError:
            return counted + self._near.observe(names, now)
        found = self._to_local_clock(server_time, sent, found)
        self._near.store_reply(names, shared, found, now, known)
        return counted + found

    async def write(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> None:
        """See `Store.write`."""
        shards = shared_shard_key, conversation_shard_key
        names, entries = self._commands.entry_names(namespace, *shards, entries)
        urgent = self._near.record_write(names, entries)
        published = [names[index] for index in urgent]
        if not self._breaker.closed:
            self._near.schedule_restore(published)
        elif published:
            sent = self._to_server_clock([entries[index] for index in urgent])
            try:
                await self._execute(self._commands.write(published, sent), self._patience)
            except StoreError:
                self._near.schedule_restore(published)

    async def peek(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.peek`."""
        names = self._commands.names(arrival)
        if not self._breaker.closed:
            return self._near.peek(names, now)
        replies = await self._execute(self._commands.peek(names), self._seconds)
        return self._shift_to_local_clock(peeked(replies, now + self._skew))

    async def claim(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
        now: float,
    ) -> bool:
        """See `Store.claim`."""
        shards = shared_shard_key, conversation_shard_key
        names, entries = self._commands.entry_names(namespace, *shards, entries)
        if not self._breaker.closed:
            return self._near.claim(names, entries, now)
        return bool(await self._drive(self._claim_steps(names, entries, now), self._seconds))

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        for _ in range(self._outbox.add(namespace, table, amounts, keep)):
            self._count("error.store.Full")

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        with self._failures():
            return sums(await self._client.execute(self._commands.read(namespace, tables), self._patience))

    async def flush(self) -> bool:
        """See `Store.flush`."""
        try:
            return bool(await self._drive(self._flush_steps(), self._patience))
        except StoreError:
            return True

    async def close(self) -> None:
        """See `Store.close`."""
        await self._client.close()

    async def _drive(self, steps: Steps, seconds: float) -> Any:
        """Send the commands of each step, and throw errors of the store into the steps."""
        replies: Any = None
        while True:
            try:
                commands = steps.send(replies)
            except StopIteration as end:
                return end.value
            try:
                replies = await self._execute(commands, seconds)
            except StoreError as error:
                return steps.throw(error)

    async def _execute(self, commands: list[Command], seconds: float) -> Sequence[Any]:
        with self._failures():
            return self._accept(commands, await self._client.execute(commands, seconds))
