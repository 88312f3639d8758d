"""Generate conversations that stand in for absent recordings.

Contains: each sort of text. Must not depend on: arrival times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from cachemw.simulation import conversation_families, text_generator
from cachemw.simulation.traffic import Body, turns

MODEL = "databricks-claude-sonnet-4-5"


class Talk(NamedTuple):
    """One conversation: its tools, its messages with the answers, the group it belongs to."""

    tools: Sequence[Mapping[str, Any]]
    messages: Sequence[Mapping[str, Any]]
    group: str = ""

    def requests(self, model: str = MODEL) -> tuple[Body, ...]:
        """Return the requests of the conversation: for each answer, all messages before it."""
        return turns(model, self.messages, self.tools)


def agent(rng: random.Random) -> Iterator[Talk]:
    """Yield conversations of a shop's support agent with tools."""
    for conversation in conversation_families.support(rng.getrandbits(32), MODEL):
        last = conversation.requests[-1]
        yield Talk(last["tools"], [*last["messages"], _said("assistant", "")])


def coder(rng: random.Random) -> Iterator[Talk]:
    """Yield long conversations without tools: a task, then the output of each command."""
    system = text_generator.sections(rng, text_generator.POLICY, 1_000)
    while True:
        messages = [
            _said("system", system),
            _said("user", text_generator.sections(rng, text_generator.CLAUSE, 8_000)),
        ]
        for _ in range(rng.randint(20, 60)):
            messages.append(_said("assistant", text_generator.paragraph(rng, text_generator.REPLY, 3)))
            messages.append(
                _said("user", text_generator.paragraph(rng, text_generator.CLAUSE, rng.randint(1, 20)))
            )
        yield Talk([], [*messages, _said("assistant", "")])


def shots(rng: random.Random) -> Iterator[Talk]:
    """Yield single turns after one long few-shot prompt."""
    for conversation in conversation_families.classifier(rng.getrandbits(32), MODEL):
        yield Talk([], [*conversation.requests[0]["messages"], _said("assistant", "")])


def tasks(rng: random.Random) -> Iterator[Talk]:
    """Yield single turns of thirty tasks, whose prompts are around the minimum."""
    heads = [text_generator.sections(rng, text_generator.POLICY, rng.randint(800, 5_500)) for _ in range(30)]
    while True:
        head = rng.choice(heads)
        yield Talk([], _single(head, text_generator.paragraph(rng, text_generator.TICKET, 3)))


def documents(rng: random.Random) -> Iterator[Talk]:
    """Yield a document's block and a question's block, a few questions for each document."""
    for number in count():
        document = text_generator.sections(
            rng, text_generator.CLAUSE, rng.choice((3_000, 8_000, 16_000, 30_000))
        )
        for _ in range(rng.choice((1, 2, 4, 8, 16))):
            question = text_generator.paragraph(rng, text_generator.QUESTION, 4)
            parts = [{"type": "text", "text": text} for text in (document, question)]
            yield Talk([], [{"role": "user", "content": parts}, _said("assistant", "")], str(number))


def retrieval(rng: random.Random) -> Iterator[Talk]:
    """Yield single turns that share nothing."""
    while True:
        found = text_generator.sections(rng, text_generator.CLAUSE, rng.choice((1_500, 5_000, 12_000)))
        yield Talk(
            [],
            [
                _said("user", f"{text_generator.sentence(rng, text_generator.QUESTION)}\n\n{found}"),
                _said("assistant", ""),
            ],
        )


def _single(system: str, text: str) -> list[dict[str, Any]]:
    return [_said("system", system), _said("user", text), _said("assistant", "")]


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}
