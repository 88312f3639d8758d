"""Streams of requests with different shared prefixes and times of reuse, by name and seed.

Contains: the registry. Must not depend on: policies. Texts are recorded ones if they are present, else
generated; times are drawn. Another seed takes other texts at other times.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from benchmarks.workloads import agents, single, together
from benchmarks.workloads.generated import MODEL
from cachemw.simulation.replay import Sent, Stream

KEEPING = "databricks-claude-sonnet-4-6"  # keeps earlier thinking in the prompt; sonnet-4-5 strips it

_MAKERS: dict[str, Callable[[random.Random], list[Sent]]] = {
    "agent with tools": agents.human,
    "busy agent": agents.busy,
    "coding agent": agents.coding,
    "few-shot long": single.few_shot_long,
    "few-shot short": single.few_shot_short,
    "document blocks": single.documents,
    "document and question": single.one_text,
    "RAG": single.rag,
    "under the minimum": single.short,
    "slow chat": agents.slow,
    "dated with tools": agents.dated_tools,
    "dated without tools": single.dated_alone,
    "shuffled tools": agents.shuffled_tools,
    "fan-out": agents.fan_out,
    "four levels": single.levels,
    "truncated history": agents.truncated,
    "reuse that stops": single.stops,
    "reuse that starts": single.starts,
    "five tenants": together.tenants,
    "bursts": together.bursts,
    "thinking stripped": partial(agents.thinking, model=MODEL),
    "thinking kept": partial(agents.thinking, model=KEEPING),
    "images": agents.images,
}


def _stream(name: str, seed: int) -> Stream:
    model = KEEPING if name == "thinking kept" else MODEL
    return Stream(model, _MAKERS[name](random.Random(f"{name}/{seed}")))


WORKLOADS: dict[str, Callable[[int], Stream]] = {name: partial(_stream, name) for name in _MAKERS}
