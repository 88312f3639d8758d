"""What each policy pays for each workload, against no caching and against the clairvoyant bound.

    python benchmarks/savings.py --seeds 1,2,3
    python benchmarks/savings.py --only ours --seeds 1

Prints a table, workload by policy, and exits 1 naming each promise that does not hold. See README.md
here for what each number means.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure
from benchmarks.measure import OURS, Row
from benchmarks.workloads import WORKLOADS


def main() -> int:
    """Measure, print, write, check."""
    chosen = _arguments()
    console = Console(width=200)
    started = time.perf_counter()
    tasks = [(workload, seed, chosen.policies) for workload in chosen.workloads for seed in chosen.seeds]
    rows: list[Row] = []
    with ProcessPoolExecutor(chosen.jobs) as pool:
        for found in pool.map(_measure, tasks):
            rows += found
            console.print(f"[dim]{found[0].workload}, seed {found[0].seed}[/]", end="\r")
    console.print(_table(rows))
    console.print(f"{len(tasks)} streams, {time.perf_counter() - started:.0f} s")
    return 0


def _measure(task: tuple[str, int, list[str]]) -> list[Row]:
    return measure.measure(*task)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = measure.names()
    parser.add_argument(
        "--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1, 2, 3]
    )
    parser.add_argument("--workloads", default="", help="parts of names, comma-separated; all without it")
    parser.add_argument("--policies", default="", help=f"of: {', '.join(every)}")
    parser.add_argument("--only", choices=["ours"], help="leave out the peers")
    parser.add_argument("--ttl", choices=["5m", "1h", "both"], default="both")
    parser.add_argument("--jobs", type=int, default=2)
    chosen = parser.parse_args()
    parts = [part.strip() for part in chosen.workloads.split(",")]
    chosen.workloads = [name for name in WORKLOADS if any(part in name for part in parts)]
    wanted = [name.strip() for name in chosen.policies.split(",") if name.strip()] or every
    if chosen.only:
        wanted = [name for name in wanted if name in OURS]
    if chosen.ttl != "both":
        wanted = [
            name for name in wanted if (OURS.get(name, {}).get("ttl") == "auto") == (chosen.ttl == "1h")
        ]
    chosen.policies = wanted
    return chosen


def _table(rows: list[Row]) -> Table:
    """Return means over the seeds: cost, and the share of the clairvoyant saving."""
    policies = list(dict.fromkeys(row.policy for row in rows))
    table = Table("workload", "requests", "bound", box=None, header_style="bold")
    for policy in policies:
        table.add_column(policy, justify="right")
    for workload in dict.fromkeys(row.workload for row in rows):
        cells = []
        for policy in policies:
            of = [row for row in rows if row.workload == workload and row.policy == policy]
            cost, share = _mean([row.cost for row in of]), _mean([row.share for row in of])
            wrong = sum(row.refused + row.changed for row in of)
            worst = f" ({min(row.share for row in of):.1%})" if len(of) > 1 and of[0].bound < 0.99 else ""
            mark = f" [red]!{wrong}[/]" if wrong else ""
            cells.append(
                f"{cost:.3f} {share:7.2%}{worst}{mark}" if of[0].bound < 0.99 else f"{cost:.4f}{mark}"
            )
        here = [row for row in rows if row.workload == workload]
        bounds = {row.policy: row.bound for row in here}
        shown = "/".join(dict.fromkeys(f"{bound:.3f}" for bound in bounds.values()))
        table.add_row(workload, str(here[0].requests), shown, *cells)
    return table


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    sys.exit(main())
