"""Texts of the workloads: recorded conversations where they are at hand, generated ones otherwise.

Lives here: where recordings lie and which of them a seed takes. Must not know: when requests arrive.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import orjson

from benchmarks.workloads.generated import Talk

DATA = Path(__file__).parents[3] / "shared" / "data"


def present() -> bool:
    """Say whether the recorded texts are at hand."""
    return DATA.is_dir()


def talks(
    name: str, rng: random.Random, otherwise: Callable[[random.Random], Iterator[Talk]]
) -> Iterator[Talk]:
    """Yield conversations without end, in a drawn order, of the recorded file whose name begins like this."""
    if not present():
        yield from otherwise(rng)
    chosen = list(_recorded(name))
    rng.shuffle(chosen)
    yield from cycle(chosen)


@cache
def recorded_gaps() -> list[float]:
    """Return the seconds between a recorded coding agent's calls; none where they are absent."""
    gaps: list[float] = []
    for row in _rows("A3") if present() else ():
        gaps += [after["t"] - before["t"] for before, after in pairwise(row["usage"])]
    return gaps


@lru_cache(maxsize=3)
def _recorded(name: str) -> list[Talk]:
    return [Talk(row.get("tools") or [], row["messages"], row.get("group") or "") for row in _rows(name)]


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(next(DATA.glob(f"{name}_*.jsonl.gz"))) as lines:
        return [orjson.loads(line) for line in lines]
