"""A fleet: worker processes that share a store, each with a middleware and streams of requests.

Contains: the work of a worker and its report. Must not depend on: servers, checks.

No provider is called: an answer begins at once, and its usage is the plan's estimate.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

import cachemw
from benchmarks.workloads.conversations import small
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request.equality import canonical
from cachemw.events import Counted, Event
from cachemw.simulation.traffic import Body
from cachemw.stores.redis.client import servers
from cachemw.stores.redis.client.routes import slot_of

TURNS = 5
_SECRET = "that of all workers"  # noqa: S105


@dataclass(frozen=True)
class Traffic:
    """The work of each worker. `twins`: "sync" or "async" for each worker.

    `streams` threads or tasks send `requests` each, `gap` seconds from one to the next. `hot`: all
    conversations have the same tools and system prompt; otherwise each has its own. `drained`: the worker writes
    its queue before each request. `checked`: the worker compares each outgoing body with the incoming one.
    """

    store: str
    namespace: str
    twins: tuple[str, ...]
    requests: int
    streams: int = 1
    gap: float = 0.0
    hot: bool = True
    drained: bool = False
    checked: bool = False

    def settings(self) -> cachemw.Settings:
        """Return the settings of each worker; the rest are defaults."""
        return cachemw.Settings(
            provider="databricks", store=self.store, namespace=self.namespace, secret=_SECRET
        )

    def bodies(self, worker: int, stream: int) -> Iterator[Body]:
        """Yield the requests of a stream."""
        for number in range(self.requests):
            if number % TURNS == 0:
                name = f"{self.namespace}/{worker}/{stream}/{number}"
                talk = small(name, "all" if self.hot else name, TURNS)
            yield next(talk)


class Sample(NamedTuple):
    """One request: its start by the machine's clock, the seconds of its `prepare`, and its outcome."""

    at: float
    seconds: float
    marked: bool
    passed: bool
    changed: bool


@dataclass
class Told:
    """The report of one worker: its requests, its counters with their times, and its store commands.

    `ended`: the time at which the last request was settled and written. `trips`: round trips on the path of
    requests. `slots`: commands by the slot of a cluster.
    """

    began: float = 0.0
    ended: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    counted: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    trips: int = 0
    slots: Counter[int] = field(default_factory=Counter)


class Fleet:
    """Workers that do one kind of traffic after another, each between its own `ready`, `go` and `told`."""

    def __init__(self, workers: int, barrier: Any, queue: Any) -> None:
        self._workers, self._barrier, self._queue = workers, barrier, queue

    def ready(self) -> None:
        """Wait until the workers are connected and have sent one request."""
        self._barrier.wait(60)

    def go(self) -> None:
        """Let the workers send."""
        self._barrier.wait(60)

    def told(self, seconds: float = 120.0) -> list[Told]:
        """Wait until the workers have ended, and return their reports, in their order."""
        found = dict(self._queue.get(timeout=seconds) for _ in range(self._workers))
        return [found[number] for number in sorted(found)]


@contextmanager
def fleet(*traffics: Traffic) -> Iterator[Fleet]:
    """Start workers, as many for each sort of traffic, and end them."""
    context = multiprocessing.get_context("spawn")
    count = len(traffics[0].twins)
    barrier, queue = context.Barrier(count + 1), context.Queue()
    workers = [
        context.Process(target=_work, args=(traffics, number, barrier, queue), daemon=True)
        for number in range(count)
    ]
    for worker in workers:
        worker.start()
    try:
        yield Fleet(count, barrier, queue)
        for worker in workers:
            worker.join(10)
    finally:
        for worker in workers:
            worker.kill()


def usage(plan: Plan) -> dict[str, int]:
    """Return the usage of an answer that bills the plan's estimate."""
    return {
        "prompt_tokens": plan.total,
        "completion_tokens": 20,
        "cache_read_input_tokens": plan.cache_read,
        "cache_creation_input_tokens": plan.cache_write_5m + plan.cache_write_1h,
    }


def _work(traffics: Sequence[Traffic], number: int, barrier: Any, queue: Any) -> None:
    logging.getLogger("cachemw").setLevel(logging.ERROR)  # warnings are counted instead
    for traffic in traffics:
        told = Told()

        def note(event: Event, told: Told = told) -> None:
            if isinstance(event, Counted):
                told.counted.append((time.time(), event.name))

        streams = [list(traffic.bodies(number, stream)) for stream in range(traffic.streams)]
        if traffic.twins[number] == "sync":
            _threads(cachemw.Middleware(traffic.settings(), hooks=[note]), traffic, streams, told, barrier)
        else:
            middleware = cachemw.AsyncMiddleware(traffic.settings(), hooks=[note])
            asyncio.run(_tasks(middleware, traffic, streams, told, barrier))
        queue.put((number, told))


def _threads(
    mw: cachemw.Middleware, traffic: Traffic, streams: list[list[Body]], told: Told, barrier: Any
) -> None:
    on_path: set[int] = set()
    plain = servers.ClusterNodes.send

    def send(self: servers.ClusterNodes, groups: servers.Groups, deadline: float, seconds: float) -> Any:
        told.trips += threading.get_ident() in on_path
        told.slots.update(slot_of(each.command) for group in groups.values() for each in group)
        return plain(self, groups, deadline, seconds)

    def one(body: Body) -> Sample:
        came = orjson.dumps(body) if traffic.checked else b""
        at, start = time.time(), time.perf_counter()
        on_path.add(threading.get_ident())
        call = mw.prepare(body)
        on_path.remove(threading.get_ident())
        seconds = time.perf_counter() - start
        mw.begun(call)
        mw.settle(call, usage(call.plan))
        return _sample(at, seconds, call, body, came)

    def stream(bodies: list[Body]) -> None:
        due = time.monotonic()
        for body in bodies:
            if traffic.drained:
                mw.flush()
            try:
                told.samples.append(one(body))
            except Exception as error:
                told.failures.append(type(error).__name__)
            if traffic.gap:
                due += traffic.gap
                time.sleep(max(due - time.monotonic(), 0.0))

    mw.fail(mw.prepare(streams[0][0]))
    mw.flush()
    barrier.wait(60)
    barrier.wait(60)
    servers.ClusterNodes.send = send  # type: ignore[method-assign]
    told.began = time.time()
    with ThreadPoolExecutor(len(streams)) as pool:
        list(pool.map(stream, streams))
    mw.flush(60)
    told.ended = time.time()
    mw.close()
    servers.ClusterNodes.send = plain  # type: ignore[method-assign]


async def _tasks(
    mw: cachemw.AsyncMiddleware, traffic: Traffic, streams: list[list[Body]], told: Told, barrier: Any
) -> None:
    async def one(body: Body) -> Sample:
        came = orjson.dumps(body) if traffic.checked else b""
        at, start = time.time(), time.perf_counter()
        call = await mw.prepare(body)
        seconds = time.perf_counter() - start
        await mw.begun(call)
        await mw.settle(call, usage(call.plan))
        return _sample(at, seconds, call, body, came)

    async def stream(bodies: list[Body]) -> None:
        due = time.monotonic()
        for body in bodies:
            if traffic.drained:
                await mw.flush()
            try:
                told.samples.append(await one(body))
            except Exception as error:
                told.failures.append(type(error).__name__)
            due += traffic.gap
            await asyncio.sleep(max(due - time.monotonic(), 0.0))

    await mw.fail(await mw.prepare(streams[0][0]))
    await mw.flush()
    await asyncio.to_thread(barrier.wait, 60)
    await asyncio.to_thread(barrier.wait, 60)
    told.began = time.time()
    await asyncio.gather(*(stream(bodies) for bodies in streams))
    await mw.flush(60)
    told.ended = time.time()
    await mw.close()


def _sample(at: float, seconds: float, call: cachemw.Call, body: Body, came: bytes) -> Sample:
    changed = bool(came) and (orjson.dumps(body) != came or canonical(call.body) != canonical(body))
    return Sample(at, seconds, bool(call.plan.breakpoints), call.plan.skipped is Reason.FAILED, changed)
