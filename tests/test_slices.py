"""Work in slices: run straight through, and on an event loop that serves others in between."""

from __future__ import annotations

import asyncio
import time

import pytest

from cachemw.slices import Slices, run, run_in_loop


def counting(slices: int, log: list[str], name: str = "work") -> Slices[str]:
    """Return work of so many slices that writes each of them down."""
    for _ in range(slices):
        log.append(name)
        yield
    return name


@pytest.mark.parametrize("slices", [0, 1, 5])
async def test_work_returns_its_result_with_either_driver(slices: int) -> None:
    """Both drivers run all slices and return the result of the work."""
    log: list[str] = []
    assert run(counting(slices, log)) == "work"
    assert await run_in_loop(counting(slices, log)) == "work"
    assert len(log) == 2 * slices


async def test_short_work_costs_no_turn_of_the_loop() -> None:
    """Work that never yields is over before anything else runs."""
    log: list[str] = []
    other = asyncio.ensure_future(run_in_loop(counting(1, log, "other")))
    await run_in_loop(counting(0, log))
    assert log == []
    await other


async def test_long_work_lets_other_tasks_run_between_slices() -> None:
    """Another task has a turn between any two slices."""
    log: list[str] = []

    async def other() -> None:
        while len(log) < 20:
            log.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(run_in_loop(counting(5, log)), other())
    first, last = log.index("work"), len(log) - log[::-1].index("work")
    assert "work work" not in " ".join(log[first:last])


async def test_two_long_works_run_one_after_another() -> None:
    """A turn of the loop holds a slice of one request: the second begins when the first is over."""
    log: list[str] = []
    await asyncio.gather(*(run_in_loop(counting(5, log, name)) for name in "abc"))
    assert "".join(log[3:]) == "a" * 4 + "b" * 4 + "c" * 4
    assert log[:3] == ["a", "b", "c"]


async def test_long_slice_leaves_the_loop_as_long_for_others() -> None:
    """After a slice of 50 ms a task that needs many turns of the loop is done before the next slice."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        for _ in range(10):
            await asyncio.sleep(0)
            turns += 1

    def slow() -> Slices[int]:
        yield
        time.sleep(0.05)
        task.append(asyncio.ensure_future(other()))
        yield
        return turns

    task: list[asyncio.Future[None]] = []
    assert await run_in_loop(slow()) == 10


@pytest.mark.parametrize("fails", [True, False])
async def test_work_that_fails_or_is_cancelled_lets_the_next_run(fails: bool) -> None:
    """The lock is released, and the work is closed."""
    closed: list[bool] = []

    def broken() -> Slices[None]:
        try:
            yield
            if fails:
                raise ValueError
            while True:
                yield
        finally:
            closed.append(True)

    task = asyncio.ensure_future(run_in_loop(broken()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(ValueError if fails else asyncio.CancelledError):  # type: ignore[arg-type]
        await task
    del task
    assert await asyncio.wait_for(run_in_loop(counting(3, [])), 10) == "work"
    assert closed == [True]


def test_long_work_runs_on_any_number_of_loops() -> None:
    """Locks belong to their loop: contended on one, they do not matter to the next."""

    async def both() -> list[str]:
        return await asyncio.gather(run_in_loop(counting(3, [])), run_in_loop(counting(3, [])))

    for _ in range(3):
        assert asyncio.run(both()) == ["work", "work"]
