"""Traffic: conversations as request bodies, and the arrival time of each.

Contains: the requests of a conversation, and the gaps between them, by seed. Must not depend on: texts
(`conversation_families`), files, providers, planners. Times are seconds since 1970 on a virtual clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias

Body: TypeAlias = Mapping[str, Any]

START = datetime(2026, 11, 2, 9, tzinfo=UTC).timestamp()
SPACING = 20.0  # seconds between two conversations, on average
NOW = "{{now}}"  # in a dated conversation: stands for the minute in which the request arrives

# Seconds, log-normal (median, spread): people answer within half a minute to a minute, one in forty after
# more than five minutes; tools answer within seconds.
_PERSON, _TOOL = (35.0, 1.1), (4.0, 0.8)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Requests in their order. `family` names the kind of traffic; `dated` conversations contain `NOW`."""

    family: str
    requests: tuple[Body, ...]
    dated: bool = False


class TimedRequest(NamedTuple):
    """One request and its arrival time."""

    at: float
    family: str
    body: Body


def turns(model: str, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] = ()) -> tuple[Body, ...]:
    """Return the requests of a conversation: each holds the messages before an assistant message."""
    fixed: dict[str, Any] = {"model": model, **({"tools": list(tools)} if tools else {})}
    ends = [index for index, message in enumerate(messages) if message.get("role") == "assistant" and index]
    return tuple([{**fixed, "messages": list(messages[:end])} for end in ends])


def schedule(
    conversations: Sequence[Conversation], seed: int, spacing: float = SPACING, start: float = START
) -> list[TimedRequest]:
    """Return all requests by arrival time; different conversations interleave.

    Conversations begin `spacing` seconds apart on average, in their order. Further conversations do not
    change the times of earlier ones.
    """
    arrivals: list[TimedRequest] = []
    begins = start
    for index, conversation in enumerate(conversations):
        rng = random.Random(f"{seed}/gaps/{index}")  # noqa: S311 - traffic, not a secret
        begins += rng.expovariate(1 / spacing)
        for at, body in _timed(rng, begins, conversation.requests):
            arrivals.append(
                TimedRequest(at, conversation.family, _at(body, at) if conversation.dated else body)
            )
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _timed(rng: random.Random, at: float, bodies: Sequence[Body]) -> Iterator[tuple[float, Body]]:
    for index, body in enumerate(bodies):
        if index:
            median, spread = _TOOL if body["messages"][-1].get("role") == "tool" else _PERSON
            at += median * rng.lognormvariate(0.0, spread)
        yield at, body


def _at(body: Body, at: float) -> Body:
    """Return a dated body with the time at which it is sent."""
    minute = f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
    messages = [
        {**message, "content": message["content"].replace(NOW, minute)}
        if message["role"] == "system"
        else message
        for message in body["messages"]
    ]
    return {**body, "messages": messages}
