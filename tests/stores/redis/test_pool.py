"""How connections are lent: who waits, for how long, and for which."""

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
    """A connection to nothing."""

    is_connected = True
    noisy = False

    def __init__(self, port: int = 1) -> None:
        self.host, self.port = "h", port

    def until(self, deadline: float) -> None:
        """Take any bound."""

    def can_read(self) -> bool:
        return self.noisy

    def disconnect(self) -> None:
        self.is_connected = False


class Opener:
    """Open connections when it is allowed to."""

    def __init__(self) -> None:
        self.allowed = threading.Event()
        self.made: list[Fake] = []

    def __call__(self) -> Fake:
        self.allowed.wait(5)
        self.made.append(Fake())
        return self.made[-1]


def take(pool: Pool, seconds: float = 1.0) -> Any:
    """Take a connection within seconds."""
    permits: list[Any] = []
    try:
        return pool.acquire(permits, time.monotonic() + seconds, seconds)
    except BaseException:
        for permit in permits:
            permit.put(permit)
        raise


def give(pool: Pool, connection: Any) -> None:
    """Give a connection and its permit back."""
    pool.release(connection)
    pool.room.put(pool.room)


def test_the_last_one_given_back_is_lent_first() -> None:
    """So few connections serve a light load, and the others may end."""
    pool = Pool(Fake, 5)
    one, two = take(pool), take(pool)
    give(pool, one)
    give(pool, two)
    assert [take(pool), take(pool)] == [two, one]


def test_a_connection_that_is_noisy_or_gone_is_not_lent() -> None:
    """What nobody asked for lies in it, or its server has left."""

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


def test_another_address_ends_the_connections_to_the_old_one() -> None:
    """A master that was replaced is asked by nobody any more, once anyone has heard of it."""
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


def test_an_opening_is_waited_for_as_long_as_a_call_has_once() -> None:
    """Calls with no more time than one that waited in vain fail at once, one with more waits on."""
    allowed = threading.Event()
    opened = []

    def slow() -> Fake:
        allowed.wait(5)
        opened.append(Fake())
        return opened[-1]

    pool = Pool(slow, 5)
    with pytest.raises(TimeoutError):
        take(pool, 0.05)
    start = time.monotonic()
    for _ in range(100):
        with pytest.raises(TimeoutError):
            take(pool, 0.05)
    assert time.monotonic() - start < 1
    threading.Timer(0.1, allowed.set).start()
    assert take(pool, 2.0) is opened[0]
    assert len(opened) == 1


def test_an_error_is_told_to_the_call_that_waited_and_to_no_later_one() -> None:
    """The next call opens anew."""
    results: list[Callable[[], Fake]] = []

    def connect() -> Fake:
        return results.pop()()

    def refuse() -> Fake:
        raise ConnectionRefusedError

    def late() -> Fake:
        time.sleep(0.1)
        raise ConnectionRefusedError

    pool = Pool(connect, 1)
    results.append(refuse)
    with pytest.raises(ConnectionRefusedError):
        take(pool)
    results.append(late)
    with pytest.raises(TimeoutError):
        take(pool, 0.02)
    time.sleep(0.15)
    results.append(Fake)
    assert isinstance(take(pool), Fake)


def test_nothing_is_kept_after_the_end() -> None:
    """What was lent is disconnected when it comes back."""
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
    """Return a connection that was opened after its call had given up."""
    with pytest.raises(TimeoutError):
        take(pool, 0.02)
    opener.allowed.set()
    until(lambda: pool._opening[0].done, "nothing is opened")
    return opener.made[0]


def test_what_was_opened_meanwhile_is_looked_at_before_it_is_lent() -> None:
    """Its server may have left since."""
    pool = Pool(opener := Opener(), 5)
    left_open(pool, opener).noisy = True
    assert take(pool) is opener.made[1]
    assert not opener.made[0].is_connected


def test_what_was_opened_meanwhile_is_forgotten_with_the_idle_ones() -> None:
    """It leads to the old master as they do; what is still being opened goes on."""
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


def test_what_was_opened_before_the_end_is_disconnected() -> None:
    """Though nobody has taken it."""
    pool = Pool(opener := Opener(), 5)
    one = left_open(pool, opener)
    pool.close()
    assert not one.is_connected


@pytest.mark.parametrize("waited_for", [False, True])
def test_what_is_being_opened_at_the_end_is_disconnected_when_it_is_open(waited_for: bool) -> None:
    """So is what a call was waiting for in vain; one that gets it in time has it to itself."""
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


def test_a_connection_that_comes_back_while_the_pool_is_closed_is_disconnected() -> None:
    """Whichever of the two is first."""

    class Late(list[Any]):
        def append(self, connection: Any) -> None:
            pool.close()
            super().append(connection)

    pool = Pool(Fake, 5)
    one = take(pool)
    pool._idle = Late()
    give(pool, one)
    assert not one.is_connected


def test_what_runs_in_the_background_hands_on_what_it_raised() -> None:
    """Of any class."""

    def leave() -> None:
        raise SystemExit

    work = Background(leave)
    with pytest.raises(SystemExit):
        work.result(time.monotonic() + 1, 1)
    assert work.done
    assert work.failed


class AsyncFake(Fake):
    """The same, awaited."""

    async def can_read(self) -> bool:  # type: ignore[override]
        return super().can_read()

    async def disconnect(self, nowait: bool = False) -> None:  # type: ignore[override]
        super().disconnect()


async def test_a_task_gets_what_another_did_not_wait_for() -> None:
    """An opening goes on through time-outs; a cancelled task, unlike those, says nothing of how long it takes."""
    allowed = asyncio.Event()
    opened = []

    async def slow() -> AsyncFake:
        await allowed.wait()
        opened.append(AsyncFake())
        return opened[-1]

    pool = AsyncPool(slow, 5)

    async def call(seconds: float) -> Any:
        async with asyncio.timeout(seconds) as limit:
            return await pool.acquire([], limit, seconds)

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


async def test_an_async_pool_lends_and_forgets_as_the_other() -> None:
    """The last given back first, none that is noisy or of an old address, none after the end."""

    async def broken() -> bool:
        raise OSError

    ports = iter([1, 1, 2, 2])

    async def connect() -> AsyncFake:
        return AsyncFake(next(ports))

    pool = AsyncPool(connect, 5)
    async with asyncio.timeout(2) as limit:
        one, two = await pool.acquire([], limit, 2), await pool.acquire([], limit, 2)
        await pool.release(one)
        await pool.release(two)
        assert await pool.acquire([], limit, 2) is two
        await pool.release(two)
        two.noisy, one.can_read = True, broken
        three = await pool.acquire([], limit, 2)
        assert three.port == 2
        assert not one.is_connected
        assert not two.is_connected
        await pool.close()
        await pool.release(three)
        assert not three.is_connected


async def test_an_async_error_is_told_once() -> None:
    """To the call that waited; the next opens anew."""
    failures = [OSError("late"), OSError("at once")]

    async def connect() -> AsyncFake:
        if failures:
            failure = failures.pop()
            if not failures:
                await asyncio.sleep(0.05)
            raise failure
        return AsyncFake()

    pool = AsyncPool(connect, 5)

    async def call(seconds: float) -> Any:
        async with asyncio.timeout(seconds) as limit:
            return await pool.acquire([], limit, seconds)

    with pytest.raises(OSError, match="at once"):
        await call(1)
    with pytest.raises(TimeoutError):
        await call(0.01)
    await asyncio.sleep(0.1)
    assert isinstance(await call(1), AsyncFake)


@pytest.mark.parametrize("end", ["noisy", "forgotten", "closed"])
async def test_an_async_pool_keeps_an_eye_on_what_was_opened_meanwhile(end: str) -> None:
    """It may be gone by now, lead to an old master, or come too late."""
    allowed = asyncio.Event()
    made: list[AsyncFake] = []

    async def slow() -> AsyncFake:
        await allowed.wait()
        made.append(AsyncFake())
        return made[-1]

    pool = AsyncPool(slow, 5)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            await pool.acquire([], limit, 0.01)
    allowed.set()
    await asyncio.sleep(0.01)
    if end == "noisy":
        made[0].noisy = True
    else:
        await (pool.forget() if end == "forgotten" else pool.close())
    async with asyncio.timeout(1) as limit:
        assert await pool.acquire([], limit, 1) is made[1]
    assert not made[0].is_connected


async def test_closing_gives_up_what_a_task_was_waiting_for_in_vain() -> None:
    """It is in no list while it is waited for."""

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
            await pool.acquire([], limit, 0.05)
    await ending
    assert asyncio.all_tasks() == before


async def test_closing_takes_what_was_opened_in_vain() -> None:
    """Ready by then or not."""
    made = []

    async def connect() -> AsyncFake:
        await asyncio.sleep(0.03 if not made else 60)
        made.append(AsyncFake())
        return made[-1]

    pool = AsyncPool(connect, 5)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01) as limit:
                await pool.acquire([], limit, 0.01)
    await asyncio.sleep(0.05)
    async with asyncio.timeout(1) as limit:
        lent = await pool.acquire([], limit, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01) as limit:
            await pool.acquire([], limit, 0.01)
    await pool.close()
    assert lent.is_connected
    await pool.release(lent)
    assert not lent.is_connected
