"""Twenty cold requests at one moment, with `coalesce`: who writes, who reads, who waits how long.

Lives here: the burst, in real time. Must not know: how the waiting is done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.workloads.generated import MODEL
from cachemw.core.providers import find_model
from cachemw.engine import AsyncMiddleware
from cachemw.settings import Settings
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import databricks_usage

LATENCY = 0.4  # seconds until each answer begins


@dataclass(frozen=True, slots=True)
class Burst:
    """How many requests wrote the shared head, how many read it; seconds that the slowest waited."""

    requests: int
    wrote: int
    read: int
    waited: float

    def broken(self) -> Iterator[str]:
        """Yield what breaks the promise: one writes, all others read, nobody waits past the first answer."""
        if (self.wrote, self.read) != (1, self.requests - 1):
            yield f"burst: {self.wrote} of {self.requests} wrote and {self.read} read, 1 and the rest is promised"
        if self.waited > LATENCY + 0.25:
            yield f"burst: a request waited {self.waited:.2f} s, the first answer began after {LATENCY} s"


def burst(requests: int = 20) -> Burst:
    """Send so many requests at once to a middleware and a provider that have seen nothing."""
    return asyncio.run(_burst(requests))


async def _burst(requests: int) -> Burst:
    model = find_model(MODEL)
    assert model is not None
    cache = ProviderCache(model)
    fields: dict[str, Any] = {"coalesce": True, "coalesce_wait_ms": 5_000}
    middleware = AsyncMiddleware(Settings(provider="databricks", store="memory://", **fields))

    async def one(number: int) -> tuple[Ticket, float]:
        started = time.monotonic()
        call = await middleware.prepare(_body(number))
        waited = time.monotonic() - started
        ticket = cache.begin(call.body, time.time())
        await asyncio.sleep(LATENCY)
        cache.answer_began(ticket, time.time())
        await middleware.begun(call)
        await middleware.settle(call, databricks_usage(ticket, 10))
        return ticket, waited

    try:
        answers = await asyncio.gather(*(one(number) for number in range(requests)))
    finally:
        await middleware.close()
    wrote = sum(ticket.read == 0 and ticket.write_5m > 0 for ticket, _ in answers)
    read = sum(ticket.read > 0 for ticket, _ in answers)
    return Burst(requests, wrote, read, max(waited for _, waited in answers))


def _body(number: int) -> dict[str, Any]:
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
        {"role": "user", "content": f"Question {number}: which of the orders is late?"},
    ]
    return {"model": MODEL, "tools": tools, "messages": messages}
