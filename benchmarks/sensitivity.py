"""Print how far savings move when each tuning constant is halved and doubled.

    python -m benchmarks.sensitivity
    python -m benchmarks.sensitivity --only forecast --seeds 1,2 --workloads "fan-out,four levels"

Each line shows the change of the mean share of the clairvoyant saving, in percentage points, and behind a semicolon
the worst change of one stream. A constant near 1 (a decay, a highest probability) is varied by its distance from 1;
other probabilities stay below 1. Constants of an opt-in are measured with that opt-in. Constants of the exchange
between workers and of OpenAI's keys move no stream of one worker and are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import lru_cache
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks.checks import WORTH
from benchmarks.measure import CACHEMW_POLICIES, Row, measure
from benchmarks.policies import CachemwPolicy
from benchmarks.tuned import tuned
from benchmarks.workloads import WORKLOADS
from cachemw.core.rules.model_names import find_model
from cachemw.core.tuning import GROUPS
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.replay import Stream, replay

FEW = ("agent with tools", "document blocks", "dated with tools", "fan-out", "four levels", "five tenants")
"""Streams of the default run: agents, shared documents, changing prompts, wide and deep sharing, a mixture."""
_NEAR_ONE = {"forecast.max_certainty", "record.decay"}
_LEFT_OUT = {"sharing", "cache_keys"}
_OPT_IN = {"split_text"}

StreamName = tuple[str, int, str]  # workload, seed, policy


@dataclass(frozen=True, slots=True)
class Variation:
    """A constant, named by group and field, and its value in one run."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Movement:
    """The change of the share of the clairvoyant saving in one run: on average, and on the worst stream."""

    mean: float
    worst: float
    stream: str

    def __str__(self) -> str:
        return f"{100 * self.mean:+.2f}; {100 * self.worst:+.2f} {self.stream}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each constant and print the table."""
    chosen = _arguments(arguments)
    console, started = Console(width=max(140, Console().width)), time.perf_counter()
    table = Table("constant", "value", "halved", "doubled", box=None, header_style="bold", padding=(0, 2))
    with ProcessPoolExecutor(chosen.jobs) as pool:
        names = [name for name in constants() if name.startswith(chosen.only)]
        streams = [
            (workload, seed, policy)
            for workload in chosen.workloads
            for seed in chosen.seeds
            for policy in policies(names)
        ]
        base = dict(zip(streams, pool.map(baseline, streams), strict=True))
        base = {stream: found for stream, found in base.items() if found[0].bound <= WORTH}
        for name in names:
            cells = [
                str(_movement(base, Variation(name, value), pool))
                if value != current(name)
                else "no other value"
                for value in (halved(name), doubled(name))
            ]
            table.add_row(name, f"{current(name):g}", *cells)
            if console.is_terminal:
                console.print(f"{name}: {' | '.join(cells)}")
    console.print(table)
    count = len(base)
    console.print(f"{count} streams with at least 10 % to win, in {time.perf_counter() - started:.0f} s")
    return 0


def _movement(
    base: dict[StreamName, tuple[Row, float]], variation: Variation, pool: ProcessPoolExecutor
) -> Movement:
    """Return the change that one variation makes to the streams on which its constant has an effect."""
    policies_of = policies([variation.name])
    streams = [stream for stream in base if stream[2] in policies_of]
    totals = pool.map(varied_total, streams, [variation] * len(streams))
    changes = []
    for stream, total in zip(streams, totals, strict=True):
        row, before = base[stream]
        changes.append((row.cost * (1.0 - total / before) / (1.0 - row.bound), f"{stream[0]} ({stream[2]})"))
    worst, where = min(changes)
    return Movement(mean(change for change, _ in changes), worst, where if worst < 0 else "")


# -- constants --------------------------------------------------------------------------------


def constants() -> Iterator[str]:
    """Yield the constants that can move a stream of one worker, named by group and field."""
    for group, values in GROUPS.items():
        if group not in _LEFT_OUT:
            yield from (f"{group}.{field.name}" for field in fields(values))


def policies(names: Sequence[str]) -> list[str]:
    """Return the settings under which constants are measured."""
    opted = any(name.partition(".")[0] in _OPT_IN for name in names)
    plain = any(name.partition(".")[0] not in _OPT_IN for name in names)
    return (["cachemw", "cachemw 1h"] if plain else []) + (["cachemw opt-ins"] if opted else [])


def current(name: str) -> float:
    """Return the value of a constant."""
    group, _, field = name.partition(".")
    return float(getattr(GROUPS[group], field))


def halved(name: str) -> float:
    """Return half the value, at least 1 for a count."""
    value = current(name)
    if name in _NEAR_ONE:
        return 1.0 - 2.0 * (1.0 - value)
    return max(1, int(value) // 2) if _is_count(name) else value / 2.0


def doubled(name: str) -> float:
    """Return twice the value, below 1 for a probability."""
    value = current(name)
    if name in _NEAR_ONE:
        return 1.0 - (1.0 - value) / 2.0
    if _is_count(name):
        return int(value) * 2
    return min(2.0 * value, 0.99) if value < 1.0 else 2.0 * value


def _is_count(name: str) -> bool:
    group, _, field = name.partition(".")
    return isinstance(getattr(GROUPS[group], field), int)


# -- runs in a worker process -----------------------------------------------------------------


@lru_cache(64)
def _stream(workload: str, seed: int) -> Stream:
    return WORKLOADS[workload](seed)


def baseline(stream: StreamName) -> tuple[Row, float]:
    """Return the row of a stream, and its total cost with all constants as they are."""
    workload, seed, policy = stream
    (row,) = measure(workload, seed, [policy])
    return row, _total(stream)


def varied_total(stream: StreamName, variation: Variation) -> float:
    """Return the total cost of a stream with one constant changed."""
    with tuned(variation.name, variation.value):
        return _total(stream)


def _total(stream: StreamName) -> float:
    workload, seed, name = stream
    made, settings = _stream(workload, seed), CACHEMW_POLICIES[name]
    model = find_model(made.model)
    assert model is not None, made.model
    policy, opted = CachemwPolicy(**settings), bool(settings.get("split_text"))
    outcome = replay(made.requests, policy, ProviderCache(model), split_text=opted, sort_tools=opted)
    policy.check()
    return float(outcome.cost)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="a group or a constant, such as forecast.prior_running")
    parser.add_argument(
        "--seeds", default=[1], type=lambda text: [int(seed) for seed in text.split(",")], help="default 1"
    )
    parser.add_argument(
        "--workloads", default=FEW, type=lambda text: text.split(","), help=f"default {', '.join(FEW)}"
    )
    parser.add_argument("--jobs", default=2, type=int, help="processes; default 2")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
