"""One workload of one seed under several policies, and its bounds.

Contains: the policies and the figures of each. Must not depend on: tables, files, checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import peer_policies
from benchmarks.policies import CachemwPolicy, placing
from benchmarks.workloads import WORKLOADS
from cachemw.core.rules.model_names import find_model
from cachemw.settings import Settings
from cachemw.simulation.oracle import bound
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.replay import Policy, no_caching, replay

CACHEMW_POLICIES: Mapping[str, Mapping[str, Any]] = {
    "cachemw": {},
    "cachemw 1h": {"ttl": "auto"},
    "cachemw opt-ins": {"split_text": True, "sort_tools": True},
}
"""Settings of the middleware by the policy's name: 5m only, 1h allowed, opt-ins that change more than markers."""
NO_CACHING = "no caching"


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of a policy on a workload of one seed.

    `cost` and `bound` are shares of the cost without caching. The bound follows the policy's own rules: with 1h
    if the policy may use it, at text pieces and sorted tools if it may change these. `minutes` is the length of
    the stream.
    """

    workload: str
    seed: int
    policy: str
    requests: int
    cost: float
    bound: float
    refused: int
    changed: int
    minutes: float = 0.0

    @property
    def share(self) -> float:
        """Return the share of the clairvoyant saving; 1 if there is nothing to win."""
        return (1.0 - self.cost) / (1.0 - self.bound) if self.bound < 1.0 else 1.0


def names() -> list[str]:
    """Return all policies' names, no caching first, cachemw's last."""
    return [NO_CACHING, *peer_policies(), *_cachemw_names()]


def _cachemw_names() -> list[str]:
    known = Settings.model_fields
    return [name for name, settings in CACHEMW_POLICIES.items() if settings.keys() <= known.keys()]


def measure(workload: str, seed: int, policies: list[str]) -> list[Row]:
    """Return a row for each policy; each gets a fresh provider cache and state of its own."""
    stream = WORKLOADS[workload](seed)
    model = find_model(stream.model)
    assert model is not None, stream.model

    def cache() -> ProviderCache:
        return ProviderCache(model)

    uncached = replay(stream.requests, no_caching, cache())
    bounds: dict[tuple[bool, bool], float] = {}
    rows = []
    for name in policies:
        settings = CACHEMW_POLICIES.get(name, {})
        hour, opt_ins = settings.get("ttl") == "auto", bool(settings.get("split_text"))
        if (hour, opt_ins) not in bounds:
            grain = "piece" if opt_ins else "block"
            least = bound(stream.requests, cache(), hour=hour, grain=grain, sort_tools=opt_ins)
            bounds[hour, opt_ins] = least / uncached.total
        changes = {"split_text": opt_ins, "sort_tools": opt_ins}
        policy = _policy(name)
        outcome = replay(stream.requests, policy, cache(), **changes)
        if isinstance(policy, CachemwPolicy):
            policy.check()
        relative = outcome.cost / uncached.total
        row = Row(
            workload,
            seed,
            name,
            outcome.requests,
            relative,
            bounds[hour, opt_ins],
            outcome.refused,
            outcome.changed,
            (stream.requests[-1].at - stream.requests[0].at) / 60,
        )
        rows.append(row)
    return rows


def _policy(name: str) -> Policy:
    if name == NO_CACHING:
        return no_caching
    if name in CACHEMW_POLICIES:
        return CachemwPolicy(**CACHEMW_POLICIES[name])
    place: Callable[[dict[str, Any]], Mapping[str, Any]] = peer_policies()[name]
    return placing(place)
