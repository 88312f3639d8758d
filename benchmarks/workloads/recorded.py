"""Texts of the workloads: recorded conversations where they are at hand, generated ones otherwise.

Lives here: how conversations are found and which ones a seed takes. Must not know: when requests arrive.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from cachemw.simulation import families
from cachemw.simulation.traffic import Body, turns

DATA = Path(__file__).parents[3] / "shared" / "data"
MODEL = "databricks-claude-sonnet-4-5"

Message = Mapping[str, Any]


class Talk(NamedTuple):
    """One conversation: its tools, its messages with the answers, the group it belongs to."""

    tools: list[dict[str, Any]]
    messages: list[Message]
    group: str = ""

    def requests(self, model: str = MODEL) -> tuple[Body, ...]:
        """Return its requests, each what came before an answer."""
        return turns(model, self.messages, self.tools)


def present() -> bool:
    """Say whether the recorded texts are at hand."""
    return DATA.is_dir()


@cache
def recorded_gaps() -> list[float]:
    """Return the seconds between a recorded coding agent's calls."""
    gaps: list[float] = []
    for row in _rows("A3") if present() else ():
        gaps += [after["t"] - before["t"] for before, after in pairwise(row["usage"])]
    return gaps


def _rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(next(DATA.glob(f"{name}_*.jsonl.gz"))) as lines:
        return [orjson.loads(line) for line in lines]


@lru_cache(maxsize=3)
def recorded(name: str) -> list[Talk]:
    """Return the conversations of a recorded file by the start of its name."""
    return [Talk(row.get("tools") or [], row["messages"], row.get("group") or "") for row in _rows(name)]


def talks(name: str, rng: random.Random, otherwise: str) -> Iterator[Talk]:
    """Yield conversations without end in a drawn order: of a recorded file, or of a generated family."""
    if not present():
        stream, _ = families.FAMILIES[otherwise]
        for conversation in stream(rng.randrange(2**32), MODEL):
            for body in conversation.requests[-1:] if otherwise == "support" else conversation.requests:
                answer = {"role": "assistant", "content": ""}
                group = body["messages"][0]["content"] if otherwise != "documents" else str(id(conversation))
                yield Talk(list(body.get("tools", [])), [*body["messages"], answer], group)
        return
    chosen = list(recorded(name))
    rng.shuffle(chosen)
    yield from cycle(chosen)
