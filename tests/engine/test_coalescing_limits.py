"""Limits of a coalescing wait, and claims that are released by cancellation, faults and failures."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from cachemw.core.planner.plan import Reason
from cachemw.core.request.equality import canonical
from cachemw.errors import StoreError
from tests.bodies import PARAGRAPH
from tests.engine.coalescing_workers import (
    SOON,
    Worker,
    both,
    overtaken,
    question,
    raises,
    raises_async,
    replace_peek,
    until,
)
from tests.faults import NOWHERE, Boom, raising, sampled


@both
async def test_wait_ends_at_its_limit_and_is_not_repeated(asynchronous: bool) -> None:
    """If no answer begins, a request goes after the longest wait, and the next ones don't wait at all."""
    worker = Worker(asynchronous, coalesce_wait_ms=60)
    first, _ = await worker.prepare(question(0))
    call, held = await worker.prepare(question(0))
    assert 0.06 <= held < 0.06 + SOON
    assert call.plan.skipped is Reason.PENDING
    assert (worker.waited, worker.mw.counts["coalesce.timed_out"]) == (1, 1)
    await worker.prepare(question(0))
    assert (worker.waited, worker.mw.counts["coalesce.timed_out"]) == (1, 1)
    await worker.do("begun", first)
    call, _ = await worker.prepare(question(0))
    assert call.plan.cache_read > 0


async def test_abandoned_prefixes_are_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Few of the prefixes that never got an answer are kept."""
    monkeypatch.setattr("cachemw.engine.coalescing._REMEMBERED", 2)
    worker = Worker(True, coalesce_wait_ms=1)
    for n in range(5):
        for _ in range(2):
            await worker.prepare(question(0, f"{n} {PARAGRAPH * 12}"))
    assert worker.mw.counts["coalesce.timed_out"] == 5
    assert len(worker.mw._flow.coalescer._abandoned_until) <= 2


@both
async def test_lookups_of_a_waiting_request_are_few(asynchronous: bool) -> None:
    """The pauses between two lookups grow, to a fortieth of a second."""
    worker, looks = Worker(asynchronous, coalesce_wait_ms=1_000), list[float]()

    def counted(*arguments: Any) -> Any:
        looks.append(time.monotonic())
        return peek(*arguments)

    peek = replace_peek(worker.mw._shell.store, counted)
    await worker.prepare(question(0))
    await worker.prepare(question(0))
    assert 3 <= len(looks) <= 45


@both
@pytest.mark.parametrize("name", ["claim", "peek"])
async def test_unavailable_store_delays_no_request(asynchronous: bool, name: str) -> None:
    """A request goes on as planned at the first failure of the store, and the failure is counted."""
    worker = Worker(asynchronous)
    failing = raises_async if asynchronous else raises
    if name == "peek":
        await worker.prepare(question(0))
        replace_peek(worker.mw._shell.store, failing)
    else:
        worker.mw._shell.store.claim = failing
    call, held = await worker.prepare(question(0))
    assert held < SOON
    assert (call.plan.cache_write_5m > 0) is (name == "claim")
    assert worker.mw.counts["error.coalesce.StoreError"] == 1
    assert worker.mw.counts.get("coalesce.timed_out") is None
    # The entry was announced although it could not be claimed.
    after = Worker(asynchronous, worker.mw._shell.store, coalesce=False)
    assert (await after.prepare(question(0)))[0].plan.skipped is Reason.PENDING


async def test_cancelled_wait_releases_no_claim() -> None:
    """The claim still belongs to another request: the next one waits for it too."""
    worker = Worker(True)
    first, _ = await worker.prepare(question(0))
    for cancelled in (True, False):
        waiting = asyncio.create_task(worker.prepare(question(1)))
        await until(lambda: worker.waited == 2 - cancelled)  # noqa: B023
        if cancelled:
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await worker.mw.begun(first)
    call, _ = await waiting
    assert call.plan.cache_read > 0
    await worker.mw.begun(call)
    assert (await worker.mw.report("process")).totals.unsettled == 2


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("got", [True, False])
async def test_cancelled_claim_is_released_if_it_was_granted(local: bool, got: bool) -> None:
    """The late answer of the store says whether there is a claim to release."""
    worker, other = Worker(True), Worker(True)
    store = other.mw._shell.store = worker.mw._shell.store
    store.local = local
    claim, answered = store.claim, asyncio.Event()

    async def slow(*arguments: Any) -> bool:
        answer: bool = await claim(*arguments)
        store.claim = claim
        answered.set()
        await asyncio.sleep(0.02)
        return answer

    if not got:
        overtaken(worker, other, question(0))
        other.mw._flow.coalescer = None  # this worker announces without a claim
    store.claim = slow
    preparing = asyncio.create_task(worker.mw.prepare(question(1)))
    await answered.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert await worker.mw.flush(60.0)
    after = Worker(True, store, coalesce_wait_ms=50)
    await after.prepare(question(2))
    assert after.waited == (not got)
    assert (await worker.mw.report("process")).totals.unsettled == 0


async def test_claim_that_fails_during_a_cancellation_keeps_the_cancellation() -> None:
    """A store that becomes unavailable under a cancelled request changes nothing for its task."""
    worker, asked = Worker(True), asyncio.Event()

    async def away(*_: Any) -> bool:
        asked.set()
        await asyncio.sleep(0.02)
        raise StoreError("TimeoutError")

    worker.mw._shell.store.claim = away
    preparing = asyncio.create_task(worker.mw.prepare(question(1)))
    await asked.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing


@both
@pytest.mark.parametrize("local", [True, False])
async def test_exception_after_the_claim_releases_it(
    asynchronous: bool, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that leaves unchanged writes no entry, and delays no other."""
    worker, body = Worker(asynchronous, coalesce_wait_ms=20), question(1)
    worker.mw._shell.store.local = local

    def broken(*_: Any) -> Any:
        raise Boom

    monkeypatch.setattr(worker.mw._flow.planner, "build_call", broken)
    call, _ = await worker.prepare(body)
    assert call.body is body
    assert call.plan.skipped is Reason.FAILED
    assert await worker.do("flush", 60.0)
    after = Worker(asynchronous, worker.mw._shell.store)
    await after.prepare(body)
    assert after.waited == 0
    monkeypatch.setattr(worker.mw._flow.settlement, "release_in_flight", broken)
    assert (await worker.prepare(body))[0].body is body
    assert worker.mw.counts["error.coalesce.Boom"] == 1


@both
async def test_request_of_an_unknown_model_does_not_wait(asynchronous: bool) -> None:
    """A model without a row has no prefixes to claim."""
    worker = Worker(asynchronous)
    call, _ = await worker.prepare({**question(1), "model": "mystery"})
    assert call.plan.skipped is Reason.MODEL_UNKNOWN
    assert worker.mw.counts == {"skip.model_unknown": 1}


@both
async def test_claim_refused_without_a_holder_costs_one_wait(asynchronous: bool) -> None:
    """If a claim is refused and no holder shows, the request goes after the longest wait, as planned."""
    worker = Worker(asynchronous, coalesce_wait_ms=30)

    def refuse(*_: Any) -> bool:
        return False

    async def refuse_async(*_: Any) -> bool:
        return False

    worker.mw._shell.store.claim = refuse_async if asynchronous else refuse
    call, held = await worker.prepare(question(1))
    assert 0.03 <= held < 0.03 + SOON
    assert call.plan.cache_write_5m > 0
    assert worker.mw.counts == {"coalesce.timed_out": 1, "coalesce.waited": 1}


@pytest.mark.parametrize("error", [Boom(), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
@both
def test_exception_at_any_call_releases_the_claim(asynchronous: bool, error: BaseException) -> None:
    """An exception during a claim or a wait: a request that isn't sent as planned delays no other."""
    if asynchronous and isinstance(error, KeyboardInterrupt):
        pytest.skip("a KeyboardInterrupt ends the loop")

    async def run(at: int, waits: bool) -> list[str]:
        worker = Worker(asynchronous, coalesce_wait_ms=50 if at == NOWHERE else 4)
        store = worker.mw._shell.store
        other = Worker(asynchronous, store)
        if waits:
            await other.prepare(question(0))
        body, call = question(1), None
        asked = worker.mw.prepare(body) if asynchronous else None
        try:
            with raising(error, at, "prepare") as names:
                call = await asked if asked is not None else worker.mw.prepare(body)
        except (KeyboardInterrupt, asyncio.CancelledError):
            assert not isinstance(error, Exception)
        if at == NOWHERE:
            return names
        assert len(names) > at or waits  # the number of lookups depends on time
        assert call is None or canonical(call.body) == canonical(body)
        if not waits and (call is None or call.plan.skipped is Reason.FAILED):
            after = Worker(asynchronous, store)
            await after.prepare(body)
            assert after.waited == 0, names[at]
        return names

    async def every(waits: bool) -> set[str]:
        names = await run(NOWHERE, waits)
        for at in sampled(names, 2 if isinstance(error, Boom) else 5):
            await run(at, waits)
        return set(names)

    assert {"MemoryStore.claim", "Coalescer._entries_to_claim"} <= asyncio.run(every(waits=False))
    assert {"MemoryStore.peek", "Coalescer._abandon", "with_current_entries"} <= asyncio.run(
        every(waits=True)
    )
