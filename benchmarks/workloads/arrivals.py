"""Draw the arrival times of requests, by seed: gaps inside a conversation, and between conversations.

Contains: distributions, from recorded traces if they are present. Must not depend on: texts. Times are seconds.
"""

from __future__ import annotations

import csv
import gzip
import random
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise

from benchmarks.workloads.recorded import DATA, present, recorded_gaps
from cachemw.simulation.replay import Sent
from cachemw.simulation.traffic import START, Body

Gap = Callable[[random.Random, Body], float]


def begins(rng: random.Random, spacing: float) -> Iterator[float]:
    """Yield times at which conversations begin, `spacing` seconds apart on average.

    The shape is that of a recorded trace of an LLM service, read from a random place in it. Without the recording,
    the times between conversations are exponential.
    """
    gaps = _trace()
    at, index = START, rng.randrange(len(gaps)) if gaps else 0
    while True:
        at += spacing * (gaps[index % len(gaps)] if gaps else rng.expovariate(1.0))
        index += 1
        yield at


@cache
def _trace() -> list[float]:
    """Return the recorded times between requests in units of their mean."""
    if not present():
        return []
    with gzip.open(DATA / "B2_azure_llm_2023_conv.csv.gz", "rt") as lines:
        times = [_seconds(row["TIMESTAMP"]) for row in csv.DictReader(lines)]
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    return [gap / mean for gap in gaps]


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp[:26]).replace(tzinfo=UTC).timestamp()


def latency(rng: random.Random) -> float:
    """Return the seconds until an answer begins."""
    return rng.uniform(1.0, 8.0)


def tool(rng: random.Random) -> float:
    """Return the seconds from an answer that calls a tool to the next request, as recorded from a coding agent."""
    gaps = recorded_gaps()
    return rng.choice(gaps) if gaps else 4.0 * rng.lognormvariate(0.0, 0.8)


def person(rng: random.Random, body: Body) -> float:
    """Return the seconds to the next request: of a tool, or of a person who reads and writes."""
    return tool(rng) if after_tool(body) else 35.0 * rng.lognormvariate(0.0, 1.1)


def unhurried(rng: random.Random, _: Body) -> float:
    """Return the seconds to the next request if both people and tools take minutes."""
    return 200.0 * rng.lognormvariate(0.0, 0.7)


def busy(rng: random.Random, body: Body) -> float:
    """Return the seconds to the next request if another program sends it."""
    return tool(rng) if after_tool(body) else 8.0 * rng.lognormvariate(0.0, 0.6)


def slow(rng: random.Random, body: Body) -> float:
    """Return the seconds to the next request if a person comes back after 3 to 40 minutes."""
    return tool(rng) if after_tool(body) else 60.0 * rng.uniform(3.0, 40.0)


def after_tool(body: Body) -> bool:
    """Return True if a request follows a tool result."""
    return bool(body["messages"][-1].get("role") == "tool")


def played(
    rng: random.Random,
    conversations: Iterable[tuple[Body, ...]],
    starts: Iterator[float],
    gap: Gap,
    count: int,
    namespace: str = "default",
) -> list[Sent]:
    """Return the first `count` requests of conversations that begin at these times, by time.

    A conversation's next request comes a gap after the one before, and not before its answer.
    """
    sent: list[Sent] = []
    for bodies, start in zip(conversations, starts, strict=False):
        if len(sent) >= count and start >= sorted(request.at for request in sent)[count - 1]:
            break
        at = start
        for index, body in enumerate(bodies):
            if index:
                at = max(at + gap(rng, body), sent[-1].at + sent[-1].latency + 0.2)
            sent.append(Sent(at, body, latency(rng), namespace))
    return in_order(sent)[:count]


def in_order(sent: Iterable[Sent]) -> list[Sent]:
    """Return requests by time."""
    return sorted(sent, key=lambda request: request.at)
