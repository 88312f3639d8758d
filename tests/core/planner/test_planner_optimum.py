"""The planner's choice compared with all other choices, on small and on random requests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from benchmarks.tuned import tuned
from cachemw.core.planner import planner as module
from cachemw.core.planner.economics import RequestEconomics
from cachemw.core.planner.planner import Choice, plan
from cachemw.core.request.parser import ParsedRequest, Parser
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.types import Kind, MarkPolicy, Model, Rules, Ttl
from cachemw.core.tuning import PLANNER
from tests.core.planner.cases import EXACT, ON, B, case, planned, rules

EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
MARGIN: dict[Ttl, float] = {"5m": PLANNER.margin_5m, "1h": PLANNER.margin_1h}


class Economics:
    """The value of a set of breakpoints, by the planner's docstring."""

    def __init__(
        self, parsed: ParsedRequest, depths: Sequence[PrefixForecast], rules_: Rules, calibration: Calibration
    ) -> None:
        self.depths, self.lookback = depths, rules_.provider.lookback
        self.tokens = list(itertools.accumulate(block.size * calibration.scale for block in parsed.blocks))
        self.write: dict[Ttl, float] = {"5m": 1.25, "1h": 2.0}
        self.read = 0.1
        self.own = {n: block.marker for n, block in enumerate(parsed.blocks) if block.marker}
        self.slots = rules_.provider.max_markers - parsed.client_marker_count
        self.reach = []
        for tokens in self.tokens:
            low, high = tokens * (1 - calibration.spread), tokens * (1 + calibration.spread)
            inside = (high - rules_.minimum) / (high - low) if high > low else 0.0
            known = any(depth.cached_ttl for depth in depths[: len(self.reach) + 1])
            self.reach.append(1.0 if known or low >= rules_.minimum else max(0.0, inside))

    def worth(self, place: int, ttl: Ttl) -> float:
        """Return the gain of a token in a cached entry that ends here."""
        depth = self.depths[place]
        chance, more = (
            (depth.p_reuse_5m, depth.further_reads_5m)
            if ttl == "5m"
            else (depth.p_reuse_1h, depth.further_reads_1h)
        )
        return chance * min(self.write[ttl] - self.read, (1 + more) * (1 - self.read))

    def hit(self, places: Iterator[int] | Sequence[int]) -> int:
        """Return the deepest living entry in the window of any breakpoint, -1 for none."""
        windows = {n for place in places for n in range(max(0, place - self.lookback + 1), place + 1)}
        return max((n for n in windows if self.depths[n].cached_ttl), default=-1)

    def value(self, chosen: Mapping[int, Ttl]) -> float:
        """Return the saving of reading now, of writing, and of refreshing."""
        hit = self.hit([*chosen, *self.own])
        own_end = max((place for place in self.own if self.reach[place]), default=-1)
        start = self.tokens[hit] if hit >= 0 else 0.0
        total = (1 - self.read) * start
        last = max(start, self.tokens[own_end]) if own_end > hit else start
        for place in sorted(chosen):
            if place > max(hit, own_end):
                ttl = chosen[place]
                gain = self.worth(place, ttl) - (self.write[ttl] - 1 + MARGIN[ttl])
                total += gain * self.reach[place] * (self.tokens[place] - last)
                last = self.tokens[place]
        if hit >= 0:  # refreshed: the hit by being read, heads by breakpoints under it
            kept, last = sorted({*(place for place in self.own if place < hit), hit}), 0.0
            for place in sorted({*(place for place in chosen if place < hit), *kept}):
                anyway = self.worth(next(k for k in kept if k >= place), "5m")
                more = (self.worth(place, "5m") - anyway) * self.reach[place]
                total += (anyway + more) * (self.tokens[place] - last)
                last = self.tokens[place]
        return total

    def best(self, places: Sequence[int], ttls: Sequence[Ttl]) -> tuple[float, Mapping[int, Ttl]]:
        """Try every set of breakpoints and every order of TTLs that a provider takes."""
        tried = [
            dict(zip(chosen, assigned, strict=True))
            for count in range(self.slots + 1)
            for chosen in itertools.combinations(places, count)
            for assigned in itertools.product(ttls, repeat=count)
            if list(assigned) == sorted(assigned)
        ]
        return max(((self.value(chosen), chosen) for chosen in tried), key=lambda found: found[0])


CHANCES = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0])


@st.composite
def small_cases(draw: st.DrawFn, own: bool = False) -> tuple[list[B], Rules, Calibration]:
    """Draw a request of at most ten blocks, three of them living at most, and rules with a short lookback.

    Chances fall with depth: whatever comes again with a prefix comes with all shorter ones.
    """
    count, more = draw(st.integers(1, 10)), draw(st.sampled_from([99.0, 0.0, 0.2]))
    chances = sorted(draw(st.lists(CHANCES, min_size=count, max_size=count)), reverse=True)
    late = sorted(draw(st.lists(CHANCES, min_size=count, max_size=count)), reverse=True)
    blocks = []
    for chance, hour in zip(chances, late, strict=True):
        tokens = draw(st.sampled_from([10, 100, 300, 1000]))
        blocks.append(B(tokens, chance, max(chance, hour), markable=draw(st.integers(0, 5)) > 0, more=more))
    for _ in range(draw(st.integers(0, 3))):
        chosen = blocks[draw(st.integers(0, len(blocks) - 1))]
        chosen.living, chosen.markable = "5m", True  # an entry stands where a breakpoint could
    if own:
        for _ in range(draw(st.integers(1, 3))):
            blocks[draw(st.integers(0, len(blocks) - 1))].marker = "5m"
    ttl = draw(st.sampled_from(["5m", "5m", "auto"])) if not own else "5m"
    found = rules(draw(st.integers(1, 6)), draw(st.sampled_from([0, 0, 400, 1500])), ttl)
    # A cached entry proves the minimum, except for prefixes before it.
    spread = 0.0 if any(block.living for block in blocks) else draw(st.sampled_from([0.0, 0.3]))
    return blocks, found, Calibration(1.0, spread)


def compare(blocks: list[B], rules_: Rules, calibration: Calibration, owned: int = 0) -> None:
    """Hold the planner's choice, before spare slots are used, against every other."""
    parsed, depths = case(blocks)
    parsed.client_marker_count += owned
    request = RequestEconomics(parsed, depths, rules_, calibration)
    economics = Economics(parsed, depths, rules_, calibration)
    reaching = [index for index in request.markable(ON) if request.p_meets_minimum[index] > 0]
    if economics.slots <= 0:
        return
    with tuned("planner.telling_difference", 0.0):
        chosen = Choice(request, request.slots).best(reaching)
    ttls: list[Ttl] = ["5m"] if rules_.ttl == "5m" else ["1h", "5m"]
    value, best = economics.best(reaching, ttls)
    assert economics.value(chosen) == pytest.approx(
        value, abs=1e-6 * max(1.0, sum(b.tokens for b in blocks))
    ), (chosen, best)
    assert len(chosen) <= economics.slots


@settings(max_examples=EXAMPLES, deadline=None)
@given(small_cases(), st.integers(0, 3))
@example(([B(1000, 0.9, living="5m"), B(10, 0.0), B(10, 0.5)], rules(2), EXACT), 0)
def test_plan_is_the_best_of_all_choices(drawn: tuple[list[B], Rules, Calibration], owned: int) -> None:
    """On small cases the planner's value is the best of all sets of breakpoints, with any number of slots."""
    compare(*drawn, owned)


@settings(max_examples=EXAMPLES, deadline=None)
@given(small_cases(own=True))
def test_plan_beside_client_breakpoints_is_the_best_of_all_choices(
    drawn: tuple[list[B], Rules, Calibration],
) -> None:
    """The plan is also the best if the client has set breakpoints of its own."""
    compare(*drawn)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.builds(
        B, st.sampled_from([0.0, 1.0, 500.0, 3000.0]), CHANCES, CHANCES, st.sampled_from([None, None, "5m", "1h"]), st.sampled_from(["user", "assistant"]),
        st.sampled_from(list(Kind)), st.booleans(), st.sampled_from([None] * 6 + ["5m", "1h"]), st.sampled_from([0.0, 9.0]),
    ), min_size=1, max_size=60),
    st.integers(0, 5), st.integers(0, 9), st.sampled_from([None, None, "5m", "1h"]), st.sampled_from(["5m", "1h", "auto"]),
    st.sampled_from([0, 1024]), st.sampled_from([0.0, 0.3]), st.dictionaries(st.sampled_from(list(Kind)), st.sampled_from(["on", "off", "learn"])),
)  # fmt: skip
def test_any_plan_keeps_the_providers_rules(
    blocks: list[B], tools: int, system: int, automatic: Ttl | None, ttl: Any, minimum: int, spread: float, off: dict[Kind, MarkPolicy]
) -> None:  # fmt: skip
    """A plan keeps to the slots, the order of TTLs and the markable blocks, and its tokens add up."""
    short = False
    for block in blocks:  # the client's own are in an order that is taken
        short = short or block.marker == "5m"
        block.marker = "5m" if short and block.marker else block.marker
        block.markable = block.markable or block.marker is not None
    if automatic:
        automatic, blocks[-1] = "5m" if short else automatic, B()
    kinds: dict[Kind, MarkPolicy] = {**ON, **off}
    found = planned(blocks, tools=min(tools, len(blocks)), system=min(system, len(blocks)), automatic=automatic, ttl=ttl,
                    minimum=minimum, calibration=Calibration(1.0, spread), kinds=kinds)  # fmt: skip
    own = sum(block.marker is not None for block in blocks) + (automatic is not None)
    assert len(found.added) <= max(0, 4 - own)
    assert [p.block for p in found.breakpoints] == sorted({p.block for p in found.breakpoints})
    ttls = [point.ttl for point in found.breakpoints]
    assert ttls == sorted(ttls)
    for point in found.added:
        block = blocks[point.block]
        assert block.markable
        assert block.marker is None
        assert kinds[block.kind] == "on"
        assert (
            point.ttl == "5m"
            or ttl != "5m"
            or any(p.from_client and p.ttl == "1h" and p.block > point.block for p in found.breakpoints)
        )
    assert (
        abs(
            found.cache_read
            + found.cache_write_5m
            + found.cache_write_1h
            + found.uncached
            - sum(b.tokens for b in blocks)
        )
        <= 2
    )
    assert min(found.cache_read, found.cache_write_5m, found.cache_write_1h, found.uncached) >= 0
    assert bool(found.added) is not bool(found.skipped)
    if found.hit is not None:
        assert any(0 <= p.block - found.hit < 20 for p in found.breakpoints)
        assert blocks[found.hit].living
    assert found.explain()


@pytest.mark.parametrize(("rising", "living"), [(True, 0), (True, 10), (False, 10)])
def test_many_different_probabilities_give_few_candidates(rising: bool, living: int) -> None:
    """With another probability at each of 88 depths few candidates are compared, at almost no loss."""
    late = sorted((0.3 + n / 130 for n in range(88)), reverse=not rising)
    blocks = [B(100, 0.98 - n / 130, max(0.98 - n / 130, late[n])) for n in range(88)]
    if living:
        blocks[living].living = "1h"
    found_rules, counts, kept = rules(ttl="auto"), list[int](), module.best_segments
    parsed, depths = case(blocks)
    economics = Economics(parsed, depths, found_rules, EXACT)

    def counted(candidates: Any, *rest: Any) -> Any:
        counts.append(len(candidates))
        return kept(candidates, *rest)

    def chosen() -> tuple[float, int]:
        counts.clear()
        request = RequestEconomics(parsed, depths, found_rules, EXACT)
        value = economics.value(Choice(request, request.slots).best(request.markable(ON)))
        return value, max(counts)

    with mock.patch.object(module, "best_segments", counted):
        value, most = chosen()
        with tuned("planner.max_candidates", 1000):
            best, unbounded = chosen()
    assert most <= 24 + 20 < unbounded
    assert best * 0.99 <= value <= best * 1.001


def test_long_request_is_planned_in_bounded_time() -> None:
    """A thousand tracked blocks take no time that grows with the number of choices."""
    import time

    parsed = Parser().parse(
        {"model": "m", "messages": [{"role": "user", "content": f"{n} " * 50} for n in range(1000)]},
        Model("m", 0, None),
    )
    depths = [
        PrefixForecast(n, 0.9 - n / 2000, 9.0, 0.95 - n / 2000, 9.0, "5m" if n % 100 == 0 else None)
        for n in range(1000)
    ]
    started = time.perf_counter()
    plan(parsed, depths[:90], rules(ttl="auto"), Calibration(1.0, 0.3), ON)
    assert time.perf_counter() - started < 5
