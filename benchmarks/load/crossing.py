"""Run good tenants alone twice, beside harmless ones, and beside hostile ones, with one seed, and compare the outgoing bodies.

Contains: the four runs and their comparison. Must not depend on: faults. Each run has a provider and a Redis of its
own and no fault, and two proxies of one worker each: one serves the good tenants and half of the other requests, the
second one the rest, so that harm through a process and harm through the store are both seen. With several workers behind
one port, chance would pick the worker of a request, and with it some breakpoints.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

import cachemw
from benchmarks.load.accounts import Account, Sample, account, crossings, plans, unreported
from benchmarks.load.client import Client
from benchmarks.load.hostile import FIRST, Hostile
from benchmarks.load.processes import SECRET, provider, proxy, received
from benchmarks.load.provider import Received
from benchmarks.load.traffic import Tenants, beside, paced
from benchmarks.redis_servers import standalone
from benchmarks.workloads.generated import MODEL

_SEED, _TENANTS, _CONVERSATIONS = "crossing", 5, 20
_LIFETIME = 30  # new conversations after which other tenants come
_PAUSE = 0.05  # seconds in which a worker writes to the store after an answer


RUNS = {"alone": "none", "alone again": "none", "beside harmless": "harmless", "beside hostile": "hostile"}
"""The other tenants of each run."""
_CONTROL = "beside harmless"
_TIMING = 0.002  # share of requests that the load of harmless tenants may make overtake each other


@dataclass
class Crossing:
    """The effect of other tenants on the breakpoints and the report of good ones, by run.

    `noise`: requests on which the two runs alone differ, by chance: some decisions depend on times. `differing` has
    those on which both agree and a run beside other tenants does not; `unreported` the calls missing under their own label.
    """

    accounts: dict[str, Account] = field(default_factory=dict)
    compared: int = 0
    noise: int = 0
    differing: dict[str, list[int]] = field(default_factory=dict)
    unreported: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def expected(self, name: str) -> float:
        """Return how many requests of a run differ because of timing alone.

        Requests overtake each other more often on a busy machine. The run beside harmless tenants has the same load
        as the run beside hostile ones, so it is the control of that run; its own allowance is a share of all requests.
        """
        if name == _CONTROL:
            return max(self.noise, _TIMING * self.compared)
        return max(self.noise, len(self.differing.get(_CONTROL, ())))

    def broken(self) -> list[str]:
        """Return each promise that does not hold, as a sentence."""
        found = [line for one in self.accounts.values() for line in one.broken()]
        for name, numbers in self.differing.items():
            expected = self.expected(name)
            spread = 3 * math.sqrt(expected)
            if len(numbers) > expected + spread:
                found.append(
                    f"{len(numbers)} of {self.compared} requests of good tenants have other breakpoints {name}"
                    f" tenants; timing explains {expected:.0f}, give or take {spread:.0f}"
                )
        found += [
            f"{calls} calls of good tenants are not in the report under their label {name} tenants"
            for name, calls in self.unreported.items()
            if calls
        ]
        return found


def run(folder: Path, requests: int, rate: float, deadline: float) -> Crossing:
    """Make the runs of so many requests of good tenants, two of them with as many requests of other tenants."""
    found, seen = Crossing(), {}
    for name, neighbours in RUNS.items():
        at = folder / name.replace(" ", "-")
        at.mkdir()
        samples, rows, found.unreported[name] = _run(at, requests, rate, neighbours, deadline)
        found.accounts[name] = account(samples, rows, (), MODEL)
        seen[name] = plans(row for row in rows if row.number <= requests)
    alone, again, *beside_others = RUNS
    found.compared = len(seen[alone])
    for name in beside_others:
        found.differing[name], found.noise = crossings(seen[alone], seen[again], seen[name])
        first = found.differing[name][:3]
        found.examples += [f"{n}: {seen[alone][n]} alone, {seen[name][n]} {name}" for n in first]
    return found


def _run(
    folder: Path, requests: int, rate: float, neighbours: str, deadline: float
) -> tuple[list[Sample], list[Received], int]:
    with standalone() as server, provider(folder) as upstream:
        with (
            proxy(folder, upstream.url, server.url, 1) as first,
            proxy(folder, upstream.url, server.url, 1) as second,
        ):
            ports = (first.port, second.port)
            samples = uvloop.run(_traffic(ports, requests, rate, neighbours, deadline))
            first.stop()
            second.stop()
        reader = cachemw.Middleware(provider="databricks", store=server.url, secret=SECRET)
        calls: Counter[str] = Counter()
        for row in reader.report().rows:
            calls.update({f"{name}={value}": row.calls for name, value in row.labels.items()})
        reader.close()
        good = [sample for sample in samples if sample.number <= requests]
        return samples, received(upstream), unreported(good, calls)


async def _traffic(
    ports: tuple[int, int], requests: int, rate: float, neighbours: str, deadline: float
) -> list[Sample]:
    tenants = Tenants(_SEED, _TENANTS, _CONVERSATIONS, _LIFETIME, _PAUSE)
    clients, stop = [Client(port, deadline) for port in (ports[0], *ports)], asyncio.Event()
    evil = Hostile(_SEED, tenants.heads)
    harmless = Tenants("harmless", _TENANTS, _CONVERSATIONS, _LIFETIME, first=FIRST)

    async def other(client: Client) -> Sample:
        return await (evil.ask(client) if neighbours == "hostile" else harmless.ask(client, {}))

    crowd = [
        asyncio.ensure_future(beside(lambda client=client: other(client), rate / 2, stop))  # type: ignore[misc]
        for client in clients[1:]
        if neighbours != "none"
    ]
    samples = await paced(lambda: tenants.ask(clients[0], {}), requests, rate)
    stop.set()
    for more in await asyncio.gather(*crowd):
        samples += more
    for client in clients:
        client.close()
    return samples
