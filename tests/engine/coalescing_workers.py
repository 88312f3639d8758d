"""Workers for tests of coalescing: middlewares that share a store, and requests that share a prefix.

Contains: helpers of the coalescing tests. Must not depend on: any test module.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import cachemw
from cachemw.core.rules.models import MODELS
from cachemw.errors import StoreError
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import databricks_usage
from tests.bodies import PARAGRAPH, Body
from tests.engine.calls import MODEL, TOOLS
from tests.keys import equal_keys

LATENCY = 0.15

SOON = 30.0  # seconds that a busy machine may take for an instant step; half of the longest wait

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Worker:
    """A middleware of one process, sync or async, with the face of an async one."""

    def __init__(self, asynchronous: bool, over: Any = None, **settings: Any) -> None:
        kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
        fields = {"provider": "databricks", "coalesce": True, "coalesce_wait_ms": 60_000, **settings}
        with equal_keys():
            self.mw = kind(**fields)
        self.asynchronous = asynchronous
        self.threads = ThreadPoolExecutor(40)
        if over is not None:
            self.mw._shell.store = over

    @property
    def waited(self) -> int:
        """Return how many requests waited."""
        return int(self.mw.counts.get("coalesce.waited", 0))

    async def prepare(self, body: Body) -> tuple[cachemw.Call, float]:
        """Return the call, and the seconds that its request waited."""
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
        """Send a request as a host does; return its bill, and the seconds that it waited."""
        call, held = await self.prepare(body)
        ticket = provider.begin(call.body, time.time())
        await asyncio.sleep(LATENCY)
        provider.answer_began(ticket, time.time())
        await self.do("begun", call)
        await self.do("settle", call, databricks_usage(ticket, 10))
        return ticket, held


def question(text: object, system: str = PARAGRAPH * 12) -> Body:
    """Return an agent's first request: some 4,000 shared tokens, and a question."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {text}."}]
    return {"model": MODEL, "tools": TOOLS, "messages": messages}


def provider() -> ProviderCache:
    """Return a provider with an empty cache."""
    return ProviderCache(MODELS["claude-sonnet-4-6"])


def raises(*_: Any) -> Any:
    """Fail like an unavailable store."""
    raise StoreError("ConnectionError")


async def raises_async(*_: Any) -> Any:
    """Fail like an unavailable store, awaited."""
    raise StoreError("ConnectionError")


def overtaken(worker: Worker, by: Worker, body: Body) -> list[cachemw.Call]:
    """Let another worker prepare a request between a worker's next lookup and its plan; return its call."""
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


def replace_peek(store: Any, peek: Any) -> Any:
    """Replace the repeated lookup of a store, but not its first lookup; return the original."""
    before, store.peek = store.peek, peek
    store.lookup = before  # a memory store looks up by its own `peek`
    return before


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.001)
