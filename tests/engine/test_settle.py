"""The end of a call: `begun`, `settle` and `fail`, and the entries expected at the provider."""

from __future__ import annotations

from typing import Any

import pytest

import cachemw
from tests.bodies import PARAGRAPH, Body
from tests.engine.calls import MODEL, agent, make_middleware, usage
from tests.kept import in_store


def test_settle_after_settle_returns_the_first_receipt() -> None:
    """The second settlement changes nothing, and no other method does after the first."""
    mw = make_middleware()
    call = mw.prepare(agent())
    first = mw.settle(call, usage(cache_write=3000))
    before = mw.report(), in_store(mw._shell.store)
    assert mw.settle(call, usage(cache_read=9)) is first
    assert mw.settle(call, None, partial=True) is first
    mw.begun(call)
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None
    assert (mw.report(), in_store(mw._shell.store)) == before
    assert mw.counts.get("settle.partial") is None
    assert mw.counts.get("fail") is None


def test_answer_without_usage_counts_as_unsettled_and_its_entries_are_assumed() -> None:
    """The call counts without money, and its planned cache writes are expected to have happened."""
    mw = make_middleware()
    assert mw.settle(mw.prepare(agent()), None) == cachemw.Receipt()
    mw.clock.now += 5  # type: ignore[attr-defined]
    second = mw.prepare(agent())
    assert second.plan.cache_read > 3000
    mw.begun(second)
    totals = mw.report().totals
    assert (totals.calls, totals.unsettled, totals.paid, totals.cache_read) == (2, 1, 0, 0)
    assert mw.counts["settle.no_usage"] == 1


@pytest.mark.parametrize(
    "odd",
    [
        {},
        [],
        "usage",
        5,
        {"usage": None},
        {"usage": {"prompt_tokens": -5}},
        object(),
        {"usage": {"prompt_tokens": float("nan")}},
    ],
)
def test_unreadable_usage_settles_without_money(odd: Any) -> None:
    """An answer of any kind settles its call."""
    mw = make_middleware()
    assert mw.settle(mw.prepare(agent()), odd) == cachemw.Receipt()
    assert mw.report().totals.calls == 1


def test_entries_are_readable_once_the_answer_has_begun() -> None:
    """The next request expects a cache read from the first byte of the answer until the TTL ends."""
    mw = make_middleware()
    call = mw.prepare(agent())
    assert mw.prepare(agent()).plan.cache_read == 0
    mw.begun(call)
    mw.begun(call)
    mw.clock.now += 299  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read > 3000
    mw.clock.now += 2  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read == 0


def test_entry_expires_by_the_start_of_its_request() -> None:
    """A slow answer leaves less time to the entries that its request wrote."""
    mw = make_middleware()
    call = mw.prepare(agent())
    mw.clock.now += 290  # type: ignore[attr-defined]
    mw.begun(call)
    mw.clock.now += 11  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read == 0


def test_failed_call_leaves_no_entry_and_no_money() -> None:
    """A call without an answer leaves no entry, and can't be settled later."""
    mw = make_middleware()
    call = mw.prepare(agent())
    mw.fail(call)
    mw.fail(call)
    assert mw.settle(call, usage(cache_write=5000)) == cachemw.Receipt()
    mw.begun(call)
    assert mw.report().totals.calls == 0
    assert mw.prepare(agent()).plan.cache_read == 0
    assert mw.counts["fail"] == 1


def test_partial_answer_is_settled_and_counted() -> None:
    """A stream that broke is settled with the usage that had arrived."""
    mw = make_middleware()
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.settle(call, usage(cache_write=3000), partial=True).usage is not None
    assert mw.counts["settle.partial"] == 1


def test_entry_that_was_not_read_counts_as_gone() -> None:
    """If less is read than was expected, the entry is removed, and the receipt has the reason of the miss."""
    mw = make_middleware()
    mw.settle(mw.prepare(agent()), usage(cache_write=3300))
    mw.clock.now += 10  # type: ignore[attr-defined]
    call = mw.prepare(agent())
    assert call.plan.cache_read > 3000
    receipt = mw.settle(call, usage(uncached=3400))
    assert receipt.miss is not None
    assert mw.counts["mirror.corrected"] == 1
    assert mw.prepare(agent()).plan.cache_read == 0


def test_entry_that_was_written_again_is_expected_again() -> None:
    """If the provider lost an entry and has just written it anew, the next request expects to read it."""
    mw = make_middleware()
    for read, written in ((0, 3300), (3300, 0), (0, 3300)):
        mw.settle(mw.prepare(agent()), usage(read, written))
        mw.clock.now += 10  # type: ignore[attr-defined]
    assert mw.counts["mirror.corrected"] == 1
    assert mw.prepare(agent()).plan.cache_read > 3000


@pytest.mark.parametrize(("ttl", "cached"), [("1h", True), ("5m", False)])
def test_entry_that_was_written_again_for_less_time_loses_its_hour(ttl: str, cached: bool) -> None:
    """An entry of an hour that was lost and written for five minutes is not expected for an hour."""

    def body(question: str, ttl: str) -> Body:
        marker = {"type": "ephemeral", "ttl": ttl}
        system = [{"type": "text", "text": PARAGRAPH * 20, "cache_control": marker}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return {"model": MODEL, "messages": messages}

    mw = make_middleware()
    mw.settle(mw.prepare(body("One?", "1h")), usage(cache_write=3300))
    mw.clock.now += 400  # type: ignore[attr-defined]
    call = mw.prepare(body("Two?", ttl))
    assert call.plan.cache_read > 3000
    mw.settle(call, usage(cache_write=3300))
    mw.clock.now += 10  # type: ignore[attr-defined]
    assert (mw.prepare(body("Three?", ttl)).plan.cache_read > 3000) is cached


def test_reported_usage_calibrates_the_token_estimate() -> None:
    """The provider's token counts scale the estimate of the next request."""
    mw = make_middleware()
    first = mw.prepare(agent()).plan
    for _ in range(3):
        mw.settle(mw.prepare(agent()), usage(cache_write=8000))
    plan = mw.prepare(agent()).plan
    assert plan.cache_read + plan.cache_write_5m + plan.uncached == pytest.approx(8100, rel=0.02)
    assert first.cache_write_5m + first.uncached < 5000


def test_call_after_close_goes_out_and_settles() -> None:
    """Closing twice is allowed, and later calls go out and are settled."""
    mw = make_middleware()
    call = mw.prepare(agent())
    mw.close()
    mw.close()
    assert mw.settle(call, usage()).usage is not None
    assert mw.prepare(agent()).body is not None
    assert mw.flush(60.0)
