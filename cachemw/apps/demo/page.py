"""The page of a comparison: self-contained HTML with charts as SVG and without scripts.

Contains: scales, ticks and positions of the charts. Must not depend on: how the figures were measured. The
words and the style are in `page.html`, whose engine escapes every value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import jinja2

from cachemw.apps.demo.outcome import KINDS, Comparison, PolicyOutcome, percent, usd
from cachemw.printable import printable

_BARS = (100, 600)  # x of the start of all bars, and of the end of the longest; labels stand on both sides
_PLOT = (48, 16, 690, 256)  # left, top, right and bottom of the line chart's area
_MOST_POINTS = 240
_MOST_FAMILIES = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """One policy's bar: its segments (kind, x, width, amount), its end and its label."""

    policy: str
    segments: Sequence[tuple[str, float, float, str]]
    end: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One policy's line: an SVG path, its end, and a label at a distance from the other labels."""

    policy: str
    path: str
    end: tuple[float, float]
    label_y: float
    label: str


@dataclass(frozen=True, slots=True)
class Lines:
    """The line chart: lines, and ticks (position, label) of both axes."""

    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    unit: str


def page(comparison: Comparison) -> str:
    """Return the page as HTML text."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cachemw.apps.demo", "."),
        autoescape=True,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(usd=usd, percent=percent)
    families = comparison.families
    return environment.get_template("page.html").render(
        comparison=comparison,
        kinds=KINDS,
        bars=bars,
        chart=lines(comparison),
        plot=_PLOT,
        families=[comparison.family(name) for name in families[:_MOST_FAMILIES]],
        more_families=len(families[_MOST_FAMILIES:]),
    )


def _printable(value: object) -> object:
    """Return a value of the page: text in printable form, HTML of a macro unchanged."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def bars(comparison: Comparison) -> list[Bar]:
    """Return a bar for each policy; the most expensive one has the full width."""
    most = max(outcome.cost for outcome in comparison.outcomes)
    left, right = _BARS
    scale = (right - left) / float(most) if most else 0.0
    return [_bar(comparison, outcome, scale) for outcome in comparison.outcomes]


def _bar(comparison: Comparison, outcome: PolicyOutcome, scale: float) -> Bar:
    segments, x = [], float(_BARS[0])
    for kind, cost in zip(KINDS, outcome.costs, strict=True):
        width = float(cost) * scale
        if width > 0:
            segments.append((kind, round(x, 1), round(width, 1), usd(cost)))
        x += width
    saved = percent(comparison.saved(outcome))
    label = f"{usd(outcome.cost)} ({saved} saved)" if saved else usd(outcome.cost)
    return Bar(outcome.policy, segments, round(x, 1), label)


def lines(comparison: Comparison) -> Lines:
    """Return the accumulated cost of each policy over the virtual time."""
    left, top, right, bottom = _PLOT
    points = [point for outcome in comparison.outcomes for point in outcome.points]
    start = min((point.at for point in points), default=0.0)
    length = max((point.at for point in points), default=0.0) - start
    most = float(max(outcome.cost for outcome in comparison.outcomes))
    seconds, unit = (3600, "hours") if length > 3 * 3600 else (60, "minutes")
    x_scale, y_scale = (right - left) / (length or 1.0), (bottom - top) / (most or 1.0)
    drawn = []
    for outcome in comparison.outcomes:
        costs = accumulate(float(sum(point.costs)) for point in outcome.points)
        places = [
            (left + (point.at - start) * x_scale, bottom - cost * y_scale)
            for point, cost in zip(outcome.points, costs, strict=True)
        ]
        drawn.append((outcome, _thinned(places) or [(left, bottom)]))
    return Lines(
        lines=_labelled(drawn),
        x_ticks=[(left + at * seconds * x_scale, f"{at:g}") for at in ticks(length / seconds)],
        y_ticks=[(bottom - at * y_scale, f"${at:g}") for at in ticks(most)],
        unit=unit,
    )


def ticks(most: float, about: int = 5) -> list[float]:
    """Return about `about` round numbers from 0 to `most`."""
    if most <= 0:
        return [0.0]
    rough = most / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    return [round(step * index, 12) for index in range(int(most / step + 1e-9) + 1)]


def _thinned(places: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """Return at most `_MOST_POINTS` places, including the last."""
    step = math.ceil(len(places) / _MOST_POINTS) or 1
    return [*places[: len(places) - 1 : step], *places[-1:]]


def _labelled(drawn: Sequence[tuple[PolicyOutcome, Sequence[tuple[float, float]]]]) -> list[Line]:
    """Return the lines; labels that would overlap move down, in the order of their ends."""
    made, free = {}, -math.inf
    for outcome, places in sorted(drawn, key=lambda item: item[1][-1][1]):
        x, y = places[-1]
        free = max(y, free + 16)
        path = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
        made[outcome.policy] = Line(outcome.policy, path, (x, y), free, usd(outcome.cost))
    return [made[outcome.policy] for outcome, _ in drawn]
