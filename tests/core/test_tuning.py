"""Each tuning constant is held by a decision at its boundary.

A probe is a small timeline or decision whose outcome depends on one constant. Each probe states its outcome; a second
test changes the constant by a fifth, up and down, and expects another outcome.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from benchmarks.tuned import tuned
from cachemw.core.opt_ins import split_text
from cachemw.core.opt_ins.openai_hints import PromptCacheKeys
from cachemw.core.opt_ins.split_text import Splitter
from cachemw.core.planner.economics import RequestEconomics
from cachemw.core.planner.planner import Choice, plan
from cachemw.core.request.message_blocks import Block
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.request.tokens import Calibration
from cachemw.core.request.tracked_prefixes import track_prefixes
from cachemw.core.reuse.cohort_sharing import CohortExchange
from cachemw.core.reuse.cohorts import CohortCounts, CohortTable
from cachemw.core.reuse.forecast import ArrivedRequest, PrefixForecast, ReuseModel
from cachemw.core.reuse.record import PrefixRecord, new_record, record_arrival
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Kind, MarkPolicy, Rules, Ttl
from cachemw.core.tuning import GROUPS

Probe = Callable[[], Any]
ON: dict[Kind, MarkPolicy] = dict.fromkeys(Kind, "on")
EXACT = Calibration(1.0, 0.0)
START = 6_000_000.0  # where a table of counts begins


# -- steps of a timeline ----------------------------------------------------------------------


def request_of(roles: str, tokens: float = 1000.0, *, tools: int = 0, system: int = 0) -> ParsedRequest:
    """Return a request with a block for each letter: t(ool), s(ystem), u(ser), a(ssistant)."""
    names = {"t": "tool", "s": "system", "u": "user", "a": "assistant"}
    parsed = ParsedRequest("chat", "m", tools_end=tools, system_end=max(system, tools))
    for number, letter in enumerate(roles):
        digest = number.to_bytes(16)
        parsed.blocks.append(Block(names[letter], Kind.TEXT, ("content",), digest, tokens, True, None))  # type: ignore[arg-type]
        parsed.items.append(number)
    return parsed


def rules(ttl: Any = "5m") -> Rules:
    """Return rules with w = 1.25 / 2 and r = 0.1, and no minimum."""
    found = resolve("databricks", "claude-sonnet-4-6", ttl=ttl, minimum=0)
    assert found is not None
    return found


def forecast(
    p_reuse: float, block: int = 0, *, hour: float = 0.0, further: float = 99.0, cached: Ttl | None = None
) -> PrefixForecast:
    """Return the forecast of a prefix."""
    return PrefixForecast(block, p_reuse, further, max(hour, p_reuse), further, cached)


def least_written(ttl: Ttl) -> float:
    """Return the lowest reuse probability, in thousandths, at which a single block is written."""
    parsed = request_of("u")
    for thousandths in range(1001):
        p = thousandths / 1000
        made = plan(parsed, [forecast(p, hour=p)], rules(ttl), EXACT, ON)
        if made.added:
            return thousandths
    return -1


def writes_apart(difference: float) -> int:
    """Return the number of candidates of two prefixes whose gains per token differ by so much."""
    economics = RequestEconomics(
        request_of("uu"), [forecast(0.9 + difference / 1.15), forecast(0.9, 1)], rules(), EXACT
    )
    return len(economics.pareto_candidates([0, 1], economics.write_costs()))


def most_candidates() -> int:
    """Return the largest number of candidates among 300 prefixes whose gains fall with depth."""
    economics = RequestEconomics(
        request_of("u" * 300),
        [forecast(0.999 - number / 600, number) for number in range(300)],
        rules(),
        EXACT,
    )
    costs = economics.write_costs()
    return max(len(economics.pareto_candidates(range(count), costs)) for count in range(20, 301))


def deepest_unreadable_entries() -> int:
    """Return the number of useless deeper entries after which the planner skips a shallow one."""
    for count in range(1, 8):
        # A large entry at the start; small entries behind it, each found only by a dear breakpoint.
        parsed, forecasts = request_of("u" * (1 + 30 * count + 1), 1.0), []
        parsed.blocks[0] = parsed.blocks[0]._replace(size=9000.0)
        for index in range(len(parsed.blocks)):
            entry = index % 30 == 0 and index < 30 * count + 1
            if entry and index:
                parsed.blocks[index] = parsed.blocks[index]._replace(markable=False)
            forecasts.append(forecast(0.0, index, cached="5m" if entry else None))
        for index in range(1, len(parsed.blocks)):
            if index % 30 != 19:
                parsed.blocks[index] = parsed.blocks[index]._replace(markable=False)
            elif index > 30:
                parsed.blocks[index] = parsed.blocks[index]._replace(
                    size=90_000.0 * 30.0 ** (index // 30 - 1)
                )
        economics = RequestEconomics(parsed, forecasts, rules(), EXACT)
        economics.in_flight = -1
        if 0 not in Choice(economics, 4).best(economics.markable(ON)):
            return count
    return -1


class Prefixes:
    """One reuse model, and a request whose prefixes arrive at given times."""

    def __init__(
        self, roles: str = "u", *, tools: int = 0, system: int = 0, hours: bool = False, goes_on: bool = False
    ) -> None:
        self.model = ReuseModel(hours=hours)
        self.parsed = request_of(roles, tools=tools, system=system)
        self.count = len(roles)
        self.goes_on = goes_on

    def request(
        self, records: list[PrefixRecord | None], now: float, parsed: ParsedRequest | None = None
    ) -> ArrivedRequest:
        """Return the request as it arrives with these records."""
        parsed = parsed or self.parsed
        hashes = [number.to_bytes(16) for number in range(len(parsed.blocks))]
        return ArrivedRequest(parsed, hashes, range(len(records)), records, now)  # type: ignore[arg-type]

    def first(self, index: int = -1) -> PrefixForecast:
        """Return the forecast of a prefix of a request that arrives for the first time."""
        return self.model.forecast(self.request([None] * self.count, 0.0))[index]

    def arrivals(self, count: int, gap: float = 10.0, *, end: int = 0) -> PrefixRecord:
        """Return the record of a prefix that arrived so often, `gap` seconds apart; the last at 0."""
        record = new_record(end, -gap * (count - 1))
        for number in range(1, count):
            record = record_arrival(record, end, gap * (number - count + 1))
        return record

    def after(self, record: PrefixRecord, passed: float = 10.0) -> PrefixForecast:
        """Return the forecast of the last prefix, `passed` seconds after the last arrival in its record."""
        records: list[PrefixRecord | None] = [None] * (self.count - 1)
        return self.model.forecast(self.request([*records, record], passed))[-1]


def cohort_names(roles: str, *, system: int = 0, known: bool = False) -> list[tuple[object, ...]]:
    """Return the names of the cohorts in which the trials of a request begin."""
    model, parsed = ReuseModel(hours=False), request_of(roles, system=system)
    record = new_record(0, 0.0) if known else None
    hashes = [number.to_bytes(16) for number in range(len(roles))]
    model.observe(ArrivedRequest(parsed, hashes, range(len(roles)), [record] * len(roles), 1.0))  # type: ignore[arg-type]
    return list(model.cohorts._cohorts.read(""))


def after_reuses(count: int) -> float:
    """Return the probability of reuse of a cohort after so many reuses, under a prior of one half."""
    table, name = CohortTable(hours=False), ("messages", 0, "user", "text", "inner")
    table._cohorts.put("", [((*name, 1, -1), counts(soon=count))])
    return table.p_reuse_5m(table.view("", (), START), name, 1, -1, [()], 0.5, own=True)


def counts(*, soon: int = 0, late: int = 0, lost: int = 0, pending: int = 0) -> CohortCounts:
    """Return the counts of a cohort whose trials ended at the start; pending ones began then."""
    made = CohortCounts(START)
    for _ in range(soon + late + lost + pending):
        made.begin_trial(START)
    for number, passed in ((soon, 10.0), (late, 400.0), (lost, 4000.0)):
        for _ in range(number):
            made.end_trial(START, passed, whole=False)
    return made


def late(*, repeat: bool = False) -> float:
    """Return the probability of late reuse before any trial."""
    table = CohortTable(hours=True)
    name = ("messages", 0, "user", "text", "repeat" if repeat else "end")
    return table.p_late_reuse(table.view("", (), START), name, 1, [()])


def published(cohorts: int) -> int:
    """Return the number of cohorts that one exchange publishes."""
    exchange = CohortExchange(b"s")
    counted = {f"{number:024x}": [1, 0, 0, 0, 0] for number in range(cohorts)}
    return len(exchange.drain_updates(START, counted)[1])


def cohorts_read() -> int:
    """Return the number of cohorts that a worker reads from one table."""
    sums = {f"{number:024x}b": 1 for number in range(4000)}
    return len(CohortExchange(b"s").merge_updates(f"chances:{int(START // 600)}", sums, START))


def tables(read_at: float | None, now: float) -> list[str]:
    """Return the tables to read at `now`, after one exchange at `read_at`."""
    exchange = CohortExchange(b"s")
    if read_at is not None:
        for table in exchange.tables(START + read_at):
            exchange.merge_updates(table, {}, START + read_at)
    return exchange.tables(START + now)


def pace(times: int, seconds: float) -> bool:
    """Return True if a shared prefix has a key after so many arrivals over so many seconds."""
    keys = PromptCacheKeys(b"s")
    keys.learn("n", b"h" * 16, 1, 0.0)
    return keys.key("n", b"h" * 16, b"c" * 16, times, seconds) is not None


def keys_at(rate: float) -> int:
    """Return the number of keys for a shared prefix that arrives at a rate a minute."""
    keys = PromptCacheKeys(b"s")
    for minute in range(15):
        keys.learn("n", b"h" * 16, 100_000 + int(rate * minute), 60.0 * minute)
    now, arrivals = 14 * 60.0, 100_000 + int(rate * 14)
    conversations = [(n * 2_654_435_761 % 2**32).to_bytes(4) for n in range(2000)]
    return len({keys.key("n", b"h" * 16, conversation, arrivals, now) for conversation in conversations})


def text(name: str, size: int, line: int = 32) -> str:
    """Return a text of lines of so many bytes."""
    return "".join(f"{name} {number:05} ".ljust(line - 1, ".") + "\n" for number in range(size // line))


def parts(splitter: Splitter, content: str, now: float = 0.0) -> list[int]:
    """Return the lengths of the parts in which a text leaves, and learn from it."""
    body = {"messages": [{"role": "user", "content": content}]}
    made, found = splitter.split(body, "chat", "n", now)
    splitter.learn("n", found, now)
    leaves = made["messages"][0]["content"]
    return [len(part["text"]) for part in leaves] if isinstance(leaves, list) else [len(leaves)]


def second_text(shared: int, line: int) -> list[int]:
    """Return the parts of a text that shares so many bytes with an earlier one, in lines of so many bytes."""
    splitter, common = Splitter(300.0), text("a", shared, line)
    parts(splitter, common + text("b", 640))
    return parts(splitter, common + text("c", 640))


def most_cuts() -> int:
    """Return the most parts of a text that earlier texts share in steps."""
    splitter, full = Splitter(1e9), text("a", 64_000)
    made = [0]
    for number in range(1, 40):
        made = parts(splitter, full[: 1600 * number] + text(f"q{number}", 640))
    return len(made) - 1


def cut_in_advance(branched: int, texts: int) -> bool:
    """Return True if a new text is cut before its branch point is known."""
    boundaries = [(offset, b"") for offset in range(256, 20_000, 256)]
    tails = [500] * branched + [0] * (texts - branched)
    return split_text._cut_in_advance(boundaries, 0, 20_000, tails) > 0  # type: ignore[arg-type]


def tails_kept() -> int:
    """Return the number of tails that are remembered."""
    splitter = Splitter(300.0)
    for number in range(100):
        parts(splitter, text(f"n{number}", 2048))
    return len(splitter._tails.values()[0])


def in_flight_cut(seconds: float) -> int:
    """Return the parts of a text, so long after one like it left and got no response yet."""
    splitter, common = Splitter(0.001), text("a", 4096)
    body = {"messages": [{"role": "user", "content": common + text("b", 640)}]}
    splitter.mark_in_flight("n", splitter.split(body, "chat", "n", 0.0)[1], 0.0)
    return len(parts(splitter, common + text("c", 640), seconds))


def piece_ends(raw: bytes) -> list[int]:
    """Return the first and the largest piece of a text."""
    ends = [offset for offset, _ in split_text._boundaries(raw, 0)]
    return [ends[0], ends[-1] - ends[-2]]


def calibrated(*tokens: int, size: float = 1000.0) -> Calibration:
    """Return the calibration after answers with these tokens."""
    made = Calibration.start("old")
    for count in tokens:
        made = made.learn(size, count)
    return made


def least_learned() -> int:
    """Return the fewest tokens from which an answer teaches anything."""
    return next(n for n in range(1, 500) if Calibration(1.0).learn(n, n).count)


def sure_record() -> PrefixRecord:
    """Return the record of a prefix that came again at once two hundred times."""
    return new_record(0, 0.0)._replace(arrivals=200, trials_5m=1e6, reuses_5m=1e6)


def gap_bucket(seconds: float) -> object:
    """Return the gap class in the name of the cohort of a prefix that came again after so many seconds."""
    model, parsed = ReuseModel(hours=False), request_of("u")
    model.observe(ArrivedRequest(parsed, [b"h" * 16], [0], [new_record(0, 0.0)], seconds))  # type: ignore[list-item]
    return next(name[6] for name in model.cohorts._cohorts.read("") if name[5] == 2)


def parent_and_child() -> float:
    """Return the probability of a cohort of three failures under a parent at 0.9."""
    table, name = CohortTable(hours=False), ("messages", 0, "user", "text", "inner")
    parent, child = counts(soon=1000, lost=0), counts(lost=3)
    parent.not_reused, parent.reused_5m = 3.0 + 9_999.0, 90_000.0
    parent.not_reused = 3.0 + 10_000.0
    table._cohorts.put("", [((*name, 1, -1), parent), ((*name, 1, -1, 0), child)])
    view = table.view("", (), START)
    view._after = {(*name, 1, -1): parent, (*name, 1, -1, 0): child}  # not cut to the window
    return round(table.p_reuse_5m(view, name, 1, -1, [(), (0,)], 0.5, own=True), 4)


def aged(made: CohortCounts, seconds: float) -> float:
    """Return the trials that are left of counts after so many seconds."""
    made.age(START + seconds)
    return made.reused_5m


def slots(*numbers: int) -> list[str]:
    """Return the names of the tables so many slots after the start."""
    return [f"chances:{10_000 + number}" for number in numbers]


def track_long() -> list[int]:
    """Return the tracked blocks of 20 system blocks, 30 of one user, turns, and a last run of 40."""
    return track_prefixes(request_of("s" * 20 + "u" * 29 + "ua" * 299 + "u" * 40, system=20))


def latest_ends() -> int:
    """Return the number of ends right before the last run of a long request, each tracked."""
    found = set(track_long())
    return next(count for count in range(100) if 646 - count not in found)


def older_ends(turns: int) -> int:
    """Return the number of tracked ends of a conversation between its opening and its latest ends."""
    return len([index for index in track_prefixes(request_of("ua" * turns)) if 8 <= index < 2 * turns - 25])


def track_strides() -> int:
    """Return the distance between older ends of a conversation of forty turns."""
    found = [index for index in track_prefixes(request_of("ua" * 40)) if 8 <= index < 80 - 24 - 1]
    return found[-1] - found[-2]


def near(value: float) -> Any:
    """Return the value rounded for comparison."""
    return round(value, 6)


# -- the probes -------------------------------------------------------------------------------

PROBES: dict[str, tuple[Probe, Any]] = {
    # (0.25 + 0.03) / (1.25 - 0.1) is the break-even of a 5m write, (1 + 0.18) / (2 - 0.1) that of a 1h write.
    "planner.margin_5m": (lambda: least_written("5m"), 244),
    "planner.margin_1h": (lambda: least_written("1h"), 622),
    "planner.telling_difference": (lambda: [writes_apart(d) for d in (0.009, 0.0101, 0.0119)], [1, 2, 2]),
    "planner.max_candidates": (most_candidates, 24),
    "planner.entries_tried": (deepest_unreadable_entries, 3),
    "forecast.prior_running": (lambda: near(Prefixes("tu", tools=1).first(0).p_reuse_5m), 0.6),
    "forecast.prior_single": (lambda: near(Prefixes("u").first().p_reuse_5m), 0.1),
    "forecast.prior_single_shared": (lambda: near(Prefixes("su", system=1).first(0).p_reuse_5m), 0.3),
    "forecast.prior_repeat": (
        lambda: near(Prefixes("u").after(new_record(1, 0.0)).p_reuse_5m),
        0.2,
    ),
    # Nine reuses in a row, each decayed by the later ones, beside four more trials at one half.
    "forecast.own_prior": (lambda: near(Prefixes().after(Prefixes().arrivals(9)).p_reuse_5m), 0.835764),
    "forecast.own_prior_weight": (
        lambda: near(Prefixes().after(Prefixes().arrivals(20)).p_reuse_5m),
        0.897407,
    ),
    "forecast.own_late_prior_weight": (
        lambda: near(Prefixes(hours=True).after(Prefixes().arrivals(6, 600.0), 600.0).p_reuse_1h),
        0.434394,
    ),
    # The third arrival is judged by the cohort, the fourth by the prefix's own history as well.
    "forecast.blend_from_arrival": (
        lambda: [Prefixes().after(Prefixes().arrivals(n)).p_reuse_5m > 0.3 for n in (1, 2, 3, 4)],
        [False, False, True, True],
    ),
    # The cohort of single turns expects little. From the eighth arrival on it no longer counts.
    "forecast.own_only_from_arrival": (
        lambda: [
            Prefixes().after(Prefixes().arrivals(n, 400.0), 400.0).p_reuse_5m > 0.1 for n in (5, 6, 7, 8)
        ],
        [False, False, True, True],
    ),
    "forecast.max_certainty": (lambda: near(Prefixes().after(sure_record()).further_reads_5m), 49.0),
    "forecast.middle_gap": (
        lambda: [gap_bucket(seconds) for seconds in (300.0, 301.0, 1020.0, 1021.0, 3600.0, 3601.0)],
        [0, 1, 1, 2, 2, 3],
    ),
    "forecast.distinct_positions": (lambda: len({name[1] for name in cohort_names("uuuuuuuu")}), 4),
    "forecast.distinct_stages": (
        lambda: len({name[-1] for name in cohort_names("ua" * 8 + "u") if len(name) == 8}),
        3,
    ),
    "forecast.distinct_turns": (
        lambda: max(
            name[-1]  # type: ignore[type-var]
            for name in cohort_names("s" + "ua" * 40, system=1, known=True)
            if isinstance(name[-1], int) and isinstance(name[-2], bytes)
        ),
        16,
    ),
    "cohorts.prior_weight": (lambda: near(after_reuses(2)), near(3 / 4)),
    "cohorts.late_prior_weight": (lambda: near(counts(late=4).p_late_reuse(0.5, START)), near(6 / 8)),
    "cohorts.p_late": (late, 0.2),
    "cohorts.p_late_repeat": (lambda: late(repeat=True), 0.05),
    "cohorts.parent_weight": (lambda: near(parent_and_child()), near((0 + 3 * 0.9) / (3 + 3))),
    "cohorts.window": (lambda: near(aged(counts(soon=100), 0.0)), 64.0),
    "cohorts.half_life": (lambda: near(aged(counts(soon=10), 3600.0)), 5.0),
    "cohorts.censoring_ramp": (
        lambda: [near(counts(pending=4).expected_failures(START + passed)) for passed in (15.0, 30.0, 60.0)],
        [2.0, 4.0, 4.0],
    ),
    "cohorts.late_censoring_ramp": (
        lambda: near(counts(pending=4).p_late_reuse(0.5, START + 400.0)),
        near(2 / (4 + 4 * 0.520833)),
    ),
    "record.decay": (lambda: near(Prefixes().arrivals(3, 10.0).trials_5m), near(1 + 31 / 32)),
    "sharing.slot": (lambda: [tables(None, passed)[-1] for passed in (0.0, 599.0, 600.0)], slots(0, 0, 1)),
    "sharing.slots_read_back": (lambda: len(tables(None, 0.0)), 7),
    "sharing.clock_lag": (
        lambda: [len(tables(read_at, 700.0)) for read_at in (640.0, 655.0, 661.0)],
        [2, 2, 1],
    ),
    "sharing.published_at_once": (lambda: [published(count) for count in (200, 300)], [200, 256]),
    "sharing.cohorts_per_table": (cohorts_read, 2048),
    "tracking.system_ends": (lambda: len([index for index in track_long() if 0 < index < 20]) + 1, 6),
    "tracking.opening_blocks": (lambda: len([index for index in track_long() if 20 <= index < 49]), 8),
    "tracking.latest_ends": (latest_ends, 24),
    "tracking.run_blocks": (lambda: len([index for index in track_long() if index >= 647]), 16),
    "tracking.older_ends": (lambda: [older_ends(268), older_ends(269)], [15, 8]),
    "tracking.first_stride": (lambda: track_strides(), 4),
    "split_text.least_bytes": (
        lambda: [len(second_text(shared, line=300)) for shared in (900, 1_200)],
        [1, 2],
    ),
    "split_text.piece_bytes": (lambda: piece_ends(text("a", 16_384).encode())[0], 256),
    "split_text.piece_share": (lambda: piece_ends(b"x" * 500 + b"\n" * 400_000)[1], 3_082),
    "split_text.line_bytes": (
        lambda: [piece_ends(b"x" * n + b"\n" + b"x" * 5_000)[0] for n in (1_270, 1_300)],
        [1_271, 256],
    ),
    "split_text.max_cuts": (most_cuts, 15),
    "split_text.window": (tails_kept, 32),
    "split_text.least_branched": (lambda: [cut_in_advance(n, n) for n in (1, 2, 3)], [False, True, True]),
    "split_text.least_branched_share": (lambda: [cut_in_advance(n, 50) for n in (9, 10)], [False, True]),
    "split_text.in_flight": (lambda: [in_flight_cut(seconds) for seconds in (59.0, 61.0)], [2, 1]),
    "cache_keys.familiar_arrivals": (lambda: [pace(times, 600.0) for times in (15, 16)], [False, True]),
    "cache_keys.familiar_seconds": (lambda: [pace(16, seconds) for seconds in (599.0, 600.0)], [False, True]),
    "cache_keys.sure_arrivals": (lambda: [pace(times, 1.0) for times in (999, 1_000)], [False, True]),
    "cache_keys.busy_per_minute": (lambda: [keys_at(rate) for rate in (12, 13)], [1, 2]),
    "cache_keys.max_keys": (lambda: keys_at(5_000), 64),
    "tokens.first_spread": (lambda: Calibration.start("old").spread, 0.3),
    "tokens.least_spread": (lambda: calibrated(*[1000] * 200).spread, 0.03),
    "tokens.window": (lambda: near(calibrated(*[1000] * 60, 2000).scale), 1.05),
    "tokens.error_factor": (lambda: near(calibrated(1_050).spread), 0.2),
    "tokens.least_tokens": (least_learned, 50),
}


def changed(name: str, by: float) -> float:
    """Return a constant changed by a factor; counts move by at least 1, values near 1 by the distance."""
    group, _, field = name.partition(".")
    value = getattr(GROUPS[group], field)
    if name == "cache_keys.max_keys":  # numbers of keys are powers of two
        return value // 2 if by < 1 else value * 2
    if isinstance(value, int):
        return min(value - 1, round(value * by)) if by < 1 else max(value + 1, round(value * by))
    return 1.0 - (1.0 - value) * by if 0.9 < value < 1.0 else value * by


def test_every_constant_has_a_probe() -> None:
    """A new constant needs a decision that depends on it."""
    names = [f"{group}.{field.name}" for group, values in GROUPS.items() for field in fields(values)]
    assert list(PROBES) == names


@pytest.mark.parametrize("name", PROBES)
def test_constant_at_its_value_gives_the_outcome(name: str) -> None:
    """The outcome of each probe follows from the value of its constant."""
    probe, outcome = PROBES[name]
    assert probe() == outcome


@pytest.mark.parametrize("by", [0.8, 1.25])
@pytest.mark.parametrize("name", PROBES)
def test_constant_changed_by_a_fifth_changes_the_outcome(name: str, by: float) -> None:
    """A probe that a change of its constant leaves as it is would hold nothing."""
    probe, outcome = PROBES[name]
    with tuned(name, changed(name, by)):
        assert probe() != outcome
