"""The middleware for an event loop: it runs the operations of `flow` with an async store and tasks.

Contains: the async shell and driver, and `AsyncMiddleware`. Must not depend on: decisions, clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, Literal, TypeVar

from cachemw.core.billing.receipt import Receipt
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.parser import WireFormat
from cachemw.engine.background_writer import FLUSH_INTERVAL
from cachemw.engine.base import EngineBase
from cachemw.engine.call import Call, CallLifecycle, StoreWrite
from cachemw.engine.flow import CallFlow
from cachemw.engine.steps import Flow
from cachemw.engine.sync import claiming
from cachemw.events import Hook
from cachemw.reporting.ledger import Report
from cachemw.settings import Settings
from cachemw.slices import Slices, run_in_loop
from cachemw.stores import open_async_store
from cachemw.stores.protocol import Arrival, AsyncStore, CacheEntry

T = TypeVar("T")


class _AsyncShell:
    """The I/O of one event loop at a time."""

    def __init__(self, store: AsyncStore, flow: CallFlow) -> None:
        self.store, self._flow = store, flow
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_writes: dict[int, asyncio.Task[None]] = {}  # of each call, by the `id` of its arrival
        self._flushing: asyncio.Task[None] | None = None
        self._closed = False

    async def run_slices(self, work: Slices[Any]) -> Any:
        """See `Shell.run_slices`."""
        return await run_in_loop(work)

    async def pause(self, seconds: float) -> None:
        """See `Shell.pause`."""
        await asyncio.sleep(seconds)

    async def claim(
        self, lifecycle: CallLifecycle, arrival: Arrival, entries: tuple[CacheEntry, ...]
    ) -> bool:
        """See `Shell.claim`. A cancelled request still learns the store's answer, to release a granted claim."""
        claim = asyncio.ensure_future(self._claim(lifecycle, arrival, entries))
        try:
            return await asyncio.shield(claim)
        except asyncio.CancelledError:
            await asyncio.gather(claim, return_exceptions=True)
            raise

    async def _claim(
        self, lifecycle: CallLifecycle, arrival: Arrival, entries: tuple[CacheEntry, ...]
    ) -> bool:
        shards = arrival.shared_shard_key, arrival.conversation_shard_key
        with claiming(lifecycle, entries):
            granted = await self.store.claim(arrival.namespace, *shards, entries, self._flow.shared.clock())
            lifecycle.claimed_entries = entries if granted else ()
        return granted

    async def write_later(self, write: StoreWrite, job: Flow[None]) -> None:
        """See `Shell.write_later`: a release must come after the write that it undoes."""
        if self.store.local:
            await drive(job, self)
            return
        self._enter_loop()
        last, arrival = self._last_writes, id(write.arrival)  # the job keeps the arrival alive
        task = last[arrival] = self._start(self._after(last.get(arrival), job))

        def forget(done: asyncio.Task[None]) -> None:
            if last.get(arrival) is done:
                del last[arrival]

        task.add_done_callback(forget)

    async def _after(self, before: asyncio.Task[None] | None, job: Flow[None]) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await drive(job, self)

    async def later(self, job: Flow[None]) -> None:
        """See `Shell.later`."""
        if self.store.local:
            await drive(job, self)
        else:
            self._start(drive(job, self))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._enter_loop()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _enter_loop(self) -> None:
        """Forget the tasks of any loop but the running one: they may never end."""
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._tasks, self._flushing = asyncio.get_running_loop(), set(), None
            self._last_writes = {}

    async def schedule_flush(self) -> None:
        """See `Shell.schedule_flush`."""
        self._enter_loop()
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush_repeatedly())

    async def _flush_repeatedly(self) -> None:
        more = True
        while more:
            await asyncio.sleep(FLUSH_INTERVAL)
            more = await drive(self._flow.flush_store(), self)

    async def flush(self, seconds: float) -> bool:
        """See `Shell.flush`."""
        self._enter_loop()
        # The tasks of this moment: under load there are always more.
        if tasks := set(self._tasks):
            _, tasks = await asyncio.wait(tasks, timeout=seconds)
        return not await drive(self._flow.flush_store(), self) and not tasks

    async def close(self) -> None:
        """Finish the queued writes, within five seconds, and close the store."""
        if self._closed:
            return
        self._enter_loop()
        if self._flushing is not None:
            self._flushing.cancel()
        try:
            await self._counting_errors(self.flush(5.0))
        finally:  # also if this task is cancelled
            await self._counting_errors(self.store.close())
        self._closed = True

    async def _counting_errors(self, closing: Coroutine[Any, Any, object]) -> None:
        try:
            await closing
        except Exception as error:
            self._flow.failed("close", error)


async def drive(flow: Flow[T], shell: _AsyncShell) -> T:
    """Run an operation: carry out each step, and throw the exception of a step into the flow."""
    result: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                step = flow.send(result) if error is None else flow.throw(error)
                result, error = None, None
                result = await step(shell)
            except StopIteration as end:
                value: T = end.value
                return value
            except BaseException as raised:
                if getgeneratorstate(flow) == GEN_CLOSED:
                    raise
                error = raised
    finally:
        del error  # its traceback holds this frame


class AsyncMiddleware(EngineBase):
    """`Middleware` for an event loop: the same operations, awaited, with store writes as tasks."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] | None = None,
        hooks: Sequence[Hook] = (),
        **settings_fields: Any,
    ) -> None:
        super().__init__(settings, clock=clock, hooks=hooks, **settings_fields)
        store = open_async_store(self.settings.store, **self._store_arguments())
        self._flow = CallFlow(self._shared, shares_store=not store.local)
        self._shell = _AsyncShell(store, self._flow)

    async def prepare(
        self,
        body: Json,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        provider: str | None = None,
        wire: WireFormat = "chat",
    ) -> Call:
        """See `Middleware.prepare`."""
        return await drive(self._flow.prepare(body, labels, namespace, provider, wire), self._shell)

    async def begun(self, call: Call) -> None:
        """See `Middleware.begun`."""
        await drive(self._flow.begun(call), self._shell)

    async def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        """See `Middleware.settle`."""
        return await drive(self._flow.settle(call, usage, partial), self._shell)

    async def fail(self, call: Call) -> None:
        """See `Middleware.fail`."""
        await drive(self._flow.fail(call), self._shell)

    async def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Json | None:
        """See `Middleware.refused`."""
        return await drive(self._flow.refused(call, status, error, resent), self._shell)

    async def report(self, scope: Literal["all", "process"] = "all") -> Report:
        """See `Middleware.report`."""
        return await drive(self._flow.report(scope), self._shell)

    async def flush(self, timeout: float = 5.0) -> bool:
        """See `Middleware.flush`."""
        return await self._shell.flush(timeout)

    async def close(self) -> None:
        """See `Middleware.close`."""
        await self._shell.close()
