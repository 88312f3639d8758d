"""The middleware: read, plan, let the host call, settle, write; and the one place that fails open.

Lives here: the sync and async twins, which call the store and nothing else of their own. Must not
know: how a decision is made (`decisions`), what a client looks like (`integrations`).

Nothing here raises on the request path: an `Exception` of ours is counted by class and the original
request goes on. A `BaseException`, such as a cancelled task, is never held up.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import time
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from cachemw.core.billing.receipt import Receipt
from cachemw.core.request.message_blocks import Json
from cachemw.core.request.parser import Wire
from cachemw.core.request.tokens import load_counter
from cachemw.engine.background_writer import PULSE, Writer
from cachemw.engine.call import Call, State, Write, untracked
from cachemw.engine.coalescing import Turns
from cachemw.engine.decisions import Amounts, Decisions, secret_of
from cachemw.errors import ConfigError
from cachemw.events import Hook
from cachemw.reporting import ledger
from cachemw.reporting.labelling import current
from cachemw.reporting.ledger import Report
from cachemw.settings import Settings
from cachemw.slices import run, run_in_loop
from cachemw.stores import open_async_store, open_store
from cachemw.stores.protocol import Store
from cachemw.threads import start

_KEEP = ledger.KEEP_HOURS * ledger.HOUR
_UNREAD = Receipt()
_log = logging.getLogger("cachemw")
_SHARE_EVERY = 30.0  # seconds between two looks at what other workers have learned


class _Engine:
    """What both twins are made of."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] | None = None,
        hooks: Sequence[Hook] = (),
        **settings_fields: Any,
    ) -> None:
        if settings is not None and settings_fields:
            raise ConfigError("settings: give a Settings object or single fields, not both")
        self.settings = settings or Settings(**settings_fields)
        self._real_time = clock is None
        self._decisions = Decisions(self.settings, clock or time.time, tuple(hooks), os.urandom(32))
        coalesces = self.settings.coalesce and self.settings.mode == "optimize"
        self._turns = Turns(self._decisions) if coalesces else None
        self._shared_at = float("-inf")
        if self.settings.tokens == "tiktoken":
            start(self._count_exactly)

    @property
    def counts(self) -> dict[str, int]:
        """How often each thing was counted in this process, by dotted name."""
        return self._decisions.counters.all()

    def count(self, name: str) -> None:
        """Count one thing by name."""
        self._decisions.count(name)

    def _passed(self, state: State | None, body: Any, error: Exception) -> Call:
        """Return the call of a body that goes as it came."""
        try:
            return self._decisions.passed(state, body, error)
        except Exception as failure:
            self._failed("passed", failure)
            return untracked(body)

    def _count_exactly(self) -> None:
        """Load tiktoken's encoding, which may take a download; until then tokens are estimated."""
        try:
            self._decisions.count_exactly(load_counter())
        except Exception as error:
            self._failed("tokens", error)

    def _share_due(self) -> bool:
        now = self._decisions.clock()
        if now - self._shared_at < _SHARE_EVERY:
            return False
        self._shared_at = now
        return True

    def _failed(self, where: str, error: Exception) -> None:
        with suppress(Exception):
            self._decisions.counters.add(f"error.{where}.{type(error).__name__}")

    def _store_arguments(self) -> dict[str, Any]:
        if self.settings.secret is None and not self.settings.store.startswith("memory:"):
            _log.warning(
                "No secret is set: hashes in the shared store are keyed by the namespace alone, and can be"
                " guessed by whoever guesses a prompt and the namespace. Set `secret`, the same for all workers."
            )
        return {
            "secret": secret_of(self.settings),
            "timeout_ms": self.settings.store_timeout_ms,
            "namespace": self.settings.namespace,
            "server_time": self._real_time,
            "count": self._decisions.count,
        }


class Middleware(_Engine):
    """Place breakpoints in requests and account for what came of them.

    `Middleware(settings, clock=time.time, hooks=())`, or single settings by name. Any number of
    threads may use one. Raises `ConfigError` at construction only.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] | None = None,
        hooks: Sequence[Hook] = (),
        **settings_fields: Any,
    ) -> None:
        super().__init__(settings, clock=clock, hooks=hooks, **settings_fields)
        self._store = open_store(self.settings.store, **self._store_arguments())
        decisions = self._decisions
        self._pulse = functools.partial(_flush, self._store, decisions)
        self._writer = Writer(lost=lambda: decisions.count("error.writer.full"), pulse=self._pulse)
        # A script that never closes loses nothing either. Nothing here holds the middleware itself.
        self._finish = weakref.finalize(self, _finish, self._writer, self._pulse, self._store, decisions)

    def prepare(
        self,
        body: Json,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        provider: str | None = None,
        wire: Wire = "chat",
    ) -> Call:
        """Return the call to make: send its `body`, then `begun`, and `settle` or `fail`.

        `provider` counts where the setting is "auto". `wire` is the body's shape: OpenAI "chat" or
        Anthropic "messages". Never raises; the body itself is never changed.
        """
        state: State | None = None
        try:
            state = self._decisions.start(body, current() if labels is None else labels, namespace)
            run(self._decisions.read(state, provider, wire))
            records = self._store.lookup(state.arrival, state.start) if state.arrival else ()
            self._decisions.weigh(state, records)
            if self._turns is not None:
                self._wait(self._turns, state)
            call = self._decisions.decide(state)
        except Exception as error:
            self._give_back(state)
            call = self._passed(state, body, error)
        except BaseException:
            self._give_back(state)
            raise
        try:
            if write := self._decisions.announce(call):
                self._later(functools.partial(self._write, write))
            if not self._store.local and self._share_due():
                self._later(self._share)
        except Exception as error:
            self._failed("announce", error)
        except BaseException:
            self.fail(call)
            raise
        return call

    def begun(self, call: Call) -> None:
        """Note the first byte of a 2xx answer: from here the request counts, and its entries can be read."""
        try:
            write, amounts = self._decisions.begun(call)
            if write:
                self._later(functools.partial(self._write, write))
            self._add(amounts)
        except Exception as error:
            self._failed("begun", error)

    def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        """Account for an answer and return its receipt.

        `usage` is a usage dict, a response dict, an SDK object, or None for an answer that told no
        usage. `partial` counts a stream that was closed early or broke. A second call changes nothing.
        """
        try:
            receipt, writes, amounts = self._decisions.settle(call, usage, partial=partial)
            for write in writes:
                self._later(functools.partial(self._write, write))
            self._add(amounts)
            return receipt
        except Exception as error:
            self._failed("settle", error)
            return _UNREAD

    def fail(self, call: Call) -> None:
        """Note that there is no answer: no entry, no money."""
        try:
            write, amounts = self._decisions.fail(call)
            if write:
                self._later(functools.partial(self._write, write))
            self._add(amounts)
        except Exception as error:
            self._failed("fail", error)

    def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Json | None:
        """Return the original body to send once more if a 400 names a marker that cachemw set, else None.

        If the second request is accepted, the kind of block that was refused is not marked again for this
        namespace. `settle` the same call with its answer. A host that can't send again says so by `resent`.
        """
        try:
            body, write = self._decisions.refused(call, status, error, resent=resent)
            if write:
                self._later(functools.partial(self._write, write))
            return body
        except Exception as failure:
            self._failed("refused", failure)
            return None

    def report(self, scope: Literal["all", "process"] = "all") -> Report:
        """Return the savings: of all workers with this namespace in their settings, or of this process.

        Calls that were prepared for another namespace are in it: tenants share no hashes, and whoever serves
        them all has one ledger. Label calls to tell them apart.

        The first writes out what is queued. Where the store can't be read, the count
        "error.report..." tells and the process's own sums are returned.
        """
        decisions = self._decisions
        try:
            if scope == "all":
                self.flush(5.0)
                tables = ledger.tables(decisions.clock())
                return ledger.report(self._store.read(self.settings.namespace, tables))
        except Exception as error:
            self._failed("report", error)
        return ledger.report(dict(decisions.sums))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds until what is queued is written; say whether it is."""
        done = self._writer.flush(timeout)
        return not self._pulse() and done

    def close(self) -> None:
        """Write what is queued, within five seconds, and give back the store; again does nothing."""
        if (finalizer := self._finish.peek()) is not None:
            _, finish, arguments, _ = finalizer
            finish(*arguments)
            # Only now: where a signal handler raised meanwhile, closing again does the rest.
            self._finish.detach()

    def _later(self, job: Callable[[], None]) -> None:
        if self._store.local:
            job()
            return
        try:
            self._writer.submit(job)
        except Exception as error:
            self._failed("writer", error)

    def _wait(self, turns: Turns, state: State) -> None:
        """Let a request wait for its turn; where the store is away it goes on as planned."""
        try:
            turns.wait(self._store, state)
        except Exception as error:
            self._failed("coalesce", error)

    def _give_back(self, state: State | None) -> None:
        """Tell others that a request which claimed a write won't leave with it."""
        try:
            if state is not None and (write := self._decisions.unannounced(state)):
                self._later(functools.partial(self._write, write))
        except Exception as error:
            self._failed("coalesce", error)

    def _write(self, write: Write) -> None:
        arrival = write.arrival
        try:
            if write.accepted is not None:
                records = self._store.observe(arrival, write.accepted.start)
                self._decisions.observe(write.accepted, records)
            if write.entries:
                self._store.write(arrival.namespace, arrival.root, arrival.trunk, write.entries)
        except Exception as error:
            self._failed("write", error)

    def _share(self) -> None:
        """Exchange with the other workers what was learned of models and of reuse."""
        namespace, decisions = self.settings.namespace, self._decisions
        try:
            for table, amounts, keep in decisions.news():
                self._store.add(namespace, table, amounts, keep)
            for table in decisions.tables():
                decisions.absorb(table, self._store.read(namespace, [table]))
        except Exception as error:
            self._failed("share", error)

    def _add(self, added: Amounts) -> None:
        if not added:
            return
        try:
            self._store.add(self.settings.namespace, ledger.table(self._decisions.clock()), added, _KEEP)
            if not self._store.local:
                self._writer.wake()
        except Exception as error:
            self._failed("ledger", error)


def _flush(store: Store, decisions: Decisions) -> bool:
    try:
        return store.flush()
    except Exception as error:
        decisions.count(f"error.flush.{type(error).__name__}")
        return False


def _finish(writer: Writer, pulse: Callable[[], bool], store: Store, decisions: Decisions) -> None:
    for close in (functools.partial(writer.close, 5.0), pulse, store.close):
        try:
            close()
        except Exception as error:
            decisions.count(f"error.close.{type(error).__name__}")


class AsyncMiddleware(_Engine):
    """`Middleware` for an event loop: the same calls, awaited, with writes as tasks."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] | None = None,
        hooks: Sequence[Hook] = (),
        **settings_fields: Any,
    ) -> None:
        super().__init__(settings, clock=clock, hooks=hooks, **settings_fields)
        self._store = open_async_store(self.settings.store, **self._store_arguments())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_writes: dict[int, asyncio.Task[None]] = {}  # of each call, by the `id` of its arrival
        self._pulsing: asyncio.Task[None] | None = None
        self._closed = False

    async def prepare(
        self,
        body: Json,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        provider: str | None = None,
        wire: Wire = "chat",
    ) -> Call:
        """See `Middleware.prepare`."""
        state: State | None = None
        try:
            state = self._decisions.start(body, current() if labels is None else labels, namespace)
            await run_in_loop(self._decisions.read(state, provider, wire))
            records = await self._store.lookup(state.arrival, state.start) if state.arrival else ()
            self._decisions.weigh(state, records)
            if self._turns is not None:
                await self._wait(self._turns, state)
            call = self._decisions.decide(state)
        except Exception as error:
            await self._give_back(state)
            call = self._passed(state, body, error)
        except BaseException:
            await self._give_back(state)
            raise
        try:
            if write := self._decisions.announce(call):
                await self._write_later(write)
            if not self._store.local and self._share_due():
                await self._later(self._share)
        except Exception as error:
            self._failed("announce", error)
        except BaseException:
            await self.fail(call)
            raise
        return call

    async def begun(self, call: Call) -> None:
        """See `Middleware.begun`."""
        try:
            write, amounts = self._decisions.begun(call)
            if write:
                await self._write_later(write)
            await self._add(amounts)
        except Exception as error:
            self._failed("begun", error)

    async def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        """See `Middleware.settle`."""
        try:
            receipt, writes, amounts = self._decisions.settle(call, usage, partial=partial)
            for write in writes:
                await self._write_later(write)
            await self._add(amounts)
            return receipt
        except Exception as error:
            self._failed("settle", error)
            return _UNREAD

    async def fail(self, call: Call) -> None:
        """See `Middleware.fail`."""
        try:
            write, amounts = self._decisions.fail(call)
            if write:
                await self._write_later(write)
            await self._add(amounts)
        except Exception as error:
            self._failed("fail", error)

    async def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Json | None:
        """See `Middleware.refused`."""
        try:
            body, write = self._decisions.refused(call, status, error, resent=resent)
            if write:
                await self._write_later(write)
            return body
        except Exception as failure:
            self._failed("refused", failure)
            return None

    async def report(self, scope: Literal["all", "process"] = "all") -> Report:
        """See `Middleware.report`."""
        decisions = self._decisions
        try:
            if scope == "all":
                await self.flush(5.0)
                tables = ledger.tables(decisions.clock())
                return ledger.report(await self._store.read(self.settings.namespace, tables))
        except Exception as error:
            self._failed("report", error)
        return ledger.report(dict(decisions.sums))

    async def flush(self, timeout: float = 5.0) -> bool:
        """See `Middleware.flush`."""
        self._enter_loop()
        # Those of now: under load there are always more.
        if tasks := set(self._tasks):
            _, tasks = await asyncio.wait(tasks, timeout=timeout)
        return not await self._flush() and not tasks

    async def close(self) -> None:
        """See `Middleware.close`."""
        if self._closed:
            return
        self._enter_loop()
        if self._pulsing is not None:
            self._pulsing.cancel()
        try:
            await self._ending(self.flush)
        finally:  # where this task is cancelled, too
            await self._ending(self._store.close)
        self._closed = True

    async def _ending(self, close: Callable[[], Coroutine[Any, Any, object]]) -> None:
        try:
            await close()
        except Exception as error:
            self._failed("close", error)

    def _enter_loop(self) -> None:
        """Forget the tasks of another loop than the running one: they may never end."""
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._tasks, self._pulsing = asyncio.get_running_loop(), set(), None
            self._last_writes = {}

    async def _later(self, job: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self._store.local:
            await job()
        else:
            self._start(job())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._enter_loop()
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write_later(self, write: Write) -> None:
        """Write in a task of its own, after what the same call has written before: a release undoes what it releases."""
        if self._store.local:
            await self._write(write)
            return
        self._enter_loop()
        last, arrival = self._last_writes, id(write.arrival)  # the write keeps the arrival alive
        task = last[arrival] = self._start(self._write_after(last.get(arrival), write))

        def forget(done: asyncio.Task[None]) -> None:
            if last.get(arrival) is done:
                del last[arrival]

        task.add_done_callback(forget)

    async def _write_after(self, before: asyncio.Task[None] | None, write: Write) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await self._write(write)

    async def _wait(self, turns: Turns, state: State) -> None:
        """Let a request wait for its turn; where the store is away it goes on as planned."""
        try:
            await turns.wait_async(self._store, state)
        except Exception as error:
            self._failed("coalesce", error)

    async def _give_back(self, state: State | None) -> None:
        """Tell others that a request which claimed a write won't leave with it."""
        try:
            if state is not None and (write := self._decisions.unannounced(state)):
                await self._write_later(write)
        except Exception as error:
            self._failed("coalesce", error)

    async def _write(self, write: Write) -> None:
        arrival = write.arrival
        try:
            if write.accepted is not None:
                records = await self._store.observe(arrival, write.accepted.start)
                self._decisions.observe(write.accepted, records)
            if write.entries:
                await self._store.write(arrival.namespace, arrival.root, arrival.trunk, write.entries)
        except Exception as error:
            self._failed("write", error)

    async def _share(self) -> None:
        """Exchange with the other workers what was learned of models and of reuse."""
        namespace, decisions = self.settings.namespace, self._decisions
        try:
            for table, amounts, keep in decisions.news():
                await self._store.add(namespace, table, amounts, keep)
            for table in decisions.tables():
                decisions.absorb(table, await self._store.read(namespace, [table]))
        except Exception as error:
            self._failed("share", error)

    async def _add(self, added: Amounts) -> None:
        if not added:
            return
        try:
            await self._store.add(
                self.settings.namespace, ledger.table(self._decisions.clock()), added, _KEEP
            )
            if self._store.local:
                return
            self._enter_loop()
            if self._pulsing is None or self._pulsing.done():
                self._pulsing = asyncio.create_task(self._pulse())
        except Exception as error:
            self._failed("ledger", error)

    async def _pulse(self) -> None:
        """Send what is held back every tenth of a second, until nothing is."""
        more = True
        while more:
            await asyncio.sleep(PULSE)
            more = await self._flush()

    async def _flush(self) -> bool:
        try:
            return await self._store.flush()
        except Exception as error:
            self._failed("flush", error)
            return False
