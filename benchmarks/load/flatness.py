"""Decide whether figures of a long run are flat: memory, descriptors, keys, latency.

Contains: the tests and their bounds, as pure functions over series. Must not depend on: how a series is measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist, median

LIMIT = 0.02  # growth in an hour, as a share of the level, that counts as flat
LEAK = 512.0  # bytes a request: the test of memory must detect half of a leak of one KB a request
CONFIDENCE = 0.95
STEP = (
    0.02  # rise between the thirds, as a share of the level, up to which a slope is a step of the allocator
)
DESCRIPTORS = 16  # more in the last third than in the first one
SLOWER = 1.5  # times the first third's p99
_WINDOWS = 24

Series = Sequence[tuple[float, float]]
"""Times in seconds and values, by time."""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one figure: True if it is flat, with the numbers behind it."""

    figure: str
    flat: bool
    words: str


@dataclass(frozen=True)
class Slope:
    """A Theil-Sen slope, a second, with the bounds of its confidence interval, and the series' level."""

    middle: float
    low: float
    high: float
    level: float


def slope(series: Series, confidence: float = CONFIDENCE) -> Slope:
    """Return the Theil-Sen slope of a series and Sen's interval for it.

    The series is first reduced to the medians of at most 24 windows of equal length: samples that follow each other
    closely are not independent, and would make the interval too narrow. Raises `ValueError` for fewer than 8 samples.
    """
    if len(series) < 8:
        raise ValueError(f"{len(series)} samples are too few")
    points = _windows(series)
    slopes = sorted((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))
    count = len(points)
    deviation = math.sqrt(count * (count - 1) * (2 * count + 5) / 18)  # of Kendall's statistic
    margin = NormalDist().inv_cdf((1 + confidence) / 2) * deviation
    low = max(0, math.floor((len(slopes) - margin) / 2))
    high = min(len(slopes) - 1, math.ceil((len(slopes) + margin) / 2))
    return Slope(median(slopes), slopes[low], slopes[high], median(y for _, y in points))


def memory_flat(figure: str, series: Series, rate: float) -> Verdict:
    """Judge memory in bytes over the last two thirds of a run of `rate` requests a second.

    It is not flat where the whole confidence interval of its slope is above 2 % of its level an hour, and the last
    third lies more than 2 % above the second one or grows by more than 512 bytes a request. It is undecided, which
    counts as not flat, where the interval reaches up to 512 bytes a request: the run is too short or too noisy to
    exclude a leak of that size.
    """
    found = slope(last(series, 2 / 3))
    hourly = 3600 * found.low / found.level
    leaks = found.high / rate if rate else math.inf
    middle, end = (median(y for _, y in third(series, number)) for number in (1, 2))
    rise = (end - middle) / middle
    grows = hourly > LIMIT and (rise > STEP or found.low / rate > LEAK)
    words = (
        f"{3600 * found.middle / found.level:+.1%} an hour ({hourly:+.1%} to {3600 * found.high / found.level:+.1%}),"
        f" {found.middle / rate:+.0f} bytes a request (at most {leaks:.0f}), rise between thirds {rise:+.2%}"
    )
    if grows:
        return Verdict(figure, False, f"grows: {words}")
    if leaks > LEAK:
        return Verdict(figure, False, f"undecided, the run is too short or too noisy: {words}")
    return Verdict(figure, True, words)


def count_flat(figure: str, series: Series, constant: int = DESCRIPTORS) -> Verdict:
    """Judge a count: its median in the last third may be above its median in the first third by a constant.

    A burst of slow requests holds more connections for a moment; a leak lifts the median.
    """
    first, end = (median(y for _, y in third(series, number)) for number in (0, 2))
    words = f"{first:.0f} in the first third, {end:.0f} in the last"
    return Verdict(figure, end <= first + constant, words)


def share_flat(figure: str, series: Series) -> Verdict:
    """Judge a large count by its slope alone: over the last two thirds not surely above 2 % of its level an hour."""
    found = slope(last(series, 2 / 3))
    low, high = (3600 * bound / found.level for bound in (found.low, found.high))
    first, end = (median(y for _, y in third(series, number)) for number in (1, 2))
    flat = low <= LIMIT or end <= first * (1 + STEP)
    return Verdict(
        figure, flat, f"{3600 * found.middle / found.level:+.1%} an hour ({low:+.1%} to {high:+.1%})"
    )


def latency_flat(figure: str, series: Series) -> Verdict:
    """Judge a latency: the last third's median may be 1.5 times the first third's."""
    first, end = (median(y for _, y in third(series, number)) for number in (0, 2))
    words = f"{1000 * first:.1f} ms in the first third, {1000 * end:.1f} ms in the last"
    return Verdict(figure, end <= SLOWER * first, words)


def last(series: Series, share: float) -> Series:
    """Return the part of a series that begins in the last share of its time."""
    start = series[-1][0] - share * (series[-1][0] - series[0][0])
    return [point for point in series if point[0] >= start]


def third(series: Series, number: int) -> Series:
    """Return the first (0), second or last third of a series, by time."""
    start, length = series[0][0], (series[-1][0] - series[0][0]) / 3
    return [p for p in series if min(int((p[0] - start) / length), 2) == number]


def _windows(series: Series) -> list[tuple[float, float]]:
    start, length = series[0][0], series[-1][0] - series[0][0]
    count = min(_WINDOWS, len(series))
    windows: dict[int, list[tuple[float, float]]] = {}
    for x, y in series:
        windows.setdefault(min(int(count * (x - start) / length), count - 1), []).append((x, y))
    return [(median(x for x, _ in one), median(y for _, y in one)) for one in windows.values()]
