"""When a server that does not answer is left alone, and tried again."""

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
def test_three_failures_in_a_row_open(events: str, closed: bool) -> None:
    """An answer between them starts the count anew, and closes what was open."""
    breaker = CircuitBreaker()
    for event in events:
        breaker.failed(0.0) if event == "f" else breaker.succeeded()
    assert breaker.closed is closed


def test_each_change_is_told_once() -> None:
    """The failure that opens and the answer that closes say so; the others don't."""
    breaker = CircuitBreaker()
    assert [breaker.failed(0.0) for _ in range(5)] == [False, False, True, False, False]
    assert [breaker.succeeded() for _ in range(2)] == [True, False]
    assert not breaker.failed(0.0)
    assert not breaker.succeeded()


def test_one_probe_a_pause_that_doubles_to_a_second() -> None:
    """Of all who ask, one may try; the pause starts small again after an answer."""
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


def test_a_probe_that_never_ends_is_tried_again() -> None:
    """Whoever probed may be no more: after the pause another may."""
    breaker = CircuitBreaker()
    for _ in range(3):
        breaker.failed(0.0)
    assert [breaker.may_probe(now) for now in (0.1, 0.2, 0.3, 0.41)] == [False, True, False, True]
