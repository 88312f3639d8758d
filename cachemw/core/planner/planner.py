"""Choose a request's breakpoints: which tokens are read, written, or left uncached.

Contains: the choice. Must not depend on: the source of reuse probabilities (`core.reuse`), wire formats
beyond a block's kind, stores.

Prices are relative to an uncached token: a write costs w, a read costs r. The cases, for an entry that ends
    at
prefix h and is read now:

=================== =================================================================================
up to h             Reading saves (1 - r) a token. The read also refreshes the entry, which gains p (w - r).
                    A breakpoint before h is free. It gains the difference between its own p and that of h.
past h              A segment ends at a breakpoint, whose prefix is read again with probability p. Writing
                    a token of it gains p (w - r) - (w - 1) against sending it uncached.
past all            Tokens after the last breakpoint are uncached.
=================== =================================================================================

To be read, h must lie within the lookback of some breakpoint, possibly of one that is not worth its write.
The best
few breakpoints are chosen together. Free slots then go to shared prefixes and earlier ends within the tokens
that
are read or written anyway.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice

from cachemw.core.planner.economics import RequestEconomics
from cachemw.core.planner.plan import Breakpoint, Plan, Reason
from cachemw.core.planner.segments import NEVER, Candidate, Chosen, best_segments
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.types import Kind, MarkPolicy, Rules, Ttl
from cachemw.core.tuning import PLANNER


def plan(
    parsed: ParsedRequest,
    forecasts: Sequence[PrefixForecast],
    rules: Rules,
    calibration: Calibration,
    kinds: Mapping[Kind, MarkPolicy],
) -> Plan:
    """Return the breakpoints for a request, the client's own included.

    Args:
        parsed: the request.
        forecasts: its tracked prefixes, shallow to deep; the last is the whole request.
        rules: the provider's and the model's.
        calibration: turns sizes into the model's tokens.
        kinds: the kinds of block that may carry an added marker now.
    """
    economics = RequestEconomics(parsed, forecasts, rules, calibration)
    allowed = economics.markable(kinds)
    eligible = [index for index in allowed if economics.p_meets_minimum[index] > 0]
    if economics.slots <= 0:
        return make_plan(economics, {}, Reason.NO_SLOT)
    if not allowed:
        return make_plan(economics, {}, Reason.NOTHING_MARKABLE)
    if not eligible:
        return make_plan(economics, {}, Reason.BELOW_MINIMUM)
    sticky = sticky_breakpoints(economics, eligible) if rules.provider.sticky_routing else []
    chosen = Choice(economics, economics.slots - len(sticky)).best(eligible)
    deepest = max(chosen, default=-1)
    chosen.update({index: economics.ttl_for(index) for index in sticky if index < deepest})
    if chosen or economics.client_breakpoints:
        use_free_slots(economics, chosen, eligible)
    if chosen:
        return make_plan(economics, chosen, None)
    return make_plan(economics, chosen, Reason.NOT_WORTH_IT if economics.in_flight < 0 else Reason.PENDING)


# -- the choice -------------------------------------------------------------------------------


class Choice:
    """The best breakpoints of one request for a number of slots."""

    def __init__(self, economics: RequestEconomics, slots: int) -> None:
        self._economics, self._slots = economics, slots

    def best(self, eligible: Sequence[int]) -> Chosen:
        """Return the best breakpoints over the entries that could be read, the deepest first.

        A shallower entry is tried only if reading the deeper one takes a scarce slot or a write that does not
        pay. It is then tried without the breakpoints that would find the deeper one.
        """
        economics = self._economics
        best_value, best = 0.0, Chosen()
        for hit in [*economics.cached[: -PLANNER.entries_tried - 1 : -1], -1]:
            value, chosen, scarce = self._plan_reading_from(hit, eligible)
            if value > best_value:
                best_value, best = value, chosen
            if not scarce or (hit >= 0 and economics.finds_entry(hit, economics.client_breakpoints)):
                break
            eligible = [index for index in eligible if hit < 0 or not economics.finds_entry(hit, (index,))]
        return best

    def _plan_reading_from(self, hit: int, eligible: Sequence[int]) -> tuple[float, Chosen, bool]:
        """Return the value and breakpoints of the best plan that reads the entry at `hit` (-1: no entry).

        The last item is True if the plan lacks a slot or a free way to that entry. The value is `NEVER` if
        there is no such plan.
        """
        economics, slots = self._economics, self._slots
        base, covered, double_write_cost = self._paid_anyway(hit)
        costs = economics.write_costs()
        past = economics.pareto_candidates([index for index in eligible if index > covered], costs)
        writing = best_segments(past, slots, base)
        free, finding = self._ways_to_entry(hit, eligible, covered, base, costs, past, writing)
        saved, before = self._value_of_refreshing(hit, eligible)
        keeping = best_segments(before, slots, 0.0)

        best: tuple[float, Chosen, bool] = (NEVER, {}, True)
        ways = [
            (gain, chosen, False)
            for gain, chosen in writing
            if hit < 0 or economics.finds_entry(hit, (*chosen, *economics.client_breakpoints))
        ]
        ways += [
            (gain, {index: economics.ttl_for(index), **chosen}, False)
            for index in free
            for gain, chosen in writing
        ]
        ways += [(gain, chosen, True) for gain, chosen in finding]
        for gain, chosen, forced in ways:
            left = slots - len(chosen)
            if left >= 0 and gain != NEVER:
                kept, below = keeping[min(left, len(keeping) - 1)]
                twice = double_write_cost if max(chosen, default=-1) > covered else 0.0
                value = saved + gain + kept - twice
                if value > best[0]:
                    best = (value, {**below, **chosen}, forced or len(below) == left)
        return best

    def _paid_anyway(self, hit: int) -> tuple[float, int, float]:
        """Return the tokens that are read or written in any case, the candidate up to there, and a surcharge.

        The client's own markers write up to `client_end`, so added breakpoints gain from there on. Another
        in-flight request is already writing up to `pending`. Writing it again costs the full premium but
        gains only the tokens beyond it.
        """
        economics, tokens = self._economics, self._economics.tokens
        start = tokens[hit] if hit >= 0 else 0.0
        client_end = max(
            (index for index in economics.client_breakpoints if economics.p_meets_minimum[index] > 0),
            default=-1,
        )
        base = max(start, tokens[client_end]) if client_end > hit else start
        pending, double_write_cost = economics.in_flight, 0.0
        if pending > hit and tokens[pending] > base and economics.p_meets_minimum[pending] > 0:
            double_write_cost = (tokens[pending] - base) * (economics.write_5m - 1 + PLANNER.margin_5m)
            base = tokens[pending]
        return base, max(hit, client_end, pending), double_write_cost

    def _ways_to_entry(
        self,
        hit: int,
        eligible: Sequence[int],
        covered: int,
        base: float,
        costs: tuple[float, float],
        past: Sequence[Candidate],
        writing: Sequence[tuple[float, Chosen]],
    ) -> tuple[list[int], list[tuple[float, Chosen]]]:
        """Return a free breakpoint that finds the entry, and choices that find it with a write.

        Both are empty if the client's breakpoints find the entry.
        """
        economics = self._economics
        if hit < 0 or economics.finds_entry(hit, economics.client_breakpoints):
            return [], []
        last = economics.forecasts[hit].block + economics.rules.provider.lookback
        within_lookback = [
            index for index in eligible if index >= hit and economics.forecasts[index].block < last
        ]
        free = [index for index in within_lookback if index <= covered][:1]
        paid = [economics.candidate(index, costs) for index in within_lookback if index > covered]
        finding: list[tuple[float, Chosen]] = []
        if paid and not (writing[1:] and economics.finds_entry(hit, writing[1][1])):
            required = {candidate.candidate_index for candidate in paid}
            finding = best_segments(sorted({*past, *paid}), self._slots, base, required)[1:]
        return free, finding

    def _value_of_refreshing(self, hit: int, eligible: Sequence[int]) -> tuple[float, list[Candidate]]:
        """Return the saving of reading and refreshing the entry at `hit`, and the candidates before it."""
        if hit < 0:
            return 0.0, []
        economics = self._economics
        saved, candidates = (1 - economics.read) * economics.tokens[hit], list[Candidate]()
        since, after = 0.0, -1
        for end in (*sorted(index for index in economics.client_breakpoints if index < hit), hit):
            refreshed = economics.value_5m[end], economics.value_1h[end]
            inner = [index for index in eligible if after < index < end]
            candidates += economics.pareto_candidates(inner, refreshed, since, refreshed=True)
            saved += refreshed[0] * (economics.tokens[end] - since)
            since, after = economics.tokens[end], end
        return saved, candidates


# -- free slots -------------------------------------------------------------------------------


def sticky_breakpoints(economics: RequestEconomics, eligible: Sequence[int]) -> list[int]:
    """Return the ends of the system section and of the first message after it, if two more slots remain.

    A gateway with sticky routing recognises a conversation by these messages. They look the same in every
    turn only if they are marked in all turns or in no turn.
    """
    parsed, forecasts = economics.parsed, economics.forecasts
    system = [index for index in eligible if parsed.tools_end <= forecasts[index].block < parsed.system_end]
    first = [
        index
        for index in eligible
        if (block := forecasts[index].block) >= parsed.system_end
        and parsed.items[block] == parsed.items[parsed.system_end]
    ]
    found = [*system[-1:], *first[-1:]]
    return found if economics.slots - len(found) >= 2 else []


def use_free_slots(economics: RequestEconomics, chosen: Chosen, eligible: Sequence[int]) -> None:
    """Add breakpoints for prefixes that other requests may share, within the tokens that are cached anyway.

    They cost nothing.
    """
    deepest = max((*chosen, *economics.client_breakpoints), default=-1)
    for index in shared_prefix_ends(economics, [index for index in eligible if index < deepest]):
        if len(chosen) >= economics.slots:
            return
        chosen.setdefault(index, economics.ttl_for(index))


def shared_prefix_ends(economics: RequestEconomics, indexes: Sequence[int]) -> list[int]:
    """Return the ends of the system section, of the latest two turns, of the tools, and of the first turn."""
    parsed = economics.parsed
    blocks = [economics.forecasts[index].block for index in indexes]
    tools, system = bisect_left(blocks, parsed.tools_end), bisect_left(blocks, parsed.system_end)

    def ends_turn(index: int) -> bool:
        return _ends_turn(parsed, economics.forecasts[index].block)

    return [
        *indexes[tools:system][-1:],
        *islice(filter(ends_turn, reversed(indexes[system:])), 2),
        *indexes[:tools][-1:],
        *islice(filter(ends_turn, indexes[system:]), 1),
    ]


def _ends_turn(parsed: ParsedRequest, block: int) -> bool:
    """Return True if a request could have ended with this block."""
    blocks = parsed.blocks
    return (
        block >= parsed.system_end
        and blocks[block].role != "assistant"
        and (block + 1 == len(blocks) or blocks[block + 1].role == "assistant")
    )


# -- the plan ---------------------------------------------------------------------------------


def make_plan(economics: RequestEconomics, chosen: Chosen, skipped: Reason | None) -> Plan:
    """Return the plan of the chosen breakpoints and the client's own, with its expected tokens."""
    tokens = economics.tokens
    points = {**chosen, **economics.client_breakpoints}
    # Providers refuse 5m before 1h, so each chosen breakpoint before a 1h one becomes 1h.
    last_1h = max((index for index, ttl in points.items() if ttl == "1h"), default=-1)
    points.update({index: "1h" for index in chosen if index < last_1h})
    indexes = sorted(points)
    hit = next((index for index in reversed(economics.cached) if economics.finds_entry(index, indexes)), -1)
    start = tokens[hit] if hit >= 0 else 0.0
    written = [index for index in indexes if index > hit and tokens[index] >= economics.rules.minimum]
    end = tokens[written[-1]] if written else start
    end_1h = max((tokens[index] for index in written if points[index] == "1h"), default=start)
    return Plan(
        breakpoints=tuple([_breakpoint(economics, index, points[index], hit, indexes) for index in indexes]),
        cache_read=round(start),
        cache_write_5m=round(end - end_1h),
        cache_write_1h=round(end_1h - start),
        uncached=round(economics.total - end),
        skipped=skipped,
        hit=economics.forecasts[hit].block if hit >= 0 else None,
    )


def _breakpoint(
    economics: RequestEconomics, index: int, ttl: Ttl, hit: int, indexes: Sequence[int]
) -> Breakpoint:
    """Return the breakpoint at a candidate with its reason."""
    parsed, block = economics.parsed, economics.forecasts[index].block
    from_client = index in economics.client_breakpoints
    if from_client:
        reason = Reason.CLIENT
    elif index == hit and not economics.finds_entry(hit, [other for other in indexes if other != hit]):
        reason = Reason.ANCHOR
    elif block + 1 == parsed.tools_end:
        reason = Reason.TOOLS
    elif block + 1 == parsed.system_end:
        reason = Reason.SYSTEM
    elif index == indexes[-1]:
        reason = Reason.TAIL
    else:
        reason = Reason.EARLIER if _ends_turn(parsed, block) else Reason.BRANCH
    return Breakpoint(parsed.path(block), block, ttl, round(economics.tokens[index]), reason, from_client)
