"""The page: well-formed, escaped, self-contained, and drawn to scale."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from cachemw.apps.demo.outcome import Comparison, Outcome, Point, percent, point, usd
from cachemw.apps.demo.page import bars, lines, page, ticks
from cachemw.core.billing.usage import Usage
from cachemw.core.rules.models import MODELS

SONNET = MODELS["claude-sonnet-4-6"]
ODD = "<script>alert('x')</script> & \"co\""
_VOID = {"meta", "line", "rect", "circle", "path", "i"}


def compared(*policies: Sequence[Point], source: str = "three conversations") -> Comparison:
    """Return the comparison of three policies by their points."""
    names = ("no caching", "positional", "cachemw")
    outcomes = [Outcome(name, points) for name, points in zip(names, policies, strict=True)]
    return Comparison(outcomes, source, [("Prices", ODD)])


def spent(at: float, read: int, write: int, plain: int, family: str = "talk") -> Point:
    """Return the point of so many tokens."""
    return point(at, family, Usage(read, write, 0, plain, 1, ""), SONNET)


COMPARISON = compared(
    [spent(0, 0, 0, 9_000), spent(60, 0, 0, 9_000), spent(90, 0, 0, 2_000, ODD)],
    [spent(0, 0, 9_000, 0), spent(60, 9_000, 0, 0), spent(90, 0, 2_000, 0, ODD)],
    [spent(0, 0, 9_000, 0), spent(60, 9_000, 0, 0), spent(90, 0, 0, 2_000, ODD)],
    source=ODD,
)
NOTHING = compared([], [], [])


class _Tree(HTMLParser):
    """Collect tags, and fail where they don't nest."""

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
def test_the_page_is_well_formed_and_self_contained(comparison: Comparison) -> None:
    """Tags nest, nothing is loaded from elsewhere, no script runs, whatever names hold."""
    html = page(comparison)
    tree = _Tree()
    tree.feed(html)
    assert tree.open == []
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _ in tree.seen)
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in tree.seen for key in attrs)
    assert "url(" not in html
    assert ODD not in html


def test_odd_names_are_escaped_everywhere() -> None:
    """A family's name, the source and the facts come from outside: each is escaped where it stands."""
    html = page(COMPARISON)
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &#34;co&#34;") >= 4


def test_every_chart_says_what_it_shows() -> None:
    """Each SVG is an image with a title and a description that exist once, and hold the figures."""
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
    assert "positional: $0.0440 (-26.7%)." in descriptions[0]
    assert "cachemw ends at $0.0424." in descriptions[1]


def test_the_figures_are_in_the_table() -> None:
    """Tokens by kind, cost, change and hit rate of each policy stand in a row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page(COMPARISON), re.DOTALL)
    cells = [re.findall(r">([^<>]+)</t[hd]>", row) for row in rows]
    assert cells[2] == ["positional", "9,000", "11,000", "0", "$0.0440", "-26.7%", "45.0%", "0"]
    assert "simulated" in page(COMPARISON)


def test_bars_are_to_scale_and_touch() -> None:
    """Segments follow one another, as long as what they cost; the dearest bar is the longest."""
    plain, positional, _ = bars(COMPARISON)
    assert [kind for kind, *_ in positional.segments] == ["read", "written"]
    (_, x, read, _), (_, next_x, written, _) = positional.segments
    assert next_x == pytest.approx(x + read, abs=0.11)
    ((_, _, whole, _),) = plain.segments
    assert written / whole == pytest.approx(11_000 * 3.75 / (20_000 * 3), rel=0.01)
    assert plain.end > positional.end


def test_lines_add_up_and_their_labels_are_apart() -> None:
    """Lines only rise, end where the cost ends, and labels are a line of text apart at least."""
    chart = lines(COMPARISON)
    for line in chart.lines:
        heights = [float(pair.split()[1]) for pair in line.path[1:].split("L")]
        assert heights == sorted(heights, reverse=True)
        assert heights[-1] == pytest.approx(line.end[1], abs=0.06)
    labels = sorted(line.label_y for line in chart.lines)
    assert all(after - before >= 16 for before, after in pairwise(labels))
    assert [label for _, label in chart.x_ticks] == ["0", "0.5", "1", "1.5"]
    assert chart.unit == "minutes"


def test_long_lines_are_thinned_but_keep_their_end() -> None:
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
    """Axes carry round numbers up to the greatest value."""
    assert ticks(most) == expected


def test_many_families_are_cut() -> None:
    """The dearest twelve families are shown, the others counted."""
    points = [spent(i, 0, 0, 100 + i, f"family {i:02}") for i in range(15)]
    html = page(compared(points, points, points))
    assert "And 3 more of lower cost." in html
    assert "family 14" in html
    assert "family 02" not in html


def test_costs_are_split_exactly() -> None:
    """The three parts of a point are what read, written and plain tokens cost."""
    assert spent(0, 1_000_000, 100_000, 10_000).costs == (Decimal("0.3"), Decimal("0.375"), Decimal("0.03"))
    both = point(0, "talk", Usage(0, 1_000, 1_000, 0, 0, ""), SONNET)
    assert sum(both.costs) == Decimal("0.00975")


@pytest.mark.parametrize(
    ("change", "words"),
    [(None, ""), (0.0, "0.0%"), (-0.0004, "0.0%"), (0.1, "+10.0%"), (-0.713, "-71.3%"), (1.0, "+100.0%")],
)
def test_changes_are_written_with_a_sign(change: float | None, words: str) -> None:
    """A change has its sign, nothing has none."""
    assert percent(change) == words
    assert usd(Decimal("1234.5")) == "$1,234.5000"
