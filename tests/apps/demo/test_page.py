"""The page: well-formed, escaped, self-contained, and drawn to scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from cachemw.apps.demo.outcome import Comparison, Point, PolicyOutcome, percent, point, usd
from cachemw.apps.demo.page import bars, lines, page, ticks
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.models import MODELS

SONNET = MODELS["claude-sonnet-4-6"]
ODD = "<script>alert('x')</script> & \"co\""
_VOID = {"meta", "line", "rect", "circle", "path", "i"}


def compared(*policies: Sequence[Point], source: str = "three conversations") -> Comparison:
    """Return the comparison of three policies with these points."""
    names = ("no caching", "positional", "cachemw")
    outcomes = [PolicyOutcome(name, points) for name, points in zip(names, policies, strict=True)]
    return Comparison(outcomes, source, [("Prices", ODD)])


def spent(at: float, cached: int, writes: int, uncached: int, family: str = "talk") -> Point:
    """Return a point with these tokens."""
    return point(at, family, Usage(cached, writes, 0, uncached, 1, ""), SONNET)


COMPARISON = compared(
    [spent(0, 0, 0, 9_000), spent(60, 0, 0, 9_000), spent(90, 0, 0, 2_000, ODD)],
    [spent(0, 0, 9_000, 0), spent(60, 9_000, 0, 0), spent(90, 0, 2_000, 0, ODD)],
    [spent(0, 0, 9_000, 0), spent(60, 9_000, 0, 0), spent(90, 0, 0, 2_000, ODD)],
    source=ODD,
)
NOTHING = compared([], [], [])


class _Tree(HTMLParser):
    """Collect tags, and fail if they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


@pytest.mark.parametrize("comparison", [COMPARISON, NOTHING], ids=["points", "all refused"])
def test_page_is_well_formed_and_self_contained(comparison: Comparison) -> None:
    """Tags nest, no address is loaded and no script runs, for any names."""
    html = page(comparison)
    tree = _Tree()
    tree.feed(html)
    assert tree.open == []
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in tree.seen)
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in tree.seen for key in attrs)
    assert "url(" not in html
    assert ODD not in html


def test_odd_names_are_escaped() -> None:
    """Names of families, the source and the facts come from outside and are escaped in each place."""
    html = page(COMPARISON)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;") >= 4


def test_chart_has_title_and_description() -> None:
    """Each SVG is an image with a unique title and a description with the figures."""
    html = page(COMPARISON)
    tree = _Tree()
    tree.feed(html)
    charts = [attrs for tag, attrs in tree.seen if tag == "svg"]
    assert len(charts) == 4
    for chart in charts:
        assert chart["role"] == "img"
        for name in str(chart["aria-labelledby"]).split():
            assert html.count(f'id="{name}"') == 1
    descriptions = re.findall(r"<desc[^>]*>([^<]+)", html)
    assert "positional: $0.0440 (26.7% saved)." in descriptions[0]
    assert "cachemw ends at $0.0424." in descriptions[1]


def test_table_has_the_figures_of_each_policy() -> None:
    """Each row has the tokens by kind, the cost and the saved share."""
    rows = re.findall(r"<tr>(.*?)</tr>", page(COMPARISON), re.DOTALL)
    cells = [re.findall(r">([^<>]+)</t[hd]>", row) for row in rows]
    assert cells[0] == ["policy", "cached", "cache writes", "uncached", "cost", "saved"]
    assert cells[2] == ["positional", "9,000", "11,000", "0", "$0.0440", "26.7%"]
    assert "simulated" in page(COMPARISON)


def test_bars_are_to_scale_and_touch() -> None:
    """Segments follow one another with lengths by cost; the most expensive bar is the longest."""
    no_caching, positional, _ = bars(COMPARISON)
    assert [kind for kind, *_ in positional.segments] == ["cached", "cache writes"]
    (_, x, cached, _), (_, next_x, writes, _) = positional.segments
    assert next_x == pytest.approx(x + cached, abs=0.11)
    ((_, _, whole, _),) = no_caching.segments
    assert writes / whole == pytest.approx(11_000 * 3.75 / (20_000 * 3), rel=0.01)
    assert no_caching.end > positional.end


def test_lines_rise_and_their_labels_are_apart() -> None:
    """Lines only rise and end at the total cost; labels are at least a line of text apart."""
    chart = lines(COMPARISON)
    for line in chart.lines:
        heights = [float(pair.split()[1]) for pair in line.path[1:].split("L")]
        assert heights == sorted(heights, reverse=True)
        assert heights[-1] == pytest.approx(line.end[1], abs=0.06)
    labels = sorted(line.label_y for line in chart.lines)
    assert all(after - before >= 16 for before, after in pairwise(labels))
    assert [label for _, label in chart.x_ticks] == ["0", "0.5", "1", "1.5"]
    assert chart.unit == "minutes"


def test_long_line_is_thinned_and_keeps_its_end() -> None:
    """Ten thousand requests are drawn with few points, over hours."""
    points = [spent(60.0 * index, 0, 0, 1_000) for index in range(10_000)]
    line = lines(compared(points, points, points)).lines[0]
    assert line.path.count("L") < 300
    assert line.path.endswith(f"{line.end[0]:.1f} {line.end[1]:.1f}")
    assert lines(compared(points, points, points)).unit == "hours"


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (0.0, [0]),
        (-1.0, [0]),
        (1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (2.79, [0, 1, 2]),
        (50.0, [0, 10, 20, 30, 40, 50]),
        (0.0042, [0, 0.001, 0.002, 0.003, 0.004]),
    ],
)
def test_ticks_are_round_numbers(most: float, expected: list[float]) -> None:
    """Axes have round numbers up to the largest value."""
    assert ticks(most) == expected


def test_families_above_twelve_are_counted_only() -> None:
    """The twelve most expensive families are shown."""
    points = [spent(i, 0, 0, 100 + i, f"family {i:02}") for i in range(15)]
    html = page(compared(points, points, points))
    assert "3 more families of lower cost are not shown." in html
    assert "family 14" in html
    assert "family 02" not in html


def test_point_costs_are_exact_by_kind() -> None:
    """The three parts of a point are the costs of cached, written and uncached tokens."""
    assert spent(0, 1_000_000, 100_000, 10_000).costs == (Decimal("0.3"), Decimal("0.375"), Decimal("0.03"))
    both = point(0, "talk", Usage(0, 1_000, 1_000, 0, 0, ""), SONNET)
    assert sum(both.costs) == Decimal("0.00975")


@pytest.mark.parametrize(
    ("share", "words"),
    [(None, ""), (0.0, "0.0%"), (-0.0004, "0.0%"), (0.1, "10.0%"), (-0.713, "-71.3%"), (1.0, "100.0%")],
)
def test_percent_shows_one_decimal(share: float | None, words: str) -> None:
    """Negative shares keep their sign, and None is empty."""
    assert percent(share) == words
    assert usd(Decimal("1234.5")) == "$1,234.5000"
