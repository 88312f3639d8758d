"""Run the proxy through faults of its provider, workers and store, and beside hostile tenants, and count the harm.

    python benchmarks/chaos.py
    python benchmarks/chaos.py --requests 5000 --only "workers killed,store frozen"

All parts but the provider are real: `cachemw proxy` with four workers, a Redis cluster of three masters and three
replicas behind relays, clients over TCP. The command prints a table and exits 1 if a promise
breaks. README.md in this folder explains each column.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load import crossing, store_faults
from benchmarks.load.accounts import Account, Kill, Sample, account
from benchmarks.load.client import Client
from benchmarks.load.hostile import Hostile
from benchmarks.load.processes import Process, busy_seconds, ports_of, provider, proxy, received
from benchmarks.load.store_faults import Store, relayed_cluster
from benchmarks.load.traffic import Tenants, beside, paced
from benchmarks.redis_servers import until
from benchmarks.workloads.generated import MODEL

WORKERS = 4
RATE = 100.0  # requests a second at most
DEADLINE = 20.0  # seconds after which a request counts as one that hangs
RESTARTED = 15.0  # seconds in which the proxy's first process must have replaced a killed worker
SHORTEST = 10.0  # seconds of a phase: a failover of the store takes some four
_LIMITS = ("--first-byte-timeout", "5", "--idle-timeout", "4", "--connect-timeout", "5", "--drain", "10")
_TENANTS, _CONVERSATIONS = 8, 150
_HOSTILE = 0.5  # hostile requests to each good one, in phases with hostile tenants
_CROSSING = "tenants apart"
_WARM, _HEALTHY = "warm-up", "healthy"


@dataclass(frozen=True)
class Phase:
    """One phase of the run. `faults` has the share of requests on which the provider fails, by fault."""

    name: str
    faults: Mapping[str, float] = field(default_factory=dict)
    kills: bool = False
    store: tuple[store_faults.Fault, ...] = ()
    hostile: float = 0.0


_ERRORS = {"401": 0.05, "429": 0.1, "500": 0.1}
_SLOW = {"never": 0.03, "slow": 0.15, "closed": 0.05}
_BREAKS = {"half": 0.08, "stall": 0.03, "no usage": 0.2}
_ALL = {name: share / 3 for faults in (_ERRORS, _SLOW, _BREAKS) for name, share in faults.items()}

PHASES = (
    Phase(_WARM),
    Phase(_HEALTHY),
    Phase("provider errors", _ERRORS),
    Phase("provider slow, silent", _SLOW),
    Phase("answers broken, no usage", _BREAKS),
    Phase("workers killed", kills=True),
    *(Phase(name, store=faults) for name, faults in store_faults.FAULTS.items()),
    Phase("hostile tenants", hostile=_HOSTILE),
    Phase("all at once", _ALL, kills=True, store=store_faults.FAULTS["store frozen"], hostile=_HOSTILE),
    Phase("healthy again"),
)


@dataclass
class Run:
    """The processes and clients of a run, and the workers that were killed."""

    served: Process
    upstream: Process
    store: Store
    tenants: Tenants
    kills: list[Kill] = field(default_factory=list)

    async def phase(self, phase: Phase, requests: int, rate: float) -> Account:
        """Send so many requests while the phase's faults happen; repair, and return the figures."""
        client, other = Client(self.served.port, DEADLINE), Client(self.served.port, DEADLINE)
        over = asyncio.Event()
        good = round(requests / (1 + phase.hostile))
        seconds = good / rate
        actors = [asyncio.ensure_future(self._break_store(phase.store, seconds))] if phase.store else []
        actors += [asyncio.ensure_future(self._kill_workers(seconds))] if phase.kills else []
        evil = Hostile(phase.name, self.tenants.heads)
        crowd = beside(lambda: evil.ask(other), phase.hostile * rate, over) if phase.hostile else _none()
        crowded = asyncio.ensure_future(crowd)
        samples = await paced(lambda: self.tenants.ask(client, phase.faults), good, rate)
        over.set()
        samples += await crowded
        await asyncio.gather(*actors)
        await asyncio.to_thread(self._repair)
        for one in (client, other):
            one.close()
        rows = await asyncio.to_thread(received, self.upstream)
        return account(samples, rows, self.kills, MODEL)

    async def _break_store(self, faults: Sequence[store_faults.Fault], seconds: float) -> None:
        """Let each fault happen once, for half of its part of the phase."""
        part = 0.8 * seconds / len(faults)
        await asyncio.sleep(0.1 * seconds)
        for fault in faults:
            mend = await asyncio.to_thread(fault, self.store)
            await asyncio.sleep(part / 2)
            await asyncio.to_thread(mend)
            await asyncio.sleep(part / 2)

    async def _kill_workers(self, seconds: float) -> None:
        """Kill one worker after another, and in the middle all at once."""
        times = (0.1, 0.3, 0.5, 0.75)
        start = time.monotonic()
        for number, share in enumerate(times):
            await asyncio.sleep(max(0.0, start + share * seconds - time.monotonic()))
            workers = self.served.workers()
            for pid in workers if number == 2 else workers[:1]:
                self.kills.append(killed(pid, self.served.port))

    def _repair(self) -> None:
        """Bring workers and store back. The end of the run counts a proxy that stays down."""
        store_faults.mended(self.store)
        with _noted():
            until(lambda: len(self.served.workers()) >= WORKERS, "workers are missing", RESTARTED, 0.1)


async def _none() -> list[Sample]:
    return []


@contextmanager
def _noted() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        print(f"NOT REPAIRED: {error}", file=sys.stderr)


def killed(pid: int, port: int) -> Kill:
    """Kill a worker, and return the connections that it held.

    SIGSTOP comes first, so that no connection opens or closes in between.
    """
    os.kill(pid, signal.SIGSTOP)
    ports = ports_of(pid, port)
    at = time.time()
    os.kill(pid, signal.SIGKILL)
    return Kill(at, frozenset(ports))


def table(accounts: Mapping[str, Account]) -> Table:
    """Return the figures of all phases."""
    shown = Table(
        "phase", "requests", "hostile", "killed", "lost", "changed", "crossed", "hangs",
        "p50 ms", "p99 ms", "max ms", "> 1 s", "saved", "healthy",
        title="Times are added to those of the healthy phase.",
        box=None, header_style="bold", padding=(0, 1), title_justify="left",
    )  # fmt: skip
    healthy = accounts.get(_HEALTHY, next(iter(accounts.values())))
    for name, one in accounts.items():
        base = Account() if one is healthy else healthy
        times = [f"{1000 * (one.quantile(q) - base.quantile(q)):+.0f}" for q in (0.5, 0.99, 1.0)]
        shown.add_row(
            name, *map(str, (
                one.requests, one.hostile, one.fates["killed"], one.fates["lost"],
                one.changed + one.fates["changed"], one.crossed + one.fates["crossed"],
                one.fates["hang"] + one.hostile_hangs,
            )), *times, str(one.late), f"{one.saved:.1%}", f"{healthy.saved:.1%}",
        )  # fmt: skip
    return shown


def through_faults(folder: Path, phases: Sequence[Phase], each: int, console: Console) -> bool:
    """Run the phases one after another; show the figures, and return True if all promises hold."""
    accounts: dict[str, Account] = {}
    rate = min(RATE, each / SHORTEST)
    with (
        relayed_cluster(folder) as store,
        provider(folder) as upstream,
        # All phases share one loop: conversations and their locks go on from phase to phase.
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        with proxy(folder, upstream.url, store.url, WORKERS, *_LIMITS) as served:
            run = Run(served, upstream, store, Tenants("chaos", _TENANTS, _CONVERSATIONS))
            for phase in phases:
                begun, busy = time.monotonic(), busy_seconds()
                accounts[phase.name] = runner.run(run.phase(phase, each, rate))
                seconds, busy = time.monotonic() - begun, busy_seconds() - busy
                words = f"{phase.name}: {seconds:.0f} s, {busy / seconds:.1f} cores of the machine busy"
                console.print(words, style="dim", highlight=False)
            workers, code = len(served.workers()), served.stop() if served.alive else None
        log = served.log.read_text(errors="replace")
    console.print(table(accounts))
    broken = {name: one.broken() for name, one in accounts.items()}
    at_end = [] if workers == WORKERS else [f"{workers} of {WORKERS} workers ran at the end"]
    at_end += [] if code == 0 else [f"the proxy did not end well on SIGTERM: exit code {code}"]
    at_end += [f"{log.count('Traceback')} tracebacks in the proxy's log"] if "Traceback" in log else []
    broken["at the end"] = at_end
    verdicts(broken, console)
    for name, one in accounts.items():
        for line in one.examples[:3]:
            console.print(f"  {name}: {line}", style="dim", highlight=False)
    if at_end:
        console.print(log[-3000:], style="dim", highlight=False, markup=False)
    return not any(broken.values())


def tenants_apart(folder: Path, each: int, console: Console) -> bool:
    """Compare good tenants beside hostile ones with control runs, show the figures, and return True if they are equal."""
    found = crossing.run(folder, each, min(RATE, each / SHORTEST) / 3, DEADLINE)
    console.print(table(found.accounts))
    for name, numbers in found.differing.items():
        words = f"{len(numbers)} of {found.compared} requests have other breakpoints {name} tenants"
        console.print(f"{words}; by chance {found.noise}", highlight=False)
    console.print(f"Calls missing under their label: {found.unreported}", highlight=False)
    for line in found.examples:
        console.print(f"  {line}", style="dim", highlight=False)
    verdicts({_CROSSING: found.broken()}, console)
    return not found.broken()


def verdicts(broken: Mapping[str, Sequence[str]], console: Console) -> None:
    """Print each promise and whether it holds."""
    for name, lines in broken.items():
        console.print(f"{'BROKEN' if lines else 'holds '} {name}", highlight=False)
        for line in lines:
            console.print(f"         {line}", highlight=False)


def stop_on_sigterm() -> None:
    """Let SIGTERM end the run as Ctrl-C does, so that all processes are ended."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all phases, show the figures, and return 1 if a promise breaks."""
    names = [*(phase.name for phase in PHASES), _CROSSING]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50_000, help="of all phases together")
    parser.add_argument(
        "--only", help=f"phases besides the first two, comma-separated: {', '.join(names[2:])}"
    )
    given = parser.parse_args(arguments)
    only = given.only.split(",") if given.only else names
    if unknown := set(only) - set(names):
        parser.error(f"there is no phase {', '.join(sorted(unknown))}")
    stop_on_sigterm()
    logging.getLogger("cachemw").setLevel(logging.ERROR)
    console = Console(width=max(150, Console().width))
    # The comparison of tenants makes four runs, two of them with as many requests of other tenants.
    each = given.requests // (len(PHASES) + 6)
    phases = [phase for phase in PHASES if phase.name in (_WARM, _HEALTHY, *only)]
    good = True
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        if only != [_CROSSING]:
            good = through_faults(Path(folder), phases, each, console)
        if _CROSSING in only:
            good = tenants_apart(Path(folder), each, console) and good
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
