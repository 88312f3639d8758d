"""The economics of one request: the gain of a cached token of each prefix, and the places for breakpoints.

Contains: the numbers that every choice of breakpoints shares, computed once per request. Must not depend on:
the choice itself (`planner`), the source of reuse probabilities (`core.reuse`), wire formats beyond a block's
kind, stores.

Prices are relative to an uncached token: a write costs w, a read costs r. A *candidate index* counts the
tracked prefixes of the request, shallow to deep.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from cachemw.core.planner.segments import NEVER, Candidate, Chosen
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.resolve import relative_prices
from cachemw.core.rules.types import Kind, MarkPolicy, Rules, Ttl
from cachemw.core.tuning import PLANNER


class RequestEconomics:
    """Tokens, values, limits and the client's own breakpoints of one request, by candidate index."""

    def __init__(
        self,
        parsed: ParsedRequest,
        forecasts: Sequence[PrefixForecast],
        rules: Rules,
        calibration: Calibration,
    ) -> None:
        self.parsed, self.forecasts, self.rules = parsed, forecasts, rules
        self.write_5m, self.write_1h, self.read = relative_prices(rules.prices)
        totals = list(accumulate([block.size for block in parsed.blocks]))
        self.total, scale = totals[-1] * calibration.scale, calibration.scale
        self.tokens = [totals[forecast.block] * scale for forecast in forecasts]
        self.cached = [index for index, forecast in enumerate(forecasts) if forecast.cached_ttl is not None]
        # A cached entry proves that its prefix meets the minimum.
        first_cached = self.cached[0] if self.cached else len(forecasts)
        low, high = 1 - calibration.spread, 1 + calibration.spread
        self.p_meets_minimum = [
            _p_meets_minimum(tokens * low, tokens * high, rules.minimum)
            for tokens in self.tokens[:first_cached]
        ]
        self.p_meets_minimum += [1.0] * (len(forecasts) - first_cached)
        self.in_flight = max(
            (index for index, forecast in enumerate(forecasts) if forecast.in_flight), default=-1
        )
        self.client_breakpoints = self._client_breakpoints() if parsed.client_marker_count else Chosen()
        self.slots = rules.provider.max_markers - parsed.client_marker_count
        # Providers refuse 1h after 5m, so the client's breakpoints limit the TTLs of added ones.
        self.only_1h_until = max(
            (index for index, ttl in self.client_breakpoints.items() if ttl == "1h"), default=-1
        )
        self.only_5m_from = min(
            (index for index, ttl in self.client_breakpoints.items() if ttl == "5m"), default=len(forecasts)
        )
        self.allowed_ttls = self._allowed_ttls()
        self.one_hour_allowed = any(may_1h for _, may_1h in self.allowed_ttls)
        self.value_5m, self.value_1h = self._values()

    def _client_breakpoints(self) -> Chosen:
        """Return the client's breakpoints; a top-level marker counts for the last block that can carry it."""
        parsed, found = self.parsed, Chosen()
        for index, forecast in enumerate(self.forecasts):
            if (marker := parsed.blocks[forecast.block].marker) is not None:
                found[index] = marker
        if parsed.automatic_marker and (
            takers := [i for i, f in enumerate(self.forecasts) if self._takes_automatic_marker(f.block)]
        ):
            found.setdefault(takers[-1], parsed.automatic_marker)
        return found

    def _takes_automatic_marker(self, block_index: int) -> bool:
        """Return True if a top-level marker can count for a block: not for thinking or blank text."""
        block = self.parsed.blocks[block_index]
        return block.kind is not Kind.REASONING and (block.kind is not Kind.TEXT or block.markable)

    # -- limits -------------------------------------------------------------------------------

    def markable(self, kinds: Mapping[Kind, MarkPolicy]) -> list[int]:
        """Return the candidates whose block may carry an added marker.

        Candidates between a 5m marker of the client and a later 1h marker are left out, since either TTL
        would be refused there. A gateway that overlooks one of the two markers then accepts the request as it
        came.
        """
        blocks, on = self.parsed.blocks, {kind for kind, mark in kinds.items() if mark == "on"}
        crossed = range(self.only_5m_from, self.only_1h_until)
        return [
            index
            for index, forecast in enumerate(self.forecasts)
            if (block := blocks[forecast.block]).markable
            and block.kind in on
            and index not in self.client_breakpoints
            and index not in crossed
        ]

    def _allowed_ttls(self) -> list[tuple[bool, bool]]:
        """Return if 5m and if 1h is allowed at each candidate, by setting and client's breakpoints."""
        ttl, count = self.rules.ttl, len(self.forecasts)
        until, since = self.only_1h_until + 1, self.only_5m_from
        between = (ttl != "1h", ttl != "5m")
        return [
            (False, True) if index < until else between if index < since else (True, False)
            for index in range(count)
        ]

    def ttl_for(self, index: int) -> Ttl:
        """Return the TTL of a breakpoint that is set without a price comparison: 5m if allowed."""
        return "5m" if self.allowed_ttls[index][0] else "1h"

    def finds_entry(self, entry: int, indexes: Iterable[int]) -> bool:
        """Return True if a breakpoint at one of these candidates has the entry within its lookback."""
        first = self.forecasts[entry].block
        last = first + self.rules.provider.lookback
        return any(first <= self.forecasts[index].block < last for index in indexes)

    # -- values -------------------------------------------------------------------------------

    def _values(self) -> tuple[list[float], list[float]]:
        """Return the gain of a token in a cached entry of each prefix, for 5m and for 1h.

        Each expected read saves 1 - r. The gain is at most w - r, because the next arrival could write the
        entry that this one did not.
        """
        saved, most_5m, most_1h = 1 - self.read, self.write_5m - self.read, self.write_1h - self.read
        soon = [
            p_reuse * (gain if (gain := (1 + further) * saved) < most_5m else most_5m)
            for _, p_reuse, further, _, _, _, _ in self.forecasts
        ]
        if not self.one_hour_allowed:
            return soon, soon
        return soon, [
            p_reuse * (gain if (gain := (1 + further) * saved) < most_1h else most_1h)
            for _, _, _, p_reuse, further, _, _ in self.forecasts
        ]

    def write_costs(self) -> tuple[float, float]:
        """Return the premium of a written token for 5m and for 1h, each with its margin."""
        return self.write_5m - 1 + PLANNER.margin_5m, self.write_1h - 1 + PLANNER.margin_1h

    def candidate(self, index: int, costs: tuple[float, float]) -> Candidate:
        """Return one candidate, whatever it gains."""
        ((_, gain_5m, gain_1h),) = self._gains([index], costs)
        return Candidate(index, self.tokens[index], gain_5m, gain_1h, 0.0)

    def pareto_candidates(
        self,
        indexes: Sequence[int],
        costs: tuple[float, float],
        since: float = 0.0,
        *,
        refreshed: bool = False,
    ) -> list[Candidate]:
        """Return the candidates that gain anything and that no deeper one beats, shallow to deep.

        A segment that gains no more per token than a deeper one is better merged into that one. So the
        remaining gains fall with depth, and the list is short for a request of any length. If it is not, the
        difference that counts is raised until it is.
        """
        gains = self._gains(reversed(indexes), costs, refreshed=refreshed)
        difference = PLANNER.telling_difference
        while True:
            found: list[Candidate] = []
            least_5m = least_1h = 0.0
            for index, gain_5m, gain_1h in gains:
                if gain_5m > least_5m or gain_1h > least_1h:
                    found.append(Candidate(index, self.tokens[index], gain_5m, gain_1h, since))
                    least_5m = max(gain_5m + difference, least_5m)
                    least_1h = max(gain_1h + difference, least_1h)
            if len(found) <= PLANNER.max_candidates:
                return found[::-1]
            difference += PLANNER.telling_difference

    def _gains(
        self, indexes: Iterable[int], costs: tuple[float, float], *, refreshed: bool = False
    ) -> list[tuple[int, float, float]]:
        """Return each candidate with the gain of a token by TTL; a refreshed entry keeps its TTL."""
        p_minimum, value_5m, value_1h = self.p_meets_minimum, self.value_5m, self.value_1h
        cost_5m, cost_1h = costs
        if not self.one_hour_allowed:
            return [(index, (value_5m[index] - cost_5m) * p_minimum[index], NEVER) for index in indexes]
        gains = []
        for index in indexes:
            may_5m, may_1h = self.allowed_ttls[index]
            gain_5m = (value_5m[index] - cost_5m) * p_minimum[index] if may_5m else NEVER
            may_1h = may_1h and not (refreshed and may_5m)
            gains.append(
                (index, gain_5m, (value_1h[index] - cost_1h) * p_minimum[index] if may_1h else NEVER)
            )
        return gains


def _p_meets_minimum(low: float, high: float, minimum: int) -> float:
    """Return the probability that a number spread evenly between `low` and `high` is at least the minimum."""
    if low >= minimum:
        return 1.0
    return (high - minimum) / (high - low) if high > minimum else 0.0
