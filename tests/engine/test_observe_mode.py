"""Observe mode: bodies stay as they are, and the report shows the saving that breakpoints would have made."""

from __future__ import annotations

from tests.engine.calls import agent, make_middleware, usage


def test_observe_changes_no_body_and_reports_the_possible_saving() -> None:
    """Bodies leave unchanged, and the report sums up the saving that breakpoints would have made."""
    mw = make_middleware(mode="observe")
    for turn in range(1, 6):
        body = agent(turn)
        call = mw.prepare(body)
        assert call.body is body
        assert call.plan.breakpoints == ()
        mw.settle(call, usage(uncached=4000 + 400 * turn))
        mw.clock.now += 20  # type: ignore[attr-defined]
    totals = mw.report().totals
    assert totals.saved == 0
    assert totals.would_save > totals.baseline / 4


def test_entries_predicted_by_observe_are_not_expected_by_optimize() -> None:
    """Observe mode uses a separate namespace, since its entries never exist at the provider."""
    seen, sent = make_middleware(mode="observe"), make_middleware()
    sent._shell.store = seen._shell.store
    for _ in range(4):
        seen.settle(seen.prepare(agent()), usage(uncached=4000))
    assert sent.prepare(agent()).plan.cache_read == 0
    assert seen.prepare(agent())._lifecycle.planned.observed_plan.cache_read > 3000  # type: ignore[union-attr]
