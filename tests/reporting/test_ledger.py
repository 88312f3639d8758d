"""Sums and the report made of them."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.reporting.ledger import HOUR, KEEP_HOURS, Report, Row, amounts, report, table, tables


def test_ledger_has_a_table_for_each_hour() -> None:
    """An hour is a table; the last seven days are read, and the next hour for fast clocks."""
    assert table(0.0) == table(3599.9) == "ledger:0"
    assert table(3600.0) == "ledger:1"
    now = 1_000 * HOUR + 1
    found = tables(now)
    assert len(found) == len(set(found)) == KEEP_HOURS + 1
    assert table(now) in found
    assert table(now + HOUR) in found
    assert table(now - (KEEP_HOURS - 1) * HOUR) in found
    assert table(now - KEEP_HOURS * HOUR) not in found


def test_amounts_of_a_call_come_back_as_its_row() -> None:
    """The amounts of a call come back as the row of its labels and model, with exact money."""
    sums = {
        "calls": 1,
        "settled": 1,
        "cache_read": 10,
        "cache_write_5m": 0,
        "uncached": 5,
        "paid": Decimal("0.000000000001"),
        "saved_by_cachemw": Decimal("-0.25"),
    }
    added = amounts({"b": "2", "a": "1"}, "claude-x", sums)
    assert "cache_write_5m" not in {name.split()[0] for name in added}
    assert all(isinstance(amount, int) for amount in added.values())
    assert amounts({"a": "1", "b": "2"}, "claude-x", sums) == added
    (row,) = report(added).rows
    assert row == Row(
        {"a": "1", "b": "2"},
        "claude-x",
        calls=1,
        cache_read=10,
        uncached=5,
        paid=Decimal("0.000000000001"),
        saved_by_cachemw=Decimal("-0.25"),
    )
    assert row.saved == Decimal("-0.25")
    assert row.hit_rate == pytest.approx(2 / 3)


def test_report_has_rows_in_a_steady_order_and_totals() -> None:
    """Each label set on each model is a row, in a steady order; the totals have neither."""
    found: dict[str, int] = {}
    for labels, model, calls in (
        ({}, "m", 1),
        ({"a": "1"}, "m", 2),
        ({"a": "1"}, "n", 4),
        ({"a": "2"}, "m", 8),
    ):
        found |= amounts(
            labels,
            model,
            {
                "calls": calls,
                "saved_by_client": Decimal(calls),
                "settled": calls - 1,
                "cache_write_1h": 3,
                "output": 2,
            },
        )
    made = report(dict(reversed(found.items())))
    assert made == report(found)
    assert sorted(row.calls for row in made.rows) == [1, 2, 4, 8]
    totals = made.totals
    assert (
        totals.labels,
        totals.model,
        totals.calls,
        totals.unsettled,
        totals.cache_write_1h,
        totals.output,
    ) == (
        {},
        "",
        15,
        4,
        12,
        8,
    )
    assert totals.saved == totals.saved_by_client == Decimal(15)


def test_report_of_an_empty_table_is_empty() -> None:
    """An empty table is an empty report."""
    assert report({}) == Report()
    assert (Report().rows, Report().totals.hit_rate, Report().totals.saved) == ((), 0.0, Decimal(0))


def test_report_leaves_out_sums_of_another_version() -> None:
    """An unknown sum is left out, and makes no row."""
    added = amounts({}, "m", {"calls": 1})
    assert report({**added, 'later ["m",[]]': 5, 'novel ["n",[]]': 5, "": 3}) == report(added)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "{",
        "[1]",
        "[1,2]",
        '["m"]',
        '["m",[],0]',
        '["m",5]',
        '["m",[1]]',
        '["m",["abc"]]',
        '["m",[["a",1]]]',
        "[" * 99_999,
    ],
)
def test_report_leaves_out_a_row_that_another_program_wrote(key: str) -> None:
    """One malformed name in the table hides neither the rows nor the totals of the others."""
    added = amounts({"app": "x"}, "m", {"calls": 1, "cache_read": 5})
    assert report({**added, f"calls {key}": 7, f"cache_read {key}": 9}) == report(added)


@given(st.lists(st.tuples(
    st.dictionaries(st.sampled_from(["app", 'a " b', "ü\ud800"]), st.text(max_size=4), max_size=2), st.sampled_from(["m", "n x", ""]),
    st.fixed_dictionaries({}, optional={"calls": st.integers(-5, 10**12), "cache_read": st.integers(0, 10**12), "paid": st.decimals(-9, 9, places=12)}),
)))  # fmt: skip
def test_ledger_sums_commute(calls: list[tuple[dict[str, str], str, dict[str, int | Decimal]]]) -> None:
    """Any order of the same calls makes one report, whose totals are the sums of its rows."""
    made = []
    for order in (calls, calls[::-1]):
        found: dict[str, int] = {}
        for labels, model, sums in order:
            for name, amount in amounts(labels, model, sums).items():
                found[name] = found.get(name, 0) + amount
        made.append(report(found))
    assert made[0] == made[1]
    assert made[0].totals.cache_read == sum(row.cache_read for row in made[0].rows)
    assert made[0].totals.paid == sum((Decimal(sums.get("paid", 0)) for _, _, sums in calls), Decimal(0))
