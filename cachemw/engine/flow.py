"""The order of a call: prepare, response started, settle or fail, refused; and of the work behind it.

Contains: generators, each of which is one operation of the middleware. A generator yields steps and receives their
results (`steps`). `sync` and `aio` have one shell and one driver each.
Must not depend on: threads, event loops, a store's implementation.

No operation raises on the request path. An `Exception` is counted by place and class, and the original request goes
out. A `BaseException`, such as a cancelled task, releases the claimed entries and passes on at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from cachemw.core.billing.receipt import Receipt
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.parser import WireFormat
from cachemw.engine.call import Call, CallLifecycle, StoreWrite, pass_through_call
from cachemw.engine.coalescing import Coalescer
from cachemw.engine.request_planning import RequestPlanner
from cachemw.engine.settlement import Settlement
from cachemw.engine.shared import LedgerDelta, Shared
from cachemw.engine.steps import Flow, Step, shell_call, store_call
from cachemw.engine.worker_exchange import WorkerExchange
from cachemw.reporting import ledger
from cachemw.reporting.labelling import current
from cachemw.reporting.ledger import Report

_KEEP_SECONDS = ledger.KEEP_HOURS * ledger.HOUR
_FLUSH_SECONDS = 5.0


class CallFlow:
    """The operations of one middleware, as generators."""

    def __init__(self, shared: Shared, *, shares_store: bool) -> None:
        self.shared = shared
        self.planner = RequestPlanner(shared)
        self.settlement = Settlement(shared)
        self.worker_exchange = WorkerExchange(shared)
        settings = shared.settings
        coalesces = settings.coalesce and settings.mode == "optimize"
        self.coalescer = Coalescer(shared, self.planner) if coalesces else None
        self._shares_store = shares_store

    # -- before the request -------------------------------------------------------------------

    def prepare(
        self,
        body: Json,
        labels: Mapping[str, str] | None,
        namespace: str | None,
        provider: str | None,
        wire: WireFormat,
    ) -> Flow[Call]:
        """Return the call to send."""
        lifecycle: CallLifecycle | None = None
        try:
            lifecycle = self.planner.begin_call(body, current() if labels is None else labels, namespace)
            call = yield from self._plan(lifecycle, provider, wire)
        except Exception as error:
            yield from self._release(lifecycle)
            call = self._pass_through(lifecycle, body, error)
        except BaseException:
            yield from self._release(lifecycle)
            raise
        try:
            yield from self._write_later(self.settlement.mark_in_flight(call))
            if self._shares_store and self.worker_exchange.is_due():
                yield from self._in_background(shell_call("later", self.exchange_with_workers()))
        except Exception as error:
            self.failed("announce", error)
        except BaseException:
            yield from self.fail(call)
            raise
        return call

    def _plan(self, lifecycle: CallLifecycle, provider: str | None, wire: WireFormat) -> Flow[Call]:
        yield shell_call("run_slices", self.planner.parse(lifecycle, provider, wire))
        records: Any = ()
        if (prompt := lifecycle.parsed.prompt) is not None:
            records = yield store_call("lookup", prompt.arrival, lifecycle.parsed.started)
        self.planner.forecast_and_plan(lifecycle, records)
        if self.coalescer is not None:
            try:
                yield from self.coalescer.wait(lifecycle)
            except Exception as error:
                # The store is unavailable: the request goes out as planned, without waiting.
                self.failed("coalesce", error)
        return self.planner.build_call(lifecycle)

    def _pass_through(self, lifecycle: CallLifecycle | None, body: Any, error: Exception) -> Call:
        try:
            return self.planner.pass_through(lifecycle, body, error)
        except Exception as failure:
            self.failed("passed", failure)
            return pass_through_call(body)

    def _release(self, lifecycle: CallLifecycle | None) -> Flow[None]:
        """Release the entries that this request claimed and will not write."""
        try:
            if lifecycle is not None:
                yield from self._write_later(self.settlement.release_in_flight(lifecycle))
        except Exception as error:
            self.failed("coalesce", error)

    # -- after it -----------------------------------------------------------------------------

    def begun(self, call: Call) -> Flow[None]:
        """Count an accepted request, and write its entries."""
        try:
            write, added = self.settlement.start_response(call)
            yield from self._write_later(write)
            yield from self._add(added)
        except Exception as error:
            self.failed("begun", error)

    def settle(self, call: Call, usage: Any, partial: bool) -> Flow[Receipt]:
        """Account for an answer, and return its receipt."""
        try:
            receipt, writes, added = self.settlement.settle(call, usage, partial=partial)
            for write in writes:
                yield from self._write_later(write)
            yield from self._add(added)
            return receipt
        except Exception as error:
            self.failed("settle", error)
            return Receipt()

    def fail(self, call: Call) -> Flow[None]:
        """End a call that got no answer."""
        try:
            write, added = self.settlement.fail(call)
            yield from self._write_later(write)
            yield from self._add(added)
        except Exception as error:
            self.failed("fail", error)

    def refused(self, call: Call, status: int, error: Any, resent: bool) -> Flow[Json | None]:
        """Return the original body if it is to be sent once more, else None."""
        try:
            body, write = self.settlement.refuse(call, status, error, resent=resent)
            yield from self._write_later(write)
            return body
        except Exception as failure:
            self.failed("refused", failure)
            return None

    def report(self, scope: Literal["all", "process"]) -> Flow[Report]:
        """Return the savings in the store, or those of the process if the scope or a failure asks for it."""
        try:
            if scope == "all":
                yield shell_call("flush", _FLUSH_SECONDS)
                tables = ledger.tables(self.shared.clock())
                return ledger.report((yield store_call("read", self.shared.settings.namespace, tables)))
        except Exception as error:
            self.failed("report", error)
        return ledger.report(dict(self.shared.sums))

    # -- in the background --------------------------------------------------------------------

    def write(self, write: StoreWrite) -> Flow[None]:
        """Count an arrival in the store and the statistics, and write entries."""
        arrival = write.arrival
        try:
            if (accepted := write.accepted) is not None:
                records = yield store_call("observe", arrival, accepted.started)
                self.settlement.observe(accepted, records)
            if write.entries:
                shards = arrival.shared_shard_key, arrival.conversation_shard_key
                yield store_call("write", arrival.namespace, *shards, write.entries)
        except Exception as error:
            self.failed("write", error)

    def exchange_with_workers(self) -> Flow[None]:
        """Publish learned facts and cohort counts, and merge those of the other workers."""
        namespace = self.shared.settings.namespace
        try:
            for update in self.worker_exchange.drain_updates():
                yield store_call("add", namespace, *update)
            for table in self.worker_exchange.tables():
                sums = yield store_call("read", namespace, [table])
                self.worker_exchange.merge_updates(table, sums)
        except Exception as error:
            self.failed("share", error)

    def flush_store(self) -> Flow[bool]:
        """Send the updates that the store holds back; return True if some are left."""
        try:
            left: bool = yield store_call("flush")
            return left
        except Exception as error:
            self.failed("flush", error)
            return False

    def _write_later(self, write: StoreWrite | None) -> Flow[None]:
        """Carry out a write in the background, None being no write."""
        if write is not None:
            yield from self._in_background(shell_call("write_later", write, self.write(write)))

    def _in_background(self, step: Step) -> Flow[None]:
        """Start background work, and let the request go on if that fails."""
        try:
            yield step
        except Exception as error:
            self.failed("writer", error)

    def _add(self, added: LedgerDelta) -> Flow[None]:
        """Add amounts to the hour's table of the ledger."""
        if not added:
            return
        try:
            namespace, table = self.shared.settings.namespace, ledger.table(self.shared.clock())
            yield store_call("add", namespace, table, added, _KEEP_SECONDS)
            if self._shares_store:
                yield shell_call("schedule_flush")
        except Exception as error:
            self.failed("ledger", error)

    def failed(self, where: str, error: Exception) -> None:
        """Count a failure, whatever state the counters are in."""
        with suppress(Exception):
            self.shared.failed(where, error)
