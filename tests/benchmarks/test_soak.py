"""The verdicts of a soak run on invented series."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from benchmarks.load.accounts import Sample
from benchmarks.load.flatness import count_flat, latency_flat, memory_flat, share_flat, slope
from benchmarks.soak import Sampled, Soak

MB = float(1 << 20)
RATE = 60.0
LEVEL = 240 * MB
MINUTES = (3, 30)


def series(
    minutes: float, value: Callable[[float], float], noise: float = 0.0, every: float = 2.5
) -> list[tuple[float, float]]:
    """Return a series of samples of a function of the seconds, with noise in bytes."""
    rng = random.Random(minutes)
    times = [every * number for number in range(int(60 * minutes / every))]
    return [(1e9 + at, value(at) + rng.uniform(-noise, noise)) for at in times]


@pytest.mark.parametrize("minutes", MINUTES)
def test_memory_flat_with_noise_is_flat(minutes: float) -> None:
    """Memory that moves by a MB around its level is flat."""
    assert memory_flat("memory", series(minutes, lambda _: LEVEL, noise=MB), RATE).flat


@pytest.mark.parametrize("minutes", MINUTES)
@pytest.mark.parametrize("noise", [0.0, MB])
def test_memory_leaking_one_kb_a_request_is_not_flat(minutes: float, noise: float) -> None:
    """A leak of 1 KB a request fails, in a short run and in a long one, with noise and without."""
    leaking = series(minutes, lambda at: LEVEL + 1024 * RATE * at, noise=noise)
    verdict = memory_flat("memory", leaking, RATE)
    assert not verdict.flat
    assert verdict.words.startswith("grows")


def test_memory_growing_in_warm_up_only_is_flat() -> None:
    """Growth in the first third does not count."""
    warming = series(30, lambda at: LEVEL - 50 * MB * max(0.0, 1 - at / 500), noise=MB)
    assert memory_flat("memory", warming, RATE).flat


def test_memory_with_one_step_of_the_allocator_is_flat() -> None:
    """A single step of 1 % is no leak."""
    assert memory_flat("memory", series(30, lambda at: LEVEL * (1.01 if at > 1200 else 1)), RATE).flat


def test_memory_too_noisy_to_decide_is_not_flat() -> None:
    """A run that could not see a leak of 1 KB a request does not pass as flat."""
    verdict = memory_flat("memory", series(2, lambda _: LEVEL, noise=60 * MB), RATE)
    assert not verdict.flat
    assert verdict.words.startswith("undecided")


def test_memory_shrinking_is_flat() -> None:
    """Memory that shrinks is no leak."""
    assert memory_flat("memory", series(30, lambda at: LEVEL - 10_000 * at, noise=MB), RATE).flat


def test_slope_of_a_line_with_outliers_is_the_slope_of_the_line() -> None:
    """Theil-Sen does not follow single peaks, and its interval holds the slope."""
    line = [
        (x, y * 10 if number % 17 == 5 else y) for number, (x, y) in enumerate(series(30, lambda at: 5 + at))
    ]
    found = slope(line)
    assert found.middle == pytest.approx(1.0, rel=0.05)
    assert found.low <= 1.0 <= found.high


def test_slope_of_too_few_samples_is_refused() -> None:
    """A verdict needs samples."""
    with pytest.raises(ValueError, match="too few"):
        slope([(float(number), 1.0) for number in range(7)])


def test_descriptors_with_a_constant_rise_are_flat_and_leaking_ones_are_not() -> None:
    """A few more connections and short bursts are no leak; one more every ten seconds is."""
    assert count_flat("files", series(30, lambda at: 100 + (at > 1200) * 10 + (at % 300 < 5) * 200)).flat
    assert not count_flat("files", series(30, lambda at: 100 + at // 10)).flat


def test_keys_at_their_bound_are_flat_and_growing_ones_are_not() -> None:
    """Keys that the store drops at its bound stay level; without a bound they grow with the requests."""
    assert share_flat("keys", series(30, lambda at: min(100_000.0, 1_000 * at), noise=200)).flat
    assert not share_flat("keys", series(30, lambda at: 50_000 + 100 * at, noise=200)).flat


def test_latency_up_by_half_is_flat_and_doubled_is_not() -> None:
    """The last third's p99 may be 1.5 times the first third's."""
    assert latency_flat("p99", series(30, lambda at: 0.1 if at < 900 else 0.14, every=60)).flat
    assert not latency_flat("p99", series(30, lambda at: 0.1 + at / 9000, every=60)).flat


def ended(number: int, seconds: float = 0.05, status: int = 200) -> Sample:
    """Return a request that ended; three a second."""
    began = 1e9 + number / 3
    return Sample(number, "paid-a", "", began=began, ended=began + seconds, status=status, complete=True)


def soak(samples: list[Sample] | None = None, **changed: object) -> Soak:
    """Return a run of ten minutes with flat series and right answers, but for the changed fields."""
    flat = series(10, lambda _: LEVEL)
    sampled = Sampled(flat, series(10, lambda _: 100.0), flat, flat)
    ended_well = [ended(number) for number in range(1_800)]
    run = Soak(sampled, samples or ended_well, cpu=0.3, machine=1.0, exit_code=0)
    for name, value in changed.items():
        setattr(sampled if hasattr(sampled, name) else run, name, value)
    return run


def test_soak_with_flat_series_and_right_answers_is_flat() -> None:
    """All figures of such a run are flat, and it has ten full minutes."""
    run = soak()
    assert [one.figure for one in run.verdicts() if not one.flat] == []
    assert [len(times) for _, times in run.windows()] == [180] * 10


@pytest.mark.parametrize(
    ("changed", "figure"),
    [
        ({"endless": 1}, "keys without a TTL"),
        ({"exit_code": None}, "end on SIGTERM"),
        ({"memory": series(10, lambda at: LEVEL + 1024 * RATE * at)}, "memory of the proxy"),
        ({"descriptors": series(10, lambda at: 100 + at)}, "files of the proxy"),
        (
            {"samples": [ended(number, status=502 if number == 9 else 200) for number in range(1_800)]},
            "wrong answers",
        ),
        ({"samples": [ended(number, 0.05 if number < 900 else 0.5) for number in range(1_800)]}, "p99"),
    ],
)
def test_soak_with_one_bad_figure_names_it(changed: dict[str, object], figure: str) -> None:
    """Each figure fails alone."""
    run = soak(**changed)  # type: ignore[arg-type]
    assert [one.figure for one in run.verdicts() if not one.flat] == [figure]
