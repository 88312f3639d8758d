"""Which breakpoints a request gets, from given chances; and that none are better, by trying all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachemw.core.planner import planner as module
from cachemw.core.planner.economics import RequestEconomics
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.planner.planner import Choice, plan
from cachemw.core.request.message_blocks import Block
from cachemw.core.request.parser import ParsedRequest, Parser
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Kind, MarkPolicy, Model, Rules, Ttl
from cachemw.core.tuning import PLANNER
from tests.tuned import tuned

EXACT = Calibration(1.0, 0.0)
ON: dict[Kind, MarkPolicy] = dict.fromkeys(Kind, "on")


def rules(
    lookback: int = 20,
    minimum: int = 0,
    ttl: Literal["5m", "1h", "auto"] = "5m",
    model: str = "claude-sonnet-4-6",
) -> Rules:
    """Return Databricks' rules for a model: read 0.1, 5m 1.25, 1h 2, unless it is another."""
    found = resolve("databricks", model, ttl=ttl, minimum=minimum)
    assert found is not None
    return replace(found, provider=replace(found.provider, lookback=lookback))


@dataclass
class B:
    """One block of a case: tokens, chances, the entry's TTL, and what may stand on it."""

    tokens: float = 1000
    chance: float = 0.5
    hour: float = 0.5
    living: Ttl | None = None
    role: str = "user"
    kind: Kind = Kind.TEXT
    markable: bool = True
    marker: Ttl | None = None
    more: float = 99.0


def case(
    blocks: Sequence[B],
    tools: int = 0,
    system: int = 0,
    automatic: Ttl | None = None,
    owned: int | None = None,
) -> tuple[ParsedRequest, list[PrefixForecast]]:
    """Return a request of these blocks, each watched."""
    parsed = ParsedRequest(
        "chat", "m", tools_end=tools, system_end=max(system, tools), automatic_marker=automatic
    )
    for number, b in enumerate(blocks):
        role = "tool" if number < tools else "system" if number < system else b.role
        parsed.blocks.append(
            Block(role, b.kind, ("content",), bytes([number]) * 16, b.tokens, b.markable, b.marker)
        )
        parsed.items.append(number)
    parsed.client_marker_count = (
        sum(b.marker is not None for b in blocks) + (automatic is not None) if owned is None else owned
    )
    depths = [
        PrefixForecast(number, b.chance, b.more, b.hour, b.more, b.living) for number, b in enumerate(blocks)
    ]
    return parsed, depths


def planned(
    blocks: Sequence[B], *, calibration: Calibration = EXACT, kinds: Mapping[Kind, MarkPolicy] = ON, tools: int = 0, system: int = 0,
    automatic: Ttl | None = None, owned: int | None = None, **rest: Any,
) -> Plan:  # fmt: skip
    """Plan a case."""
    return plan(*case(blocks, tools, system, automatic, owned), rules(**rest), calibration, kinds)


def marks(found: Plan) -> dict[int, Ttl]:
    """Return our breakpoints, block to TTL."""
    return {point.block: point.ttl for point in found.added}


# -- single rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "written"), [(0.0, False), (0.2, False), (0.24, False), (0.25, True), (0.9, True)]
)
def test_a_write_must_pay(chance: float, written: bool) -> None:
    """At 1.25 and 0.1 writing pays from a chance of 0.217 on, and a margin of 3 % above it."""
    found = planned([B(chance=chance)])
    assert bool(found.added) is written
    assert found.skipped is (None if written else Reason.NOT_WORTH_IT)
    assert (found.cache_write_5m, found.uncached) == ((1000, 0) if written else (0, 1000))


@pytest.mark.parametrize(
    ("model", "chance", "written"),
    [
        ("claude-opus-5-5", 0.23, False),
        ("claude-opus-5-5", 0.24, True),
        ("claude-fable-5-1", 0.23, True),
        ("claude-fable-5-1", 0.22, False),
    ],
)
def test_what_pays_depends_on_the_models_prices(model: str, chance: float, written: bool) -> None:
    """A cheaper read makes a rarer reuse pay: (0.25 + 0.03) / (1.25 - read)."""
    assert bool(planned([B(chance=chance)], model=model).added) is written


def test_a_head_that_is_shared_and_a_tail_that_is_not() -> None:
    """Only what will be read is written: the breakpoint stands where the chance ends."""
    found = planned([B(chance=0.9), B(chance=0.9), B(chance=0.05)])
    assert max(marks(found)) == 1
    assert (found.cache_write_5m, found.uncached) == (2000, 1000)


def test_at_most_four() -> None:
    """Four, less the client's own."""
    blocks = [B(chance=0.95 - n / 20) for n in range(10)]
    assert len(planned(blocks).added) == 4
    for own in range(6):
        mine = [replace(b, marker="5m" if n < own else None) for n, b in enumerate(blocks)]
        found = planned(mine)
        assert len(found.added) == max(0, 4 - own)
        assert len(found.breakpoints) == len(found.added) + own
        assert [point.block for point in found.breakpoints if point.from_client] == list(range(own))
        assert (found.skipped is Reason.NO_SLOT) is (own >= 4)


def test_markers_that_stand_nowhere_take_slots() -> None:
    """A marker of the client's that is on no block of ours still counts."""
    blocks = [B(chance=0.95 - n / 20) for n in range(10)]
    assert [len(planned(blocks, owned=n).added) for n in range(6)] == [4, 3, 2, 1, 0, 0]


@pytest.mark.parametrize(
    ("block", "kinds", "reason"),
    [
        (B(chance=0.9, markable=False), ON, Reason.NOTHING_MARKABLE),
        (B(chance=0.9, kind=Kind.OPAQUE), {**ON, Kind.OPAQUE: "off"}, Reason.NOTHING_MARKABLE),
        (B(chance=0.9, kind=Kind.REASONING), {**ON, Kind.REASONING: "learn"}, Reason.NOTHING_MARKABLE),
        (B(chance=0.9, kind=Kind.TOOL_RESULT), {**ON, Kind.TOOL_RESULT: "off"}, Reason.NOTHING_MARKABLE),
        (B(chance=0.9, tokens=99), ON, Reason.BELOW_MINIMUM),
    ],
)
def test_where_nothing_may_stand(block: B, kinds: Mapping[Kind, MarkPolicy], reason: Reason) -> None:
    """Neither what can't be marked, nor what is off, nor what is too short, is ever marked."""
    found = planned([block], kinds=kinds, minimum=100)
    assert (found.breakpoints, found.skipped) == ((), reason)


def test_the_minimum_by_estimate_and_error() -> None:
    """Marked where the estimate can reach the minimum; expected to be written where it does."""
    for tokens, spread, marked in (
        (1000, 0.0, True),
        (999, 0.0, False),
        (800, 0.3, True),
        (760, 0.3, False),
        (1300, 0.3, True),
    ):
        found = planned([B(tokens=tokens, chance=0.9)], minimum=1000, calibration=Calibration(1.0, spread))
        assert bool(found.added) is marked, (tokens, spread)
        assert found.cache_write_5m == (tokens if marked and tokens >= 1000 else 0)
    assert planned([B(tokens=800, chance=0.9)], minimum=1000, calibration=Calibration(1.25, 0.0)).added


def test_scarce_slots_go_where_the_minimum_is_sure() -> None:
    """Of two heads with the same promise, the one that surely counts."""
    blocks = [B(tokens=800, chance=0.9), B(tokens=1000, chance=0.9), B(chance=0.0)]
    assert marks(planned(blocks, minimum=1000, calibration=Calibration(1.0, 0.3), owned=3)) == {1: "5m"}


@pytest.mark.parametrize(
    ("distance", "marked", "read"),
    [(18, {18}, True), (19, {19}, True), (20, {0, 20}, True), (35, {0, 35}, True)],
)
def test_the_anchor_at_the_edge_of_the_lookback(distance: int, marked: set[int], read: bool) -> None:
    """A window holds twenty positions, the breakpoint's own being the first: from 20 on the entry needs its own."""
    blocks = [
        B(chance=0.9, living="5m"),
        *[B(chance=0.0, markable=False) for _ in range(distance - 1)],
        B(chance=0.9),
    ]
    found = planned(blocks)
    assert set(marks(found)) == marked
    assert (found.hit == 0, found.cache_read) == (read, 1000 if read else 0)
    if len(marked) == 2:
        assert [point.reason for point in found.added] == [Reason.ANCHOR, Reason.TAIL]


def test_an_anchor_that_is_no_block_of_ours() -> None:
    """Where the entry's own block can't be marked, the next within the window finds it; beyond it none can."""

    def blocks(at: int) -> list[B]:
        middle = [B(tokens=10, chance=0.0, markable=n == at) for n in range(1, 30)]
        return [B(tokens=9000, chance=0.9, living="5m", markable=False), *middle, B(chance=0.9)]

    assert set(marks(planned(blocks(19)))) == {19, 30}
    assert planned(blocks(19)).cache_read == 9000
    assert set(marks(planned(blocks(20)))) == {20, 30} - {20} or planned(blocks(20)).cache_read == 0


def test_an_anchor_dearer_than_what_it_finds() -> None:
    """An entry that could only be found by writing much more for nobody is left."""
    blocks = [B(tokens=100, chance=0.0, living="5m", markable=False), B(tokens=90_000, chance=0.0)]
    assert planned(blocks).added == ()


def test_the_deepest_living_entry_is_read() -> None:
    """Of several, the deepest within reach is the hit, and what is past it is written."""
    found = planned([B(chance=0.9, living="5m"), B(chance=0.9, living="5m"), B(chance=0.9)])
    assert (found.hit, found.cache_read, found.cache_write_5m, found.uncached) == (1, 2000, 1000, 0)


def test_nothing_is_written_at_or_under_the_hit() -> None:
    """A breakpoint there is free, whatever its chance."""
    found = planned([B(chance=0.9), B(chance=0.5), B(chance=0.5, living="5m")])
    assert (found.cache_read, found.cache_write_5m, found.cache_write_1h) == (3000, 0, 0)
    assert found.added


def test_a_prompt_that_is_all_read() -> None:
    """An exact repeat is read whole, by a breakpoint at its end."""
    found = planned([B(chance=0.0), B(chance=0.0, living="5m")])
    assert (found.cache_read, found.uncached) == (2000, 0)
    assert found.hit == 1


# -- the client's own -----------------------------------------------------------------------------


def test_the_clients_own_are_part_of_the_plan() -> None:
    """They keep their TTL and place, find entries, and write what they write."""
    found = planned([B(chance=0.0, marker="1h"), B(chance=0.0, marker="5m"), B(chance=0.0)])
    assert [(p.block, p.ttl, p.from_client, p.reason) for p in found.breakpoints] == [
        (0, "1h", True, Reason.CLIENT),
        (1, "5m", True, Reason.CLIENT),
    ]
    assert (found.cache_write_1h, found.cache_write_5m, found.uncached) == (1000, 1000, 1000)
    assert found.skipped is Reason.NOT_WORTH_IT
    found = planned([B(chance=0.0, living="5m"), B(chance=0.0, marker="5m")])
    assert (found.hit, found.cache_read, found.cache_write_5m) == (0, 1000, 1000)


def test_ours_go_beyond_the_clients() -> None:
    """What the client writes is paid anyway; ours pay from there."""
    found = planned([B(chance=0.1, marker="5m"), B(chance=0.9)])
    assert marks(found) == {1: "5m"}


@pytest.mark.parametrize("ttl", ["5m", "1h", "auto"])
@pytest.mark.parametrize(
    "own",
    [
        (None, "1h", None, "5m", None),
        ("5m", None, None, None, None),
        (None, None, None, None, "1h"),
        (None, None, None, "1h", "1h"),
    ],
)
def test_long_ones_come_first(own: Sequence[Ttl | None], ttl: Literal["5m", "1h", "auto"]) -> None:
    """No 1h breakpoint after a 5m one, whosever they are."""
    blocks = [
        B(chance=0.9, hour=0.95, marker=marker, living="1h" if n == 1 else None)
        for n, marker in enumerate(own)
    ]
    found = planned([*blocks, B(chance=0.9, hour=0.95)], ttl=ttl)
    assert found.added
    ttls = [point.ttl for point in found.breakpoints]
    assert ttls == sorted(ttls)  # "1h" before "5m"
    assert {p.block: p.ttl for p in found.breakpoints if p.from_client} == {
        n: m for n, m in enumerate(own) if m
    }


@pytest.mark.parametrize("ttl", ["5m", "1h", "auto"])
@pytest.mark.parametrize("living", [None, "5m", "1h"])
def test_none_where_no_ttl_is_right(ttl: Literal["5m", "1h", "auto"], living: Ttl | None) -> None:
    """Between a 5m marker of the client's and a later 1h one, which a gateway may overlook, none is ours."""
    blocks = [B(chance=0.9, hour=0.95, marker=own) for own in (None, "5m", None, None, "1h", None)]
    blocks[2] = B(chance=0.9, hour=0.95, living=living)
    found = marks(planned(blocks, ttl=ttl, tools=3))  # the last tool would have a slot that is left
    assert found[5] == "5m"
    assert found.get(0, "1h") == "1h"
    assert not {2, 3} & found.keys()


def test_a_marker_at_the_top_stands_on_the_last_block() -> None:
    """Automatic caching is a breakpoint of the client's on the last block: never ours too."""
    found = planned([B(chance=0.9), B(chance=0.9)], automatic="5m")
    assert [(p.block, p.from_client) for p in found.breakpoints][-1] == (1, True)
    assert found.cache_write_5m == 2000
    assert 1 not in marks(found)


@pytest.mark.parametrize(
    "last",
    [B(kind=Kind.TEXT, markable=False), B(kind=Kind.REASONING), B(kind=Kind.REASONING, markable=False)],
)
def test_a_marker_at_the_top_walks_back(last: B) -> None:
    """Where the last block takes none, the provider's automatic marker stands on the one before it."""
    found = planned(
        [B(chance=0.9), B(chance=0.9), last], automatic="1h", ttl="5m", kinds={**ON, Kind.REASONING: "off"}
    )
    assert [(p.block, p.ttl) for p in found.breakpoints if p.from_client] == [(1, "1h")]
    assert set(marks(found).values()) <= {"1h"}


# -- TTLs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ttl", "chance", "hour", "chosen"),
    [
        ("5m", 0.5, 1.0, "5m"), ("1h", 0.5, 0.9, "1h"), ("auto", 0.5, 0.9, "1h"), ("auto", 0.5, 0.65, "5m"), ("auto", 0.9, 0.91, "5m"),
        ("auto", 0.05, 0.9, "1h"), ("5m", 0.05, 0.9, None), ("1h", 0.3, 0.4, None), ("auto", 0.3, 0.4, "5m"),
    ],
)  # fmt: skip
def test_which_ttl(ttl: Literal["5m", "1h", "auto"], chance: float, hour: float, chosen: Ttl | None) -> None:
    """An hour pays where enough of what isn't back in five minutes is back within it: 0.395 of it, and a margin."""
    found = marks(planned([B(chance=chance, hour=hour)], ttl=ttl))
    assert found == ({} if chosen is None else {0: chosen})


def test_heads_for_an_hour_tails_for_minutes() -> None:
    """With both allowed, the shared head lives long and the conversation's tail short."""
    found = planned([B(chance=0.5, hour=0.99), B(chance=0.6, hour=0.61)], ttl="auto")
    assert marks(found) == {0: "1h", 1: "5m"}
    assert (found.cache_write_1h, found.cache_write_5m) == (1000, 1000)


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_one_ttl_is_kept_everywhere(ttl: Literal["5m", "1h"]) -> None:
    """A fixed TTL is every breakpoint's, the anchor's and those under the hit too."""
    blocks = [
        B(chance=0.9),
        B(chance=0.8),
        B(chance=0.7, living=ttl, markable=False),
        B(chance=0.0),
        *[B(chance=0.0, markable=False)] * 25,
        B(chance=0.6, hour=0.8),
    ]
    found = planned(blocks, ttl=ttl, system=1)
    assert len(found.added) > 2
    assert {point.ttl for point in found.added} == {ttl}


# -- reasons and words ----------------------------------------------------------------------------


def test_why_each_is_there() -> None:
    """Each breakpoint says why it is where it is; spare ones go to the ends of sections and turns."""
    roles = ["", "", "", "user", "assistant", "user", "assistant", "user"]
    blocks = [B(chance=0.9, role=role, living="5m" if n == 5 else None) for n, role in enumerate(roles)]
    found = planned(blocks, tools=2, system=3)
    reasons = {point.block: point.reason for point in found.added}
    assert reasons[7] is Reason.TAIL
    assert reasons[2] is Reason.SYSTEM
    assert len(reasons) == 4
    assert set(reasons.values()) <= {Reason.TAIL, Reason.SYSTEM, Reason.TOOLS, Reason.EARLIER, Reason.BRANCH}


def test_spare_slots_cost_nothing() -> None:
    """What is added for shared heads is within what is read or written anyway."""
    few, many = [B(chance=0.9)] * 3, [B(chance=0.9)] * 3
    found = planned(few, tools=1, system=2)
    assert set(marks(found)) == {0, 1, 2}
    assert (found.cache_write_5m, found.uncached) == (3000, 0)
    assert planned([*many, B(chance=0.0)], tools=1, system=2).uncached == 1000


def test_the_words() -> None:
    """A plan says in sentences what is expected and why."""
    assert (
        planned([B(chance=0.0)]).explain()
        == "No breakpoint: what could be written is not likely enough to be read again."
    )
    text = planned([B(chance=0.9, living="5m"), B(chance=0.9)], tools=1).explain()
    assert "Expected: 1000 tokens read, 1000 written, 0 plain." in text
    assert (
        "messages.1.content (5m, 2000 tokens): the conversation up to here is likely to be sent again."
        in text
    )
    assert (
        planned([B(chance=0.0, marker="5m"), B(chance=0.0)])
        .explain()
        .endswith("None of ours: what could be written is not likely enough to be read again.")
    )
    for reason in Reason:
        assert Plan(skipped=reason).explain().startswith("No breakpoint: ")


def test_tokens_are_kept_whole() -> None:
    """What is read, written and plain is the whole request."""
    found = planned(
        [B(tokens=333.3, chance=0.9, living="5m"), B(tokens=333.3, chance=0.9), B(tokens=333.3, chance=0.0)],
        calibration=Calibration(1.1, 0.0),
    )
    assert abs(found.cache_read + found.cache_write_5m + found.cache_write_1h + found.uncached - 1100) <= 2


# -- all of them tried ----------------------------------------------------------------------------

MARGIN: dict[Ttl, float] = {"5m": PLANNER.margin_5m, "1h": PLANNER.margin_1h}


class Economics:
    """What a set of breakpoints is worth, by the words of the planner's docstring."""

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
        """Return what a token of a segment that ends here gains by standing in a living entry."""
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
        """Return what reading saves now, what writing promises, and what is kept alive."""
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
        if hit >= 0:  # what is kept alive: the hit by being read, heads by breakpoints under it
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
    # Where an entry lives the minimum is no question but for the heads under it.
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


@settings(max_examples=400, deadline=None)
@given(small_cases(), st.integers(0, 3))
@example(([B(1000, 0.9, living="5m"), B(10, 0.0), B(10, 0.5)], rules(2), EXACT), 0)
def test_nothing_is_better(drawn: tuple[list[B], Rules, Calibration], owned: int) -> None:
    """On small cases the planner's value is the best of all sets of breakpoints, with any number of slots."""
    compare(*drawn, owned)


@settings(max_examples=300, deadline=None)
@given(small_cases(own=True))
def test_nothing_is_better_beside_the_clients(drawn: tuple[list[B], Rules, Calibration]) -> None:
    """So it is where the client has set some of its own."""
    compare(*drawn)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.builds(
        B, st.sampled_from([0.0, 1.0, 500.0, 3000.0]), CHANCES, CHANCES, st.sampled_from([None, None, "5m", "1h"]), st.sampled_from(["user", "assistant"]),
        st.sampled_from(list(Kind)), st.booleans(), st.sampled_from([None] * 6 + ["5m", "1h"]), st.sampled_from([0.0, 9.0]),
    ), min_size=1, max_size=60),
    st.integers(0, 5), st.integers(0, 9), st.sampled_from([None, None, "5m", "1h"]), st.sampled_from(["5m", "1h", "auto"]),
    st.sampled_from([0, 1024]), st.sampled_from([0.0, 0.3]), st.dictionaries(st.sampled_from(list(Kind)), st.sampled_from(["on", "off", "learn"])),
)  # fmt: skip
def test_any_plan_is_one_that_a_provider_takes(
    blocks: list[B], tools: int, system: int, automatic: Ttl | None, ttl: Any, minimum: int, spread: float, off: dict[Kind, MarkPolicy]
) -> None:  # fmt: skip
    """Never over the slots, never 1h after 5m unless the client's own are, never on what takes none; tokens add up."""
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
def test_many_different_chances_are_few_candidates(rising: bool, living: int) -> None:
    """Where chances differ at each of 88 depths only so many are weighed, and next to nothing is lost."""
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


def test_a_long_request_is_planned_soon() -> None:
    """A thousand blocks with everything watched take no time that grows with the number of choices."""
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
