"""Choose a request's breakpoints: what is read, what is written, and what is left plain.

Lives here: the economics of a breakpoint. Must not know: how chances come about (`core.chances`),
wire shapes beyond a block's kind, stores.

Prices are relative to a plain token: write w, read r. Reading the entry at depth h now saves
(1 - r) of its tokens. Tokens between two breakpoints are worth what the breakpoint that *ends* the
segment is worth: with the chance p that its prefix is read again before the entry dies, writing a
token gains p (w - r) - (w - 1) against sending it plain. At or under h nothing is written: being read
keeps h alive, which gains its p (w - r), and a breakpoint under it is free, and gains what the p of a
shared head is more than that of h. To be read, h must stand in the window of some breakpoint, which
may be one that is not worth its write. The best few are chosen together, and slots that are then left
go to heads and earlier ends within what is read or written anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, islice

from cachemw.core.planner.plan import Breakpoint, Plan, Reason
from cachemw.core.planner.segments import NEVER, Candidate, Chosen, best_segments
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.resolve import relative_prices
from cachemw.core.rules.types import Kind, MarkPolicy, Rules, Ttl

# A write must promise this share of its tokens, or it is a coin toss.
_MARGIN = {"5m": 0.03, "1h": 0.18}
# Gains of a token that differ by less are the same: no estimate can tell them apart.
_TELLING = 0.01
# How many places are weighed against each other: the time it takes grows with their square.
_CANDIDATES = 24
_HITS_TRIED = 3


def plan(
    parsed: ParsedRequest,
    forecasts: Sequence[PrefixForecast],
    rules: Rules,
    calibration: Calibration,
    kinds: Mapping[Kind, MarkPolicy],
) -> Plan:
    """Return the breakpoints for a request, the client's own included.

    `depths` are the watched prefixes, shallow to deep, the last being the whole request; `kinds` says
    which kinds of block may carry a marker of ours now.
    """
    planner = _Planner(parsed, forecasts, rules, calibration)
    allowed = planner.markable(kinds)
    eligible = [place for place in allowed if planner.p_meets_minimum[place] > 0]
    if planner.slots <= 0:
        return planner.result({}, Reason.NO_SLOT)
    if not allowed:
        return planner.result({}, Reason.NOTHING_MARKABLE)
    if not eligible:
        return planner.result({}, Reason.BELOW_MINIMUM)
    held = planner.sticky_breakpoints(eligible) if rules.provider.sticky_routing else []
    planner.slots -= len(held)
    chosen = planner.choose(eligible)
    planner.slots += len(held)
    chosen.update({place: planner.ttl_for(place) for place in held if place < max(chosen, default=-1)})
    if chosen or planner.client_breakpoints:
        planner.use_free_slots(chosen, eligible)
    if chosen:
        return planner.result(chosen, None)
    return planner.result(chosen, Reason.NOT_WORTH_IT if planner.in_flight < 0 else Reason.PENDING)


class _Planner:
    """One request's numbers, worked out once, and the steps that share them."""

    def __init__(
        self, parsed: ParsedRequest, depths: Sequence[PrefixForecast], rules: Rules, calibration: Calibration
    ) -> None:
        self.parsed, self.forecasts, self.rules = parsed, depths, rules
        self.write_5m, self.write_1h, self.read = relative_prices(rules.prices)
        totals = list(accumulate([block.size for block in parsed.blocks]))
        self.total, scale = totals[-1] * calibration.scale, calibration.scale
        self.tokens = [totals[depth.block] * scale for depth in depths]
        self.cached = [place for place, depth in enumerate(depths) if depth.cached_ttl is not None]
        # Where an entry is, the minimum has been reached.
        sure = self.cached[0] if self.cached else len(depths)
        low, high = 1 - calibration.spread, 1 + calibration.spread
        self.p_meets_minimum = [
            _p_meets_minimum(tokens * low, tokens * high, rules.minimum) for tokens in self.tokens[:sure]
        ]
        self.p_meets_minimum += [1.0] * (len(depths) - sure)
        self.in_flight = max((place for place, depth in enumerate(depths) if depth.in_flight), default=-1)
        # The client's own: a top-level marker stands on the last block that takes one.
        self.client_breakpoints: Chosen = {}
        if parsed.client_marker_count:
            for place, depth in enumerate(depths):
                if (marker := parsed.blocks[depth.block].marker) is not None:
                    self.client_breakpoints[place] = marker
            if parsed.automatic_marker and (
                takers := [p for p, d in enumerate(depths) if self._takes_automatic_marker(d.block)]
            ):
                self.client_breakpoints.setdefault(takers[-1], parsed.automatic_marker)
        self.slots = rules.provider.max_markers - parsed.client_marker_count
        # Providers refuse 1h after 5m: what the client's own leave open.
        self.only_1h_until = max(
            (place for place, ttl in self.client_breakpoints.items() if ttl == "1h"), default=-1
        )
        self.only_5m_from = min(
            (place for place, ttl in self.client_breakpoints.items() if ttl == "5m"), default=len(depths)
        )
        self.allowed_ttls = self._allowed_ttls()
        self.one_hour_allowed = any(may_1h for _, may_1h in self.allowed_ttls)
        self.value_5m, self.value_1h = self._values()

    def _takes_automatic_marker(self, index: int) -> bool:
        """Say whether the provider's automatic marker may stand on a block: on no thinking and no blank text."""
        block = self.parsed.blocks[index]
        return block.kind is not Kind.REASONING and (block.kind is not Kind.TEXT or block.markable)

    def markable(self, kinds: Mapping[Kind, MarkPolicy]) -> list[int]:
        """Return the places whose block may carry a marker of ours.

        None between a 5m marker of the client's and a 1h one after it: no TTL is right there. Gateways
        that overlook one of the two, as on a whole message, take the request as it came.
        """
        blocks, on = self.parsed.blocks, {kind for kind, mark in kinds.items() if mark == "on"}
        crossed = range(self.only_5m_from, self.only_1h_until)
        return [
            place
            for place, depth in enumerate(self.forecasts)
            if (block := blocks[depth.block]).markable
            and block.kind in on
            and place not in self.client_breakpoints
            and place not in crossed
        ]

    # -- the choice ---------------------------------------------------------------------------

    def choose(self, eligible: Sequence[int]) -> Chosen:
        """Return the best breakpoints over the entries that could be read, the deepest first.

        A shallower entry is looked at only where reading a deeper one takes a slot that is missed, or a
        write that isn't wanted, and then without the breakpoints that would find a deeper one.
        """
        best_value, best = 0.0, Chosen()
        for hit in [*self.cached[: -_HITS_TRIED - 1 : -1], -1]:
            value, chosen, missed = self._plan_reading_from(hit, eligible)
            if value > best_value:
                best_value, best = value, chosen
            if not missed or (hit >= 0 and self._finds_entry(hit, self.client_breakpoints)):
                break
            eligible = [place for place in eligible if hit < 0 or not self._finds_entry(hit, (place,))]
        return best

    def _plan_reading_from(self, hit: int, eligible: Sequence[int]) -> tuple[float, Chosen, bool]:
        """Return the value and breakpoints of the best plan that reads the entry at `hit` (-1: none).

        Also whether it lacks a slot, or a free way to that entry; the value is `NEVER` where there is none.
        """
        start = self.tokens[hit] if hit >= 0 else 0.0
        # What the client's own markers write is paid anyway: ours count from there.
        own_end = max(
            (place for place in self.client_breakpoints if self.p_meets_minimum[place] > 0), default=-1
        )
        base = max(start, self.tokens[own_end]) if own_end > hit else start
        # What another request is just writing needs no second write: only tokens past it gain, and all cost.
        pending, double_write_cost = self.in_flight, 0.0
        if pending > hit and self.tokens[pending] > base and self.p_meets_minimum[pending] > 0:
            double_write_cost = (self.tokens[pending] - base) * (self.write_5m - 1 + _MARGIN["5m"])
            base = self.tokens[pending]
        covered = max(hit, own_end, pending)
        written = (self.write_5m - 1 + _MARGIN["5m"], self.write_1h - 1 + _MARGIN["1h"])
        over = self._pareto_candidates([place for place in eligible if place > covered], written)
        writing = best_segments(over, self.slots, base)
        free: list[int] = []
        finding: list[tuple[float, Chosen]] = []
        if hit >= 0 and not self._finds_entry(hit, self.client_breakpoints):
            # A breakpoint of its own may find it: one that writes nothing, or one that must write.
            last = self.forecasts[hit].block + self.rules.provider.lookback
            within_lookback = [
                place for place in eligible if place >= hit and self.forecasts[place].block < last
            ]
            free = [place for place in within_lookback if place <= covered][:1]
            paid = [self._candidate(place, written) for place in within_lookback if place > covered]
            if paid and not (writing[1:] and self._finds_entry(hit, writing[1][1])):
                finding = best_segments(
                    sorted({*over, *paid}), self.slots, base, {c.forecast_index for c in paid}
                )[1:]
        saved, under = self._value_of_refreshing(hit, eligible)
        keeping = best_segments(under, self.slots, 0.0)

        best: tuple[float, Chosen, bool] = (NEVER, {}, True)
        ways = [
            (gain, above, False)
            for gain, above in writing
            if hit < 0 or self._finds_entry(hit, (*above, *self.client_breakpoints))
        ]
        ways += [
            (gain, {place: self.ttl_for(place), **above}, False) for place in free for gain, above in writing
        ]
        ways += [(gain, taken, True) for gain, taken in finding]
        for gain, taken, forced in ways:
            slots = self.slots - len(taken)
            if slots >= 0 and gain != NEVER:
                kept, below = keeping[min(slots, len(keeping) - 1)]
                value = saved + gain + kept - (double_write_cost if max(taken, default=-1) > covered else 0.0)
                if value > best[0]:
                    best = (value, {**below, **taken}, forced or len(below) == slots)
        return best

    def _value_of_refreshing(self, hit: int, eligible: Sequence[int]) -> tuple[float, list[Candidate]]:
        """Return what reading the entry at `hit` saves and keeps alive, and the candidates under it."""
        if hit < 0:
            return 0.0, []
        saved, candidates = (1 - self.read) * self.tokens[hit], list[Candidate]()
        since, after = 0.0, -1
        for end in (*sorted(place for place in self.client_breakpoints if place < hit), hit):
            alive = self.value_5m[end], self.value_1h[end]
            inner = [place for place in eligible if after < place < end]
            candidates += self._pareto_candidates(inner, alive, since, kept=True)
            saved += alive[0] * (self.tokens[end] - since)
            since, after = self.tokens[end], end
        return saved, candidates

    def _pareto_candidates(
        self, places: Sequence[int], costs: tuple[float, float], since: float = 0.0, *, kept: bool = False
    ) -> list[Candidate]:
        """Return the candidates that gain anything and that no deeper one beats, shallow to deep.

        A segment that gains no more a token than a deeper one is better merged into that one, so
        what is left gains less with depth, and is short however long the request. Where it is not, more is
        asked of a difference until it is.
        """
        gains = self._gains(reversed(places), costs, kept=kept)
        telling = _TELLING
        while True:
            found: list[Candidate] = []
            least_5m = least_1h = 0.0
            for place, gain_5m, gain_1h in gains:
                if gain_5m > least_5m or gain_1h > least_1h:
                    found.append(Candidate(place, self.tokens[place], gain_5m, gain_1h, since))
                    least_5m, least_1h = max(gain_5m + telling, least_5m), max(gain_1h + telling, least_1h)
            if len(found) <= _CANDIDATES:
                return found[::-1]
            telling += _TELLING

    def _candidate(self, place: int, costs: tuple[float, float]) -> Candidate:
        ((_, gain_5m, gain_1h),) = self._gains([place], costs)
        return Candidate(place, self.tokens[place], gain_5m, gain_1h, 0.0)

    def _gains(
        self, places: Iterable[int], costs: tuple[float, float], *, kept: bool = False
    ) -> list[tuple[int, float, float]]:
        """Return each place with what a token gains over its cost, by TTL; what is only kept alive has one TTL."""
        reach, worth_5m, worth_1h, (cost_5m, cost_1h) = (
            self.p_meets_minimum,
            self.value_5m,
            self.value_1h,
            costs,
        )
        if not self.one_hour_allowed:
            return [(place, (worth_5m[place] - cost_5m) * reach[place], NEVER) for place in places]
        gains = []
        for place in places:
            may_5m, may_1h = self.allowed_ttls[place]
            gain_5m = (worth_5m[place] - cost_5m) * reach[place] if may_5m else NEVER
            may_1h = may_1h and not (kept and may_5m)
            gains.append((place, gain_5m, (worth_1h[place] - cost_1h) * reach[place] if may_1h else NEVER))
        return gains

    def _values(self) -> tuple[list[float], list[float]]:
        """Return what a token gains by standing in a living entry of each prefix, of 5m and of 1h.

        A read saves 1 - r, and so does each one after it; but no more than w - r, since the next
        arrival could write what this one did not.
        """
        saved, most_5m, most_1h = 1 - self.read, self.write_5m - self.read, self.write_1h - self.read
        soon = [
            chance * (gain if (gain := (1 + more) * saved) < most_5m else most_5m)
            for _, chance, more, _, _, _, _ in self.forecasts
        ]
        if not self.one_hour_allowed:
            return soon, soon
        return soon, [
            hour * (gain if (gain := (1 + more) * saved) < most_1h else most_1h)
            for _, _, _, hour, more, _, _ in self.forecasts
        ]

    def _allowed_ttls(self) -> list[tuple[bool, bool]]:
        """Say of each place whether a breakpoint may be 5m, 1h: by the setting, and by the client's own."""
        ttl, count = self.rules.ttl, len(self.forecasts)
        until, since = self.only_1h_until + 1, self.only_5m_from
        between = (ttl != "1h", ttl != "5m")
        return [
            (False, True) if place < until else between if place < since else (True, False)
            for place in range(count)
        ]

    def ttl_for(self, place: int) -> Ttl:
        return "5m" if self.allowed_ttls[place][0] else "1h"

    def sticky_breakpoints(self, eligible: Sequence[int]) -> list[int]:
        """Return the ends of the system section and of the first message after it, where slots are left besides.

        Marked in each turn of a conversation, or in none, these messages look the same in all of them.
        """
        parsed = self.parsed
        system = [
            place for place in eligible if parsed.tools_end <= self.forecasts[place].block < parsed.system_end
        ]
        first = [
            place
            for place in eligible
            if (block := self.forecasts[place].block) >= parsed.system_end
            and parsed.items[block] == parsed.items[parsed.system_end]
        ]
        found = [*system[-1:], *first[-1:]]
        return found if self.slots - len(found) >= 2 else []

    def _finds_entry(self, entry: int, places: Iterable[int]) -> bool:
        """Say whether a breakpoint at one of these places would find the entry at `entry`."""
        first = self.forecasts[entry].block
        last = first + self.rules.provider.lookback
        return any(first <= self.forecasts[place].block < last for place in places)

    def use_free_slots(self, chosen: Chosen, eligible: Sequence[int]) -> None:
        """Use the slots that are left for heads that others may share; they cost nothing.

        Only within what is read or written anyway.
        """
        deepest = max((*chosen, *self.client_breakpoints), default=-1)
        for place in self._shared_prefix_ends([place for place in eligible if place < deepest]):
            if len(chosen) >= self.slots:
                return
            chosen.setdefault(place, self.ttl_for(place))

    def _shared_prefix_ends(self, places: Sequence[int]) -> list[int]:
        """Return the end of the system section, those of the latest turns, of the tools, and of the first turn."""
        blocks = [self.forecasts[place].block for place in places]
        tools, system = (
            bisect_left(blocks, self.parsed.tools_end),
            bisect_left(blocks, self.parsed.system_end),
        )
        return [
            *places[tools:system][-1:],
            *islice(filter(self._ends_turn, reversed(places[system:])), 2),
            *places[:tools][-1:],
            *islice(filter(self._ends_turn, places[system:]), 1),
        ]

    def _ends_turn(self, place: int) -> bool:
        """Say whether a request could have ended with the block of a place."""
        blocks, block = self.parsed.blocks, self.forecasts[place].block
        return (
            block >= self.parsed.system_end
            and blocks[block].role != "assistant"
            and (block + 1 == len(blocks) or blocks[block + 1].role == "assistant")
        )

    # -- the result ---------------------------------------------------------------------------

    def result(self, chosen: Chosen, skipped: Reason | None) -> Plan:
        """Return the plan of these breakpoints and the client's own."""
        points = {**chosen, **self.client_breakpoints}
        # What stands before a 1h marker is 1h too: providers refuse the other order.
        last_1h = max((place for place, ttl in points.items() if ttl == "1h"), default=-1)
        points.update({place: "1h" for place in chosen if place < last_1h})
        places = sorted(points)
        hit = next((place for place in reversed(self.cached) if self._finds_entry(place, places)), -1)
        start = self.tokens[hit] if hit >= 0 else 0.0
        written = [place for place in places if place > hit and self.tokens[place] >= self.rules.minimum]
        end = self.tokens[written[-1]] if written else start
        end_1h = max((self.tokens[place] for place in written if points[place] == "1h"), default=start)
        return Plan(
            breakpoints=tuple([self._breakpoint(place, points[place], hit, places) for place in places]),
            cache_read=round(start),
            cache_write_5m=round(end - end_1h),
            cache_write_1h=round(end_1h - start),
            uncached=round(self.total - end),
            skipped=skipped,
            hit=self.forecasts[hit].block if hit >= 0 else None,
        )

    def _breakpoint(self, place: int, ttl: Ttl, hit: int, places: Sequence[int]) -> Breakpoint:
        block, own = self.forecasts[place].block, place in self.client_breakpoints
        if own:
            reason = Reason.CLIENT
        elif place == hit and not self._finds_entry(hit, [other for other in places if other != hit]):
            reason = Reason.ANCHOR
        elif block + 1 == self.parsed.tools_end:
            reason = Reason.TOOLS
        elif block + 1 == self.parsed.system_end:
            reason = Reason.SYSTEM
        elif place == places[-1]:
            reason = Reason.TAIL
        else:
            reason = Reason.EARLIER if self._ends_turn(place) else Reason.BRANCH
        return Breakpoint(self.parsed.path(block), block, ttl, round(self.tokens[place]), reason, own)


def _p_meets_minimum(low: float, high: float, minimum: int) -> float:
    """Return the chance that a number between these, all alike likely, is the minimum or more."""
    if low >= minimum:
        return 1.0
    return (high - minimum) / (high - low) if high > minimum else 0.0
