"""Overlay streams: tenants with different traffic, and bursts within a second.

Contains: the choice of the streams. Must not depend on: policies.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.workloads import agents, arrivals, single
from benchmarks.workloads.generated import MODEL
from cachemw.simulation import text_generator
from cachemw.simulation.replay import Sent
from cachemw.simulation.traffic import START

_BURST = 20


def tenants(rng: random.Random) -> list[Sent]:
    """Return five tenants with an agent, a classifier, documents, slow chats and a dated agent."""
    kinds = (agents.human, single.few_shot_long, single.documents, agents.slow, agents.dated_tools)
    streams = [kind(random.Random(rng.random())) for kind in kinds]
    sent: list[Sent] = []
    for number, stream in enumerate(streams):
        kept = stream[:280]
        sent += [request._replace(namespace=f"tenant-{number}") for request in kept]
    return arrivals.in_order(sent)


def bursts(rng: random.Random) -> list[Sent]:
    """Return bursts of twenty requests within a second, each burst about one document; most documents return soon."""
    return arrivals.in_order(_bursts(rng))[:800]


def _bursts(rng: random.Random) -> Iterator[Sent]:
    policy = text_generator.sections(rng, text_generator.POLICY, 6_000)
    start = START
    for _ in range(20):
        document = text_generator.sections(rng, text_generator.CLAUSE, rng.choice((8_000, 16_000, 30_000)))
        start += 120.0 * rng.lognormvariate(0.0, 0.5)
        at = start
        for _ in range(rng.choice((1, 2, 3, 3))):
            for _ in range(_BURST):
                question = text_generator.sentence(rng, text_generator.QUESTION)
                content = [{"type": "text", "text": text} for text in (document, question)]
                messages = [{"role": "system", "content": policy}, {"role": "user", "content": content}]
                body = {"model": MODEL, "messages": messages}
                yield Sent(at + rng.random(), body, arrivals.latency(rng))
            at += 60.0 * rng.lognormvariate(0.0, 0.8) + 10.0
