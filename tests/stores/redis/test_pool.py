"""The lending of connections: the waiting calls, their deadlines and the order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.redis_servers import until
from cachemw.stores.redis.client.pool import AsyncPool, Background, Pool


class Fake:
    """A connection without a server."""

    is_connected = True
    noisy = False

    def __init__(self, port: int = 1) -> None:
        self.host, self.port = "h", port

    def until(self, deadline: float) -> None:
        """Accept any deadline."""

    def can_read(self) -> bool:
        return self.noisy

    def disconnect(self) -> None:
        self.is_connected = False


class Opener:
    """Open connections once a test allows it."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.made: list[Fake] = []

    def __call__(self) -> Fake:
        self.allowed.wait(30)
        self.made.append(Fake())
        return self.made[-1]


def take(pool: Pool, seconds: float = 1.0) -> Any:
    """Take a connection within seconds."""
    permits: list[Any] = []
    try:
        return pool.lend(permits, time.monotonic() + seconds, seconds)
    except BaseException:
        for permit in permits:
            permit.put(permit)
        raise


def give(pool: Pool, connection: Any) -> None:
    """Release a connection and its permit."""
    pool.release(connection)
    pool.room.put(pool.room)


def test_pool_lends_the_last_released_connection_first() -> None:
    """A light load uses few connections, and the server may close the rest."""
    pool = Pool(Fake, 5)
    one, two = take(pool), take(pool)
    give(pool, one)
    give(pool, two)
    assert [take(pool), take(pool)] == [two, one]


def test_pool_lends_no_noisy_or_closed_connection() -> None:
    """A noisy connection holds a stray reply; a closed one has lost its server."""

    def broken() -> bool:
        raise OSError

    pool = Pool(Fake, 5)
    one, two, three = take(pool), take(pool), take(pool)
    for connection in (one, two, three):
        give(pool, connection)
    three.noisy, two.can_read = True, broken
    assert take(pool) is one
    assert not two.is_connected
    assert not three.is_connected


def test_pool_after_a_new_address_closes_the_old_connections() -> None:
    """As soon as one call has found the new master, no call uses the old one."""
    ports = iter([1, 1, 2])
    pool = Pool(lambda: Fake(next(ports)), 5)
    one, two = take(pool), take(pool)
    give(pool, one)
    take(pool)
    give(pool, two)
    two.noisy = True
    give(pool, one)
    one.noisy = True
    assert take(pool).port == 2
    assert not one.is_connected


def test_opening_is_waited_for_once_for_each_length_of_time() -> None:
    """Calls with no more time than one that waited in vain fail at once; one with more time waits on."""
    allowed = threading.Event()
    opened = []

    def slow() -> Fake:
        allowed.wait(30)
        opened.append(Fake())
        return opened[-1]

    pool = Pool(slow, 5)
    with pytest.raises(TimeoutError):
        take(pool, 0.2)
    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            take(pool, 0.2)
    assert time.monotonic() - start < 10
    threading.Timer(0.1, allowed.set).start()
    assert take(pool, 30.0) is opened[0]
    assert len(opened) == 1


def test_error_of_an_opening_reaches_the_waiting_call_only() -> None:
    """The next call opens a new connection."""
    results: list[Callable[[], Fake]] = []

    def connect() -> Fake:
        return results.pop()()

    def refuse() -> Fake:
        raise ConnectionRefusedError

    refused = threading.Event()

    def late() -> Fake:
        refused.wait(30)
        raise ConnectionRefusedError

    pool = Pool(connect, 1)
    results.append(refuse)
    with pytest.raises(ConnectionRefusedError):
        take(pool)
    results.append(late)
    with pytest.raises(TimeoutError):
        take(pool, 0.02)
    refused.set()
    until(lambda: pool._opening[0].done, "the opening does not end")
    results.append(Fake)
    assert isinstance(take(pool), Fake)


def test_closed_pool_keeps_no_connection() -> None:
    """A lent connection is closed when it returns."""
    pool = Pool(Fake, 2)
    one, two = take(pool), take(pool)
    give(pool, one)
    pool.close()
    give(pool, two)
    assert not one.is_connected
    assert not two.is_connected
    give(pool, three := take(pool))
    assert not three.is_connected


def left_open(pool: Pool, opener: Opener) -> Fake:
    """Return a connection that was opened after the deadline of its call."""
    with pytest.raises(TimeoutError):
        take(pool, 0.02)
    opener.allowed.set()
    until(lambda: pool._opening[0].done, "nothing is opened")
    return opener.made[0]


def test_connection_opened_in_the_background_is_checked_before_lending() -> None:
    """Its server may have closed it since."""
    pool = Pool(opener := Opener(), 5)
    left_open(pool, opener).noisy = True
    assert take(pool) is opener.made[1]
    assert not opener.made[0].is_connected


def test_connection_opened_in_the_background_is_forgotten_with_the_idle_ones() -> None:
    """It leads to the old master, too; an opening under way continues."""
    pool = Pool(opener := Opener(), 5)
    one = left_open(pool, opener)
    pool.forget()
    assert not one.is_connected
    opener.allowed.clear()
    with pytest.raises(TimeoutError):
        take(pool, 0.02)
    pool.forget()
    opener.allowed.set()
    assert take(pool) is opener.made[1]


def test_close_ends_a_connection_that_no_call_took() -> None:
    """A connection may be open before any call takes it."""
    pool = Pool(opener := Opener(), 5)
    one = left_open(pool, opener)
    pool.close()
    assert not one.is_connected


@pytest.mark.parametrize("waited_for", [False, True])
def test_close_during_an_opening_ends_the_connection_when_it_is_open(waited_for: bool) -> None:
    """So does the opening that a call waits for in vain."""
    pool = Pool(opener := Opener(), 5)
    if waited_for:
        threading.Timer(0.05, pool.close).start()
    with pytest.raises(TimeoutError):
        take(pool, 0.2)
    pool.close()
    opener.allowed.set()
    until(lambda: opener.made and not opener.made[0].is_connected, "the connection stays")
    give(pool, two := take(pool))
    assert not two.is_connected


def test_connection_released_during_close_is_closed() -> None:
    """The order of the two does not matter."""

    class Late(list[Any]):
        def append(self, connection: Any) -> None:
            pool.close()
            super().append(connection)

    pool = Pool(Fake, 5)
    one = take(pool)
    pool._idle = Late()
    give(pool, one)
    assert not one.is_connected


def test_background_work_hands_on_its_error() -> None:
    """Errors of any class reach the waiting thread."""

    def leave() -> None:
        raise SystemExit

    work = Background(leave)
    with pytest.raises(SystemExit):
        work.result(time.monotonic() + 1, 1)
    assert work.done
    assert work.failed


async def ended(pool: AsyncPool) -> None:
    """Wait until a background opening has ended."""
    openings = [opening._task for opening in pool._opening]
    await asyncio.wait(openings, timeout=30, return_when=asyncio.FIRST_COMPLETED)


class AsyncFake(Fake):
    """`Fake` for asyncio."""

    async def can_read(self) -> bool:  # type: ignore[override]
        return super().can_read()

    async def disconnect(self, nowait: bool = False) -> None:  # type: ignore[override]
        super().disconnect()


async def test_task_gets_the_connection_of_a_task_that_timed_out() -> None:
    """An opening continues after a timeout; a cancelled task, unlike a timeout, measures no waiting time."""
    allowed = asyncio.Event()
    opened = []

    async def slow() -> AsyncFake:
        await allowed.wait()
        opened.append(AsyncFake())
        return opened[-1]

    pool = AsyncPool(slow, 5)

    async def call(seconds: float) -> Any:
        async with asyncio.timeout(seconds) as limit:
            return await pool.lend([], limit, seconds)

    task = asyncio.create_task(call(0.05))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        await call(0.6)
    assert time.monotonic() - start >= 0.59
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        await call(0.6)
    assert time.monotonic() - start < 0.5
    allowed.set()
    assert await call(2.0) is opened[0]
    assert len(opened) == 1
    await pool.close()


async def test_async_pool_lends_and_forgets_like_the_sync_pool() -> None:
    """The last released first, none that is noisy or of an old address, none after the end."""

    async def broken() -> bool:
        raise OSError

    ports = iter([1, 1, 2, 2])

    async def connect() -> AsyncFake:
        return AsyncFake(next(ports))

    pool = AsyncPool(connect, 5)
    async with asyncio.timeout(2) as limit:
        one, two = await pool.lend([], limit, 2), await pool.lend([], limit, 2)
        await pool.release(one)
        await pool.release(two)
        assert await pool.lend([], limit, 2) is two
        await pool.release(two)
        two.noisy, one.can_read = True, broken
        three = await pool.lend([], limit, 2)
        assert three.port == 2
        assert not one.is_connected
        assert not two.is_connected
        await pool.close()
        await pool.release(three)
        assert not three.is_connected


async def test_error_of_an_async_opening_reaches_the_waiting_task_only() -> None:
    """The next task opens a new connection."""
    failures = [OSError("late"), OSError("at once")]
    refused = asyncio.Event()

    async def connect() -> AsyncFake:
        if failures:
            failure = failures.pop()
            if not failures:
                await refused.wait()
            raise failure
        return AsyncFake()

    pool = AsyncPool(connect, 5)

    async def call(seconds: float) -> Any:
        async with asyncio.timeout(seconds) as limit:
            return await pool.lend([], limit, seconds)

    with pytest.raises(OSError, match="at once"):
        await call(30)
    with pytest.raises(TimeoutError):
        await call(0.01)
    refused.set()
    await ended(pool)
    assert isinstance(await call(30), AsyncFake)


@pytest.mark.parametrize("end", ["noisy", "forgotten", "closed"])
async def test_async_pool_checks_a_connection_opened_in_the_background(end: str) -> None:
    """It may be closed by now, lead to an old master, or come after the end."""
    allowed = asyncio.Event()
    made: list[AsyncFake] = []

    async def slow() -> AsyncFake:
        await allowed.wait()
        made.append(AsyncFake())
        return made[-1]

    pool = AsyncPool(slow, 5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            await pool.lend([], limit, 0.01)
    allowed.set()
    await ended(pool)
    if end == "noisy":
        made[0].noisy = True
    else:
        await (pool.forget() if end == "forgotten" else pool.close())
    async with asyncio.timeout(1) as limit:
        assert await pool.lend([], limit, 1) is made[1]
    assert not made[0].is_connected


async def test_close_of_an_async_pool_cancels_an_awaited_opening() -> None:
    """While a task waits for an opening, it is in no list."""

    async def connect() -> AsyncFake:
        await asyncio.sleep(60)
        return AsyncFake()

    async def end() -> None:
        await asyncio.sleep(0.01)
        await pool.close()

    pool, before = AsyncPool(connect, 5), asyncio.all_tasks()
    ending = asyncio.create_task(end())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05) as limit:
            await pool.lend([], limit, 0.05)
    await ending
    assert asyncio.all_tasks() == before


async def test_close_of_an_async_pool_ends_all_openings() -> None:
    """Both finished and unfinished openings end."""
    made = []
    allowed, never = asyncio.Event(), asyncio.Event()

    async def connect() -> AsyncFake:
        await (never if made else allowed).wait()
        made.append(AsyncFake())
        return made[-1]

    pool = AsyncPool(connect, 5)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01) as limit:
                await pool.lend([], limit, 0.01)
    allowed.set()
    await ended(pool)
    async with asyncio.timeout(30) as limit:
        lent = await pool.lend([], limit, 30)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            await pool.lend([], limit, 0.01)
    await pool.close()
    assert lent.is_connected
    await pool.release(lent)
    assert not lent.is_connected
