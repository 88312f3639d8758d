"""The connections to one server.

Contains: their number, their lending, and the connections that take long to open. Must not depend on: the
steps of opening, commands.

If a call reaches its deadline while its connection is being opened, the opening continues, and a later call
gets the connection. So a network slower than the deadline is connected to in the end. A call does not wait if
another call has just waited as long in vain: while a host is unavailable, one call waits for it, not each.
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
# More sockets than any process has to one server.
_SOCKETS = 1 << 16


class Background(Generic[T]):
    """Run a function once on a daemon thread; `result` waits for its end."""

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
        """Return True if the function has ended."""
        return self._done

    @property
    def failed(self) -> bool:
        """Return True if the function has raised an error."""
        return self._error is not None

    def result(self, deadline: float, seconds: float) -> T:
        """Return or raise the outcome. Raise `TimeoutError` at the deadline.

        Raises it at once if an earlier call waited as long in vain.
        """
        if not self._done and (self.waited >= seconds or not self._wait(deadline)):
            self.waited = max(self.waited, seconds)
            raise TimeoutError
        self.taken = True
        return self.got()

    def got(self) -> T:
        """Return or raise the outcome of a function that has ended."""
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def then(self, act: Callable[[T], object]) -> None:
        """Call `act` with the result, at once if the function has ended."""
        self._then.append(act)
        if self._done:
            self._act()

    def _wait(self, deadline: float) -> bool:
        with suppress(Empty):
            self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
            # One token wakes all waiting threads in turn.
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
        """Cancel the task; return the result if it had one before."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        return None if self._task.cancelled() else self._task.result()

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T | None:
        # The loop must not report an error for which no call waits any more.
        try:
            return await work()
        except Exception as error:
            self._error = error
            return None


class Pool:
    """Lend connections to threads, the last released one first, at most `size` at a time.

    A pool that is `closed` still lends, and keeps no connection. A call takes a connection and a permit, and
    returns the permit to `room`. An exception that a signal handler raises may lose the connection, but never
    the permit. One call of a C function moves the permit from `room` to the caller's list `permits`. One such
    call in the caller's `finally` block, `deque(returning, 0)`, puts all permits back. The caller makes
    `returning`, which is `map(SimpleQueue.put, permits, permits)`, before it takes the first permit.
    """

    def __init__(self, connect: Callable[[], Connection], size: int) -> None:
        self._connect = connect
        # Each permit is a reference to its queue, which says where to return it.
        self.room: Permit = SimpleQueue()
        deque(map(self.room.put, repeat(self.room, min(size, _SOCKETS))), 0)
        self.closed = False
        # Single operations of lists need no lock.
        self._idle: list[Connection] = []
        self._opening: list[Background[Connection]] = []
        self._where: Any = None

    def lend(self, permits: list[Permit], deadline: float, seconds: float) -> Connection:
        """Add a permit to `permits` and return a usable connection.

        Raises the error of opening it, or `TimeoutError` at the deadline.
        """
        get = partial(self.room.get, True, max(0.0, deadline - time.monotonic()))
        try:
            permits.extend(islice(iter(get, None), 1))
        except Empty:
            raise TimeoutError from None
        _settle(self._opening, self._idle)
        return self._idle_one(deadline) or self._opened_one(deadline, seconds)

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next call, unless it is disconnected."""
        if connection.is_connected:
            self._idle.append(connection)
        self._forget_if_closed()

    def forget(self) -> None:
        """Close all connections that are not lent."""
        _settle(self._opening, self._idle)
        while (connection := _last(self._idle)) is not None:
            connection.disconnect()

    def close(self) -> None:
        """Close all connections that are not lent, and keep none from now on."""
        self.closed = True
        self.forget()
        while (opening := _last(self._opening)) is not None:
            opening.then(lambda connection: connection.disconnect())

    def _forget_if_closed(self) -> None:
        # Checked after keeping a connection: a simultaneous `close` sees it, or is seen here.
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
                self._forget_if_closed()
        connection.until(deadline)
        return connection

    def _open(self) -> Connection:
        connection = self._connect()
        if (where := _where(connection)) != self._where:
            # Another master: no call should use connections to the old one.
            self._where = where
            self.forget()
        return connection


def _last(items: list[T]) -> T | None:
    try:
        return items.pop()
    except IndexError:
        return None


def _settle(opening: list[Any], idle: list[Connection]) -> None:
    """Move connections that are open by now to the idle ones; the server may have closed them since."""
    for each in opening[:]:
        if each.done:
            # Another thread may have moved it.
            with suppress(ValueError):
                opening.remove(each)
                if not each.failed:
                    idle.append(each.got())


def _where(connection: Connection) -> Any:
    return getattr(connection, "host", None), getattr(connection, "port", None)


def _quiet(connection: Connection) -> bool:
    """Return True if the server has neither closed a connection nor sent data without a request."""
    # Without a wait: redis-py without hiredis checks by receiving.
    connection.until(time.monotonic())
    try:
        return not connection.can_read()
    except (RedisConnectionError, RedisTimeoutError, OSError):
        return False


class AsyncPool:
    """`Pool` for the tasks of one event loop. The caller bounds the wait."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self.room = asyncio.Semaphore(size)
        self.closed = False
        self._idle: list[Connection] = []
        self._opening: list[AsyncBackground[Connection]] = []
        self._where: Any = None

    async def lend(
        self, permits: list[asyncio.Semaphore], limit: asyncio.Timeout, seconds: float
    ) -> Connection:
        """See `Pool.lend`. `limit` is the caller's deadline, and the caller releases each of `permits`."""
        await self.room.acquire()
        permits.append(self.room)
        _settle(self._opening, self._idle)
        return await self._idle_one() or await self._opened_one(limit, seconds)

    async def release(self, connection: Connection) -> None:
        """See `Pool.release`."""
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
        """See `Pool.close`; connections that are being opened are cancelled."""
        self.closed = True
        while self._opening:
            opening = self._opening[-1]
            connection = await opening.cancel()
            # Another task may close the pool, too.
            if opening in self._opening:
                self._opening.remove(opening)
                if connection is not None:
                    self._idle.append(connection)
        # Taken out first, so that no call gets a connection that is being closed.
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
                # After a cancellation of this task, too.
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
