"""Draw the savings table: a line for each workload, a mark for each policy.

Contains: an SVG without scripts and fonts, for light and dark pages. Must not depend on: the way rows are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from statistics import mean

from benchmarks.measure import CACHEMW_POLICIES, NO_CACHING, Row

_LEFT, _WIDTH, _ROW, _TOP, _MOST = 168, 560, 22, 64, 1.3
_VISIBLE = 0.01  # of no caching: a smaller effect of the opt-ins is not shown
OPT_INS = "cachemw opt-ins"
_CACHEMW, _PEER, _BOUND, _TEXT = "#0f766e", "#9ca3af", "#d97706", "#6b7280"


def chart(rows: Sequence[Row], policy: str = "cachemw") -> str:
    """Return the SVG: means over the seeds, cost against no caching from left to right."""
    workloads = list(dict.fromkeys(row.workload for row in rows))
    height = _TOP + _ROW * len(workloads) + 34
    bottom = height - 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 24}" height="{height}" '
        f'viewBox="0 0 {_LEFT + _WIDTH + 24} {height}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        "<title>Input cost against no caching, by workload and policy</title>",
        _legend(policy),
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25):
        stroke = f'stroke="{_TEXT}" stroke-opacity="{0.9 if tick == 1.0 else 0.25}"'
        parts.append(f'<line x1="{_x(tick)}" y1="{_TOP - 8}" x2="{_x(tick)}" y2="{bottom}" {stroke}/>')
        label = "no caching" if tick == 1.0 else f"{tick:g}"
        parts.append(_text(_x(tick), bottom + 16, label, "middle"))
    for index, workload in enumerate(workloads):
        workload_rows = [row for row in rows if row.workload == workload]
        y = _TOP + _ROW * index + _ROW / 2
        parts.append(_text(_LEFT - 10, y + 4, workload, "end"))
        parts += _marks(workload_rows, policy, y)
    return "\n".join([*parts, "</svg>", ""])


def _marks(rows: Sequence[Row], chosen: str, y: float) -> list[str]:
    """Return a workload's peers as dots on a line, the bound as a stroke, and the chosen policy on top."""
    costs = {
        policy: mean(row.cost for row in rows if row.policy == policy)
        for policy in {row.policy for row in rows}
    }
    peers = sorted(
        cost for policy, cost in costs.items() if policy not in CACHEMW_POLICIES and policy != NO_CACHING
    )
    found = []
    if peers:
        found.append(
            f'<line x1="{_x(peers[0])}" y1="{y}" x2="{_x(peers[-1])}" y2="{y}" stroke="{_PEER}" stroke-width="2"/>'
        )
    found += [f'<circle cx="{_x(cost)}" cy="{y}" r="3.5" fill="{_PEER}"/>' for cost in peers]
    bounds = [row.bound for row in rows if row.policy == chosen]
    if bounds:
        x = _x(mean(bounds))
        found.append(
            f'<line x1="{x}" y1="{y - 8}" x2="{x}" y2="{y + 8}" stroke="{_BOUND}" stroke-width="2.5"/>'
        )
        opted = costs.get(OPT_INS, costs[chosen])
        if abs(opted - costs[chosen]) > _VISIBLE:
            ring = f'fill="none" stroke="{_CACHEMW}" stroke-width="2"'
            found.append(f'<circle cx="{_x(opted)}" cy="{y}" r="4" {ring}/>')
        found.append(f'<circle cx="{_x(costs[chosen])}" cy="{y}" r="5" fill="{_CACHEMW}"/>')
    return found


def _legend(policy: str) -> str:
    ring = f'fill="none" stroke="{_CACHEMW}" stroke-width="2"'
    entries = (
        (f'fill="{_CACHEMW}"', policy),
        (ring, OPT_INS),
        (f'fill="{_PEER}"', "peers"),
        (f'fill="{_BOUND}"', "the least possible if the future is known"),
    )
    parts, x = [], 24.0
    for look, label in entries:
        parts.append(f'<circle cx="{x + 5}" cy="22" r="4.5" {look}/>{_text(x + 16, 26, label, "start")}')
        x += 40 + 6.6 * len(label)
    return "".join(parts)


def _x(cost: float) -> float:
    return round(_LEFT + _WIDTH * min(cost, _MOST) / _MOST, 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" fill="{_TEXT}" text-anchor="{anchor}">{escape(text)}</text>'
