"""Choose a request's breakpoints: what is read, what is written, and what is left plain.

Lives here: the economics of a breakpoint. Must not know: how chances come about (`core.reuse`),
wire shapes beyond a block's kind, stores.

Prices are relative to a plain token: write w, read r. Tokens between two breakpoints are worth what
the breakpoint that *ends* the segment is worth: with the chance p that its prefix is read again
before the entry dies, writing a token gains p (w - r) - (w - 1) against sending it plain. At or under
the deepest living entry nothing is written, so a breakpoint there is free and gains p (w - r) by
keeping a shared head alive. The best at most four are chosen together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cachemw.core.blocks import Parsed
from cachemw.core.providers import Kind, Mark, Rules, Ttl, relative
from cachemw.core.reuse import Depth
from cachemw.core.tokens import Calibration
from cachemw.core.wire import Path

# A write that is worth less than this share of its tokens is a coin toss: leave it.
_MARGIN = 0.03
_NEVER = float("-inf")


class Reason(StrEnum):
    """Why a breakpoint is where it is, or why a request has none of ours."""

    TAIL = "tail"
    ANCHOR = "anchor"
    BRANCH = "branch"
    TOOLS = "end_of_tools"
    SYSTEM = "end_of_system"
    EARLIER = "earlier_tail"
    CLIENT = "client"
    BELOW_MINIMUM = "below_minimum"
    NOT_WORTH_IT = "not_worth_it"
    NO_SLOT = "no_slot"
    NOTHING_MARKABLE = "nothing_markable"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_AUTOMATIC = "model_automatic"
    PROVIDER_UNKNOWN = "provider_unknown"
    NOT_OPTIMIZING = "not_optimizing"
    UNREADABLE = "unreadable"
    FAILED = "failed"


_SENTENCES = {
    Reason.TAIL: "the conversation up to here is likely to be sent again",
    Reason.ANCHOR: "the provider holds an entry here that no other breakpoint would find",
    Reason.BRANCH: "requests share everything up to here and part after it",
    Reason.TOOLS: "the tool definitions end here, and other requests share them",
    Reason.SYSTEM: "the system section ends here, and other requests share it",
    Reason.EARLIER: "an earlier turn ended here, and a request may go on from it",
    Reason.CLIENT: "the client set it",
    Reason.BELOW_MINIMUM: "the prompt is shorter than what the model caches",
    Reason.NOT_WORTH_IT: "what could be written is not likely enough to be read again",
    Reason.NO_SLOT: "the client's own markers take all there are",
    Reason.NOTHING_MARKABLE: "no block can carry a marker here",
    Reason.MODEL_UNKNOWN: "no row, pattern or setting says what this model is",
    Reason.MODEL_AUTOMATIC: "this model takes no breakpoints",
    Reason.PROVIDER_UNKNOWN: "nothing says which provider this is",
    Reason.NOT_OPTIMIZING: "the mode leaves requests as they are",
    Reason.UNREADABLE: "the body can't be read as a chat request",
    Reason.FAILED: "something of ours failed, so the request went as it came",
}


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A marker: where it stands, what it covers, and why. `own`: the client's own."""

    path: Path
    block: int
    ttl: Ttl
    prefix_tokens: int
    reason: Reason
    own: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The breakpoints of a request, and the tokens that they are expected to read and write.

    `hit` is the block whose entry is expected to be read, None where nothing is.
    """

    breakpoints: tuple[Breakpoint, ...] = ()
    read: int = 0
    write_5m: int = 0
    write_1h: int = 0
    plain: int = 0
    skipped: Reason | None = None
    hit: int | None = None

    @property
    def ours(self) -> tuple[Breakpoint, ...]:
        """The breakpoints that the client did not set."""
        return tuple(point for point in self.breakpoints if not point.own)

    def explain(self) -> str:
        """Say in sentences what is expected and why."""
        if self.skipped and not self.breakpoints:
            return f"No breakpoint: {_SENTENCES[self.skipped]}."
        lines = [
            f"Expected: {self.read} tokens read, {self.write_5m + self.write_1h} written, {self.plain} plain."
        ]
        lines += [
            f"{'.'.join(map(str, point.path))} ({point.ttl}, {point.prefix_tokens} tokens): "
            f"{_SENTENCES[point.reason]}."
            for point in self.breakpoints
        ]
        if self.skipped:
            lines.append(f"None of ours: {_SENTENCES[self.skipped]}.")
        return "\n".join(lines)


class _Candidate(NamedTuple):
    """A place for a breakpoint: tokens up to it, and what a token of a segment that ends here gains."""

    place: int
    tokens: float
    gain_5m: float
    gain_1h: float


def plan(
    parsed: Parsed,
    depths: Sequence[Depth],
    rules: Rules,
    calibration: Calibration,
    kinds: dict[Kind, Mark],
) -> Plan:
    """Return the breakpoints for a request, the client's own included.

    `depths` are the watched prefixes, shallow to deep, ending with the whole request; `kinds` says
    which kinds of block may carry a marker of ours now.
    """
    return _Planner(parsed, depths, rules, calibration, kinds).plan()


class _Planner:
    """One request's planning; the numbers that every step needs, worked out once."""

    def __init__(
        self,
        parsed: Parsed,
        depths: Sequence[Depth],
        rules: Rules,
        calibration: Calibration,
        kinds: dict[Kind, Mark],
    ) -> None:
        self.parsed, self.depths, self.rules, self.kinds = parsed, depths, rules, kinds
        self.spread = calibration.spread
        total, totals = 0.0, []
        for block in parsed.blocks:
            total += block.size
            totals.append(total)
        self.tokens = [totals[depth.block] * calibration.scale for depth in depths]
        self.total = total * calibration.scale
        self.write_5m, self.write_1h, self.read = relative(rules.prices)
        # The client's own: place among the depths, TTL. A top-level marker stands on the last block.
        self.own: dict[int, Ttl] = {
            place: marker
            for place, depth in enumerate(depths)
            if (marker := parsed.blocks[depth.block].marker) is not None
        }
        if parsed.automatic:
            self.own.setdefault(len(depths) - 1, parsed.automatic)
        self.slots = rules.provider.max_markers - parsed.owned
        ends_1h = [place for place, ttl in self.own.items() if ttl == "1h"]
        starts_5m = [place for place, ttl in self.own.items() if ttl == "5m"]
        self.only_1h_until = max(ends_1h, default=-1)
        self.only_5m_from = min(starts_5m, default=len(depths))

    def plan(self) -> Plan:
        """Return the best plan over the living entries that could be read."""
        allowed = [place for place in range(len(self.depths)) if self._allowed(place)]
        if self.slots <= 0:
            return self._result({}, Reason.NO_SLOT)
        if not allowed:
            return self._result({}, Reason.NOTHING_MARKABLE)
        reaching = [place for place in allowed if self._reach(place) > 0]
        if not reaching:
            return self._result({}, Reason.BELOW_MINIMUM)

        living = [place for place in range(len(self.depths)) if self._living(place)]
        best: tuple[float, dict[int, Ttl]] = (0.0, {})
        for hit in [*living[:-4:-1], -1]:
            found = self._around(hit, reaching)
            if found is not None and found[0] > best[0]:
                best = found
        chosen = best[1]
        if not chosen and not self.own:
            return self._result({}, Reason.NOT_WORTH_IT)
        self._spare(chosen, reaching)
        return self._result(chosen, None if chosen else Reason.NOT_WORTH_IT)

    # -- what may be marked -------------------------------------------------------------------

    def _allowed(self, place: int) -> bool:
        block = self.parsed.blocks[self.depths[place].block]
        return (
            block.markable
            and block.marker is None
            and place not in self.own
            and self.kinds[block.kind] == "on"
        )

    def _reach(self, place: int) -> float:
        """Return the chance that a prefix reaches the minimum, its estimate being off by the spread."""
        tokens, minimum = self.tokens[place], self.rules.minimum
        low, high = tokens * (1 - self.spread), tokens * (1 + self.spread)
        if low >= minimum:
            return 1.0
        return max(0.0, (high - minimum) / (high - low)) if high > low else 0.0

    def _may(self, place: int) -> tuple[bool, bool]:
        """Say whether a breakpoint here may be 5m, 1h: by the setting, and by the client's own around it."""
        ttl = self.rules.ttl
        may_5m = ttl != "1h" and place > self.only_1h_until
        may_1h = (ttl != "5m" or place <= self.only_1h_until) and place < self.only_5m_from
        return (may_5m or not may_1h) and place > self.only_1h_until, may_1h

    def _living(self, place: int) -> bool:
        return self.depths[place].living is not None

    # -- the choice ---------------------------------------------------------------------------

    def _around(self, hit: int, reaching: Sequence[int]) -> tuple[float, dict[int, Ttl]] | None:
        """Return the value and breakpoints of the best plan that reads the entry at `hit` (-1: none).

        None where no breakpoint could find that entry.
        """
        start = self.tokens[hit] if hit >= 0 else 0.0
        value = (1 - self.read) * start
        under = self._suffix_best([place for place in reaching if place < hit], free=True)
        if hit >= 0:
            floor = self.depths[hit].chance * (self.write_5m - self.read)
            under = [candidate for candidate in under if candidate.gain_5m > floor]
        # What the client's own markers write is paid anyway: ours count from there.
        own_end = max((place for place in self.own if self._reach(place) > 0), default=-1)
        base = max(start, self.tokens[own_end]) if own_end > hit else start
        over = self._suffix_best([place for place in reaching if place > max(hit, own_end)], free=False)

        best: tuple[float, dict[int, Ttl]] | None = None
        for writes in range(min(self.slots, len(over)) + 1):
            gain, above = _segments(over, writes, base)
            if writes and gain <= 0:
                break
            slots = self.slots - len(above)
            anchor = self._anchor(hit, above, reaching) if hit >= 0 else ()
            if anchor is None or len(anchor) > slots:
                continue
            kept, below = _segments(under, min(slots - len(anchor), len(under)), 0.0)
            total = value + gain + kept
            if best is None or total > best[0]:
                best = (total, {**below, **{place: "5m" for place in anchor}, **above})
        return best

    def _suffix_best(self, places: Sequence[int], *, free: bool) -> list[_Candidate]:
        """Return the candidates that no deeper one beats, shallow to deep.

        A breakpoint whose segment gains no more a token than a deeper one's is never better than
        that one, so what is left gains strictly less with depth, and is short.
        """
        w5, w60, read = self.write_5m, self.write_1h, self.read
        kept: list[_Candidate] = []
        best_5m = best_1h = 0.0
        for place in reversed(places):
            depth, reach = self.depths[place], self._reach(place)
            hour = depth.chance + (1 - depth.chance) * depth.late
            gain_5m = depth.chance * (w5 - read) * reach
            gain_1h = hour * (w60 - read) * reach
            if not free:
                gain_5m -= (w5 - 1 + _MARGIN) * reach
                gain_1h -= (w60 - 1 + _MARGIN) * reach
            may_5m, may_1h = self._may(place)
            gain_5m = gain_5m if may_5m else _NEVER
            gain_1h = gain_1h if may_1h else _NEVER
            if gain_5m > best_5m or gain_1h > best_1h:
                kept.append(_Candidate(place, self.tokens[place], gain_5m, gain_1h))
                best_5m, best_1h = max(gain_5m, best_5m), max(gain_1h, best_1h)
        kept.reverse()
        return kept

    def _anchor(self, hit: int, above: dict[int, Ttl], reaching: Sequence[int]) -> tuple[int, ...] | None:
        """Return the breakpoint that a plan needs to find the entry at `hit`, () where it needs none."""
        first = self.depths[hit].block
        last = first + self.rules.provider.lookback - 1
        if any(first <= self.depths[place].block <= last for place in (*above, *self.own)):
            return ()
        for place in reaching:
            if place >= hit:
                return (place,) if self.depths[place].block <= last else None
        return None

    def _spare(self, chosen: dict[int, Ttl], reaching: Sequence[int]) -> None:
        """Use slots that are left for heads that others may share; they cost nothing.

        Only within what is read or written anyway, the likeliest to be shared first.
        """
        deepest = max((*chosen, *self.own), default=-1)
        for place in self._heads(reaching):
            if len(chosen) >= self.slots:
                return
            if place < deepest and place not in chosen:
                chosen[place] = "5m"

    def _heads(self, reaching: Sequence[int]) -> list[int]:
        parsed, depths = self.parsed, self.depths
        tails = [
            place
            for place in reaching
            if depths[place].block >= parsed.system and self._ends_turn(depths[place].block)
        ]
        heads = [place for place in reaching if depths[place].block < parsed.system]
        by_section = [
            max((place for place in heads if depths[place].block >= parsed.tools), default=-1),
            max((place for place in heads if depths[place].block < parsed.tools), default=-1),
        ]
        return [place for place in (by_section[0], *tails[-2:-4:-1], by_section[1], *tails[:1]) if place >= 0]

    def _ends_turn(self, index: int) -> bool:
        """Say whether a request could have ended with this block."""
        blocks = self.parsed.blocks
        return blocks[index].role != "assistant" and (
            index + 1 == len(blocks) or blocks[index + 1].role == "assistant"
        )

    # -- the result ---------------------------------------------------------------------------

    def _result(self, chosen: dict[int, Ttl], skipped: Reason | None) -> Plan:
        self._order(chosen)
        places = sorted({*chosen, *self.own})
        hit = self._hit(places)
        start = self.tokens[hit] if hit >= 0 else 0.0
        reached = [place for place in places if place > hit and self.tokens[place] >= self.rules.minimum]
        end_1h = max((self.tokens[p] for p in reached if self._ttl(p, chosen) == "1h"), default=start)
        end = max((self.tokens[place] for place in reached), default=start)
        points = tuple(
            Breakpoint(
                path=self.parsed.path(self.depths[place].block),
                block=self.depths[place].block,
                ttl=self._ttl(place, chosen),
                prefix_tokens=round(self.tokens[place]),
                reason=self._reason(place, hit),
                own=place in self.own,
            )
            for place in places
        )
        return Plan(
            points, round(start), round(end - end_1h), round(end_1h - start), round(self.total - end), skipped,
            self.depths[hit].block if hit >= 0 else None,
        )  # fmt: skip

    def _ttl(self, place: int, chosen: dict[int, Ttl]) -> Ttl:
        return self.own[place] if place in self.own else chosen[place]

    def _order(self, chosen: dict[int, Ttl]) -> None:
        """Give what stands before a 1h marker 1h too: providers refuse the other order."""
        last_1h = max(
            (place for place, ttl in (*chosen.items(), *self.own.items()) if ttl == "1h"), default=-1
        )
        for place in chosen:
            if place < last_1h:
                chosen[place] = "1h"

    def _hit(self, places: Sequence[int]) -> int:
        """Return the deepest living entry that these breakpoints find, -1 for none."""
        lookback = self.rules.provider.lookback
        indexes = [self.depths[place].block for place in places]
        for place in range(len(self.depths) - 1, -1, -1):
            if self._living(place):
                index = self.depths[place].block
                if any(index <= at <= index + lookback - 1 for at in indexes):
                    return place
        return -1

    def _reason(self, place: int, hit: int) -> Reason:
        index = self.depths[place].block
        if place in self.own:
            return Reason.CLIENT
        if place == hit and index + 1 < len(self.parsed.blocks):
            return Reason.ANCHOR
        if index + 1 == self.parsed.tools:
            return Reason.TOOLS
        if index + 1 == self.parsed.system:
            return Reason.SYSTEM
        if place == len(self.depths) - 1:
            return Reason.TAIL
        if index > self.parsed.system and self._ends_turn(index):
            return Reason.EARLIER
        return Reason.BRANCH


def _segments(candidates: Sequence[_Candidate], count: int, start: float) -> tuple[float, dict[int, Ttl]]:
    """Return the best value and places of at most `count` of the candidates, from `start` tokens on.

    A dynamic programme over the candidates, shallow to deep: those with 1h come before those with 5m.
    """
    # best[k] for each end: (value, tokens at the end, places), one row for each phase.
    states: list[tuple[float, float, Ttl, tuple[tuple[int, Ttl], ...]]] = [(0.0, start, "1h", ())]
    best = states[0]
    frontier = states
    for _ in range(count):
        grown: dict[tuple[int, Ttl], tuple[float, float, Ttl, tuple[tuple[int, Ttl], ...]]] = {}
        for value, tokens, phase, places in frontier:
            last = places[-1][0] if places else -1
            for candidate in candidates:
                if candidate.place <= last:
                    continue
                options: tuple[tuple[Ttl, float], ...] = (
                    ("5m", candidate.gain_5m),
                    ("1h", candidate.gain_1h),
                )
                for ttl, gain in options if phase == "1h" else options[:1]:
                    if gain == _NEVER:
                        continue
                    total = value + (candidate.tokens - tokens) * gain
                    key = (candidate.place, ttl)
                    if key not in grown or total > grown[key][0]:
                        grown[key] = (total, candidate.tokens, ttl, (*places, (candidate.place, ttl)))
        frontier = list(grown.values())
        for state in frontier:
            if state[0] > best[0]:
                best = state
    return best[0], dict(best[3])
