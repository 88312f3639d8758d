"""The servers of one target: their connections, and, in a cluster, who of them has which slot.

Lives here: commands sent together and their answers read, and how a cluster's slots are kept known. Must not
know: what a call is made of, the retry of what was not run.

A cluster's slots are looked up in the background, at the first call and whenever a server or its silence
says that they have changed; only the first call waits for them. A node that is gone makes those calls fail
that need it, at once where it refuses.
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
# How long one node is asked for the slots before another is, and how often at most, in seconds.
_SLOTS_PATIENCE = 0.5
_SLOTS_PAUSE = 0.1
# Where no node has to be told from another.
_HERE: Address = ("", 0)


class _Topology:
    """What the twins share: who has which slot, as far as known, and when to look again."""

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
        """Say whether a refusal means that slots have changed, and learn what it tells."""
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
    """The servers of one target, for threads."""

    def __init__(self, at: Target, patience: float) -> None:
        super().__init__(at)
        self._connect = opener(at, patience)
        self._pools: dict[Address, Pool] = {}
        self._looking: Background[None] | None = None
        self._one_looks = threading.Lock()

    def grouped(self, errands: list[PendingCommand], deadline: float, seconds: float) -> Groups:
        """Return errands by the server that each goes to; waits where that is not known yet."""
        if not self.clustered:
            return {_HERE: errands}
        if self._slots is None:
            self._look()
            assert self._looking is not None
            self._looking.result(deadline, seconds)
        assert self._slots is not None
        return grouped(errands, self._slots)

    def send(self, groups: Groups, deadline: float, seconds: float) -> list[list[Any]]:
        """Send all errands, then read all answers, in the order of the groups; a refusal is an answer."""
        permits: list[Permit] = []
        taken: list[tuple[Pool, Connection]] = []
        unread: list[Connection] = []
        try:
            for address in groups:
                pool = self._pool(address)
                taken.append((pool, pool.acquire(permits, deadline, seconds)))
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                unread.append(connection)
                connection.send_packed_command(_packed(connection, group), check_health=False)
            answers = []
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                answers.append([_read(connection, errand) for errand in group])
                unread.remove(connection)
            return answers
        except Exception:
            if self.clustered:
                self._look()
            raise
        finally:
            try:
                # What is still to come would be read as the next call's answer.
                for connection in unread:
                    connection.disconnect()
                for pool, connection in taken:
                    pool.release(connection)
            finally:
                deque(map(SimpleQueue.put, permits, permits), 0)  # see `Pool`

    def note(self, refusal: ResponseError, address: Address) -> None:
        """Draw the conclusions from a server's refusal."""
        if isinstance(refusal, ReadOnlyError):
            # It was the master: a new connection finds the one that is.
            self._pool(address).forget()
        elif self._stale(refusal, address):
            self._look()

    def close(self) -> None:
        """Disconnect, and keep no connection from here on."""
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
        # Who finds that another may look already must find, too, what that one waits for.
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
    """The servers of one target, for the tasks of one event loop; who calls bounds the wait by `limit`."""

    def __init__(self, at: Target, patience: float) -> None:
        super().__init__(at)
        self._connect = async_opener(at, patience)
        self._pools: dict[Address, AsyncPool] = {}
        self._looking: AsyncBackground[None] | None = None

    async def grouped(self, errands: list[PendingCommand], limit: asyncio.Timeout, seconds: float) -> Groups:
        """See `Servers.grouped`."""
        if not self.clustered:
            return {_HERE: errands}
        if self._slots is None:
            self._look()
            assert self._looking is not None
            await self._looking.result(limit, seconds)
        assert self._slots is not None
        return grouped(errands, self._slots)

    async def send(self, groups: Groups, limit: asyncio.Timeout, seconds: float) -> list[list[Any]]:
        """See `Servers.send`."""
        permits: list[asyncio.Semaphore] = []
        taken: list[tuple[AsyncPool, Connection]] = []
        unread: list[Connection] = []
        try:
            for address in groups:
                pool = self._pool(address)
                taken.append((pool, await pool.acquire(permits, limit, seconds)))
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                unread.append(connection)
                await connection.send_packed_command(_packed(connection, group), check_health=False)
            answers = []
            for (_, connection), group in zip(taken, groups.values(), strict=True):
                answers.append([await _async_read(connection, errand) for errand in group])
                unread.remove(connection)
            return answers
        except (Exception, asyncio.CancelledError) as error:
            if self.clustered and (isinstance(error, Exception) or limit.expired()):
                self._look()
            raise
        finally:
            # Without a wait, which a second cancellation could end before all permits are back.
            for permit in permits:
                permit.release()
            for connection in unread:
                await connection.disconnect(nowait=True)
            for pool, connection in taken:
                await pool.release(connection)

    async def note(self, refusal: ResponseError, address: Address) -> None:
        """See `Servers.note`."""
        if isinstance(refusal, ReadOnlyError):
            await self._pool(address).forget()
        elif self._stale(refusal, address):
            self._look()

    async def close(self) -> None:
        """See `Servers.close`."""
        self._closed = True
        if self._looking is not None:
            await self._looking.cancel()
        for pool in list(self._pools.values()):
            await pool.close()
        # A transport that was closed is gone once the loop has come round.
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
    for errand in group:
        if errand.asking:
            chunks += connection.pack_command(*_ASKING)
        # Numbers as text: hiredis ends the process where a signal handler raises while it converts one.
        chunks += connection.pack_command(
            *[part if isinstance(part, (bytes, str)) else repr(part) for part in errand.command]
        )
    return chunks if len(chunks) == 1 else [b"".join(chunks)]


def _read(connection: Connection, errand: PendingCommand) -> Any:
    if errand.asking:
        connection.read_response()
    try:
        return connection.read_response()
    except ResponseError as refusal:
        return refusal


async def _async_read(connection: Connection, errand: PendingCommand) -> Any:
    if errand.asking:
        await connection.read_response()
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal
