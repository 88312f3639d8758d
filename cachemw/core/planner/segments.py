"""The best set of segments: a dynamic programme over candidates.

Contains: the programme. Must not depend on: requests, prices, reuse probabilities; a candidate states all of its
economics.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from cachemw.core.rules.types import Ttl

NEVER = float("-inf")
Chosen = dict[int, Ttl]  # forecast index -> TTL


class Candidate(NamedTuple):
    """A place for a breakpoint, the tokens up to it, and what a token of a segment ending here gains.

    The segment begins at the breakpoint of ours before it, but not before `since` tokens.
    """

    forecast_index: int
    tokens: float
    gain_5m: float
    gain_1h: float
    since: float


class _PartialPlan(NamedTuple):
    """Some breakpoints taken: their value, the tokens up to the last, the TTL that is still open.

    `met`: one of those that had to be among them is.
    """

    value: float
    tokens: float
    phase: Ttl
    chosen: tuple[tuple[int, Ttl], ...]
    met: bool


def best_segments(
    candidates: Sequence[Candidate], most: int, start: float, through: Collection[int] = ()
) -> list[tuple[float, Chosen]]:
    """Return the best value and places of at most 0, 1, ... candidates, from `start` tokens on.

    The list ends where more of them gain nothing. With `through`, one of those places must be among
    them; the value is `NEVER` where none can be. A dynamic programme, shallow to deep; breakpoints of
    1h come before those of 5m.
    """
    first = _PartialPlan(0.0, start, "1h", (), not through)
    best = first if first.met else first._replace(value=NEVER)
    frontier, found = [first], [(best.value, Chosen())]
    for count in range(1, most + 1):
        grown: list[_PartialPlan] = []
        for place, reached, gain_5m, gain_1h, since in candidates:
            before = [state for state in frontier if not state.chosen or state.chosen[-1][0] < place]
            options: tuple[tuple[Ttl, float], ...] = (("5m", gain_5m), ("1h", gain_1h))
            for ttl, gain in options:
                tops: dict[bool, tuple[float, _PartialPlan]] = {}
                for state in before if gain != NEVER else ():
                    if ttl == "5m" or state.phase == "1h":
                        total = state.value + (reached - max(state.tokens, since)) * gain
                        met = state.met or place in through
                        if met not in tops or total > tops[met][0]:
                            tops[met] = total, state
                for met, (total, state) in tops.items():
                    grown.append(_PartialPlan(total, reached, ttl, (*state.chosen, (place, ttl)), met))
        frontier = grown
        best = max([best, *[state for state in frontier if state.met]])
        if len(best.chosen) < count and (best.met or not frontier):
            break
        found.append((best.value, dict(best.chosen)))
    return found
