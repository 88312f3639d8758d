"""The stores that all workers share: Redis, Valkey and whatever else speaks their protocol.

Lives here: what is asked of the server, what is answered without it, what becomes of its failures. Must not
know: connections and topologies (link.py), key names and record formats (commands.py), clocks.

Nothing is sent twice but what the server can tell apart (`tally`): a call whose answer was lost may have been
counted. While the server is away a worker goes on with what it knows (`near`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

from cachemw.core.reuse.record import PrefixRecord
from cachemw.errors import StoreError
from cachemw.stores.protocol import FORGET, Arrival, CacheEntry
from cachemw.stores.redis.circuit_breaker import CircuitBreaker
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient
from cachemw.stores.redis.commands import (
    Command,
    Commands,
    checked,
    peeked,
    proves_writing,
    records,
    sums,
    tenant,
)
from cachemw.stores.redis.near_cache import NearCache
from cachemw.stores.redis.sums_outbox import SumsOutbox

# Seconds for which background calls wait at least: a server that answers slowly has answered.
_PATIENCE = 1.0
# Seconds by which a worker's clock may be off before its times are translated; a round trip is within it.
_SKEWED = 1.0
# Seconds from which the age of an arrival matters.
_NOTICEABLE = 0.05

_log = logging.getLogger("cachemw")
_Steps: TypeAlias = Generator[list[Command], Sequence[Any], Any]


class _Shared:
    """What both twins are made of: all but the calls themselves.

    `timeout_ms` bounds each call that a request waits for. `server_time`: the caller's clock is the real one,
    `clock`, so the server's counts in its place, and workers' clocks may be wrong. `count` is told of each
    failure by its name.
    """

    local = False
    _commands: Commands

    def __init__(
        self,
        *,
        secret: bytes | None,
        timeout_ms: int,
        namespace: str = "default",
        server_time: bool = False,
        clock: Callable[[], float] = time.time,
        count: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._namespace = namespace
        self._seconds, self._patience = timeout_ms / 1000, max(timeout_ms / 1000, _PATIENCE)
        self._server_time, self._clock, self._count = server_time, clock, count
        self._near, self._tally, self._breaker = NearCache(tenant), SumsOutbox(), CircuitBreaker()
        self._secret = secret
        self._skew = 0.0
        self._met = False

    # -- times ----------------------------------------------------------------------------------

    def _server_timestamp_arg(self, now: float) -> float | None:
        """Return the time of an arrival as the server takes it: its age where the server's clock counts."""
        if not self._server_time:
            return now
        age = self._clock() - now
        return -age if _NOTICEABLE < age < FORGET else None

    def _to_local_clock(
        self, theirs: float, sent: float, found: list[PrefixRecord | None]
    ) -> list[PrefixRecord | None]:
        """Return records by this worker's clock, and note how far it is off: beyond the times around the call."""
        if not self._server_time:
            return found
        skew = theirs - min(max(theirs, sent), self._clock())
        self._skew = skew if abs(skew) > _SKEWED else 0.0
        return self._shift_to_local_clock(found)

    def _shift_to_local_clock(self, found: list[PrefixRecord | None]) -> list[PrefixRecord | None]:
        skew = self._skew
        return [record and record.by_clock_ahead(-skew) for record in found] if skew else found

    def _to_server_clock(self, entries: Sequence[CacheEntry]) -> Sequence[CacheEntry]:
        skew = self._skew
        return [entry.by_clock_ahead(skew) for entry in entries] if skew else entries

    # -- failures -------------------------------------------------------------------------------

    def _taken(self, commands: list[Command], replies: Sequence[Any]) -> Sequence[Any]:
        """Return replies, none of which is an error."""
        checked(replies)
        if proves_writing(commands) and self._breaker.succeeded():
            self._count("store.back")
            _log.warning("The store answers again.")
        return replies

    def _failed(self, error: Exception) -> StoreError:
        name = str(error) if isinstance(error, StoreError) else type(error).__name__
        self._count(f"error.store.{name}")
        if self._breaker.failed(time.monotonic()):
            self._count("store.away")
            _log.warning("The store is away (%s): this worker goes on with what it knows.", name)
        return StoreError(name)

    # -- calls of more than one step ------------------------------------------------------------

    def _claiming(self, names: list[bytes], entries: list[CacheEntry], now: float) -> _Steps:
        """Yield commands, take the replies to each, and return whether the claim was got."""
        got: list[slice] = []
        for command, part in self._commands.claims(names, self._to_server_clock(entries), now + self._skew):
            if (yield [command])[0] != 1:
                for mine in got:
                    yield self._commands.write(names[mine], [entry.released() for entry in entries[mine]])
                return False
            got.append(part)
        return True

    def _flushing(self) -> _Steps:
        """Yield commands, take the replies to each, and return whether something is still held back.

        Where the server was away, the first call is the probe.
        """
        commands, near, tally = self._commands, self._near, self._tally
        if not self._breaker.closed and not self._breaker.may_probe(time.monotonic()):
            return True
        if not self._met or not self._breaker.closed:
            self._meet((yield commands.publish_key_fingerprint(self._namespace)))
        for batch in tally.batches():
            parts = batch.namespace, batch.table, batch.amounts, batch.keep, tally.sender, batch.number
            yield [commands.add(*parts)]
            tally.added(batch)
        held, owed = near.drain_hot_updates(), near.records_to_restore()
        try:
            # At once: an entry that is found dead meanwhile must stay so.
            if lives := [(each.name, each.entry) for each in held if each.entry is not None]:
                names, entries = zip(*lives, strict=True)
                yield commands.write(names, self._to_server_clock(entries))
            if counted := [each for each in held if each.arrivals]:
                last = max(each.last for each in counted)
                counts = [each.arrivals for each in counted]
                sent = self._clock()
                theirs, found = records(
                    (
                        yield commands.observe(
                            [each.name for each in counted], self._server_timestamp_arg(last), counts
                        )
                    )
                )
                near.sent(counted, self._to_local_clock(theirs, sent, found))
            if owed:
                yield commands.restore(
                    {name: record.by_clock_ahead(self._skew) for name, record in owed.items()}
                )
                near.restored(owed)
        except BaseException:
            near.schedule_restore([each.name for each in held] + list(owed))
            raise
        return not tally.empty

    def _meet(self, replies: Sequence[Any]) -> None:
        if not self._met and not self._commands.fingerprint_matches(self._namespace, replies):
            self._count("error.store.OtherSecret")
            _log.warning(
                "Another worker of this namespace has another secret: they don't see each other's prefixes."
                " Set `secret` the same for all."
            )
        self._met = True


class RedisStore(_Shared):
    """Keep records and sums in Redis; any number of threads may use one.

    `url` is one that `cachemw.stores.url.parse` let pass; nothing is connected before the first call.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**options)
        self._link = RedisClient(url)
        self._commands = Commands(self._secret, clustered=self._link.clustered)

    def lookup(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.lookup`."""
        names, heads = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.peek(names, now)
        hot = self._near.answer_locally(names[:heads], now) if 0 < heads < len(names) else None
        asked, heads = (names, heads) if hot is None else (names[heads:], 0)
        try:
            replies = self._call(self._commands.peek(asked))
            found = self._shift_to_local_clock(peeked(replies, now + self._skew))
        except StoreError:
            return self._near.peek(names, now)
        return (hot or []) + self._near.looked(asked, heads, found, now)

    def observe(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.observe`; no request waits for it."""
        names, heads = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.observe(names, now)
        counted: list[PrefixRecord | None] = []
        if 0 < heads < len(names) and (hot := self._near.count(names[:heads], now)) is not None:
            counted, names, heads = hot, names[heads:], 0
        known, sent = self._near.snapshot_known(names), self._clock()
        try:
            theirs, found = records(
                self._later(self._commands.observe(names, self._server_timestamp_arg(now)))
            )
        except StoreError:
            return counted + self._near.observe(names, now)
        found = self._to_local_clock(theirs, sent, found)
        self._near.store_reply(names, heads, found, now, known)
        return counted + found

    def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]) -> None:
        """See `Store.write`."""
        names, entries = self._commands.entry_names(namespace, root, trunk, entries)
        urgent = self._near.record_write(names, entries)
        told = [names[index] for index in urgent]
        if not self._breaker.closed:
            self._near.schedule_restore(told)
        elif told:
            try:
                self._later(
                    self._commands.write(told, self._to_server_clock([entries[index] for index in urgent]))
                )
            except StoreError:
                self._near.schedule_restore(told)

    def peek(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.peek`."""
        names = self._commands.names(arrival)
        if not self._breaker.closed:
            return self._near.peek(names, now)
        found = peeked(self._call(self._commands.peek(names)), now + self._skew)
        return self._shift_to_local_clock(found)

    def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry], now: float
    ) -> bool:
        """See `Store.claim`."""
        names, entries = self._commands.entry_names(namespace, root, trunk, entries)
        if not self._breaker.closed:
            return self._near.claim(names, entries, now)
        return bool(self._walk(self._claiming(names, entries, now), self._call))

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        for _ in range(self._tally.add(namespace, table, amounts, keep)):
            self._count("error.store.Full")

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        try:
            return sums(self._link.execute(self._commands.read(namespace, tables), self._patience))
        except Exception as error:
            raise self._failed(error) from None

    def flush(self) -> bool:
        """See `Store.flush`."""
        try:
            return bool(self._walk(self._flushing(), self._later))
        except StoreError:
            return True

    def close(self) -> None:
        """See `Store.close`."""
        self._link.close()

    def _walk(self, steps: _Steps, call: Callable[[list[Command]], Sequence[Any]]) -> Any:
        replies: Any = None
        while True:
            try:
                commands = steps.send(replies)
            except StopIteration as end:
                return end.value
            try:
                replies = call(commands)
            except StoreError as error:
                return steps.throw(error)

    def _call(self, commands: list[Command]) -> Sequence[Any]:
        try:
            return self._taken(commands, self._link.execute(commands, self._seconds))
        except Exception as error:
            raise self._failed(error) from None

    def _later(self, commands: list[Command]) -> Sequence[Any]:
        try:
            return self._taken(commands, self._link.execute(commands, self._patience))
        except Exception as error:
            raise self._failed(error) from None


class AsyncRedisStore(_Shared):
    """`RedisStore`, awaited; one event loop uses it at a time."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**options)
        self._link = AsyncRedisClient(url)
        self._commands = Commands(self._secret, clustered=self._link.clustered)

    async def lookup(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.lookup`."""
        names, heads = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.peek(names, now)
        hot = self._near.answer_locally(names[:heads], now) if 0 < heads < len(names) else None
        asked, heads = (names, heads) if hot is None else (names[heads:], 0)
        try:
            replies = await self._call(self._commands.peek(asked))
            found = self._shift_to_local_clock(peeked(replies, now + self._skew))
        except StoreError:
            return self._near.peek(names, now)
        return (hot or []) + self._near.looked(asked, heads, found, now)

    async def observe(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.observe`; no request waits for it."""
        names, heads = self._commands.names(arrival), arrival.shared_count
        if not self._breaker.closed or not names:
            return self._near.observe(names, now)
        counted: list[PrefixRecord | None] = []
        if 0 < heads < len(names) and (hot := self._near.count(names[:heads], now)) is not None:
            counted, names, heads = hot, names[heads:], 0
        known, sent = self._near.snapshot_known(names), self._clock()
        try:
            theirs, found = records(
                await self._later(self._commands.observe(names, self._server_timestamp_arg(now)))
            )
        except StoreError:
            return counted + self._near.observe(names, now)
        found = self._to_local_clock(theirs, sent, found)
        self._near.store_reply(names, heads, found, now, known)
        return counted + found

    async def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]) -> None:
        """See `Store.write`."""
        names, entries = self._commands.entry_names(namespace, root, trunk, entries)
        urgent = self._near.record_write(names, entries)
        told = [names[index] for index in urgent]
        if not self._breaker.closed:
            self._near.schedule_restore(told)
        elif told:
            try:
                await self._later(
                    self._commands.write(told, self._to_server_clock([entries[index] for index in urgent]))
                )
            except BaseException as error:  # cancelled, too
                self._near.schedule_restore(told)
                if not isinstance(error, StoreError):
                    raise

    async def peek(self, arrival: Arrival, now: float) -> list[PrefixRecord | None]:
        """See `Store.peek`."""
        names = self._commands.names(arrival)
        if not self._breaker.closed:
            return self._near.peek(names, now)
        found = peeked(await self._call(self._commands.peek(names)), now + self._skew)
        return self._shift_to_local_clock(found)

    async def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry], now: float
    ) -> bool:
        """See `Store.claim`."""
        names, entries = self._commands.entry_names(namespace, root, trunk, entries)
        if not self._breaker.closed:
            return self._near.claim(names, entries, now)
        return bool(await self._walk(self._claiming(names, entries, now), self._call))

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""
        for _ in range(self._tally.add(namespace, table, amounts, keep)):
            self._count("error.store.Full")

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""
        try:
            return sums(await self._link.execute(self._commands.read(namespace, tables), self._patience))
        except Exception as error:
            raise self._failed(error) from None

    async def flush(self) -> bool:
        """See `Store.flush`."""
        try:
            return bool(await self._walk(self._flushing(), self._later))
        except StoreError:
            return True

    async def close(self) -> None:
        """See `Store.close`."""
        await self._link.close()

    async def _walk(self, steps: _Steps, call: Callable[[list[Command]], Awaitable[Sequence[Any]]]) -> Any:
        replies: Any = None
        while True:
            try:
                commands = steps.send(replies)
            except StopIteration as end:
                return end.value
            try:
                replies = await call(commands)
            except StoreError as error:
                return steps.throw(error)

    async def _call(self, commands: list[Command]) -> Sequence[Any]:
        try:
            return self._taken(commands, await self._link.execute(commands, self._seconds))
        except Exception as error:
            raise self._failed(error) from None

    async def _later(self, commands: list[Command]) -> Sequence[Any]:
        try:
            return self._taken(commands, await self._link.execute(commands, self._patience))
        except Exception as error:
            raise self._failed(error) from None
