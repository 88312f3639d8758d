"""The middleware for threads: it runs the operations of `flow` with a blocking store and one background thread.

Contains: the sync shell and driver, and `Middleware`. Must not depend on: decisions, clients.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, Literal, TypeVar

from cachemw.core.billing.receipt import Receipt
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.parser import WireFormat
from cachemw.engine.background_writer import BackgroundWriter
from cachemw.engine.base import EngineBase
from cachemw.engine.call import Call, CallLifecycle, StoreWrite
from cachemw.engine.flow import CallFlow
from cachemw.engine.steps import Flow
from cachemw.events import Hook
from cachemw.reporting.ledger import Report
from cachemw.settings import Settings
from cachemw.slices import Slices, run
from cachemw.stores import open_store
from cachemw.stores.protocol import Arrival, CacheEntry, Store

T = TypeVar("T")


class _SyncShell:
    """The I/O of threads."""

    def __init__(self, store: Store, flow: CallFlow) -> None:
        self.store, self._flow = store, flow
        count = flow.shared.count
        self.writer = BackgroundWriter(lost=lambda: count("error.writer.full"), pulse=self.flush_store)

    def run_slices(self, work: Slices[Any]) -> Any:
        """See `Shell.run_slices`."""
        return run(work)

    def pause(self, seconds: float) -> None:
        """See `Shell.pause`."""
        time.sleep(seconds)

    def claim(self, lifecycle: CallLifecycle, arrival: Arrival, entries: tuple[CacheEntry, ...]) -> bool:
        """See `Shell.claim`."""
        shards = arrival.shared_shard_key, arrival.conversation_shard_key
        with claiming(lifecycle, entries):
            granted = self.store.claim(arrival.namespace, *shards, entries, self._flow.shared.clock())
            lifecycle.claimed_entries = entries if granted else ()
        return granted

    def write_later(self, _write: StoreWrite, job: Flow[None]) -> None:
        """See `Shell.write_later`: one thread keeps the order of all writes."""
        self.later(job)

    def later(self, job: Flow[None]) -> None:
        """See `Shell.later`."""
        if self.store.local:
            drive(job, self)
        else:
            self.writer.submit(partial(drive, job, self))

    def schedule_flush(self) -> None:
        """See `Shell.schedule_flush`."""
        self.writer.schedule_flush()

    def flush(self, seconds: float) -> bool:
        """See `Shell.flush`."""
        done = self.writer.flush(seconds)
        return not self.flush_store() and done

    def flush_store(self) -> bool:
        """Send the updates that the store holds back; return True if some are left."""
        return drive(self._flow.flush_store(), self)

    def close(self) -> None:
        """Finish the queued writes, within five seconds, and close the store."""
        for close in (partial(self.writer.close, 5.0), self.flush_store, self.store.close):
            try:
                close()
            except Exception as error:
                self._flow.failed("close", error)


def drive(flow: Flow[T], shell: _SyncShell) -> T:
    """Run an operation: carry out each step, and throw the exception of a step into the flow."""
    result: Any = None
    error: BaseException | None = None
    try:
        while True:
            try:
                step = flow.send(result) if error is None else flow.throw(error)
                result, error = None, None
                result = step(shell)
            except StopIteration as end:
                value: T = end.value
                return value
            except BaseException as raised:
                if getgeneratorstate(flow) == GEN_CLOSED:
                    raise
                error = raised
    finally:
        del error  # its traceback holds this frame


@contextmanager
def claiming(lifecycle: CallLifecycle, entries: tuple[CacheEntry, ...]) -> Iterator[None]:
    """Note entries as claimed while the store is asked, so that an interrupt inside releases them.

    After an interrupt it is unknown whether the store granted the claim. Releasing a claim that it refused may let two
    requests write one prefix; keeping one that it granted would let all others wait in vain.
    """
    lifecycle.claimed_entries = entries
    try:
        yield
    except Exception:
        lifecycle.claimed_entries = ()
        raise


class Middleware(EngineBase):
    """Place breakpoints in requests, and account for their answers.

    `Middleware(settings, clock=time.time, hooks=())`, or single settings by name. Any number of threads may use one.
    Raises `ConfigError` at construction only.
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
        store = open_store(self.settings.store, **self._store_arguments())
        self._flow = CallFlow(self._shared, shares_store=not store.local)
        self._shell = _SyncShell(store, self._flow)
        # A script that never closes its client loses nothing either. The shell does not refer to the middleware.
        self._finish = weakref.finalize(self, self._shell.close)

    def prepare(
        self,
        body: Json,
        labels: Mapping[str, str] | None = None,
        namespace: str | None = None,
        provider: str | None = None,
        wire: WireFormat = "chat",
    ) -> Call:
        """Return the call to make. Send its `body`, then report `begun`, and `settle` or `fail`.

        The body itself is never changed. Never raises.

        Args:
            body: The request as JSON values.
            labels: Labels of the call in the report; those of `cachemw.labels` by default.
            namespace: The tenant whose prefixes and statistics count; that of the settings by default.
            provider: The provider's name, used if the setting `provider` is "auto".
            wire: The shape of the body: OpenAI's "chat" or Anthropic's "messages".
        """
        return drive(self._flow.prepare(body, labels, namespace, provider, wire), self._shell)

    def begun(self, call: Call) -> None:
        """Report the first byte of a 2xx answer: from here the request counts, and its entries can be read."""
        drive(self._flow.begun(call), self._shell)

    def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        """Account for an answer and return its receipt. A second call for the same answer changes nothing.

        Args:
            call: The call that was answered.
            usage: A usage dict, a response dict, an SDK object, or None for an answer without usage.
            partial: True for a stream that was closed early or broke off.
        """
        return drive(self._flow.settle(call, usage, partial), self._shell)

    def fail(self, call: Call) -> None:
        """Report that there is no answer: no cache entry is expected and nothing is billed."""
        drive(self._flow.fail(call), self._shell)

    def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Json | None:
        """Return the original body to send once more if a 400 names a marker that cachemw added, else None.

        If the second request is accepted, the kind of block that was refused is not marked again for this namespace.
        `settle` the same call with its answer.

        Args:
            call: The call that was refused.
            status: The HTTP status of the answer.
            error: The answer's body, or the SDK's exception.
            resent: False if the host cannot send the request again.
        """
        return drive(self._flow.refused(call, status, error, resent), self._shell)

    def report(self, scope: Literal["all", "process"] = "all") -> Report:
        """Return the savings of all workers with this namespace in their settings, or those of this process.

        Calls prepared for other namespaces are included: tenants share no hashes, but one operator has one ledger. Use
        labels to separate them. Scope "all" first finishes the queued writes. If the store cannot be read, the failure is
        counted as "error.report..." and the process's own sums are returned.
        """
        return drive(self._flow.report(scope), self._shell)

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait up to `timeout` seconds until all queued writes are done; return True if they are."""
        return self._shell.flush(timeout)

    def close(self) -> None:
        """Finish the queued writes, within five seconds, and close the store; a second call does nothing."""
        if self._finish.peek() is not None:
            self._shell.close()
            # Only now: if a signal handler raised meanwhile, a second `close` does the rest.
            self._finish.detach()
