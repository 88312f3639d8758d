"""Measure the cost of a fleet whose workers each see a part of the requests.

    python -m benchmarks.workers
    python -m benchmarks.workers --workers 1,8 --seeds 1 --alone

Each workload is replayed over several workers on one store. Each request goes to a worker drawn at random, and the
simulated provider bills it. Every half minute of its traffic a worker publishes the counts of its cohorts; `--alone`
leaves that out. The figures are shares of the clairvoyant saving, and have no noise: the same seeds give the same
figures. The exit code is 1 if eight workers save more than half a point less than one.
"""

from __future__ import annotations

import argparse
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cachemw
from benchmarks.policies import OUTPUT
from benchmarks.workloads import WORKLOADS
from cachemw.core.rules.model_names import find_model
from cachemw.engine.sync import drive
from cachemw.simulation.oracle import bound
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.replay import Sent, no_caching, replay
from cachemw.simulation.usage_forms import databricks_usage
from cachemw.stores.memory import MemoryStore

EXCHANGE = 30.0
_WORTH = 0.9  # of the cost without caching: a bound above it leaves too little to win for a share
_LOST = 0.005


class Fleet:
    """A policy: workers with one store. Each request goes to a random one."""

    def __init__(self, count: int, seed: int, *, alone: bool) -> None:
        self.now = 0.0
        self._deal = random.Random(f"deal/{seed}")
        self._exchanged = [float("-inf")] * count
        self._alone = alone
        # The URL of a shared store turns the exchange of cohorts on. The store itself is in this process.
        store: Any = MemoryStore()
        self.workers = []
        for _ in range(count):
            worker = cachemw.Middleware(
                provider="databricks", store="redis://nowhere", secret=__name__, clock=lambda: self.now
            )
            worker._shell.store = store
            self.workers.append(worker)

    def __call__(self, request: Sent) -> tuple[Any, Any]:
        """Return the body to send, and the callback for its answer."""
        self.now = request.at
        index = self._deal.randrange(len(self.workers))
        worker = self.workers[index]
        call = worker.prepare(request.body, namespace=request.namespace)
        if not self._alone and request.at - self._exchanged[index] >= EXCHANGE:
            self._exchanged[index] = request.at
            drive(worker._flow.exchange_with_workers(), worker._shell)

        def answered(at: float, ticket: Ticket) -> None:
            self.now = at
            worker.begun(call)
            worker.settle(call, databricks_usage(ticket, OUTPUT))

        return call.body, answered


def share(task: tuple[str, int, int, bool]) -> float | None:
    """Return the share of the clairvoyant saving of a workload, or None if there is little to win."""
    name, seed, count, alone = task
    stream = WORKLOADS[name](seed)
    model = find_model(stream.model)
    assert model is not None
    uncached = replay(stream.requests, no_caching, ProviderCache(model)).total
    least = (
        bound(stream.requests, ProviderCache(model), hour=False, grain="block", sort_tools=False) / uncached
    )
    if least > _WORTH:
        return None
    fleet = Fleet(count, seed, alone=alone)
    cost = replay(stream.requests, fleet, ProviderCache(model)).cost / uncached
    for worker in fleet.workers:
        errors = {what: often for what, often in worker.counts.items() if what.startswith("error.")}
        assert not errors, errors
    return float((1 - cost) / (1 - least))


def main() -> None:
    """Print a line for each workload, and the means."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--workers", default="1,2,8", help="how many, each a column")
    options.add_argument("--seeds", default="1,2")
    options.add_argument("--alone", action="store_true", help="without the exchange between workers")
    given = options.parse_args()
    counts = [int(count) for count in given.workers.split(",")]
    seeds = [int(seed) for seed in given.seeds.split(",")]
    tasks = [(name, seed, count, given.alone) for name in WORKLOADS for count in counts for seed in seeds]
    with ProcessPoolExecutor(2) as pool:
        shares = dict(zip(tasks, pool.map(share, tasks), strict=True))
    print("share of the clairvoyant saving".ljust(34) + "".join(f"{count:>5} workers" for count in counts))
    columns: dict[int, list[float]] = {count: [] for count in counts}
    for name in WORKLOADS:
        row = {count: [shares[name, seed, count, given.alone] for seed in seeds] for count in counts}
        if any(each is None for each in row[counts[0]]):
            continue
        means = {count: mean(each or 0.0 for each in found) for count, found in row.items()}
        print(name.ljust(34) + "".join(f"{means[count]:>13.2%}" for count in counts))
        for count in counts:
            columns[count].append(means[count])
    print("mean".ljust(34) + "".join(f"{mean(columns[count]):>13.2%}" for count in counts))
    if not given.alone and {1, 8} <= set(counts) and mean(columns[1]) - mean(columns[8]) > _LOST:
        print(f"eight workers save more than {_LOST:.1%} less than one")
        sys.exit(1)


if __name__ == "__main__":
    main()
