"""Check the savings table: the promises as data. Each promise names the rows that break it.

Contains: the promises and their limits. Must not depend on: the way rows are measured or shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Protocol

from benchmarks.measure import CACHEMW_POLICIES, NO_CACHING, Row
from benchmarks.workloads.recorded import Source

PEER = "litellm"  # stands for all peers: a run measures either all of them or none
WORTH = 0.9  # a bound below this share of no caching leaves 10 % or more to win


class Promise(Protocol):
    """A statement that must hold for all rows."""

    def says(self) -> str:
        """Return the promise in a sentence."""

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about. A run without them does not measure it."""

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""


@dataclass(frozen=True)
class Share:
    """The share of the clairvoyant saving, on streams with 10 % or more to win.

    `least` is the floor for each workload and seed, `floors` replaces it for single workloads. `mean` is the floor
    of the mean over all workloads but the `excluded` ones.
    """

    policy: str
    mean: float | None = None
    least: float | None = None
    floors: Mapping[str, float] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()

    def says(self) -> str:
        """Return the promise in a sentence."""
        parts = [f"mean {self.mean:.1%}"] if self.mean is not None else []
        parts += [f"each {self.least:.1%}"] if self.least is not None else []
        parts += [f"{name} {least:.1%}" for name, least in self.floors.items()]
        return f"{self.policy}: share of the clairvoyant saving, at least: {', '.join(parts)}"

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about."""
        return frozenset({self.policy})

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""
        worth = [row for row in rows if row.policy == self.policy and row.bound <= WORTH]
        for row in worth:
            least = self.floors.get(row.workload, self.least)
            if least is not None and row.share < least:
                yield f"{_line(row)}: {row.share:.2%} of the clairvoyant saving, {least:.1%} is promised"
        counted = [row.share for row in worth if row.workload not in self.excluded]
        if self.mean is not None and counted and mean(counted) < self.mean:
            yield f"{self.policy}: mean {mean(counted):.2%} over {len(counted)} streams, {self.mean:.1%} is promised"


@dataclass(frozen=True)
class NoLoss:
    """The cost on streams with less than 10 % to win; `limits` are for single workloads."""

    policy: str
    most: float = 1.005
    limits: Mapping[str, float] = field(default_factory=dict)

    def says(self) -> str:
        """Return the promise in a sentence."""
        limits = "".join(f", {name} {most:.3f}" for name, most in self.limits.items())
        return f"{self.policy}: cost on streams with less than 10 % to win, at most {self.most:.3f}{limits}"

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about."""
        return frozenset({self.policy})

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""
        for row in rows:
            most = self.limits.get(row.workload, self.most)
            if row.policy == self.policy and row.bound > WORTH and row.cost > most:
                yield f"{_line(row)}: costs {row.cost:.4f} of no caching, {most:.3f} is promised"


@dataclass(frozen=True)
class NoneCheaper:
    """No policy outside `exempt` is cheaper than this one by more than `by` of its cost.

    The promise is about streams of `lasting` minutes or more; `limits` are for single workloads.
    """

    policy: str
    exempt: frozenset[str]
    by: float = 0.005
    lasting: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)

    def says(self) -> str:
        """Return the promise in a sentence."""
        streams = f" on streams of {self.lasting:.0f} minutes or more" if self.lasting else ""
        limits = "".join(f", {name} {by:.1%}" for name, by in self.limits.items())
        return f"{self.policy}: no peer is cheaper by more than {self.by:.1%}{limits}{streams}"

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about."""
        return frozenset({self.policy, PEER})

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""
        costs = {(row.workload, row.seed): row.cost for row in rows if row.policy == self.policy}
        for row in rows:
            cost = costs.get((row.workload, row.seed))
            if row.minutes < self.lasting:
                continue
            if (
                cost is not None
                and row.policy not in self.exempt
                and row.cost * (1 + self.limits.get(row.workload, self.by)) < cost
            ):
                yield f"{_line(row)}: costs {row.cost:.4f}, {self.policy} {cost:.4f}"


@dataclass(frozen=True)
class OptIns:
    """The share that the opt-ins reach on texts that move and shuffled tools; elsewhere they cost no more."""

    policy: str
    baseline: str
    least: Mapping[str, float]
    by: float = 0.005

    def says(self) -> str:
        """Return the promise in a sentence."""
        shares = ", ".join(f"{name} {least:.0%}" for name, least in self.least.items())
        return (
            f"{self.policy}: share of the saving by pieces, at least: {shares}; elsewhere as {self.baseline}"
        )

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about."""
        return frozenset({self.policy, self.baseline})

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""
        costs = {(row.workload, row.seed): row.cost for row in rows if row.policy == self.baseline}
        for row in rows:
            if row.policy != self.policy:
                continue
            least, cost = self.least.get(row.workload), costs.get((row.workload, row.seed))
            if least is not None and row.share < least:
                yield f"{_line(row)}: {row.share:.2%} of the saving by pieces, {least:.0%} is promised"
            elif least is None and cost is not None and row.cost > cost + self.by:
                yield f"{_line(row)}: costs {row.cost:.4f}, without the opt-ins {cost:.4f}"


@dataclass(frozen=True)
class Clean:
    """No refused request and no changed one, on streams of `requests` or more."""

    policies: frozenset[str]
    requests: int = 300

    def says(self) -> str:
        """Return the promise in a sentence."""
        return f"0 refused and 0 changed requests, on streams of {self.requests} or more"

    def needs(self) -> frozenset[str]:
        """Return the policies whose rows the promise is about."""
        return self.policies

    def broken(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a line for each breach."""
        for row in rows:
            if row.policy in self.policies and (row.refused or row.changed or row.requests < self.requests):
                yield f"{_line(row)}: {row.refused} refused, {row.changed} changed of {row.requests}"


# Single-turn prompts of a few kinds return one to four times within minutes. They look like few-shot prompts until
# they stop returning.
_LOOKALIKE = {"few-shot short": 1.010, "RAG": 1.010}
# No policy can know whether a turn of these comes back: see README.md, "Limits", and losses.py.
_UNKNOWABLE = {"dated with tools": 0.955, "slow chat": 0.96, "truncated history": 0.97}
_FEW_SHOT = frozenset({"few-shot short"})
_CACHEMW = frozenset(CACHEMW_POLICIES)

# In slow chat a rule that always writes is right a little more often than the probabilities learned from a few
# hundred requests: 0.6 % on two of three seeds.
_ALWAYS_RIGHT = {"slow chat": 0.01}
# Limits depend on the texts: README.md, "Promises", has the measured figures and the reasons.
_BY_SOURCE: Mapping[Source, tuple[Promise, ...]] = {
    "recorded": (
        Share("cachemw", mean=0.992, least=0.98, floors=_UNKNOWABLE),
        Share("cachemw 1h", mean=0.991, floors={"slow chat": 0.985}, excluded=_FEW_SHOT),
        NoneCheaper("cachemw", _CACHEMW | {NO_CACHING}, limits=_ALWAYS_RIGHT),
    ),
    "generated": (
        Share(
            "cachemw",
            mean=0.990,
            least=0.98,
            floors={**_UNKNOWABLE, "document blocks": 0.97, "few-shot short": 0.77},
            excluded=_FEW_SHOT,
        ),
        Share("cachemw 1h", mean=0.988, floors={"slow chat": 0.975}, excluded=_FEW_SHOT),
        NoneCheaper("cachemw", _CACHEMW | {NO_CACHING}, limits={**_ALWAYS_RIGHT, "thinking stripped": 0.015}),
    ),
}
_COMMON: tuple[Promise, ...] = (
    NoLoss("cachemw", limits=_LOOKALIKE),
    NoLoss("cachemw 1h", limits=_LOOKALIKE),
    # A 1h write pays in the hour after it; a shorter stream ends before that.
    NoneCheaper("cachemw 1h", _CACHEMW | {NO_CACHING}, lasting=120),
    OptIns(
        "cachemw opt-ins",
        "cachemw",
        {
            "dated with tools": 0.97,
            "dated without tools": 0.97,
            "shuffled tools": 0.97,
            "document and question": 0.95,
        },
    ),
    Clean(_CACHEMW),
)
# `benchmarks.burst` names the breaches of this one: it measures times, not rows.
BURSTS = (
    "bursts of 20 cold requests with coalesce: one writes, the rest read, no wait outlasts the first answer"
)


def promises(source: Source) -> tuple[Promise, ...]:
    """Return the promises for streams with texts of this source."""
    return (*_BY_SOURCE[source], *_COMMON)


def _line(row: Row) -> str:
    return f"{row.workload}, seed {row.seed}, {row.policy}"
