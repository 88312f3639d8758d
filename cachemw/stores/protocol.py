"""The contract of a store: the effect of each call, also when the store fails.

Contains: the protocol of all stores, and the values that cross it. Must not depend on: any particular store.
A store never sees text: its keys are prefix hashes. A store outside the process keys them with the secret
first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachemw.core.hash_types import PrefixHash
from cachemw.core.reuse.record import PrefixRecord

FORGET = 7200.0
"""Seconds after the last arrival until a record counts as unknown. The provider's longest TTL is an hour."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """The tracked prefixes of one request, shallow to deep, the whole request last.

    `keys` are prefix hashes, 16 bytes each. The first `shared_count` keys are shared prefixes: they end in
    the tools or system section and belong to the shard of `shared_shard_key` (a hash of model and first
    block). The rest belongs to the shard of `conversation_shard_key` (the hash through the first message
    block). A clustered store keeps a shard in one slot.
    """

    namespace: str
    shared_shard_key: PrefixHash
    conversation_shard_key: PrefixHash
    shared_count: int
    keys: tuple[PrefixHash, ...]


class CacheEntry(NamedTuple):
    """An entry of the provider's cache: it expires at `expires`, `ttl` seconds after each use.

    `is_shared` says which shard the key belongs to (see `Arrival`). `expires` is 0 for an entry that the
    provider no longer has, and below 0 if only `in_flight_until` is news: the time until which the request
    that writes the entry may still wait for its response, 0 once it waits no more.
    """

    key: PrefixHash
    is_shared: bool
    expires: float
    ttl: int
    in_flight_until: float = 0.0

    def by_clock_ahead(self, seconds: float) -> CacheEntry:
        """Return the entry by a clock that is so many seconds ahead; the values 0 and -1 stay."""
        return self._replace(
            expires=self.expires + seconds if self.expires > 0.0 else self.expires,
            in_flight_until=self.in_flight_until + seconds
            if self.in_flight_until > 0.0
            else self.in_flight_until,
        )

    @property
    def is_gone(self) -> bool:
        """Return True if the provider no longer has the entry."""
        return self.expires == 0

    def gone(self) -> CacheEntry:
        """Return the entry as one that the provider does not have."""
        return self._replace(expires=0.0)

    def in_flight(self, until: float) -> CacheEntry:
        """Return the entry as one that a request is about to write, until a time in seconds at most."""
        return self._replace(expires=-1.0, in_flight_until=until)

    def released(self) -> CacheEntry:
        """Return the entry as one that no request is about to write any more."""
        return self.in_flight(0.0)


class Store(Protocol):
    """Keep records of prefixes and sums, for all workers that share it.

    Each call may raise `StoreError` and no other exception. The engine then continues without the store, so a
    failure costs a saving, never a request. While a shared store is unavailable, `lookup`, `observe`,
    `write`, `peek` and `claim` use the records of this process, and restore them to the server when it
    returns. Updates commute: any order of the same calls leaves the same sums and the same records. Times are
    seconds by the caller's clock.
    """

    local: bool
    """True if no call leaves the process, so writes need no queue."""

    def lookup(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Return the record of each key, None if unknown; count nothing.

        A request waits for this call: one round trip at most. Recent arrivals of hot shared prefixes at other
        workers may be missing for a tenth of a second. A key without arrivals that a request is about to
        write has a record of 0 arrivals.
        """

    def observe(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Count one arrival of each key, at `now`, and return the records from before it, None if unknown.

        The engine calls it after the response has begun: a refused request is no arrival.
        """

    def write(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> None:
        """Note the provider's entry of each key.

        The later `expires` wins, so a slow worker shortens no entry; 0 always wins. The last
        `in_flight_until` wins. A key without arrivals (evicted, or never seen) keeps only its
        `in_flight_until`, for a minute at most.
        """

    def peek(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Return the records as `lookup` does, but from the server. One round trip; raises `StoreError`."""

    def claim(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
        now: float,
    ) -> bool:
        """Set `in_flight_until` of each entry and return True, or change nothing and return False.

        A claim is refused if the provider has one of the entries at `now`, or if a request is writing one.
        The store grants one of several simultaneous claims to a key. A claim takes one round trip. In a
        clustered store it takes one for the shared prefixes, then one for the rest, and a third releases the
        shared prefixes if the rest is refused. Claims of other requests may be refused meanwhile.
        """

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """Add each amount to the sum of its name; the table expires `keep` seconds after its last use.

        A shared store holds amounts back until `flush`, and adds each one exactly once, however often a flush
        fails.
        """

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """Return the sums of all names over these tables; a missing table is empty."""

    def flush(self) -> bool:
        """Send all held back data; return True if some is left. Called every tenth of a second."""

    def close(self) -> None:
        """Close all connections. A second call has no effect."""


class AsyncStore(Protocol):
    """`Store`, awaited."""

    local: bool

    async def lookup(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.lookup`."""

    async def observe(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.observe`."""

    async def write(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> None:
        """See `Store.write`."""

    async def peek(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.peek`."""

    async def claim(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
        now: float,
    ) -> bool:
        """See `Store.claim`."""

    async def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """See `Store.add`."""

    async def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """See `Store.read`."""

    async def flush(self) -> bool:
        """See `Store.flush`."""

    async def close(self) -> None:
        """See `Store.close`."""
