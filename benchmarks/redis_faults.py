"""Measure the effect on a fleet of a Redis that dies, hangs or fails over amid 2,000 requests.

    python benchmarks/redis_faults.py
    python benchmarks/redis_faults.py --only kill,freeze

Four worker processes, two with the sync middleware and two with the async one, send requests at a steady pace
over a real Valkey. A third of the way in, a fault hits it. The command prints a table and exits 1 if a promise
breaks. README.md in this folder explains each number.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cachemw
from benchmarks.fleet import Fleet, Sample, Told, Traffic, fleet, usage
from benchmarks.redis_servers import Cluster, Sentinels, cluster, sentinel, standalone, until
from benchmarks.workloads.conversations import small
from cachemw.core.planner.plan import Plan
from cachemw.simulation.traffic import Body

TWINS = ("sync", "sync", "async", "async")
STREAMS, REQUESTS, GAP = 2, 250, 0.04
HEALTHY = 3.5  # seconds of the run before the fault
AWAY = 1.5  # seconds until a killed server starts again
FROZEN = 2.0
RESUMED = 2.0  # seconds within which workers learn from each other again
CALLS = 5  # calls that may fail before a worker stops asking
_SLOWER = 5  # times the healthy p99


@dataclass
class Moments:
    """The times of the fault and of the server's recovery, by the machine's clock."""

    broke: float = 0.0
    back: float = 0.0


Break = Callable[[Moments], None]


@dataclass
class Probe:
    """The times at which a sync worker read a new entry of an async one, and the reverse."""

    seen: list[tuple[float, str]] = field(default_factory=list)

    def resumed(self, back: float) -> float:
        """Return the seconds after which both directions worked again."""
        ways = [[at for at, way in self.seen if way == each and at > back] for each in ("sync", "async")]
        return max(min(way, default=float("inf")) for way in ways) - back


@dataclass
class Run:
    """The outcome of one fault."""

    name: str
    moments: Moments
    told: list[Told]
    probe: Probe
    reported: int | None
    opens: bool

    @property
    def samples(self) -> list[Sample]:
        """Return all requests."""
        return [sample for one in self.told for sample in one.samples]

    def during(self) -> list[Sample]:
        """Return the requests from the fault until workers must have learned again."""
        return [s for s in self.samples if self.moments.broke <= s.at < self.moments.back + RESUMED]

    def healthy(self) -> list[Sample]:
        """Return the requests before the fault."""
        return [s for s in self.samples if s.at < self.moments.broke - 0.1]

    def failed_calls(self) -> list[int]:
        """Return the number of failed calls before a worker stopped asking, for each worker that stopped."""
        found = []
        for one in self.told:
            names = [name for at, name in one.counted if at > self.moments.broke - 0.1]
            if "store.away" in names:
                before = names[: names.index("store.away")]
                found.append(sum(name.startswith("error.store.") for name in before))
        return found

    def returns(self) -> list[float]:
        """Return the seconds from recovery to the first call, for each worker that had stopped asking."""
        found = []
        for one in self.told:
            turns = [
                (at - self.moments.back, name)
                for at, name in one.counted
                if name in ("store.away", "store.back")
            ]
            if [name for at, name in turns if at <= 0][-1:] == ["store.away"]:
                found.append(
                    next((at for at, name in turns if at > 0 and name == "store.back"), float("inf"))
                )
        return found

    def broken(self, budget: float) -> Iterator[str]:
        """Yield each broken promise; `budget` is `store_timeout_ms` in seconds."""
        samples, during, healthy = self.samples, self.during(), self.healthy()
        requests = len(TWINS) * STREAMS * REQUESTS
        failures = [name for one in self.told for name in one.failures]
        if failures or len(samples) != requests:
            yield f"{len(samples)} of {requests} requests went out; {', '.join(sorted(set(failures)))}"
        if changed := sum(sample.changed for sample in samples):
            yield f"{changed} bodies were changed"
        if passed := sum(sample.passed for sample in samples):
            yield f"{passed} requests went as they came because cachemw failed"
        if unmarked := sum(not sample.marked for sample in during):
            yield f"{unmarked} of {len(during)} requests without a breakpoint while it was away"
        for share in (0.99, 1.0):
            limit = budget + _SLOWER * _quantile(healthy, share)
            if (slow := _quantile(during, share)) > limit:
                yield f"{_named(share)} of prepare {1000 * slow:.1f} ms, {1000 * limit:.1f} is promised"
        if (resumed := self.probe.resumed(self.moments.back)) > RESUMED:
            yield f"a worker learned from another {resumed:.1f} s after the server was back"
        failed = self.failed_calls()
        if self.opens and len(failed) < len(TWINS):
            yield f"only {len(failed)} of {len(TWINS)} workers stopped asking"
        # The remaining nodes of a cluster go on answering, so failures in a row count.
        if self.opens and max(failed, default=0) > CALLS:
            yield f"{max(failed)} calls failed before a worker stopped asking"
        if (late := max(self.returns(), default=0.0)) > RESUMED:
            yield f"a worker asked again {late:.1f} s after the server was back"
        if self.reported not in (None, requests):
            yield f"{self.reported} calls in the report of {requests}"


def _quantile(samples: Sequence[Sample], share: float) -> float:
    times = sorted(sample.seconds for sample in samples)
    return times[min(int(len(times) * share), len(times) - 1)]


def _named(share: float) -> str:
    return "maximum" if share == 1.0 else f"p{100 * share:.0f}"


# -- faults ------------------------------------------------------------------------------------


@contextmanager
def killed() -> Iterator[tuple[str, Break]]:
    """Kill a server, and start it again empty."""
    with standalone() as server:

        def happen(moments: Moments) -> None:
            moments.broke = time.time()
            server.kill()
            time.sleep(AWAY)
            server.start()
            moments.back = time.time()

        yield server.url, happen


@contextmanager
def frozen() -> Iterator[tuple[str, Break]]:
    """Stop a server with SIGSTOP, and let it go on."""
    with standalone() as server:

        def happen(moments: Moments) -> None:
            moments.broke = time.time()
            server.freeze()
            time.sleep(FROZEN)
            server.thaw()
            moments.back = time.time()

        yield server.url, happen


@contextmanager
def failed_over() -> Iterator[tuple[str, Break]]:
    """Kill a master of a cluster, whose replica takes its place."""
    with cluster(3, 1) as nodes:
        yield nodes.url, lambda moments: _cluster_fails(nodes, moments)


def _cluster_fails(nodes: Cluster, moments: Moments) -> None:
    gone, heir = nodes.nodes[0], nodes.nodes[nodes.masters]
    moments.broke = time.time()
    gone.kill()
    with heir.client() as client:
        until(lambda: client.info("replication")["role"] == "master", "no replica takes over")
        until(lambda: b"cluster_state:ok" in _raw(client), "the cluster does not become complete")
    moments.back = time.time()


def _raw(client: Any) -> bytes:
    facts = client.execute_command("CLUSTER INFO")
    return facts if isinstance(facts, bytes) else "\n".join(f"{k}:{v}" for k, v in facts.items()).encode()


@contextmanager
def promoted() -> Iterator[tuple[str, Break]]:
    """Kill a master that sentinels watch."""
    with sentinel(1) as watched:
        yield watched.url, lambda moments: _sentinel_promotes(watched, moments)


def _sentinel_promotes(watched: Sentinels, moments: Moments) -> None:
    moments.broke = time.time()
    watched.master.kill()
    until(lambda: watched.master_port() != watched.master.port, "the sentinels name no other master")
    with watched.replicas[0].client() as client:
        until(lambda: client.info("replication")["role"] == "master", "the replica is not promoted")
    moments.back = time.time()


# By name: the fault, whether every worker must stop asking, and whether all written data must survive.
FAULTS: dict[str, tuple[Callable[[], Any], bool, bool]] = {
    "kill": (killed, True, False),
    "freeze": (frozen, True, True),
    "cluster": (failed_over, False, False),
    "sentinel": (promoted, True, False),
}


# -- the run ----------------------------------------------------------------------------------


def run(name: str) -> Run:
    """Run a fleet through one fault."""
    fault, opens, keeps = FAULTS[name]
    with fault() as (url, happen):
        traffic = Traffic(
            url, f"{name} {time.time_ns()}", TWINS, REQUESTS, streams=STREAMS, gap=GAP, checked=True
        )
        moments, probe = Moments(), Probe()
        with fleet(traffic) as started:
            asyncio.run(_watched(started, traffic, happen, moments, probe))
            told = started.told()
        reported = None
        if keeps:
            reader = cachemw.Middleware(traffic.settings())
            reported = reader.report().totals.calls
            reader.close()
    return Run(name, moments, told, probe, reported, opens)


async def _watched(started: Fleet, traffic: Traffic, happen: Break, moments: Moments, probe: Probe) -> None:
    """Start the fleet and the fault, while two workers of this process learn from each other."""
    started.ready()
    started.go()
    probing = asyncio.create_task(_probe(traffic, probe))
    await asyncio.sleep(HEALTHY)
    await asyncio.to_thread(happen, moments)
    await asyncio.sleep(RESUMED + 0.5)
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)


async def _probe(traffic: Traffic, probe: Probe) -> None:
    """Let a sync and an async worker begin conversations in turns, and let the peer continue them."""
    settings = traffic.settings().model_copy(update={"namespace": f"{traffic.namespace} probe"})
    sync, asynchronous = cachemw.Middleware(settings), cachemw.AsyncMiddleware(settings)

    async def sent(way: str, body: Body) -> Plan:
        if way == "sync":
            call = await asyncio.to_thread(sync.prepare, body)
            sync.begun(call)
            sync.settle(call, usage(call.plan))
        else:
            call = await asynchronous.prepare(body)
            await asynchronous.begun(call)
            await asynchronous.settle(call, usage(call.plan))
        return call.plan

    try:
        for number in count():
            first, second = ("sync", "async") if number % 2 else ("async", "sync")
            begin, go_on = small(f"probe {number}", f"probe {number}", 2)
            written = (await sent(first, begin)).cache_write_5m
            await asyncio.sleep(0.05)
            if 0 < written <= (await sent(second, go_on)).cache_read:
                probe.seen.append((time.time(), second))
    finally:
        sync.close()
        await asynchronous.close()


def table(runs: Sequence[Run]) -> Table:
    """Return the figures of all runs."""
    shown = Table(
        "fault", "away s", "requests", "marked", "healthy p50 ms", "p99", "max", "away p50", "p99", "max",
        "failed until open", "asked again s", "learned again s", "calls reported",
        box=None, header_style="bold", padding=(0, 1),
    )  # fmt: skip
    for one in runs:
        healthy, during = one.healthy(), one.during()
        times = [
            f"{1000 * _quantile(part, share):.2f}" for part in (healthy, during) for share in (0.5, 0.99, 1.0)
        ]
        shown.add_row(
            one.name, f"{one.moments.back - one.moments.broke:.1f}", str(len(one.samples)),
            f"{sum(s.marked for s in during)}/{len(during)}", *times,
            " ".join(map(str, one.failed_calls())), " ".join(f"{s:.1f}" for s in one.returns()),
            f"{one.probe.resumed(one.moments.back):.2f}", "" if one.reported is None else str(one.reported),
        )  # fmt: skip
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run each fault, show the figures, and check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(FAULTS), help=f"of {', '.join(FAULTS)}, comma-separated")
    chosen = parser.parse_args(arguments).only.split(",")
    logging.getLogger("cachemw").setLevel(logging.ERROR)
    console = Console(width=max(180, Console().width))
    runs = [run(name) for name in chosen]
    console.print(table(runs))
    budget = cachemw.Settings(provider="databricks").store_timeout_ms / 1000
    failed = False
    for one in runs:
        broken = list(one.broken(budget))
        failed = failed or bool(broken)
        console.print(f"{'BROKEN' if broken else 'holds '} {one.name}", highlight=False)
        for line in broken:
            console.print(f"         {line}", highlight=False)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
