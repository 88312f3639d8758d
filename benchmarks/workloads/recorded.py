"""Texts of the workloads: recorded conversations if they are present, else generated ones.

Contains: the place of the recordings, and the choice among them by seed. Must not depend on: arrival times.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, Literal

import orjson

from benchmarks.workloads.generated import Talk

Source = Literal["recorded", "generated"]
DATA = Path(__file__).parents[3] / "shared" / "data"


def present() -> bool:
    """Return True if the recorded texts are present."""
    return DATA.is_dir()


def source() -> Source:
    """Return the source of the texts of this run."""
    return "recorded" if present() else "generated"


def talks(
    name: str, rng: random.Random, otherwise: Callable[[random.Random], Iterator[Talk]]
) -> Iterator[Talk]:
    """Yield endless conversations, in a drawn order, from the recorded file whose name begins with `name`."""
    if not present():
        yield from otherwise(rng)
    chosen = list(_recorded(name))
    rng.shuffle(chosen)
    yield from cycle(chosen)


@cache
def recorded_gaps() -> list[float]:
    """Return the seconds between a recorded coding agent's calls, empty without recordings."""
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
