"""Run the proxy at a steady rate for long, and decide whether its memory, files, keys and latency stay flat.

    python benchmarks/soak.py --minutes 30

The proxy has two workers and one Redis; the provider is simulated. Conversations grow, end, and give way to new ones;
tenants and labels come and go; some clients leave early, some answers fail. The command prints a table and a verdict on
each figure, and exits 1 if one is not flat. README.md in this folder explains each column.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.chaos import stop_on_sigterm
from benchmarks.load import flatness
from benchmarks.load.accounts import Sample, fate
from benchmarks.load.bodies import digest
from benchmarks.load.client import Client, message
from benchmarks.load.flatness import Verdict
from benchmarks.load.processes import (
    Process,
    busy_seconds,
    cpu_seconds,
    descriptors,
    provider,
    proxy,
    received,
    resident,
)
from benchmarks.load.provider import PAID
from benchmarks.load.traffic import Tenants, paced, send
from benchmarks.redis_servers import Server, standalone
from benchmarks.workloads.conversations import small

WORKERS = 2
RATE = 60.0  # requests a second: the proxy takes about a third of a core
EVERY = 2.5  # seconds between two samples
DEADLINE = 30.0
_SEED, _TENANTS, _CONVERSATIONS, _LIFETIME = "soak", 10, 120, 300
_FAULTS = {"401": 0.005, "429": 0.005, "500": 0.005, "half": 0.005, "closed": 0.002}
_LEAVE = 0.01  # share of clients that leave before their answer
# Sizes that fill each bound: blocks and prefixes that workers remember (32,768 each), and the store's memory.
_FILLING, _TURNS, _AT_ONCE = 2_200, 90, 4
_STORE = "24mb"
_FIRST_FILLING = 700_000_000
# Tenants that come and go ten times as fast fill the cohorts of both workers, 20,000 each.
_WARM_UP, _WARM_UP_LIFETIME, _FIRST_WARM_UP = 15_000, 30, 800_000_000


@dataclass
class Sampled:
    """The series of a run, each a list of times and values."""

    memory: list[tuple[float, float]] = field(default_factory=list)
    descriptors: list[tuple[float, float]] = field(default_factory=list)
    store: list[tuple[float, float]] = field(default_factory=list)
    keys: list[tuple[float, float]] = field(default_factory=list)
    endless: int = 0
    evicted: int = 0

    def take(self, served: Process, client: Any) -> None:
        """Measure once."""
        now, pids = time.time(), served.pids()
        facts = client.info()
        self.memory.append((now, float(resident(pids))))
        self.descriptors.append((now, float(descriptors(pids))))
        self.store.append((now, float(facts["used_memory"])))
        self.keys.append((now, float(client.dbsize())))
        self.evicted = facts["evicted_keys"]


@dataclass
class Soak:
    """A run: its samples, and the answers that clients got."""

    sampled: Sampled
    samples: list[Sample]
    cpu: float
    machine: float
    exit_code: int | None

    @property
    def rate(self) -> float:
        """Return the requests a second that ended."""
        return len(self.samples) / (self.samples[-1].ended - self.samples[0].began)

    def windows(self) -> list[tuple[float, list[float]]]:
        """Return the start of each minute, of a ninth of a shorter run, with the sorted seconds of its requests."""
        start, end = self.samples[0].began, self.samples[-1].began
        width = min(60.0, (end - start) / 9)
        found: dict[int, list[float]] = {}
        for sample in self.samples:
            if sample.status == 200 and sample.complete:
                found.setdefault(int((sample.began - start) / width), []).append(sample.seconds)
        full = [(start + n * width, sorted(times)) for n, times in sorted(found.items())]
        return [one for one in full if one[0] + width <= end + 1]

    def verdicts(self) -> list[Verdict]:
        """Return the verdict on each figure."""
        p99 = [(at, times[int(0.99 * len(times))]) for at, times in self.windows()]
        wrong = [one for one in self.samples if one.error != "left" and fate(one) != "answered"]
        return [
            flatness.memory_flat("memory of the proxy", self.sampled.memory, self.rate),
            flatness.count_flat("files of the proxy", self.sampled.descriptors),
            flatness.share_flat("memory of Redis", self.sampled.store),
            flatness.share_flat("keys of Redis", self.sampled.keys),
            Verdict("keys without a TTL", not self.sampled.endless, str(self.sampled.endless)),
            flatness.latency_flat("p99", p99),
            Verdict("wrong answers", not wrong, f"{len(wrong)} of {len(self.samples)} {wrong[:2] or ''}"),
            Verdict("end on SIGTERM", self.exit_code == 0, f"exit code {self.exit_code}"),
        ]


async def _filled(port: int) -> None:
    """Send prompts of many blocks, each once, so that every bounded table is full before the run begins."""
    client, numbers = Client(port, DEADLINE), count(_FIRST_FILLING)

    async def some() -> None:
        for _ in range(_FILLING // _AT_ONCE):
            number, key = next(numbers), f"{PAID}filling"
            *_, last = small(f"filling {number}", "filling", _TURNS)
            raw = orjson.dumps(last)
            headers = {"authorization": f"Bearer {key}", "x-chaos-request": str(number)}
            await send(client, Sample(number, key, digest(raw)), message(headers, raw))

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))
    tenants = Tenants("warm-up", _TENANTS, _CONVERSATIONS, _WARM_UP_LIFETIME, first=_FIRST_WARM_UP)

    async def warm_up() -> None:
        for _ in range(_WARM_UP // _AT_ONCE):
            await tenants.ask(client, {})

    await asyncio.gather(*(warm_up() for _ in range(_AT_ONCE)))
    client.close()


async def _traffic(
    served: Process, upstream: Process, server: Server, sampled: Sampled, requests: int, rate: float
) -> list[Sample]:
    """Send requests at the rate, and sample meanwhile."""
    tenants = Tenants(_SEED, _TENANTS, _CONVERSATIONS, _LIFETIME)
    client, rng = Client(served.port, DEADLINE), random.Random(_SEED)

    async def ask() -> Sample:
        leaves = rng.uniform(0.0, 0.08) if rng.random() < _LEAVE else None
        return await tenants.ask(client, _FAULTS, leaves)

    async def sample() -> None:
        with server.client() as store:
            for number in count(1):
                await asyncio.to_thread(sampled.take, served, store)
                if number % 20 == 0:
                    await asyncio.to_thread(received, upstream)  # the provider forgets them then
                await asyncio.sleep(EVERY)

    sampling = asyncio.ensure_future(sample())
    try:
        samples = await paced(ask, requests, rate)
    finally:
        sampling.cancel()
        with suppress(asyncio.CancelledError):
            await sampling
    client.close()
    return samples


def endless(server: Server) -> int:
    """Return the number of keys in the store without a TTL."""
    with server.client() as client:
        return sum(client.pttl(key) == -1 for key in client.scan_iter(count=1000))


def run(minutes: float, rate: float) -> Soak:
    """Run for so many minutes after a warm-up."""
    options = ("--maxmemory", _STORE, "--maxmemory-policy", "volatile-lru")
    sampled, requests = Sampled(), round(60 * minutes * rate)
    with tempfile.TemporaryDirectory(prefix="soak-") as name, standalone("valkey", *options) as server:
        folder = Path(name)
        with provider(folder) as upstream, proxy(folder, upstream.url, server.url, WORKERS) as served:
            uvloop.run(_filled(served.port))
            begun, busy, start = cpu_seconds(served.pids()), busy_seconds(), time.monotonic()
            samples = uvloop.run(_traffic(served, upstream, server, sampled, requests, rate))
            seconds = time.monotonic() - start
            cpu, machine = cpu_seconds(served.pids()) - begun, busy_seconds() - busy
            sampled.endless = endless(server)
            return Soak(sampled, samples, cpu / seconds, machine / seconds, served.stop())


def table(soak: Soak) -> Table:
    """Return the figures of each minute."""
    shown = Table(
        "minute", "requests", "p50 ms", "p99 ms", "memory MB", "files", "Redis MB", "keys",
        box=None, header_style="bold", padding=(0, 1),
    )  # fmt: skip
    windows, sampled = soak.windows(), soak.sampled
    width = windows[1][0] - windows[0][0]
    for start, times in windows:

        def within(series: list[tuple[float, float]], start: float = start) -> float:
            return median([y for x, y in series if start <= x < start + width] or [0.0])

        shown.add_row(
            f"{(start - windows[0][0]) / 60:.1f}", str(len(times)), f"{1000 * times[len(times) // 2]:.1f}",
            f"{1000 * times[int(0.99 * len(times))]:.1f}", f"{within(sampled.memory) / 2**20:.1f}",
            f"{within(sampled.descriptors):.0f}", f"{within(sampled.store) / 2**20:.1f}", f"{within(sampled.keys):.0f}",
        )  # fmt: skip
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, show, and return 1 if a figure is not flat."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of steady traffic; at least 2")
    parser.add_argument("--rate", type=float, default=RATE, help="requests a second")
    given = parser.parse_args(arguments)
    if given.minutes < 2:
        parser.error("a run of less than 2 minutes decides nothing")
    stop_on_sigterm()
    logging.getLogger("cachemw").setLevel(logging.ERROR)
    console = Console(width=max(150, Console().width))
    soak = run(given.minutes, given.rate)
    console.print(table(soak))
    console.print(
        f"\n{len(soak.samples)} requests, {soak.rate:.1f} a second; the proxy took {soak.cpu:.2f} of a core, all"
        f" processes of the machine {soak.machine:.2f}; Redis dropped {soak.sampled.evicted} keys at its bound.",
        highlight=False,
    )
    found = soak.verdicts()
    for one in found:
        console.print(f"{'FLAT    ' if one.flat else 'NOT FLAT'} {one.figure}: {one.words}", highlight=False)
    return int(not all(one.flat for one in found))


if __name__ == "__main__":
    sys.exit(main())
