"""Faults injected at every call of the engine, in the store, the clock, the writer and each decision."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import cachemw
from cachemw.core.request.equality import canonical
from cachemw.engine import aio, sync
from cachemw.errors import StoreError
from tests.engine.calls import (
    MODEL,
    agent,
    finished,
    make_hooked,
    make_middleware,
    usage,
    write_in_background,
)
from tests.faults import NOWHERE, Boom, raising, sampled
from tests.kept import announcements

STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "prepare": lambda mw, call: mw.prepare(agent(3), labels={"app": "a"}),
    "begun": lambda mw, call: mw.begun(call),
    "settle": lambda mw, call: mw.settle(call, {"model": MODEL, "usage": usage(uncached=4000)}, partial=True),
    "fail": lambda mw, call: mw.fail(call),
    "refused": lambda mw, call: mw.refused(
        call, 400, "system.0.cache_control: Extra inputs are not permitted"
    ),
}


async def prepared_for(mw: Any, step: str) -> Any:
    """Bring a middleware to the given step, and return the call."""
    await finished(mw.settle(await finished(mw.prepare(agent(2))), usage(cache_write=3000)))
    overdue = await finished(mw.prepare(agent(1)))
    mw.clock.now += 4000
    await finished(mw.settle(await finished(mw.prepare(agent(2))), usage(cache_write=3000)))
    assert overdue
    return None if step == "prepare" else await finished(mw.prepare(agent(3), labels={"app": "a"}))


@pytest.mark.parametrize("error", [Boom(), MemoryError(), StoreError("x"), TimeoutError()], ids=repr)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_exception_at_any_call_is_contained_and_counted(
    step: str, asynchronous: bool, error: Exception
) -> None:
    """An exception anywhere in cachemw stays inside, the body leaves equal, and the failure is counted."""

    async def run(at: int) -> list[str]:
        mw = make_hooked(asynchronous)
        call = await prepared_for(mw, step)
        asks = STEPS[step](mw, call) if asynchronous else None
        with raising(error, at, step) as names:
            result = await asks if asks is not None else STEPS[step](mw, call)
        if at == NOWHERE:
            return names
        assert len(names) == at + 1
        assert (
            sum(count for name, count in mw.counts.items() if name.endswith(f".{type(error).__name__}")) == 1
        ), names[at]
        if step == "prepare":
            assert canonical(result.body) == canonical(agent(3))
            await finished(mw.begun(result))
            await finished(mw.settle(result, usage(cache_write=3000)))
        elif step == "refused":
            assert result is None or result == agent(3)
        # The next call works as usual.
        after = await finished(mw.prepare(agent(3)))
        assert after.plan.added
        assert (await finished(mw.settle(after, usage(cache_write=3000)))).usage is not None
        return names

    async def every() -> list[str]:
        names = await run(NOWHERE)
        for at in sampled(names, 1 if isinstance(error, Boom) else 7):
            assert (await run(at))[-1] == names[at]
        return names

    reached = set(asyncio.run(every()))
    if isinstance(error, Boom):
        wanted = {
            "prepare": {"Parser.steps", "hash_prefixes", "track_prefixes", "MemoryStore.lookup", "ReuseModel.forecast", "plan", "insert", "same_structure", "RequestPlanner.build_call", "Shared.emit"},
            "begun": {"Settlement.start_response", "MemoryStore.observe", "ReuseModel.observe", "MemoryStore.write", "MemoryStore.add", "Parser.learn", "LabelLimits.learn"},
            "settle": {"MemoryStore.observe", "ReuseModel.observe", "read_usage", "make_receipt", "Settlement.settle", "MemoryStore.add", "amounts", "diagnose", "Shared.emit", "Calibration.learn"},
            "fail": {"Settlement.fail", "Counters.add"},
            "refused": {"refused_kinds", "about_markers", "Settlement.refuse"},
        }  # fmt: skip
        assert wanted[step] <= reached


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("step", STEPS)
def test_interrupt_at_any_call_passes_and_leaves_nothing_locked(
    step: str, error: type[BaseException]
) -> None:
    """A `BaseException` reaches the caller, and leaves neither a held lock nor an open call."""

    def run(at: int) -> list[str]:
        mw = make_hooked(False)
        call = asyncio.run(prepared_for(mw, step))
        with raising(error(), at, step) as names:
            if at == NOWHERE:
                STEPS[step](mw, call)
                return names
            with pytest.raises(error):
                STEPS[step](mw, call)
        after = mw.prepare(agent(3))
        assert after.plan.added
        assert mw.settle(after, usage(cache_write=3000)).usage is not None
        assert mw.report().totals.calls >= 1
        return names

    for at in sampled(run(NOWHERE), 1 if error is KeyboardInterrupt else 9):
        run(at)


def test_cancelled_prepare_leaves_no_call() -> None:
    """A task that is cancelled during the lookup leaves no call behind."""

    async def cancelled() -> None:
        mw, asked = cachemw.AsyncMiddleware(provider="databricks"), asyncio.Event()

        async def hang(*_: Any) -> None:
            asked.set()
            await asyncio.Event().wait()

        lookup, mw._shell.store.lookup = mw._shell.store.lookup, hang  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(mw.prepare(agent()))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await mw.report("process")).totals.calls == 0
        mw._shell.store.lookup = lookup  # type: ignore[method-assign]
        assert (await mw.prepare(agent())).plan.cache_write_5m > 0
        await mw.close()

    asyncio.run(cancelled())


@pytest.mark.parametrize("name", ["lookup", "observe", "write", "add", "read", "close"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("local", [True, False])
def test_store_failure_stops_no_request_and_no_receipt(name: str, asynchronous: bool, local: bool) -> None:
    """Any store call may fail, on the caller's thread or in the background: requests and receipts go on."""

    async def run() -> None:
        mw = make_hooked(asynchronous)

        def broken(*_: Any) -> Any:
            raise StoreError("ConnectionError")

        async def broken_async(*_: Any) -> Any:
            raise StoreError("ConnectionError")

        mw._shell.store.local = local
        setattr(mw._shell.store, name, broken_async if asynchronous else broken)
        body = agent()
        call = await finished(mw.prepare(body))
        assert canonical(call.body) == canonical(body)
        assert (call.body is body) is (name == "lookup")
        await finished(mw.begun(call))
        assert (await finished(mw.settle(call, usage(cache_write=3000)))).usage is not None
        assert await finished(mw.flush(60.0))
        report = await finished(mw.report())
        assert report.totals.calls == (0 if name == "add" else 1)
        assert (await finished(mw.report("process"))).totals.calls == 1
        await finished(mw.close())
        where = {"lookup": "prepare", "observe": "write", "add": "ledger", "read": "report"}.get(name, name)
        # An entry is announced before the answer and stored at its start; a call counts at its start and end.
        assert mw.counts[f"error.{where}.StoreError"] == (2 if name in ("write", "add") else 1)

    asyncio.run(run())


def test_writer_failure_stops_no_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, or the queue is full, the receipt is returned all the same."""
    mw = make_middleware()
    write_in_background(mw)

    def refuse(job: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(mw._shell.writer, "submit", refuse)
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.settle(call, usage()).usage is not None
    # The announcement, the exchange with other workers, the arrival with its entries; the ledger, twice.
    assert mw.counts["error.writer.RuntimeError"] == 3
    assert mw.counts["error.ledger.RuntimeError"] == 2
    monkeypatch.undo()
    monkeypatch.setattr("cachemw.engine.background_writer._LIMIT", 0)
    mw._shell.writer._lost()
    assert mw.counts["error.writer.full"] == 1


def test_clock_failure_passes_the_body_unplanned() -> None:
    """Without a time no request is planned, and all requests go on."""

    def clock() -> float:
        raise OSError

    mw, body = cachemw.Middleware(provider="databricks", clock=clock), agent()
    call = mw.prepare(body)
    assert call.body is body
    mw.begun(call)
    assert mw.settle(call, usage()) == cachemw.Receipt()
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None
    assert mw.report().totals.calls == 0
    assert mw.counts["error.prepare.OSError"] == 1
    mw.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "planner.begin_call",
        "planner.parse",
        "planner.forecast_and_plan",
        "planner.build_call",
        "planner.pass_through",
        "settlement.mark_in_flight",
        "settlement.start_response",
        "settlement.observe",
        "settlement.settle",
        "settlement.fail",
        "settlement.refuse",
    ],
)
def test_decision_failure_gives_the_caller_the_plain_result(
    name: str, asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decision may fail, sync and async: the caller gets the result of a call without cachemw."""

    async def run() -> None:
        mw, body = make_hooked(asynchronous), agent()

        def broken(*_: Any, **__: Any) -> Any:
            raise Boom

        part, _, method = name.partition(".")
        monkeypatch.setattr(getattr(mw._flow, part), method, broken)
        bad = await finished(mw.prepare({"model": MODEL, "messages": []}))
        assert bad.body == {"model": MODEL, "messages": []}
        call, other = [await finished(mw.prepare(body)) for _ in range(2)]
        assert canonical(call.body) == canonical(body)
        assert (call.body is body) is (part == "planner" and method != "pass_through")
        await finished(mw.begun(call))
        assert isinstance(await finished(mw.settle(call, usage(cache_write=3000))), cachemw.Receipt)
        assert await finished(mw.refused(other, 400, "cache_control: no")) in (None, body)
        await finished(mw.fail(other))
        assert (await finished(mw.report())).totals.calls <= 3
        await finished(mw.close())
        assert any(key.endswith(".Boom") for key in mw.counts)

    asyncio.run(run())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_interrupt_after_the_decision_releases_the_announcement(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was announced but never returned is released, and counts nowhere."""

    async def run() -> None:
        mw = make_hooked(asynchronous)

        def interrupted() -> Any:
            assert announcements(mw._shell.store)
            raise KeyboardInterrupt

        write_in_background(mw)
        drive = aio.drive if asynchronous else sync.drive
        at_once = lambda _write, job: drive(job, mw._shell)  # noqa: E731
        monkeypatch.setattr(mw._shell, "write_later", at_once)  # without a queue
        monkeypatch.setattr(mw._flow.worker_exchange, "is_due", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await finished(mw.prepare(agent()))
        monkeypatch.undo()
        assert not announcements(mw._shell.store)
        assert (await finished(mw.prepare(agent()))).plan.cache_write_5m > 0
        assert (await finished(mw.report("process"))).totals.calls == 0

    asyncio.run(run())


def test_failure_of_the_counters_passes_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort uses no part that could be broken."""
    mw, body = make_middleware(), agent()

    def broken(*_: Any, **__: Any) -> Any:
        raise Boom

    for name in ("begin_call", "pass_through"):
        monkeypatch.setattr(mw._flow.planner, name, broken)
    for name in ("start_response", "settle", "fail", "refuse"):
        monkeypatch.setattr(mw._flow.settlement, name, broken)
    monkeypatch.setattr(mw._shared.counters, "add", broken)
    call = mw.prepare(body)
    assert call.body is body
    mw.begun(call)
    assert mw.settle(call, usage()) == cachemw.Receipt()
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None
