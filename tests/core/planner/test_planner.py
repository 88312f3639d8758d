"""The breakpoints of a request for given forecasts, rule by rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import pytest

from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request.tokens import Calibration
from cachemw.core.rules.types import Kind, MarkPolicy, Ttl
from tests.core.planner.cases import ON, B, marks, planned

# -- single rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chance", "written"), [(0.0, False), (0.2, False), (0.24, False), (0.25, True), (0.9, True)]
)
def test_write_pays_above_the_break_even(chance: float, written: bool) -> None:
    """At 1.25 and 0.1 a write pays from p = 0.217 on, plus a margin of 3 %."""
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
def test_break_even_depends_on_the_read_price(model: str, chance: float, written: bool) -> None:
    """A cheaper read makes a rarer reuse pay: (0.25 + 0.03) / (1.25 - read)."""
    assert bool(planned([B(chance=chance)], model=model).added) is written


def test_unshared_tail_stays_uncached() -> None:
    """The breakpoint stands at the last prefix that is likely to be read again."""
    found = planned([B(chance=0.9), B(chance=0.9), B(chance=0.05)])
    assert max(marks(found)) == 1
    assert (found.cache_write_5m, found.uncached) == (2000, 1000)


def test_breakpoints_are_at_most_four() -> None:
    """A plan adds four breakpoints, less the client's own."""
    blocks = [B(chance=0.95 - n / 20) for n in range(10)]
    assert len(planned(blocks).added) == 4
    for own in range(6):
        mine = [replace(b, marker="5m" if n < own else None) for n, b in enumerate(blocks)]
        found = planned(mine)
        assert len(found.added) == max(0, 4 - own)
        assert len(found.breakpoints) == len(found.added) + own
        assert [point.block for point in found.breakpoints if point.from_client] == list(range(own))
        assert (found.skipped is Reason.NO_SLOT) is (own >= 4)


def test_unplaced_client_marker_takes_a_slot() -> None:
    """A client marker that stands on no block still counts."""
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
def test_unmarkable_block_gets_no_breakpoint(
    block: B, kinds: Mapping[Kind, MarkPolicy], reason: Reason
) -> None:
    """A block that is unmarkable, switched off, or too short is never marked."""
    found = planned([block], kinds=kinds, minimum=100)
    assert (found.breakpoints, found.skipped) == ((), reason)


def test_minimum_is_compared_with_estimate_and_error() -> None:
    """A block is marked if its estimate can reach the minimum, and counts as written if it does."""
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


def test_scarce_slot_goes_to_the_sure_minimum() -> None:
    """If two prefixes gain the same, the one that surely meets the minimum gets the slot."""
    blocks = [B(tokens=800, chance=0.9), B(tokens=1000, chance=0.9), B(chance=0.0)]
    assert marks(planned(blocks, minimum=1000, calibration=Calibration(1.0, 0.3), owned=3)) == {1: "5m"}


@pytest.mark.parametrize(
    ("distance", "marked", "read"),
    [(18, {18}, True), (19, {19}, True), (20, {0, 20}, True), (35, {0, 35}, True)],
)
def test_entry_beyond_the_lookback_gets_an_anchor(distance: int, marked: set[int], read: bool) -> None:
    """A lookback has twenty positions, its own included: an entry 20 blocks before needs an anchor."""
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


def test_unmarkable_entry_is_found_from_the_next_block() -> None:
    """If the entry's own block is unmarkable, the next one within the lookback finds it."""

    def blocks(at: int) -> list[B]:
        middle = [B(tokens=10, chance=0.0, markable=n == at) for n in range(1, 30)]
        return [B(tokens=9000, chance=0.9, living="5m", markable=False), *middle, B(chance=0.9)]

    assert set(marks(planned(blocks(19)))) == {19, 30}
    assert planned(blocks(19)).cache_read == 9000
    assert set(marks(planned(blocks(20)))) == {20, 30} - {20} or planned(blocks(20)).cache_read == 0


def test_entry_that_costs_more_than_it_saves_is_left() -> None:
    """An entry is left if finding it needs a large write without reuse."""
    blocks = [B(tokens=100, chance=0.0, living="5m", markable=False), B(tokens=90_000, chance=0.0)]
    assert planned(blocks).added == ()


def test_deepest_cached_entry_is_read() -> None:
    """The deepest entry within reach is the hit, and the tokens past it are written."""
    found = planned([B(chance=0.9, living="5m"), B(chance=0.9, living="5m"), B(chance=0.9)])
    assert (found.hit, found.cache_read, found.cache_write_5m, found.uncached) == (1, 2000, 1000, 0)


def test_breakpoint_within_the_hit_writes_nothing() -> None:
    """A breakpoint within the hit is free at any probability."""
    found = planned([B(chance=0.9), B(chance=0.5), B(chance=0.5, living="5m")])
    assert (found.cache_read, found.cache_write_5m, found.cache_write_1h) == (3000, 0, 0)
    assert found.added


def test_repeated_prompt_is_read_whole() -> None:
    """An exact repeat is read whole, by a breakpoint at its end."""
    found = planned([B(chance=0.0), B(chance=0.0, living="5m")])
    assert (found.cache_read, found.uncached) == (2000, 0)
    assert found.hit == 1


# -- the client's own -----------------------------------------------------------------------------


def test_client_breakpoints_are_part_of_the_plan() -> None:
    """Client breakpoints keep their TTL and place, find entries, and count as writes."""
    found = planned([B(chance=0.0, marker="1h"), B(chance=0.0, marker="5m"), B(chance=0.0)])
    assert [(p.block, p.ttl, p.from_client, p.reason) for p in found.breakpoints] == [
        (0, "1h", True, Reason.CLIENT),
        (1, "5m", True, Reason.CLIENT),
    ]
    assert (found.cache_write_1h, found.cache_write_5m, found.uncached) == (1000, 1000, 1000)
    assert found.skipped is Reason.NOT_WORTH_IT
    found = planned([B(chance=0.0, living="5m"), B(chance=0.0, marker="5m")])
    assert (found.hit, found.cache_read, found.cache_write_5m) == (0, 1000, 1000)


def test_added_breakpoints_count_from_the_clients_last() -> None:
    """The client's writes are paid anyway, so added breakpoints gain from there on."""
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
def test_one_hour_breakpoints_come_first(own: Sequence[Ttl | None], ttl: Literal["5m", "1h", "auto"]) -> None:
    """A 1h breakpoint never follows a 5m one, added or from the client."""
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
def test_no_breakpoint_between_crossed_client_ttls(
    ttl: Literal["5m", "1h", "auto"], living: Ttl | None
) -> None:
    """No breakpoint is added between a 5m client marker and a later 1h one, which a gateway may overlook."""
    blocks = [B(chance=0.9, hour=0.95, marker=own) for own in (None, "5m", None, None, "1h", None)]
    blocks[2] = B(chance=0.9, hour=0.95, living=living)
    found = marks(planned(blocks, ttl=ttl, tools=3))  # the last tool would have a slot that is left
    assert found[5] == "5m"
    assert found.get(0, "1h") == "1h"
    assert not {2, 3} & found.keys()


def test_top_level_marker_counts_for_the_last_block() -> None:
    """Automatic caching is a client breakpoint on the last block, which is never marked again."""
    found = planned([B(chance=0.9), B(chance=0.9)], automatic="5m")
    assert [(p.block, p.from_client) for p in found.breakpoints][-1] == (1, True)
    assert found.cache_write_5m == 2000
    assert 1 not in marks(found)


@pytest.mark.parametrize(
    "last",
    [B(kind=Kind.TEXT, markable=False), B(kind=Kind.REASONING), B(kind=Kind.REASONING, markable=False)],
)
def test_top_level_marker_skips_blocks_that_cannot_carry_it(last: B) -> None:
    """The provider's automatic marker stands on the block before a last block that cannot carry it."""
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
def test_one_hour_ttl_pays_for_late_reuse(
    ttl: Literal["5m", "1h", "auto"], chance: float, hour: float, chosen: Ttl | None
) -> None:
    """1h pays if more than 0.395 of the late prefixes return within the hour, plus a margin."""
    found = marks(planned([B(chance=chance, hour=hour)], ttl=ttl))
    assert found == ({} if chosen is None else {0: chosen})


def test_shared_prefix_gets_one_hour_and_tail_five_minutes() -> None:
    """With both TTLs allowed, the shared prefix is cached for 1h and the tail for 5m."""
    found = planned([B(chance=0.5, hour=0.99), B(chance=0.6, hour=0.61)], ttl="auto")
    assert marks(found) == {0: "1h", 1: "5m"}
    assert (found.cache_write_1h, found.cache_write_5m) == (1000, 1000)


@pytest.mark.parametrize("ttl", ["5m", "1h"])
def test_fixed_ttl_holds_for_all_breakpoints(ttl: Literal["5m", "1h"]) -> None:
    """A fixed TTL holds for anchors and for breakpoints within the hit too."""
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


def test_breakpoint_has_its_reason() -> None:
    """Each breakpoint has a reason; free slots go to the ends of sections and turns."""
    roles = ["", "", "", "user", "assistant", "user", "assistant", "user"]
    blocks = [B(chance=0.9, role=role, living="5m" if n == 5 else None) for n, role in enumerate(roles)]
    found = planned(blocks, tools=2, system=3)
    reasons = {point.block: point.reason for point in found.added}
    assert reasons[7] is Reason.TAIL
    assert reasons[2] is Reason.SYSTEM
    assert len(reasons) == 4
    assert set(reasons.values()) <= {Reason.TAIL, Reason.SYSTEM, Reason.TOOLS, Reason.EARLIER, Reason.BRANCH}


def test_free_slots_cost_nothing() -> None:
    """Breakpoints for shared prefixes stay within the tokens that are read or written anyway."""
    few, many = [B(chance=0.9)] * 3, [B(chance=0.9)] * 3
    found = planned(few, tools=1, system=2)
    assert set(marks(found)) == {0, 1, 2}
    assert (found.cache_write_5m, found.uncached) == (3000, 0)
    assert planned([*many, B(chance=0.0)], tools=1, system=2).uncached == 1000


def test_plan_explains_itself_in_sentences() -> None:
    """A plan explains the expected tokens and its reasons in sentences."""
    assert planned([B(chance=0.0)]).explain() == (
        "No breakpoint: no part of the prompt is likely enough to be read again to pay for its cache write."
    )
    text = planned([B(chance=0.9, living="5m"), B(chance=0.9)], tools=1).explain()
    assert "Expected tokens: 1000 cache read, 1000 cache write, 0 uncached." in text
    assert (
        "messages.1.content (5m, 2000 tokens): the conversation is likely to be sent again up to here."
        in text
    )
    assert (
        planned([B(chance=0.0, marker="5m"), B(chance=0.0)])
        .explain()
        .endswith(
            "No breakpoint added: no part of the prompt is likely enough to be read again to pay for its cache write."
        )
    )
    for reason in Reason:
        assert Plan(skipped=reason).explain().startswith("No breakpoint: ")


def test_tokens_of_a_plan_add_up() -> None:
    """Cache read, cache write and uncached tokens are the whole request."""
    found = planned(
        [B(tokens=333.3, chance=0.9, living="5m"), B(tokens=333.3, chance=0.9), B(tokens=333.3, chance=0.0)],
        calibration=Calibration(1.1, 0.0),
    )
    assert abs(found.cache_read + found.cache_write_5m + found.cache_write_1h + found.uncached - 1100) <= 2
