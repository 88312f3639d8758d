"""A stream of requests, sent by a policy to a fresh provider cache: what it cost.

Lives here: the order of events. A request is answered some seconds after it was sent, and what it wrote
can be read from then on; a policy learns of an answer at that moment and not before. Must not know: how
any policy places breakpoints. Costs are relative to a plain input token; times are seconds.
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
    """One request: when it is sent, how many seconds later its answer begins, whose it is."""

    at: float
    body: Body
    latency: float
    namespace: str = "default"


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests to one model by time; `source` says where the texts come from."""

    model: str
    requests: Sequence[Sent]
    source: str = "generated"


# Called with the time at which an answer has begun, and what the request was billed.
Answered: TypeAlias = Callable[[float, Ticket], None]
Policy: TypeAlias = Callable[[Sent], tuple[Body, Answered | None]]


class Weights(NamedTuple):
    """What a token costs where a plain one costs 1."""

    cache_read: float
    cache_write_5m: float
    cache_write_1h: float

    @classmethod
    def of(cls, model: Model) -> Weights:
        """Return a model's own; the usual 0.1, 1.25 and 2 where it has no price."""
        prices = model.prices
        if prices is None:
            return cls(0.1, 1.25, 2.0)
        return cls(
            *(float(price / prices.input) for price in (prices.read, prices.write_5m, prices.write_1h))
        )

    def cost(self, ticket: Ticket) -> float:
        """Return what a request costs."""
        written = self.cache_write_5m * ticket.cache_write_5m + self.cache_write_1h * ticket.cache_write_1h
        return self.cache_read * ticket.cache_read + written + ticket.uncached


@dataclass(slots=True)
class Outcome:
    """What a policy came to: tokens by kind, their cost, and the requests that went wrong.

    `cost` counts plain tokens; `refused` requests are sent and counted again without markers, `changed`
    ones left with more than markers added.
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
    """Send a stream, sorted by time, and return what it came to.

    `split_text` and `sort_tools` say what the policy may change besides markers. Raises `Refused` where a
    request is refused without any marker.
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
