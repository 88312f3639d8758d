"""Measure each policy's cost for each workload, against no caching and against the clairvoyant bound.

    python benchmarks/savings.py --seeds 1,2,3
    python benchmarks/savings.py --only cachemw --seeds 1

The command prints a table, workload by policy, and the promises. Its exit code is 1 if a promise breaks; then it
names each breach. README.md in this folder explains each number.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import measure, peers
from benchmarks.burst import bursts
from benchmarks.chart import chart
from benchmarks.checks import BURSTS, WORTH, promises
from benchmarks.measure import CACHEMW_POLICIES, NO_CACHING, Row
from benchmarks.workloads import WORKLOADS, recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, show, write, check."""
    chosen = _arguments(arguments)
    console = Console(width=max(200, Console().width))
    rows = run(chosen.workloads, chosen.seeds, chosen.policies, chosen.jobs, console)
    console.print(table(rows))
    if chosen.csv:
        write_csv(rows, chosen.csv)
    if chosen.svg:
        chosen.svg.write_text(chart(rows), "utf-8")
    return verdict(rows, console, full=chosen.full)


def run(
    workloads: Sequence[str], seeds: Sequence[int], policies: list[str], jobs: int, console: Console
) -> list[Row]:
    """Return the rows of all streams, in the order of the workloads."""
    tasks = [(workload, seed, policies) for workload in workloads for seed in seeds]
    console.print(f"{len(tasks)} streams under {len(policies)} policies, {recorded.source()} texts")
    started, rows = time.perf_counter(), []
    with ProcessPoolExecutor(jobs) as pool:
        for measured in pool.map(_measure, tasks):
            rows += measured
            if console.is_terminal:
                console.print(f"{measured[0].workload}, seed {measured[0].seed}".ljust(60), end="\r")
    console.print(f"measured in {time.perf_counter() - started:.0f} s".ljust(60))
    return rows


def _measure(task: tuple[str, int, list[str]]) -> list[Row]:
    return measure.measure(*task)


def table(rows: Sequence[Row]) -> Table:
    """Return means over the seeds: cost, share of the clairvoyant saving, refused and changed requests.

    If all policies are cachemw's, a cell also has the worst seed's share.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    detailed = all(policy in CACHEMW_POLICIES for policy in policies)
    shown = Table("workload", "requests", "bound", box=None, header_style="bold", padding=(0, 1))
    for policy in policies:
        shown.add_column(policy, justify="left" if detailed else "right")
    for workload in dict.fromkeys(row.workload for row in rows):
        here = [row for row in rows if row.workload == workload]
        grouped = [[row for row in here if row.policy == policy] for policy in policies]
        bounds = dict.fromkeys(f"{mean(row.bound for row in of):.3f}" for of in grouped)
        requests = mean(row.requests for row in here)
        shown.add_row(workload, f"{requests:.0f}", "/".join(bounds), *(_cell(of, detailed) for of in grouped))
    worth = [[row for row in rows if row.policy == policy and row.bound <= WORTH] for policy in policies]
    shown.add_section()
    shown.add_row(
        "mean share, 10 % to win",
        "",
        "",
        *(f"{mean(row.share for row in of):.2%}" if of else "" for of in worth),
    )
    for field in ("refused", "changed"):
        sums = [sum(getattr(row, field) for row in rows if row.policy == policy) for policy in policies]
        shown.add_row(field, "", "", *map(str, sums))
    return shown


def _cell(of: Sequence[Row], detailed: bool) -> str:
    cost, bound = mean(row.cost for row in of), mean(row.bound for row in of)
    if bound > WORTH or of[0].policy == NO_CACHING:
        return f"{cost:.4f}" if detailed else f"{cost:.3f}"
    share = mean(row.share for row in of)
    if not detailed:
        return f"{cost:.3f} {share:6.1%}"
    worst = f" (worst {min(row.share for row in of):.2%})" if len(of) > 1 else ""
    return f"{cost:.4f} {share:7.2%}{worst}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write one line a workload, seed and policy."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ("workload", "seed", "policy", "requests", "cost", "bound", "share", "refused", "changed")
        )
        for row in rows:
            numbers = (f"{row.cost:.6f}", f"{row.bound:.6f}", f"{row.share:.6f}")
            lines.writerow(
                (row.workload, row.seed, row.policy, row.requests, *numbers, row.refused, row.changed)
            )


def verdict(rows: Sequence[Row], console: Console, *, full: bool) -> int:
    """Print each promise with its breaches, and return the exit code.

    In a `full` run, a promise about a policy that was not measured counts as broken.
    """
    measured = {row.policy for row in rows}
    checks = [
        (promise.says(), list(promise.broken(rows)), sorted(promise.needs() - measured))
        for promise in promises(recorded.source())
    ]
    if full:
        checks.append((BURSTS, [line for burst in bursts() for line in burst.broken()], []))
    failed = False
    for says, broken, missing in checks:
        failed = failed or bool(broken) or (full and bool(missing))
        word = "BROKEN" if broken else "absent" if missing else "holds "
        console.print(f"{word} {says}", highlight=False)
        for line in [*broken, *(f"{policy} was not measured" for policy in missing)]:
            console.print(f"         {line}", highlight=False)
    return 1 if failed else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    every = measure.names()
    parser.add_argument("--seeds", type=_numbers, default=[1, 2, 3], help="comma-separated; default 1,2,3")
    parser.add_argument("--workloads", default="", help="parts of names, comma-separated; all without it")
    parser.add_argument("--policies", default="", help=f"comma-separated, of: {', '.join(every)}")
    parser.add_argument("--only", choices=["cachemw"], help="leave out the peers")
    parser.add_argument(
        "--ttl", choices=["5m", "1h", "both"], default="both", help="of cachemw's policies; default both"
    )
    parser.add_argument("--csv", type=Path, help="write all rows here")
    parser.add_argument("--svg", type=Path, help="draw them here")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    chosen = parser.parse_args(arguments)
    chosen.full = not (chosen.workloads or chosen.policies or chosen.only or chosen.ttl != "both")
    parts = [part.strip() for part in chosen.workloads.split(",")]
    chosen.workloads = [name for name in WORKLOADS if any(part in name for part in parts)]
    wanted = [name.strip() for name in chosen.policies.split(",") if name.strip()] or every
    if unknown := sorted(set(wanted) - set(every)):
        parser.error(f"--policies: {', '.join(unknown)} is not one of {', '.join(every)}")
    if not chosen.workloads:
        parser.error(f"--workloads: none of {', '.join(WORKLOADS)} holds one of {', '.join(parts)}")
    if chosen.only:
        wanted = [name for name in wanted if name in CACHEMW_POLICIES]
    elif not peers.PYTHON.exists() and (left := set(wanted) & set(peers.PACKAGES)):
        print(f"without {', '.join(sorted(left))}: .venv-peers is absent; run make bench-peers-setup")
        wanted = [name for name in wanted if name not in left]
    if chosen.ttl != "both":
        other = {
            name
            for name, fields in CACHEMW_POLICIES.items()
            if (fields.get("ttl") == "auto") != (chosen.ttl == "1h")
        }
        wanted = [name for name in wanted if name not in other]
    chosen.policies = wanted
    return chosen


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
