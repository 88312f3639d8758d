"""The circuit breaker: when it opens, probes and closes."""

from __future__ import annotations

import pytest

from cachemw.stores.redis.circuit_breaker import CircuitBreaker


@pytest.mark.parametrize(
    ("events", "closed"),
    [
        ("", True),
        ("ff", True),
        ("fff", False),
        ("ffsff", True),
        ("ffsfff", False),
        ("fffs", True),
        ("fffsff", True),
    ],
)
def test_breaker_after_three_failures_in_a_row_opens(events: str, closed: bool) -> None:
    """A success in between starts the count anew, and closes an open breaker."""
    breaker = CircuitBreaker()
    for event in events:
        breaker.failed(0.0) if event == "f" else breaker.succeeded()
    assert breaker.closed is closed


def test_breaker_on_each_change_reports_it_once() -> None:
    """The failure that opens and the success that closes return True; the rest return False."""
    breaker = CircuitBreaker()
    assert [breaker.failed(0.0) for _ in range(5)] == [False, False, True, False, False]
    assert [breaker.succeeded() for _ in range(2)] == [True, False]
    assert not breaker.failed(0.0)
    assert not breaker.succeeded()


def test_probe_per_pause_is_granted_to_one_caller() -> None:
    """The pause doubles up to a second, and is short again after a success."""
    breaker, now = CircuitBreaker(), 100.0
    assert not breaker.may_probe(now)
    for _ in range(2):
        for _ in range(3):
            breaker.failed(now)
        for pause in (0.2, 0.4, 0.8, 1.0, 1.0):
            assert not breaker.may_probe(now + pause - 0.01)
            now += pause
            assert breaker.may_probe(now)
            assert not breaker.may_probe(now)
            breaker.failed(now)
        breaker.succeeded()
        assert not breaker.may_probe(now + 9.0)


def test_probe_without_an_end_is_granted_again() -> None:
    """A thread that probes may end; after the pause another one may probe."""
    breaker = CircuitBreaker()
    for _ in range(3):
        breaker.failed(0.0)
    assert [breaker.may_probe(now) for now in (0.1, 0.2, 0.3, 0.41)] == [False, True, False, True]
