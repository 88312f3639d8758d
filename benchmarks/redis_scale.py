"""Measure how the store scales: worker processes over memory, one Valkey and a cluster of three, and the cost of a call.

    python benchmarks/redis_scale.py
    python benchmarks/redis_scale.py --workers 2 --only overhead

The command prints tables, checks the promises, and exits 1 if one breaks. README.md in this folder explains each
number. No provider is called: an answer begins at once, and its usage is the plan's estimate.
"""

from __future__ import annotations

import argparse
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from redis.crc import key_slot
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cachemw
from benchmarks.fleet import TURNS, Told, Traffic, fleet, usage
from benchmarks.redis_overhead import ALLOWED, Overhead, overhead
from benchmarks.redis_servers import Cluster, Server, cluster, standalone
from benchmarks.workloads.conversations import small
from cachemw.slices import run
from cachemw.stores import open_store
from cachemw.stores.protocol import Arrival

FREE, PACED, GAP = 1_000, 100, 0.01
# Limits for commands on the slot of a root that all requests share: a request, and a second of a worker.
ROOT_PER_REQUEST, ROOT_PER_SECOND = 0.25, 100.0
_PREFIXES = 100_000
_LEARNING_MS = 10_000


class Read(NamedTuple):
    """Counters of a server: commands of workers, microseconds of its CPU, bytes in and out, and its keys."""

    commands: int
    cpu: float
    received: int
    sent: int
    keys: int

    def since(self, before: Read) -> Read:
        """Return the growth since an earlier reading."""
        return Read._make(now - then for now, then in zip(self, before, strict=True))

    @classmethod
    def of(cls, server: Server) -> Read:
        """Ask a server. A script's calls are part of the command that runs the script."""
        with server.client() as client:
            facts, stats, cpu = (client.info(part) for part in ("commandstats", "stats", "cpu"))
            keys = client.dbsize()
        names = [name for name in ("eval", "evalsha", "hgetall") if f"cmdstat_{name}" in facts]
        return cls(
            sum(facts[f"cmdstat_{name}"]["calls"] for name in names),
            1e6 * (cpu["used_cpu_user"] + cpu["used_cpu_sys"]),
            stats["total_net_input_bytes"],
            stats["total_net_output_bytes"],
            keys,
        )


@dataclass(frozen=True)
class Row:
    """The figures of one store, one number of workers and one kind of traffic.

    `root`, `root_bytes`: commands and bytes a request on the slot of the shared root; `root_rate`:
    commands of a worker in a second.
    """

    store: str
    workers: int
    hot: bool
    rate: float
    p50: float
    p99: float
    trips: float
    reads: tuple[Read, ...]
    requests: int
    root: float
    root_rate: float
    root_bytes: float

    @property
    def name(self) -> str:
        """Return the row in words."""
        return f"{self.store}, {self.workers} workers, {'one root' if self.hot else 'own roots'}"

    def broken(self) -> Iterator[str]:
        """Yield each broken promise."""
        if self.store == "memory":
            return
        if self.trips > 1.02:
            yield f"{self.name}: {self.trips:.2f} round trips a request before it leaves, 1 is promised"
        if self.hot and self.root > ROOT_PER_REQUEST:
            yield f"{self.name}: {self.root:.2f} commands a request on the root's slot"
        if self.hot and self.root_rate > ROOT_PER_SECOND:
            yield f"{self.name}: {self.root_rate:.0f} commands a second and worker on the root's slot"


def measured(store: str, url: str, servers: Sequence[Server], workers: int, *, hot: bool) -> Row:
    """Measure a fleet twice: free-running for the rate and the load, then with gaps for the time of `prepare`."""
    twins, stamp = ("sync",) * workers, time.time_ns()
    free = Traffic(url, f"free {stamp}", twins, FREE, hot=hot)
    paced = Traffic(url, f"paced {stamp}", twins, PACED, gap=GAP, hot=hot, drained=True)
    with fleet(free, paced) as started:
        started.ready()
        before = [Read.of(server) for server in servers]
        started.go()
        told = started.told()
        reads = tuple([Read.of(server).since(was) for server, was in zip(servers, before, strict=True)])
        started.ready()
        started.go()
        calm = started.told()
    times = sorted(sample.seconds for one in calm for sample in one.samples)
    requests, seconds = FREE * workers, max(one.ended for one in told) - min(one.began for one in told)
    asked = servers if store == "cluster" and hot else []
    weight = sum(_slot_bytes(server, _root_slot(free)) for server in asked)
    root = sum(one.slots[_root_slot(free)] for one in told) if servers and hot else 0
    return Row(
        store, workers, hot, requests / seconds, 1000 * times[len(times) // 2], 1000 * times[len(times) * 99 // 100],
        _trips(told) / requests, reads, requests, root / requests, root / seconds / workers, weight / requests,
    )  # fmt: skip


def _trips(told: Sequence[Told]) -> int:
    return sum(one.trips for one in told)


def _root_slot(traffic: Traffic) -> int:
    """Return the slot of the tools and system that all requests share."""
    mw = cachemw.Middleware(traffic.settings())
    lifecycle = mw._flow.planner.begin_call(next(small("any", "all", 1)), {}, None)
    run(mw._flow.planner.parse(lifecycle, None, "chat"))
    assert lifecycle.parsed.prompt is not None
    store: Any = mw._shell.store
    slot = key_slot(store._commands.names(lifecycle.parsed.prompt.arrival)[0])
    mw.close()
    return slot


def _slot_bytes(server: Server, slot: int) -> int:
    """Return the bytes in and out of a slot, as its node counts them."""
    with server.client() as client:
        found = client.execute_command("CLUSTER SLOT-STATS", "SLOTSRANGE", slot, slot)
    facts = dict(zip(found[0][1][::2], found[0][1][1::2], strict=True)) if found else {}
    return sum(facts.get(name, 0) for name in (b"network-bytes-in", b"network-bytes-out"))


def table(rows: Sequence[Row]) -> Table:
    """Return the rows, and for each node its share of the commands."""
    shown = Table(
        "store", "workers", "traffic", "requests/s", "prepare p50 ms", "p99 ms", "trips", "commands", "server us",
        "bytes in", "bytes out", "new keys", "on the root's slot", "bytes", "a worker and second",
        "by node",
        box=None, header_style="bold", padding=(0, 1),
    )  # fmt: skip
    for row in rows:
        cells = [row.store, str(row.workers), "one root" if row.hot else "own roots", f"{row.rate:.0f}"]
        cells += [f"{row.p50:.2f}", f"{row.p99:.2f}"]
        if row.reads:
            whole = [sum(numbers) / row.requests for numbers in zip(*row.reads, strict=True)]
            cells += [
                f"{row.trips:.2f}",
                f"{whole[0]:.2f}",
                *(f"{n:.0f}" for n in whole[1:4]),
                f"{whole[4]:.1f}",
            ]
            cells += [f"{row.root:.3f}" if row.hot else "", f"{row.root_bytes:.0f}" if row.root_bytes else ""]
            cells += [f"{row.root_rate:.0f}" if row.hot else ""]
            cells += [" ".join(f"{read.commands / row.requests:.2f}" for read in row.reads)]
        shown.add_row(*cells)
    return shown


# -- memory -----------------------------------------------------------------------------------


def memory(server: Server) -> tuple[float, float, float]:
    """Return bytes a prefix: by the server's growth, by MEMORY USAGE of a key, and of a memory store."""
    with server.client() as client:
        before, keys = client.info("memory")["used_memory"], client.dbsize()
        store = open_store(server.url, secret=b"s", timeout_ms=1000, namespace="memory")
        _fill(store, _PREFIXES)
        store.close()
        grown = (client.info("memory")["used_memory"] - before) / (client.dbsize() - keys)
        names = [client.randomkey() for _ in range(200)]
        usage = [client.memory_usage(name) for name in names if b"}:p:" in name]
    tracemalloc.start()
    local = open_store("memory://", secret=b"s", timeout_ms=1000)
    _fill(local, _PREFIXES // 5)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return grown, sum(usage) / len(usage), held / (_PREFIXES // 5)


def _fill(store: Any, prefixes: int) -> None:
    for number in range(prefixes // 50):
        keys = tuple([(50 * number + place).to_bytes(16, "big") for place in range(50)])
        store.observe(Arrival("memory", b"r" * 16, keys[0], 0, keys), time.time())


# -- learning ---------------------------------------------------------------------------------


def learned(url: str, pairs: int = 3) -> Iterator[str]:
    """Yield a line for each pair of processes of which the second does not read the entries of the first."""
    context = get_context("spawn")
    for number in range(pairs):
        told = context.Queue()
        traffic = Traffic(url, f"pair {number} {time.time_ns()}", ("sync",), 1)
        for turn in range(2):
            process = context.Process(target=_turn, args=(traffic, turn, told))
            process.start()
            process.join(60)
        (written, _), (read, found) = told.get(timeout=5), told.get(timeout=5)
        if not 0 < written == read or not found:
            yield f"pair {number}: one process wrote {written} tokens, the other expects to read {read}"


def _turn(traffic: Traffic, turn: int, told: Any) -> None:
    """Send one turn of a conversation; report its cache write or cache read, and whether a breakpoint covers it."""
    # A slow machine must not look like a store that lost the entry.
    mw = cachemw.Middleware(traffic.settings().model_copy(update={"store_timeout_ms": _LEARNING_MS}))
    body = list(small("pair", "pair", TURNS))[turn]
    call = mw.prepare(body)
    mw.begun(call)
    mw.settle(call, usage(call.plan))
    plan = call.plan
    told.put(
        (
            plan.cache_read if turn else plan.cache_write_5m,
            any(p.prefix_tokens >= plan.cache_read for p in plan.breakpoints),
        )
    )
    mw.close()


# -- the run ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", default="2,4", help="numbers of processes; default 2,4")
    parser.add_argument("--only", choices=["overhead", "fleet"], help="measure one part")
    parser.add_argument("--rounds", type=int, default=80, help="of the overhead; default 80")
    chosen = parser.parse_args(arguments)
    console = Console(width=max(200, Console().width))
    checks: list[tuple[str, list[str]]] = []
    with standalone() as server:
        if chosen.only != "fleet":
            checks.append(_overhead(server.url, chosen.rounds, console))
            checks.append(
                (
                    "a process reads with its next request the entries that another one wrote",
                    list(learned(server.url)),
                )
            )
        if chosen.only != "overhead":
            checks.append(_fleets(server, [int(n) for n in chosen.workers.split(",")], console))
            grown, usage_, held = memory(server)
            console.print(
                f"memory: {grown:.0f} bytes a prefix in the server ({grown:.0f} MB a million; MEMORY USAGE of a key"
                f" {usage_:.0f}), {held:.0f} in a memory store"
            )
    return verdict(checks, console)


def _overhead(url: str, rounds: int, console: Console) -> tuple[str, list[str]]:
    broken: list[str] = []
    shown = Table(
        "418 KB", "memory ms", "Redis ms", "EVALSHA ms", "added, in EVALSHA", box=None, header_style="bold"
    )
    for asynchronous in (False, True):
        found = _calmest(url, rounds, asynchronous)
        for name, *numbers, added in found.rows():
            shown.add_row(
                f"{name}, {found.keys} keys", *(f"{number:.3f}" for number in numbers), f"{added:.2f}"
            )
        broken += found.broken()
    console.print(shown)
    return f"prepare over Redis takes at most {ALLOWED} bare EVALSHA longer than over memory", broken


def _calmest(url: str, rounds: int, asynchronous: bool) -> Overhead:
    """Return the first of up to three runs that holds, or the last: a disturbance only adds to a run."""
    for _ in range(3):
        found = overhead(url, rounds, asynchronous=asynchronous)
        if not list(found.broken()):
            break
    return found


def _fleets(server: Server, workers: Sequence[int], console: Console) -> tuple[str, list[str]]:
    rows = []
    with ExitStack() as stack:
        nodes: Cluster = stack.enter_context(cluster(3, 0, "valkey", "--cluster-slot-stats-enabled", "yes"))
        for count in workers:
            rows.append(measured("memory", "memory://", [], count, hot=True))
            for hot in (True, False):
                rows.append(measured("Valkey", server.url, [server], count, hot=hot))
                rows.append(measured("cluster", nodes.url, nodes.nodes, count, hot=hot))
    console.print(table(rows))
    says = (
        f"one round trip a request; a shared root's slot gets at most {ROOT_PER_REQUEST} commands a request"
    )
    return says, [line for row in rows for line in row.broken()]


def verdict(checks: Sequence[tuple[str, list[str]]], console: Console) -> int:
    """Print each promise with its breaches, and return the exit code."""
    for says, broken in checks:
        console.print(f"{'BROKEN' if broken else 'holds '} {says}", highlight=False)
        for line in broken:
            console.print(f"         {line}", highlight=False)
    return int(any(broken for _, broken in checks))


if __name__ == "__main__":
    sys.exit(main())
