"""The contract of a store: what each call does, and what it does when things fail.

Lives here: the protocol that every store keeps and the values that cross it. Must not know: any
particular store. A store never sees text: keys are chain digests, and one that leaves the process
must key them with the secret before they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachemw.core.reuse.record import PrefixRecord

FORGET = 7200.0
"""Seconds: a record not seen for longer is as good as unknown, the provider's longest entry being an hour."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request's watched prefixes, shallow to deep, the whole request last.

    `keys`: chain digests, 16 bytes each. The first `heads` keys end in the tools or system section and
    belong to `root` (a digest of model and first block); the others belong to `trunk` (the digest through
    the first message block): a clustered store keeps what belongs together in one slot.
    """

    namespace: str
    shared_shard_key: bytes
    conversation_shard_key: bytes
    shared_count: int
    keys: tuple[bytes, ...]


class CacheEntry(NamedTuple):
    """An entry of the provider's cache: it expires at `expires`, `ttl` seconds after each use.

    `is_shared` says which shard the key belongs to (see `Arrival`). `expires` is 0 for an entry that the provider no
    longer has, and below 0 if only `in_flight_until` is news: the time until which the request that writes the entry
    may still wait for its response, 0 once it waits no more.
    """

    key: bytes
    is_shared: bool
    expires: float
    ttl: int
    in_flight_until: float = 0.0

    def by_clock_ahead(self, seconds: float) -> CacheEntry:
        """Return the entry by a clock that is so many seconds ahead; values that are no times stay."""
        return self._replace(
            expires=self.expires + seconds if self.expires > 0.0 else self.expires,
            in_flight_until=self.in_flight_until + seconds
            if self.in_flight_until > 0.0
            else self.in_flight_until,
        )

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

    Every call may raise `StoreError` and nothing else: the engine then goes on without, so a
    failure costs a saving, never a request. A shared store that is away answers `lookup`, `observe`, `write`,
    `peek` and `claim` by what this process knows, and gives that back to the others when it returns. Updates
    commute: any order of the same calls leaves the same sums and, but for what each call returned, the
    same records. Times are seconds by the caller's clock.
    """

    local: bool
    """True where no call leaves the process: writes then need no queue."""

    def lookup(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Return the record of each key, None where unknown; count nothing.

        A request waits for this call: one round trip at most. What other workers did to tools and system prompts
        that arrive all the time may be missing for as long as a tenth of a second. A key that no arrival
        counted, but which a request is about to write, has a record of 0 arrivals.
        """

    def observe(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Count one arrival of each key, at `now`, and return the records from before it, None where unknown.

        The engine calls it once an answer has begun: a request that the provider refuses is no arrival.
        """

    def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]) -> None:
        """Set what the provider holds for each key.

        The later `expires` wins over an earlier one, so a slow worker takes no life; 0 always wins. The
        last `pending` wins. A key that no arrival counted (evicted, or never seen) keeps only its `pending`, for a
        minute at most.
        """

    def peek(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """Return what `lookup` would, as the store has it now. One round trip; raises `StoreError`."""

    def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry], now: float
    ) -> bool:
        """Set the `pending` of each entry; where another was first, say False and change nothing.

        That is so where the provider holds one of them at `now`, or a request is just writing one. Of
        several claims to one key at once a single one gets it. One
        round trip; in a clustered store one each for heads and others, heads first, and one more to
        give heads back where the others are taken: meanwhile another may have been refused for them.
        """

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> None:
        """Add each amount to the sum of its name; the table is dropped `keep` seconds after its last use.

        A shared store holds amounts back until `flush`; each is added once, however often that fails.
        """

    def read(self, namespace: str, tables: Sequence[str]) -> dict[str, int]:
        """Return the sums of all names over these tables; a table that isn't there is empty."""

    def flush(self) -> bool:
        """Send what is held back, and say whether something still is: call it every tenth of a second."""

    def close(self) -> None:
        """Give back what the store holds; a second close does nothing."""


class AsyncStore(Protocol):
    """`Store`, awaited."""

    local: bool

    async def lookup(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.lookup`."""

    async def observe(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.observe`."""

    async def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]) -> None:
        """See `Store.write`."""

    async def peek(self, arrival: Arrival, now: float) -> Sequence[PrefixRecord | None]:
        """See `Store.peek`."""

    async def claim(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry], now: float
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
