"""Send a stream of requests by a policy to a fresh provider cache, and return its cost.

Contains: the order of events. An answer begins some seconds after its request was sent. From then on the
entries of the request can be read, and the policy learns of the answer. Must not depend on: how a policy
places breakpoints. Costs are relative to an uncached input token; times are seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple, TypeAlias

from cachemw.core.rules.types import Model
from cachemw.simulation.equality import same_request
from cachemw.simulation.options import Refused
from cachemw.simulation.provider import ProviderCache, Ticket

Body: TypeAlias = Mapping[str, Any]


class Sent(NamedTuple):
    """One request: its time, the seconds until its answer begins, its namespace."""

    at: float
    body: Body
    latency: float
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests to one model in order of time; `source` names the origin of the texts."""

    model: str
    requests: Sequence[Sent]
    source: str = "generated"


# Called with the time at which an answer has begun, and with the bill of the request.
Answered: TypeAlias = Callable[[float, Ticket], None]
Policy: TypeAlias = Callable[[Sent], tuple[Body, Answered | None]]


class Weights(NamedTuple):
    """The prices of tokens, relative to an uncached token."""

    cache_read: float
    cache_write_5m: float
    cache_write_1h: float

    @classmethod
    def of(cls, model: Model) -> Weights:
        """Return a model's weights; the usual 0.1, 1.25 and 2 if it has no price."""
        prices = model.prices
        if prices is None:
            return cls(0.1, 1.25, 2.0)
        return cls(
            *(float(price / prices.input) for price in (prices.read, prices.write_5m, prices.write_1h))
        )

    def cost(self, ticket: Ticket) -> float:
        """Return the cost of a request."""
        written = self.cache_write_5m * ticket.cache_write_5m + self.cache_write_1h * ticket.cache_write_1h
        return self.cache_read * ticket.cache_read + written + ticket.uncached


@dataclass(slots=True)
class Outcome:
    """The result of a policy: tokens by kind, their cost, and the numbers of refused and changed requests.

    `cost` is in uncached tokens. `refused` requests were sent and counted again without markers. `changed`
    requests differed from the originals in more than markers.
    """

    requests: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    uncached: int = 0
    cost: float = 0.0
    refused: int = 0
    changed: int = 0

    @property
    def total(self) -> int:
        """Return all input tokens."""
        return self.cache_read + self.cache_write_5m + self.cache_write_1h + self.uncached


def no_caching(request: Sent) -> tuple[Body, Answered | None]:
    """Send a request as it is."""
    return request.body, None


def replay(
    stream: Sequence[Sent],
    policy: Policy,
    cache: ProviderCache,
    *,
    split_text: bool = False,
    sort_tools: bool = False,
) -> Outcome:
    """Send a stream in order of time, and return the outcome.

    `split_text` and `sort_tools` name the changes that the policy may make besides markers. Raises `Refused`
    if the provider refuses a request without markers.
    """
    weights = Weights.of(cache.model)
    outcome = Outcome()
    begins: list[tuple[float, int, Ticket, Answered | None]] = []

    def until(now: float) -> None:
        while begins and begins[0][0] <= now:
            at, _, ticket, answered = heappop(begins)
            cache.answer_began(ticket, at)
            if answered is not None:
                answered(at, ticket)

    for number, request in enumerate(stream):
        until(request.at)
        body, answered = policy(request)
        if not same_request(request.body, body, split_text=split_text, sort_tools=sort_tools):
            outcome.changed += 1
        try:
            ticket = cache.begin(body, request.at)
        except Refused:
            outcome.refused += 1
            ticket = cache.begin(request.body, request.at)
        heappush(begins, (request.at + request.latency, number, ticket, answered))
        _count(outcome, ticket, weights)
    until(float("inf"))
    return outcome


def _count(outcome: Outcome, ticket: Ticket, weights: Weights) -> None:
    outcome.requests += 1
    outcome.cache_read += ticket.cache_read
    outcome.cache_write_5m += ticket.cache_write_5m
    outcome.cache_write_1h += ticket.cache_write_1h
    outcome.uncached += ticket.uncached
    outcome.cost += weights.cost(ticket)
