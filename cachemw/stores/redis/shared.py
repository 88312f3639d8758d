"""The parts that the sync and the async Redis store share: everything but the calls themselves.

Contains: clocks, failures, and calls of more than one step as generators. Must not depend on: connections and
topologies (`client`), key names and record formats (`commands`).

No command is sent twice, unless the server can recognise the second one (`sums_outbox`): a call without a
reply may have been counted. While the server is unavailable a worker goes on with local statistics
(`near_cache`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from cachemw.core.hash_types import StoreKey
from cachemw.core.reuse.record import PrefixRecord
from cachemw.errors import StoreError
from cachemw.stores.protocol import FORGET, CacheEntry
from cachemw.stores.redis.circuit_breaker import CircuitBreaker
from cachemw.stores.redis.commands import Command, Commands, checked, proves_writing, records, tenant
from cachemw.stores.redis.hot_prefixes import HotUpdate
from cachemw.stores.redis.near_cache import NearCache
from cachemw.stores.redis.sums_outbox import SumsOutbox

# Seconds for which background calls wait at least: a slow reply is still a reply.
_PATIENCE = 1.0
# Seconds by which a worker's clock may differ before its times are translated; a round trip is within it.
_SKEWED = 1.0
# Seconds from which the age of an arrival matters.
_NOTICEABLE = 0.05

_log = logging.getLogger("cachemw")

Steps: TypeAlias = Generator[list[Command], Sequence[Any], Any]
"""Yields commands, takes the replies to each, and returns the result of the call."""


class RedisStoreBase:
    """The state of a Redis store, and the parts of its calls that need no connection.

    Args:
        secret: Keys the hashes that leave the process.
        timeout_ms: Bounds each call that a request waits for.
        namespace: The namespace whose key fingerprint is published.
        server_time: True if the caller's clock is the real one, `clock`. The server's clock then replaces it,
            and workers' clocks may be wrong.
        clock: Returns the real time in seconds.
        count: Called with the name of each failure.
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
        self._near, self._outbox, self._breaker = NearCache(tenant), SumsOutbox(), CircuitBreaker()
        self._secret = secret
        self._skew = 0.0
        self._fingerprint_checked = False

    # -- clocks ---------------------------------------------------------------------------------

    def _server_timestamp_arg(self, now: float) -> float | None:
        """Return the time of an arrival as the script takes it: its age if the server's clock counts."""
        if not self._server_time:
            return now
        age = self._clock() - now
        return -age if _NOTICEABLE < age < FORGET else None

    def _to_local_clock(
        self, server_time: float, sent: float, found: list[PrefixRecord | None]
    ) -> list[PrefixRecord | None]:
        """Return records by this worker's clock, and note its skew beyond the time of the call."""
        if not self._server_time:
            return found
        skew = server_time - min(max(server_time, sent), self._clock())
        self._skew = skew if abs(skew) > _SKEWED else 0.0
        return self._shift_to_local_clock(found)

    def _shift_to_local_clock(self, found: list[PrefixRecord | None]) -> list[PrefixRecord | None]:
        skew = self._skew
        return [record and record.by_clock_ahead(-skew) for record in found] if skew else found

    def _to_server_clock(self, entries: Sequence[CacheEntry]) -> Sequence[CacheEntry]:
        skew = self._skew
        return [entry.by_clock_ahead(skew) for entry in entries] if skew else entries

    # -- failures -------------------------------------------------------------------------------

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Turn every exception into a `StoreError` that is counted."""
        try:
            yield
        except Exception as error:
            raise self._failed(error) from None

    def _accept(self, commands: list[Command], replies: Sequence[Any]) -> Sequence[Any]:
        """Return replies of which none is an error, and note that the server answers."""
        checked(replies)
        if proves_writing(commands) and self._breaker.succeeded():
            self._count("store.back")
            _log.warning("Store available again. Its records count again.")
        return replies

    def _failed(self, error: Exception) -> StoreError:
        name = str(error) if isinstance(error, StoreError) else type(error).__name__
        self._count(f"error.store.{name}")
        if self._breaker.failed(time.monotonic()):
            self._count("store.away")
            _log.warning("Store unavailable (%s). Continuing with local statistics until it responds.", name)
        return StoreError(name)

    # -- calls of more than one step ------------------------------------------------------------

    def _claim_steps(self, names: list[StoreKey], entries: list[CacheEntry], now: float) -> Steps:
        """Claim shard after shard; return True if all were granted. A refusal releases the earlier ones."""
        granted: list[slice] = []
        for command, part in self._commands.claims(names, self._to_server_clock(entries), now + self._skew):
            if (yield [command])[0] != 1:
                for earlier in granted:
                    released = [entry.released() for entry in entries[earlier]]
                    yield self._commands.write(names[earlier], released)
                return False
            granted.append(part)
        return True

    def _flush_steps(self) -> Steps:
        """Send everything that is held back; return True if something still is.

        If the server was unavailable, the first call is the probe.
        """
        if not self._breaker.closed and not self._breaker.may_probe(time.monotonic()):
            return True
        if not self._fingerprint_checked or not self._breaker.closed:
            self._check_fingerprint((yield self._commands.publish_key_fingerprint(self._namespace)))
        outbox = self._outbox
        for batch in outbox.batches():
            parts = batch.namespace, batch.table, batch.amounts, batch.keep, outbox.sender, batch.number
            yield [self._commands.add(*parts)]
            outbox.added(batch)
        yield from self._publish_steps()
        return not outbox.empty

    def _publish_steps(self) -> Steps:
        """Publish the news of shared prefixes, and restore records.

        A failure or an interrupt schedules the restore of all of them.
        """
        near, commands = self._near, self._commands
        updates: list[HotUpdate] = []
        to_restore: dict[StoreKey, PrefixRecord] = {}
        try:
            # Both are filled at once: an entry that is found gone meanwhile must stay so.
            near.drain_hot_updates(updates)
            near.records_to_restore(to_restore)
            if refreshed := [(each.name, each.entry) for each in updates if each.entry is not None]:
                names, entries = zip(*refreshed, strict=True)
                yield commands.write(names, self._to_server_clock(entries))
            if counted := [each for each in updates if each.arrivals]:
                last = self._server_timestamp_arg(max(each.last for each in counted))
                sent = self._clock()
                replies = yield commands.observe(
                    [each.name for each in counted], last, [each.arrivals for each in counted]
                )
                server_time, found = records(replies)
                near.published(counted, self._to_local_clock(server_time, sent, found))
            if to_restore:
                shifted = {name: record.by_clock_ahead(self._skew) for name, record in to_restore.items()}
                yield commands.restore(shifted)
                near.restored(to_restore)
        except BaseException:
            near.schedule_restore([each.name for each in updates] + list(to_restore))
            raise

    def _check_fingerprint(self, replies: Sequence[Any]) -> None:
        matches = self._commands.fingerprint_matches(self._namespace, replies)
        if not self._fingerprint_checked and not matches:
            self._count("error.store.OtherSecret")
            _log.warning(
                "Another worker of this namespace has another secret, so the two share no prefixes."
                " Set `secret` to the same value for all workers."
            )
        self._fingerprint_checked = True
