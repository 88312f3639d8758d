"""Run good tenants alone, alone once more, and beside hostile ones, with one seed; compare all that leaves.

Contains: the three runs and their comparison. Must not depend on: faults. Each run has a provider and a Redis of its
own and no fault, and two proxies of one worker each: one serves the good tenants and half of the hostile requests, the
other one the rest, so that harm through a process and harm through the store are both seen. With several workers behind
one port, chance would decide which of them serves a request, and so would some breakpoints.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

import cachemw
from benchmarks.load.accounts import Account, Sample, account, crossings, plans, unreported
from benchmarks.load.client import Client
from benchmarks.load.hostile import Hostile, beside
from benchmarks.load.processes import SECRET, provider, proxy, received
from benchmarks.load.provider import Received
from benchmarks.load.traffic import Tenants, paced
from benchmarks.redis_servers import standalone
from benchmarks.workloads.generated import MODEL

_SEED, _TENANTS, _CONVERSATIONS = "crossing", 5, 20
_LIFETIME = 30  # new conversations after which other tenants come
_PAUSE = 0.05  # seconds for what a worker writes to the store after an answer


@dataclass
class Crossing:
    """What hostile tenants did to the breakpoints and to the report of good ones."""

    accounts: list[Account] = field(default_factory=list)
    differing: int = 0
    compared: int = 0
    noise: int = 0
    unreported: int = 0
    unreported_alone: int = 0
    examples: list[str] = field(default_factory=list)

    def broken(self) -> list[str]:
        """Return each promise that does not hold, as a sentence."""
        found = [line for one in self.accounts for line in one.broken()]
        if self.differing > self.noise:
            found.append(
                f"{self.differing} of {self.compared} requests of good tenants have other breakpoints beside"
                f" hostile tenants; the two runs without them differ in {self.noise}"
            )
        if self.unreported > self.unreported_alone:
            found.append(
                f"{self.unreported} calls of good tenants are not in the report under their label beside hostile"
                f" tenants, {self.unreported_alone} without them"
            )
        return found


def run(folder: Path, requests: int, rate: float, hostile: float, deadline: float) -> Crossing:
    """Make the three runs of so many requests of good tenants; `hostile` is how many hostile ones to each of them."""
    found, seen = Crossing(), []
    for number, share in enumerate((0.0, 0.0, hostile)):
        at = folder / f"crossing{number}"
        at.mkdir()
        samples, rows, missing = _run(at, requests, rate, share, deadline)
        found.accounts.append(account(samples, rows, (), MODEL))
        seen.append(plans(row for row in rows if row.number <= requests))
        found.unreported, found.unreported_alone = missing, max(found.unreported, found.unreported_alone)
    differing, found.noise = crossings(*seen)
    found.differing, found.compared = len(differing), len(seen[0])
    found.examples = [f"{n}: {seen[0][n]} alone, {seen[2][n]} beside hostile" for n in differing[:5]]
    return found


def _run(
    folder: Path, requests: int, rate: float, hostile: float, deadline: float
) -> tuple[list[Sample], list[Received], int]:
    with standalone() as server, provider(folder) as upstream:
        with (
            proxy(folder, upstream.url, server.url, 1) as first,
            proxy(folder, upstream.url, server.url, 1) as second,
        ):
            ports = (first.port, second.port)
            samples = uvloop.run(_traffic(ports, requests, rate, hostile, deadline))
            first.stop()
            second.stop()
        reader = cachemw.Middleware(provider="databricks", store=server.url, secret=SECRET)
        calls: Counter[str] = Counter()
        for row in reader.report().rows:
            calls.update({f"{name}={value}": row.calls for name, value in row.labels.items()})
        reader.close()
        return samples, received(upstream), unreported(samples, calls)


async def _traffic(
    ports: tuple[int, int], requests: int, rate: float, hostile: float, deadline: float
) -> list[Sample]:
    tenants = Tenants(_SEED, _TENANTS, _CONVERSATIONS, _LIFETIME, _PAUSE)
    client = Client(ports[0], deadline)
    others, stop = [Client(port, deadline) for port in ports], asyncio.Event()
    crowd = []
    if hostile:
        evil = Hostile(_SEED, tenants.heads)
        crowd = [asyncio.ensure_future(beside(evil, one, hostile * rate / 2, stop)) for one in others]
    samples = await paced(lambda: tenants.ask(client, {}), requests, rate)
    stop.set()
    for more in await asyncio.gather(*crowd):
        samples += more
    for one in (client, *others):
        one.close()
    return samples
