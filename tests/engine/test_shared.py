"""The state that all calls of a middleware share."""

from __future__ import annotations

import pytest

import cachemw
from cachemw.engine import shared
from cachemw.reporting import ledger


def test_sums_of_a_process_beyond_the_limit_count_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose tenants come and go keeps a bounded number of sums, and its totals stay exact."""
    monkeypatch.setattr(shared, "_MOST_SUMS", 20)
    state = shared.Shared(cachemw.Settings(), lambda: 0.0, ())
    for number in range(50):
        state.add_to_ledger({"tenant": str(number)}, "claude-x", {"calls": 1, "settled": 1, "cache_read": 2})
    report = ledger.report(state.sums)
    assert len(state.sums) < 30
    assert (report.totals.calls, report.totals.cache_read) == (50, 100)
    assert {row.labels["tenant"] for row in report.rows if row.model == "other"} == {"other"}
