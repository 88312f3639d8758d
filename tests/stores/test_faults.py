"""Requests while a server dies, hangs or refuses, and the records after its return."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest

import cachemw
from benchmarks.fleet import usage
from benchmarks.redis_servers import Server, standalone, until
from benchmarks.workloads.conversations import small
from cachemw.core.request.equality import canonical
from cachemw.events import Counted, Event
from cachemw.simulation.traffic import Body

HEAD = "all"
REQUESTS = 16
_numbers = count()


@dataclass(frozen=True)
class Fault:
    """A fault of a server, its end, and the failures that a worker counts meanwhile.

    If `keeps` is True, earlier writes survive. `options` are the server's own. `patience` is a worker's
    `store_timeout_ms`, for replies on a shared machine.
    """

    spoil: Callable[[Server], None]
    mend: Callable[[Server], None]
    counted: frozenset[str]
    keeps: bool = True
    options: Sequence[str] = ()
    patience: int = 2000


def counts(*errors: str) -> frozenset[str]:
    """Return the counted names of failures."""
    return frozenset(f"error.store.{name}" for name in errors)


def asked(*command: Any) -> Callable[[Server], None]:
    """Return a function that sends a command to a server."""

    def ask(server: Server) -> None:
        with server.client() as client:
            client.execute_command(*command)

    return ask


def load(server: Server) -> None:
    """Save the data of a server, kill and start it: it loads the data for a while."""
    with server.client() as client:
        client.mset({f"filling {number}": number for number in range(4000)})
        client.execute_command("SAVE")
    server.kill()
    server.start(wait=False)
    with server.client() as client:
        until(lambda: client.info("persistence")["loading"] == 1, "it does not load")


FAULTS = {
    "killed": Fault(Server.kill, Server.start, counts("ConnectionError"), keeps=False),
    "frozen": Fault(Server.freeze, Server.thaw, counts("TimeoutError"), patience=20),
    "out of memory": Fault(
        asked("CONFIG", "SET", "maxmemory", "1"),
        asked("CONFIG", "SET", "maxmemory", "0"),
        counts("OutOfMemoryError"),
    ),
    "read only": Fault(
        asked("REPLICAOF", "127.0.0.1", "1"),
        asked("REPLICAOF", "NO", "ONE"),
        counts("ReadOnlyError"),
    ),
    "loading": Fault(
        load,
        Server.until_ready,
        # The client may not have noticed the end of its earlier connections.
        counts("BusyLoadingError", "TimeoutError", "ConnectionError"),
        options=("--key-load-delay", "100", "--loading-process-events-interval-bytes", "1024"),
        patience=20,
    ),
}


class Worker:
    """A middleware, sync or async, whose responses bill the expected usage."""

    def __init__(self, url: str, twin: str, patience: int) -> None:
        self.noted: list[str] = []
        self.sent = 0
        self._runner = asyncio.Runner()
        kind: Any = cachemw.Middleware if twin == "sync" else cachemw.AsyncMiddleware
        self._mw = kind(
            provider="databricks", store=url, secret="a secret", store_timeout_ms=patience, hooks=[self._note]
        )
        self._sync = twin == "sync"

    def _note(self, event: Event) -> None:
        if isinstance(event, Counted):
            self.noted.append(event.name)

    def send(self, bodies: Sequence[Body], at_once: int = 2) -> list[cachemw.Call]:
        """Send requests, so many at once, and check that only markers were added."""
        if self._sync:
            with ThreadPoolExecutor(at_once) as pool:
                calls = list(pool.map(self._one, bodies))
        else:
            calls = self._runner.run(self._all(bodies, at_once))
        for call, body in zip(calls, bodies, strict=True):
            assert canonical(call.body) == canonical(body)
        self.sent += len(calls)
        return calls

    def _one(self, body: Body) -> cachemw.Call:
        call: cachemw.Call = self._mw.prepare(body)
        self._mw.begun(call)
        self._mw.settle(call, usage(call.plan))
        return call

    async def _all(self, bodies: Sequence[Body], at_once: int) -> list[cachemw.Call]:
        room = asyncio.Semaphore(at_once)

        async def one(body: Body) -> cachemw.Call:
            async with room:
                call: cachemw.Call = await self._mw.prepare(body)
                await self._mw.begun(call)
                await self._mw.settle(call, usage(call.plan))
                return call

        return await asyncio.gather(*map(one, bodies))

    def flush(self) -> bool:
        """Flush; return True if all is written."""
        return bool(self._mw.flush() if self._sync else self._runner.run(self._mw.flush()))

    def calls(self) -> int:
        """Return the number of calls in the ledger, all of them settled."""
        totals = (self._mw.report() if self._sync else self._runner.run(self._mw.report())).totals
        assert totals.unsettled == 0
        return int(totals.calls)

    def close(self) -> None:
        """Close the middleware."""
        if self._sync:
            self._mw.close()
        else:
            self._runner.run(self._mw.close())
        self._runner.close()


@contextmanager
def workers(url: str, *twins: str, patience: int = 2000) -> Iterator[list[Worker]]:
    """Start workers that share a store."""
    made = [Worker(url, twin, patience) for twin in twins]
    try:
        yield made
    finally:
        for worker in made:
            worker.close()


def talk(turns: int = 1) -> list[Body]:
    """Return the requests of a new conversation; all share tools and system prompt."""
    return list(small(f"talk {next(_numbers)}", HEAD, turns))


def talks(number: int = REQUESTS) -> list[Body]:
    """Return the first requests of so many conversations."""
    return [body for _ in range(number) for body in talk()]


def learns(one: Worker, other: Worker) -> bool:
    """Return True if a worker reads the prefix that another worker has just written."""
    begin, go_on = talk(2)
    (written,) = one.send([begin])
    one.flush()
    (read,) = other.send([go_on])
    return bool(read.plan.cache_read >= written.plan.cache_read + written.plan.cache_write_5m > 0)


@pytest.mark.parametrize("twins", [("sync", "async"), ("async", "sync")], ids=["sync", "async"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_requests_during_a_fault_go_on_and_lose_nothing(fault: Fault, twins: tuple[str, str]) -> None:
    """They get breakpoints by local records; afterwards workers share records again, and sums are exact."""
    with (
        standalone("valkey", *fault.options) as server,
        workers(server.url, *twins, patience=fault.patience) as (one, other),
    ):
        before = talks(6)
        for body in before:
            other.send([body])
            other.flush()
            one.send([body])
            one.flush()
        fault.spoil(server)
        assert all(call.plan.cache_read > 0 for call in one.send(talks()))
        assert not one.flush()
        errors = set(one.noted) - {"store.away", "store.back"}
        assert errors
        assert errors <= fault.counted
        assert one.noted.index("store.away") <= 5
        assert "store.back" not in one.noted

        fault.mend(server)
        until(lambda: one.flush() and other.flush(), "the workers do not come back", seconds=2)
        until(lambda: learns(one, other) and learns(other, one), "they learn nothing", seconds=2)
        assert one.noted.count("store.back") == one.noted.count("store.away")
        until(other.flush, "what was told is not written")
        lost = 0 if fault.keeps else 2 * len(before)
        assert one.calls() == one.sent + other.sent - lost


@pytest.mark.parametrize("twin", ["sync", "async"])
def test_evicted_records_are_restored(twin: str) -> None:
    """A server that evicts keys makes no request fail and no worker forget."""
    with standalone("valkey") as server, server.client() as client, workers(server.url, twin) as (worker,):
        begin, go_on = talk(2)
        (written,) = worker.send([begin])
        worker.flush()
        # Room for the workers' own buffers, and values so large that each one evicts many of the small keys.
        limit = client.info("memory")["used_memory"] + 4_000_000
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", limit)
        for number in range(100):
            client.set(f"other {number}", b"x" * 400_000)
        assert client.info("stats")["evicted_keys"] > 0
        assert not [name for name in client.keys("cachemw:*") if b"}:p:" in name]
        (read,) = worker.send([go_on])
        assert read.plan.cache_read >= written.plan.cache_write_5m > 0
        assert all(call.plan.cache_read > 0 for call in worker.send(talks()))
        assert not [name for name in worker.noted if name.startswith("error")]
