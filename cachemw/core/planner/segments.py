"""The best set of segments: a dynamic programme over candidate breakpoints.

Contains: the programme. Must not depend on: requests, prices, reuse probabilities. A candidate states all of
its economics.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from cachemw.core.rules.types import Ttl

NEVER = float("-inf")
"""The value of a choice that is not possible."""
Chosen = dict[int, Ttl]
"""Breakpoints: the candidate index of each, and its TTL."""


class Candidate(NamedTuple):
    """A possible breakpoint: the tokens up to it, and the gain of a token in a segment that ends here.

    The segment begins at the previous chosen breakpoint, but not before `since` tokens.
    """

    candidate_index: int
    tokens: float
    gain_5m: float
    gain_1h: float
    since: float


class _PartialPlan(NamedTuple):
    """Some chosen breakpoints: their value, the tokens up to the last one, and the TTL that may follow.

    `met` is True once one of the required candidates is among them.
    """

    value: float
    tokens: float
    phase: Ttl
    chosen: tuple[tuple[int, Ttl], ...]
    met: bool


def best_segments(
    candidates: Sequence[Candidate], most: int, start: float, through: Collection[int] = ()
) -> list[tuple[float, Chosen]]:
    """Return the best value and choice of at most 0, 1, ... candidates, counted from `start` tokens on.

    The programme goes from shallow to deep; 1h breakpoints come before 5m ones. The list ends where one more
    breakpoint gains nothing.

    Args:
        candidates: possible breakpoints, shallow to deep.
        most: the number of free slots.
        start: tokens before the first segment.
        through: one of these indexes must be chosen. The value is `NEVER` if none of them can be.
    """
    first = _PartialPlan(0.0, start, "1h", (), not through)
    best = first if first.met else first._replace(value=NEVER)
    frontier, found = [first], [(best.value, Chosen())]
    for count in range(1, most + 1):
        grown: list[_PartialPlan] = []
        for index, reached, gain_5m, gain_1h, since in candidates:
            before = [state for state in frontier if not state.chosen or state.chosen[-1][0] < index]
            options: tuple[tuple[Ttl, float], ...] = (("5m", gain_5m), ("1h", gain_1h))
            for ttl, gain in options:
                tops: dict[bool, tuple[float, _PartialPlan]] = {}
                for state in before if gain != NEVER else ():
                    if ttl == "5m" or state.phase == "1h":
                        total = state.value + (reached - max(state.tokens, since)) * gain
                        met = state.met or index in through
                        if met not in tops or total > tops[met][0]:
                            tops[met] = total, state
                for met, (total, state) in tops.items():
                    grown.append(_PartialPlan(total, reached, ttl, (*state.chosen, (index, ttl)), met))
        frontier = grown
        best = max([best, *[state for state in frontier if state.met]])
        if len(best.chosen) < count and (best.met or not frontier):
            break
        found.append((best.value, dict(best.chosen)))
    return found
