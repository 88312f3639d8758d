"""Work beside the requests: queued writes, the exchange with other workers, flushing and closing."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from typing import Any

import pytest

from cachemw.engine import aio, background_writer
from cachemw.errors import StoreError
from tests.engine.calls import (
    agent,
    finished,
    make_hooked,
    make_middleware,
    marked_places,
    usage,
    write_in_background,
)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_fact_learned_by_one_worker_reaches_another(asynchronous: bool) -> None:
    """A refusal at one worker stops the marker at another after half a minute; store failures are counted."""

    async def run() -> None:
        one, two = make_hooked(asynchronous), make_hooked(asynchronous)
        two._shell.store = one._shell.store
        write_in_background(one)
        write_in_background(two)
        call = await finished(one.prepare(agent()))
        await finished(
            one.refused(
                call, 400, "messages.3.content.0.tool_result.cache_control: Extra inputs are not permitted"
            )
        )
        await finished(one.settle(call, usage(uncached=4000)))
        assert marked_places((await finished(two.prepare(agent(2)))).body)[-1] == "messages.6"
        for mw in (one, two):
            mw.clock.now += 31
            await finished(mw.prepare(agent()))
            assert await finished(mw.flush(60.0))
        two.clock.now += 100  # announcements without an answer have expired
        marked = marked_places((await finished(two.prepare(agent(3)))).body)
        assert marked
        assert not {"messages.3", "messages.6", "messages.9"} & set(marked)
        assert await finished(two.flush(60.0))

        def broken(*_: Any) -> Any:
            raise StoreError("x")

        one._shell.store.read = broken
        two.clock.now += 31
        await finished(two.prepare(agent()))
        assert await finished(two.flush(60.0))
        assert two.counts["error.share.StoreError"] == 1
        for mw in (one, two):
            await finished(mw.close())

    asyncio.run(run())


def test_queued_writes_keep_no_body_alive() -> None:
    """Writes that wait for a slow store hold no reference to a request."""

    class ReferencedBody(dict[str, Any]):
        """A body that can be referenced weakly."""

    mw, gate = make_middleware(), threading.Event()
    write_in_background(mw)
    mw._shell.store.write = lambda *_: gate.wait(60)  # type: ignore[method-assign, assignment, return-value]
    bodies = [ReferencedBody(agent(turn)) for turn in range(1, 4)]
    gone = [weakref.ref(body) for body in bodies]
    for body in bodies:
        call = mw.prepare(body)
        mw.begun(call)
        mw.settle(call, usage(cache_write=3000))
    del bodies, body, call
    assert mw._shell.writer._line.jobs.qsize() >= 4
    assert [reference() for reference in gone] == [None] * 3
    gate.set()
    mw.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_flush_reaches_the_store_behind_a_write_that_hangs(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Updates held back by the store are sent even if a write hangs, or the store can't send them."""
    monkeypatch.setattr(background_writer, "FLUSH_INTERVAL", 60.0)
    monkeypatch.setattr(aio, "FLUSH_INTERVAL", 60.0)

    async def run() -> None:
        mw, gate = make_hooked(asynchronous), threading.Event()
        write_in_background(mw)
        flushed: list[float] = []

        def flush() -> bool:
            flushed.append(time.monotonic())
            raise StoreError("x")

        async def flush_async() -> bool:
            return flush()

        async def hang(*_: Any) -> None:
            await asyncio.to_thread(gate.wait, 60)

        mw._shell.store.write = hang if asynchronous else lambda *_: gate.wait(60)
        await finished(mw.prepare(agent()))
        mw._shell.store.flush = flush_async if asynchronous else flush
        assert not await finished(mw.flush(0.01))
        assert flushed
        gate.set()
        assert await finished(mw.flush(60.0))
        assert mw.counts["error.flush.StoreError"] >= 2
        await finished(mw.close())

    asyncio.run(run())


def test_flush_waits_for_earlier_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load there is always a task under way; a flush does not wait for later ones."""
    monkeypatch.setattr(background_writer, "FLUSH_INTERVAL", 60.0)
    monkeypatch.setattr(aio, "FLUSH_INTERVAL", 60.0)

    async def run() -> None:
        mw = make_hooked(True)
        write_in_background(mw)
        first, later, flushed = asyncio.Event(), asyncio.Event(), list[int]()

        async def flush() -> bool:
            flushed.append(1)
            return False

        mw._shell.store.flush = flush
        mw._shell._start(first.wait())
        flushing = asyncio.create_task(mw.flush(60.0))
        await asyncio.sleep(0)
        mw._shell._start(later.wait())
        first.set()
        assert await flushing
        assert flushed == [1]
        later.set()
        await mw.close()

    asyncio.run(run())


def test_updates_of_a_closed_event_loop_are_sent_from_the_next() -> None:
    """A loop that was closed with tasks under way leaves its updates to the next loop."""
    mw = make_hooked(True)
    write_in_background(mw)
    write, flushed, closed, sent = mw._shell.store.write, list[int](), list[int](), asyncio.Event()

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async def flush() -> bool:
        flushed.append(1)
        sent.set()
        return False

    async def close() -> None:
        closed.append(1)

    async def call() -> None:
        await mw.settle(await mw.prepare(agent()), usage(cache_write=3000))
        await asyncio.sleep(0)

    async def go_on() -> None:
        await call()
        await asyncio.wait_for(sent.wait(), 60)
        assert await mw.flush(60.0)

    mw._shell.store.write, mw._shell.store.flush, mw._shell.store.close = hang, flush, close
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for loop in loops:
        # The loop would report each task that is dropped with it.
        loop.set_exception_handler(lambda *_: None)
    loops[0].run_until_complete(call())
    loops[0].close()
    assert not flushed
    mw._shell.store.write = write
    loops[1].run_until_complete(go_on())
    mw._shell.store.write = hang
    loops[1].run_until_complete(call())
    loops[1].close()
    flushed.clear()
    loops[2].run_until_complete(mw.close())
    loops[2].close()
    assert (flushed, closed) == ([1], [1])
    assert not {name for name in mw.counts if name.startswith("error")}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_close_after_a_failed_flush_still_closes_the_store(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the queue can't be flushed, the store is closed all the same."""

    async def run() -> None:
        mw, closed = make_hooked(asynchronous), list[int]()

        def broken(*_: Any) -> Any:
            raise RuntimeError

        def close() -> None:
            closed.append(1)

        async def close_async() -> None:
            close()

        async def broken_async(*_: Any) -> Any:
            raise RuntimeError

        if asynchronous:
            monkeypatch.setattr(mw._shell, "flush", broken_async)
        else:
            monkeypatch.setattr(mw._shell.writer, "close", broken)
        mw._shell.store.close = close_async if asynchronous else close
        await finished(mw.close())
        assert closed == [1]
        assert mw.counts["error.close.RuntimeError"] == 1

    asyncio.run(run())
