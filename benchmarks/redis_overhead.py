"""Measure the time that the store adds to `prepare`: memory, Redis on loopback, and a bare EVALSHA, in one loop.

Contains: the loop and its check. Must not depend on: fleets, faults.

Each round makes the same conversation known to both middlewares up to 58 messages, then times the request with
60, memory first and Redis first in turns, after the background thread has written its queue. Then the same request is
timed once more, as an application's retry would send it. The bare EVALSHA has as many keys as the request.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import redis
import redis.asyncio

import cachemw
from benchmarks.fleet import usage
from benchmarks.workloads.conversations import reference

# Limit of the time that Redis adds to `prepare` over memory, in bare EVALSHAs.
ALLOWED = 1.5
_COLD = 10  # rounds before the first that counts
# Seconds of rest before a timed call: a busy scheduler delays a process that has just worked, and with it the
# store's answer.
_GAP = 0.003
_SCRIPT = """
for i = 1, #KEYS do
  redis.call("GET", KEYS[i])
  redis.call("EXPIRE", KEYS[i], 7800)
end"""


@dataclass
class Overhead:
    """Seconds of each round: `grown` by a turn and sent `again`, over each store, and a bare EVALSHA."""

    name: str
    keys: int = 0
    grown: dict[str, list[float]] = field(default_factory=lambda: {"memory": [], "redis": []})
    again: dict[str, list[float]] = field(default_factory=lambda: {"memory": [], "redis": []})
    bare: list[float] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, float, float, float, float]]:
        """Yield name, medians over memory, Redis and of the EVALSHA in ms, and the added time in EVALSHAs."""
        bare = 1000 * median(self.bare[_COLD:])
        for what, times in (("a turn more", self.grown), ("again", self.again)):
            memory, shared = (1000 * median(times[store][_COLD:]) for store in ("memory", "redis"))
            yield f"{self.name}, {what}", memory, shared, bare, (shared - memory) / bare

    def broken(self) -> Iterator[str]:
        """Yield each median above its limit."""
        for name, memory, shared, bare, added in self.rows():
            if added > ALLOWED:
                yield f"{name}: {shared:.3f} ms over Redis, {memory:.3f} over memory + {added:.2f} x {bare:.3f}"


def overhead(url: str, rounds: int, *, asynchronous: bool) -> Overhead:
    """Measure one twin against a server, in this process."""
    return asyncio.run(_measure(url, rounds, asynchronous))


async def _measure(url: str, rounds: int, asynchronous: bool) -> Overhead:
    # Both twins share one loop: results of a sync middleware are not awaited.
    found = Overhead("async" if asynchronous else "sync")
    kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
    fields = {"provider": "databricks", "secret": "a secret", "namespace": f"overhead {time.time_ns()}"}
    middlewares = {
        name: kind(store=store, **fields) for name, store in (("memory", "memory://"), ("redis", url))
    }
    client: Any = (redis.asyncio if asynchronous else redis).Redis.from_url(url)
    script = await _done(client.script_load(_SCRIPT))

    async def once(name: str, body: Any) -> tuple[float, Any]:
        mw = middlewares[name]
        start = time.perf_counter()
        made = mw.prepare(body)
        call = await made if asynchronous else made
        seconds = time.perf_counter() - start
        await _done(mw.begun(call))
        await _done(mw.settle(call, usage(call.plan)))
        await _done(mw.flush())
        return seconds, call

    for number in range(rounds + _COLD):
        *before, body = reference(number)
        names = ("memory", "redis") if number % 2 else ("redis", "memory")
        for earlier in before:
            for name in names:
                await once(name, earlier)
        for times in (found.grown, found.again):
            for name in names:
                await asyncio.sleep(_GAP)
                seconds, call = await once(name, body)
                times[name].append(seconds)
        keys = middlewares["redis"]._shell.store._commands.names(call._lifecycle.parsed.prompt.arrival)
        await asyncio.sleep(_GAP)
        start = time.perf_counter()
        sent = client.evalsha(script, len(keys), *keys)
        if asynchronous:
            await sent
        found.bare.append(time.perf_counter() - start)
        found.keys = len(keys)
    for mw in middlewares.values():
        await _done(mw.close())
    await _done(client.aclose() if asynchronous else client.close())
    return found


async def _done(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
