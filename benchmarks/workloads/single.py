"""Single turns: few-shot prompts, retrieval, documents, prefixes shared at several levels.

Contains: the texts and times of each. Must not depend on: policies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

from benchmarks.workloads import arrivals, generated
from benchmarks.workloads.agents import dated
from benchmarks.workloads.generated import MODEL, Talk
from benchmarks.workloads.recorded import talks
from cachemw.simulation import text_generator
from cachemw.simulation.replay import Sent
from cachemw.simulation.traffic import Body

_SMALL = 2_400  # characters, some 600 tokens


def _alone(rng: random.Random, bodies: Iterator[Body], spacing: float, count: int) -> list[Sent]:
    """Return requests with independent arrival times."""
    starts = arrivals.begins(rng, spacing)
    return [
        Sent(at, body, arrivals.latency(rng)) for at, body in islice(zip(starts, bodies, strict=False), count)
    ]


def _bodies(
    rng: random.Random, name: str, otherwise: Callable[[random.Random], Iterator[Talk]]
) -> Iterator[Body]:
    for talk in talks(name, rng, otherwise):
        yield talk.requests()[0]


def _retried(rng: random.Random, sent: list[Sent], share: float) -> list[Sent]:
    """Return requests, a share of them sent again unchanged within a minute or two."""
    again = [
        request._replace(at=request.at + request.latency + rng.uniform(5.0, 100.0))
        for request in sent
        if rng.random() < share
    ]
    return arrivals.in_order([*sent, *again])


def few_shot_long(rng: random.Random) -> list[Sent]:
    """Return a classifier with a system prompt of some 7,000 tokens."""
    return _alone(rng, _bodies(rng, "A6", generated.shots), 15.0, 600)


def few_shot_short(rng: random.Random) -> list[Sent]:
    """Return some thirty tasks' prompts, most under the minimum, each back after some minutes."""
    return _alone(rng, _bodies(rng, "A5", generated.tasks), 16.0, 800)


def dated_alone(rng: random.Random) -> list[Sent]:
    """Return a classifier without tools whose system prompt ends with the second of the request."""
    sent = dated(_alone(rng, _bodies(rng, "A6", generated.shots), 30.0, 500), "%Y-%m-%d %H:%M:%S")
    return _retried(rng, sent, 0.02)


def rag(rng: random.Random) -> list[Sent]:
    """Return retrieval prompts with next to nothing shared, a few of them sent twice."""
    return _retried(rng, _alone(rng, _bodies(rng, "A7c", generated.retrieval), 20.0, 299), 0.04)


def short(rng: random.Random) -> list[Sent]:
    """Return retrieval prompts under every minimum."""
    return _alone(rng, _small(rng), 5.0, 400)


def _small(rng: random.Random) -> Iterator[Body]:
    for body in _bodies(rng, "A7d", generated.retrieval):
        messages = [{**message, "content": message["content"][-_SMALL:]} for message in body["messages"]]
        yield {**body, "messages": messages}


def documents(rng: random.Random) -> list[Sent]:
    """Return a document's block and a chunk's block, document after document, some at once."""
    return arrivals.in_order(_of_documents(rng))


def one_text(rng: random.Random) -> list[Sent]:
    """Return requests with document and question in one text, some sent twice."""
    joined = [request._replace(body=_joined(request.body)) for request in _of_documents(rng)]
    return _retried(rng, arrivals.in_order(joined), 0.12)


def _of_documents(rng: random.Random) -> Iterator[Sent]:
    """Yield requests about documents: those about one document follow within seconds or a minute."""
    grouped: dict[str, list[Body]] = {}
    for talk in islice(talks("A7b", rng, generated.documents), 737):
        grouped.setdefault(talk.group, []).append(talk.requests()[0])
    for bodies, start in zip(grouped.values(), arrivals.begins(rng, 45.0), strict=False):
        at = start
        for body in bodies:
            yield Sent(at, body, arrivals.latency(rng))
            at += rng.choice((0.5, 12.0, 60.0)) * rng.lognormvariate(0.0, 0.5)


def _joined(body: Body) -> Body:
    message = body["messages"][-1]
    text = "\n\n".join(part["text"] for part in message["content"])
    return {**body, "messages": [*body["messages"][:-1], {**message, "content": text}]}


def levels(rng: random.Random) -> list[Sent]:
    """Return four levels of sharing: a policy, a department's rules, a customer's file, a question."""
    policy = text_generator.sections(rng, text_generator.POLICY, 9_000)
    departments = [text_generator.sections(rng, text_generator.POLICY, 7_000) for _ in range(6)]
    files = {
        (number, customer): text_generator.sections(rng, text_generator.CLAUSE, rng.randint(3_000, 8_000))
        for number in range(6)
        for customer in range(60)
    }

    def bodies() -> Iterator[tuple[Body, ...]]:
        while True:
            number, customer = rng.randrange(6), rng.randrange(60)
            yield tuple(
                [
                    _parts(
                        policy,
                        departments[number],
                        files[number, customer],
                        text_generator.sentence(rng, text_generator.QUESTION),
                    )
                    for _ in range(rng.randint(1, 6))
                ]
            )

    return arrivals.played(rng, bodies(), arrivals.begins(rng, 40.0), arrivals.person, 700)


def _parts(system: str, *texts: str) -> Body:
    content = [{"type": "text", "text": text} for text in texts]
    return {
        "model": MODEL,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
    }


def stops(rng: random.Random) -> list[Sent]:
    """Return a shared prompt that is in use for a while, and then one of its own for each request."""
    return _changing(rng, shared_first=True)


def starts(rng: random.Random) -> list[Sent]:
    """Return a prompt of its own for each request, and then a shared one."""
    return _changing(rng, shared_first=False)


def _changing(rng: random.Random, *, shared_first: bool) -> list[Sent]:
    """Return 456 requests with a shared prompt and 144 with one of their own, in this order or the other."""
    shared = text_generator.sections(rng, text_generator.POLICY, 12_000)
    systems = [
        [shared] * 456,
        [text_generator.sections(rng, text_generator.POLICY, 12_000) for _ in range(144)],
    ]
    ordered = systems if shared_first else systems[::-1]
    bodies = (
        _parts(system, text_generator.paragraph(rng, text_generator.TICKET, 2))
        for run in ordered
        for system in run
    )
    return _alone(rng, bodies, 20.0, 600)
