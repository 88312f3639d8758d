"""The servers of one target: their connections and, in a cluster, the node of each slot.

Contains: the exchange of commands and replies, and the refresh of a cluster's slots. Must not depend on: the
parts of a call, redirects.

A background thread or task looks up the slots of a cluster at the first call, and again after a refusal or a
failure that may mean a change. Only the first call waits for them. If a node is unavailable, the calls that
need it fail, at once if it refuses connections.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from redis.exceptions import ClusterDownError, MovedError, ReadOnlyError, ResponseError

from cachemw.stores.redis.client.connect import Connection, async_opener, opener
from cachemw.stores.redis.client.pool import AsyncBackground, AsyncPool, Background, Permit, Pool
from cachemw.stores.redis.client.routes import PendingCommand, SlotMap, grouped
from cachemw.stores.redis.commands import Command
from cachemw.stores.url import Address, Target

Groups = Mapping[Address, list[PendingCommand]]

_CONNECTIONS = 50
_ASKING: Command = ("ASKING",)
_SLOTS: Command = ("CLUSTER", "SLOTS")
# Seconds to wait for the slots from one node, and between two look-ups.
_SLOTS_PATIENCE = 0.5
_SLOTS_PAUSE = 0.1
# Stands for the only server of a target without nodes.
_HERE: Address = ("", 0)


class _Topology:
    """The slots as far as known, and the time of the next look-up, for both twins."""

    def __init__(self, at: Target) -> None:
        self.clustered = at.kind == "cluster"
        self._seeds = set(at.hosts)
        self._size = int(at.parameters.get("max_connections", _CONNECTIONS))
        self._slots: SlotMap | None = None
        self._looked = float("-inf")
        self._closed = False

    def _known(self) -> list[Address]:
        known = list(self._seeds | (self._slots.nodes if self._slots is not None else set()))
        random.shuffle(known)
        return known

    def _may_look(self) -> bool:
        return time.monotonic() - self._looked >= _SLOTS_PAUSE

    def _stale(self, refusal: ResponseError, address: Address) -> bool:
        """Return True if a refusal means that slots have changed, and note the change that it names."""
        if isinstance(refusal, MovedError) and self._slots is not None:
            self._slots.moved(refusal.slot_id, (refusal.host or address[0], refusal.port))
            return True
        return self.clustered and isinstance(refusal, ClusterDownError)

    def _learn(self, reply: Any, address: Address) -> None:
        if isinstance(reply, Exception):
            raise reply
        self._slots = SlotMap(reply, address)

    def _gone(self, pools: Mapping[Address, Any]) -> set[Address]:
        assert self._slots is not None
        return set(pools) - self._slots.nodes - self._seeds


class ClusterNodes(_Topology):
    """The servers of one target. Any number of threads may use one."""

    def __init__(self, at: Target, patience: float) -> None:
        super().__init__(at)
        self._connect = opener(at, patience)
        self._pools: dict[Address, Pool] = {}
        self._looking: Background[None] | None = None
        self._one_looks = threading.Lock()

    def grouped(self, pending: list[PendingCommand], deadline: float, seconds: float) -> Groups:
        """Return commands by their server, and wait for the slots if none are known yet."""
        if not self.clustered:
            return {_HERE: pending}
        if self._slots is None:
            self._look()
            assert self._looking is not None
            self._looking.result(deadline, seconds)
        assert self._slots is not None
        return grouped(pending, self._slots)

    def send(self, groups: Groups, deadline: float, seconds: float) -> list[list[Any]]:
        """Send all commands, then read all replies in the order of the groups. A refusal is a reply."""
        permits: list[Permit] = []
        # Made here: after each call in the `finally` block, a signal handler may raise. See `Pool`.
        returning = map(SimpleQueue.put, permits, permits)
        taken: list[tuple[Pool, Connection]] = []
        unread: list[Connection] = []
        try:
            for address in groups:
                pool = self._pool(address)
                taken.append((pool, pool.lend(permits, deadline, seconds)))
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                unread.append(connection)
                connection.send_packed_command(_packed(connection, group), check_health=False)
            answers = []
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                answers.append([_read(connection, each) for each in group])
                unread.remove(connection)
            return answers
        except Exception:
            if self.clustered:
                self._look()
            raise
        finally:
            try:
                # The next call would read the outstanding replies as its own.
                for connection in unread:
                    connection.disconnect()
                for pool, connection in taken:
                    pool.release(connection)
            finally:
                deque(returning, 0)

    def note(self, refusal: ResponseError, address: Address) -> None:
        """React to a server's refusal."""
        if isinstance(refusal, ReadOnlyError):
            # The server is no longer the master, and a new connection finds the new one.
            self._pool(address).forget()
        elif self._stale(refusal, address):
            self._look()

    def close(self) -> None:
        """Close all connections, and keep none from now on."""
        self._closed = True
        for pool in list(self._pools.values()):
            pool.close()

    def _pool(self, address: Address) -> Pool:
        pool = self._pools.get(address)
        if pool is None:
            named = address if self.clustered else None
            pool = self._pools.setdefault(address, Pool(lambda: self._connect(named), self._size))
            if self._closed:
                pool.close()
        return pool

    def _look(self) -> None:
        # A thread that finds a look-up under way must also find its `Background` to wait for.
        with self._one_looks:
            if (self._looking is None or self._looking.done) and self._may_look():
                self._looking = Background(self._find)
                self._looked = time.monotonic()

    def _find(self) -> None:
        failure: Exception | None = None
        for address in self._known():
            asked = {address: [PendingCommand(0, _SLOTS)]}
            try:
                ((reply,),) = self.send(asked, time.monotonic() + _SLOTS_PATIENCE, _SLOTS_PATIENCE)
                self._learn(reply, address)
            except Exception as error:
                failure = error
                continue
            for gone in self._gone(self._pools):
                self._pools.pop(gone).close()
            return
        assert failure is not None
        raise failure


class AsyncClusterNodes(_Topology):
    """The servers of one target for the tasks of one event loop. The caller's `limit` is the deadline."""

    def __init__(self, at: Target, patience: float) -> None:
        super().__init__(at)
        self._connect = async_opener(at, patience)
        self._pools: dict[Address, AsyncPool] = {}
        self._looking: AsyncBackground[None] | None = None

    async def grouped(self, pending: list[PendingCommand], limit: asyncio.Timeout, seconds: float) -> Groups:
        """See `ClusterNodes.grouped`."""
        if not self.clustered:
            return {_HERE: pending}
        if self._slots is None:
            self._look()
            assert self._looking is not None
            await self._looking.result(limit, seconds)
        assert self._slots is not None
        return grouped(pending, self._slots)

    async def send(self, groups: Groups, limit: asyncio.Timeout, seconds: float) -> list[list[Any]]:
        """See `ClusterNodes.send`."""
        permits: list[asyncio.Semaphore] = []
        taken: list[tuple[AsyncPool, Connection]] = []
        unread: list[Connection] = []
        try:
            for address in groups:
                pool = self._pool(address)
                taken.append((pool, await pool.lend(permits, limit, seconds)))
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                unread.append(connection)
                await connection.send_packed_command(_packed(connection, group), check_health=False)
            answers = []
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                answers.append([await _async_read(connection, each) for each in group])
                unread.remove(connection)
            return answers
        except (Exception, asyncio.CancelledError) as error:
            if self.clustered and (isinstance(error, Exception) or limit.expired()):
                self._look()
            raise
        finally:
            # Without an await: a second cancellation there would lose permits.
            for permit in permits:
                permit.release()
            for connection in unread:
                await connection.disconnect(nowait=True)
            for pool, connection in taken:
                await pool.release(connection)

    async def note(self, refusal: ResponseError, address: Address) -> None:
        """See `ClusterNodes.note`."""
        if isinstance(refusal, ReadOnlyError):
            await self._pool(address).forget()
        elif self._stale(refusal, address):
            self._look()

    async def close(self) -> None:
        """See `ClusterNodes.close`."""
        self._closed = True
        if self._looking is not None:
            await self._looking.cancel()
        for pool in list(self._pools.values()):
            await pool.close()
        # The loop removes a closed transport in its next iteration.
        await asyncio.sleep(0)

    def _pool(self, address: Address) -> AsyncPool:
        pool = self._pools.get(address)
        if pool is None:
            named = address if self.clustered else None
            pool = self._pools[address] = AsyncPool(lambda: self._connect(named), self._size)
            pool.closed = self._closed
        return pool

    def _look(self) -> None:
        if (self._looking is None or self._looking.done) and self._may_look():
            self._looking = AsyncBackground(self._find)
            self._looked = time.monotonic()

    async def _find(self) -> None:
        failure: Exception | None = None
        for address in self._known():
            asked = {address: [PendingCommand(0, _SLOTS)]}
            try:
                async with asyncio.timeout(_SLOTS_PATIENCE) as limit:
                    ((reply,),) = await self.send(asked, limit, _SLOTS_PATIENCE)
                self._learn(reply, address)
            except Exception as error:
                failure = error
                continue
            for gone in self._gone(self._pools):
                await self._pools.pop(gone).close()
            return
        assert failure is not None
        raise failure


def _packed(connection: Connection, group: Sequence[PendingCommand]) -> list[bytes]:
    chunks: list[bytes] = []
    for each in group:
        if each.asking:
            chunks += connection.pack_command(*_ASKING)
        # Numbers as text: hiredis aborts the process if a signal handler raises while it converts one.
        chunks += connection.pack_command(
            *[part if isinstance(part, (bytes, str)) else repr(part) for part in each.command]
        )
    return chunks if len(chunks) == 1 else [b"".join(chunks)]


def _read(connection: Connection, command: PendingCommand) -> Any:
    if command.asking:
        connection.read_response()
    try:
        return connection.read_response()
    except ResponseError as refusal:
        return refusal


async def _async_read(connection: Connection, command: PendingCommand) -> Any:
    if command.asking:
        await connection.read_response()
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal
