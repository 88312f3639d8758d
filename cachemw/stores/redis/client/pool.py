"""Connections to one server, kept ready.

Lives here: how many there are, who gets one, and what becomes of those that take long to open. Must not
know: how one is opened, what is sent.

Nothing is opened in a caller's time alone: a connection that a call did not get in time goes on being
opened, and a later call gets it. So a network slower than the budget is connected to in the end. And a call
does not wait where another has just waited as long in vain: while a host is gone, one call waits for it, not
each.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from itertools import islice, repeat
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cachemw.stores.redis.client.connect import Connection, ended
from cachemw.threads import start

T = TypeVar("T")
Permit: TypeAlias = "SimpleQueue[Any]"
# No process has more sockets than this to one server.
_SOCKETS = 1 << 16


class Background(Generic[T]):
    """Run something once on a daemon thread; `result` waits for what it returned or raised."""

    waited = 0.0
    taken = False

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._value: T | None = None
        self._error: BaseException | None = None
        self._done = False
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._then: list[Callable[[T], object]] = []
        start(self._run)

    @property
    def done(self) -> bool:
        """Say whether it has ended."""
        return self._done

    @property
    def failed(self) -> bool:
        """Say whether it has ended with an error."""
        return self._error is not None

    def result(self, deadline: float, seconds: float) -> T:
        """Return what came of it; raise `TimeoutError` at the deadline, at once where as long was waited before."""
        if not self._done and (self.waited >= seconds or not self._wait(deadline)):
            self.waited = max(self.waited, seconds)
            raise TimeoutError
        self.taken = True
        return self.got()

    def got(self) -> T:
        """Return or raise what came of it; it has ended."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def then(self, act: Callable[[T], object]) -> None:
        """Do something with what it returns, at once where it has."""
        self._then.append(act)
        if self._done:
            self._act()

    def _wait(self, deadline: float) -> bool:
        with suppress(Empty):
            self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            # One token wakes each waiting thread in turn.
            self._ended.put(None)
        return self._done

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:
            self._error = error
        self._done = True
        self._ended.put(None)
        self._act()

    def _act(self) -> None:
        while (act := _last(self._then)) is not None:
            if self._error is None:
                act(cast("T", self._value))


class AsyncBackground(Generic[T]):
    """`Background` for a task of the running loop."""

    waited = 0.0
    taken = False

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._error: Exception | None = None
        self._task: asyncio.Task[T | None] = asyncio.create_task(self._run(work))

    @property
    def done(self) -> bool:
        """See `Background.done`."""
        return self._task.done()

    @property
    def failed(self) -> bool:
        """See `Background.failed`."""
        return self._error is not None

    async def result(self, limit: asyncio.Timeout, seconds: float) -> T:
        """See `Background.result`; the caller's own `limit` is the deadline."""
        if not self.done and self.waited >= seconds:
            raise TimeoutError
        try:
            await asyncio.wait((self._task,))
        except asyncio.CancelledError:
            if limit.expired():
                self.waited = max(self.waited, seconds)
            raise
        self.taken = True
        return self.got()

    def got(self) -> T:
        """See `Background.got`."""
        if self._task.cancelled():
            raise RedisConnectionError("closed while it was opened")
        if self._error is not None:
            raise self._error
        return cast("T", self._task.result())

    async def cancel(self) -> T | None:
        """End it; return what came of it before."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        return None if self._task.cancelled() else self._task.result()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T | None:
        # An error that nobody waits for any more is no error of the loop's.
        try:
            return await work()
        except Exception as error:
            self._error = error
            return None


class Pool:
    """Lend connections to threads, the one given back last first, at most `size` at a time.

    One that is `closed` still lends, and keeps nothing. A call takes a connection and a permit, which goes back to
    `room`. An exception that a signal handler raises may cost the connection, but not the permit: one call of a C
    function takes it from `room` into the list of the caller, and one such call in the caller's `finally` block,
    `deque(map(SimpleQueue.put, permits, permits), 0)`, puts all permits back.
    """

    def __init__(self, connect: Callable[[], Connection], size: int) -> None:
        self._connect = connect
        # Each permit is a reference to the queue itself, so that it needs no further note of its pool.
        self.room: Permit = SimpleQueue()
        deque(map(self.room.put, repeat(self.room, min(size, _SOCKETS))), 0)
        self.closed = False
        # Lists are used where one operation is all: those need no lock.
        self._idle: list[Connection] = []
        self._opening: list[Background[Connection]] = []
        self._where: Any = None

    def acquire(self, permits: list[Permit], deadline: float, seconds: float) -> Connection:
        """Add a permit to `permits` and return a connection that can be sent over.

        Raises what opening one raised, or `TimeoutError` at the deadline.
        """
        get = partial(self.room.get, True, max(0.0, deadline - time.monotonic()))
        try:
            permits.extend(islice(iter(get, None), 1))
        except Empty:
            raise TimeoutError from None
        _settle(self._opening, self._idle)
        return self._idle_one(deadline) or self._opened_one(deadline, seconds)

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next call; one that was disconnected is forgotten."""
        if connection.is_connected:
            self._idle.append(connection)
        self._end_what_was_kept()

    def forget(self) -> None:
        """Disconnect all connections that are not lent."""
        _settle(self._opening, self._idle)
        while (connection := _last(self._idle)) is not None:
            connection.disconnect()

    def close(self) -> None:
        """Forget, and keep no connection from here on."""
        self.closed = True
        self.forget()
        while (opening := _last(self._opening)) is not None:
            opening.then(lambda connection: connection.disconnect())

    def _end_what_was_kept(self) -> None:
        # Asked after keeping something: who closes meanwhile sees it, or is seen here.
        if self.closed:
            self.close()

    def _idle_one(self, deadline: float) -> Connection | None:
        while (connection := _last(self._idle)) is not None:
            if _quiet(connection):
                connection.until(deadline)
                return connection
            connection.disconnect()
        return None

    def _opened_one(self, deadline: float, seconds: float) -> Connection:
        opening = _last(self._opening) or Background(self._open)
        try:
            connection = opening.result(deadline, seconds)
        finally:
            if not opening.taken:
                self._opening.append(opening)
                self._end_what_was_kept()
        connection.until(deadline)
        return connection

    def _open(self) -> Connection:
        connection = self._connect()
        if (where := _where(connection)) != self._where:
            # There is another master: nobody should still ask the old one.
            self._where = where
            self.forget()
        return connection


def _last(items: list[T]) -> T | None:
    try:
        return items.pop()
    except IndexError:
        return None


def _settle(opening: list[Any], idle: list[Connection]) -> None:
    """Put connections that were opened meanwhile with the idle ones: like those, they may be gone by now."""
    for each in opening[:]:
        if each.done:
            # Another thread may have been faster.
            with suppress(ValueError):
                opening.remove(each)
                if not each.failed:
                    idle.append(each.got())


def _where(connection: Connection) -> Any:
    return getattr(connection, "host", None), getattr(connection, "port", None)


def _quiet(connection: Connection) -> bool:
    """Say whether the server has neither closed a connection nor sent what nobody asked for."""
    # Without a wait: where hiredis is missing, redis-py asks by receiving.
    connection.until(time.monotonic())
    try:
        return not connection.can_read()
    except (RedisConnectionError, RedisTimeoutError, OSError):
        return False


class AsyncPool:
    """`Pool` for the tasks of one event loop; who takes bounds the wait."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self.room = asyncio.Semaphore(size)
        self.closed = False
        self._idle: list[Connection] = []
        self._opening: list[AsyncBackground[Connection]] = []
        self._where: Any = None

    async def acquire(
        self, permits: list[asyncio.Semaphore], limit: asyncio.Timeout, seconds: float
    ) -> Connection:
        """See `Pool.take`; `limit` is the caller's own, and the caller releases each of `permits`."""
        await self.room.acquire()
        permits.append(self.room)
        _settle(self._opening, self._idle)
        return await self._idle_one() or await self._opened_one(limit, seconds)

    async def release(self, connection: Connection) -> None:
        """See `Pool.keep`."""
        if connection.is_connected and not self.closed:
            self._idle.append(connection)
        else:
            await connection.disconnect(nowait=True)

    async def forget(self) -> None:
        """See `Pool.forget`."""
        _settle(self._opening, self._idle)
        while (connection := _last(self._idle)) is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """See `Pool.close`; what is being opened is given up."""
        self.closed = True
        while self._opening:
            opening = self._opening[-1]
            connection = await opening.cancel()
            # Another task may close it, too.
            if opening in self._opening:
                self._opening.remove(opening)
                if connection is not None:
                    self._idle.append(connection)
        # Taken out first: nobody is lent what is being ended.
        idle, self._idle = self._idle, []
        try:
            await asyncio.gather(*map(ended, idle))
        except asyncio.CancelledError:
            for connection in idle:
                await connection.disconnect(nowait=True)
            raise

    async def _idle_one(self) -> Connection | None:
        while (connection := _last(self._idle)) is not None:
            quiet = False
            try:
                quiet = not await connection.can_read()
            except (RedisConnectionError, RedisTimeoutError, OSError):
                pass
            finally:
                # Where this task was cancelled, too.
                if not quiet:
                    await connection.disconnect(nowait=True)
            if quiet:
                return connection
        return None

    async def _opened_one(self, limit: asyncio.Timeout, seconds: float) -> Connection:
        opening = _last(self._opening) or AsyncBackground(self._open)
        try:
            return await opening.result(limit, seconds)
        finally:
            if not opening.taken:
                self._opening.append(opening)
                if self.closed:
                    await self.close()

    async def _open(self) -> Connection:
        connection = await self._connect()
        if (where := _where(connection)) != self._where:
            self._where = where
            await self.forget()
        return connection
