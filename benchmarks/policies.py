"""Adapt policies to the replay's interface.

Contains: cachemw on a clock that the replay moves, and any function from body to body. Must not depend on: streams, tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachemw.engine import Middleware
from cachemw.settings import Settings
from cachemw.simulation.provider import Ticket
from cachemw.simulation.replay import Answered, Body, Policy, Sent
from cachemw.simulation.usage_forms import databricks_usage

OUTPUT = 100  # tokens of an answer: each policy pays the same for them


class CachemwPolicy:
    """A fresh middleware with a memory store. It learns only from the requests and answers of the replay."""

    def __init__(self, **settings: Any) -> None:
        self._now = 0.0
        self.middleware = Middleware(
            Settings(provider="databricks", store="memory://", **settings), clock=lambda: self._now
        )

    def __call__(self, request: Sent) -> tuple[Body, Answered]:
        """Prepare a request at its time. The beginning of its answer and its usage come together."""
        self._now = request.at
        call = self.middleware.prepare(request.body, namespace=request.namespace)

        def answered(at: float, ticket: Ticket) -> None:
            self._now = at
            self.middleware.begun(call)
            self.middleware.settle(call, databricks_usage(ticket, OUTPUT))

        return call.body, answered

    def check(self) -> None:
        """Raise `RuntimeError` if the middleware failed: requests then pass unmarked, so the figures are void."""
        errors = {name: count for name, count in self.middleware.counts.items() if name.startswith("error.")}
        if errors:
            raise RuntimeError(f"the middleware failed: {errors}")


def placing(place: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Policy:
    """Return the policy of a function that annotates a body."""

    def policy(request: Sent) -> tuple[Body, None]:
        return place(dict(request.body)), None

    return policy
