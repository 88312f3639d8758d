"""Upstream errors: refusals that give the original body to send again, and the facts learned from them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.calls import agent, make_middleware, marked_places, usage


def test_refused_marker_is_resent_once_and_its_kind_stays_unmarked() -> None:
    """A 400 that names a marker gives the original body once; if that passes, the kind stays unmarked."""
    mw, body = make_middleware(), agent()
    call = mw.prepare(body)
    refusal = "messages.3.content.0.tool_result.cache_control: Extra inputs are not permitted"
    assert mw.refused(call, 400, {"error_code": "BAD_REQUEST", "message": refusal}) is body
    assert mw.refused(call, 400, refusal) is None
    assert mw.counts["refused"] == 1
    other = mw.prepare(body)
    assert marked_places(other.body)[-1] == "messages.3"
    mw.fail(other)
    assert "refused.tool_result" not in mw.counts
    receipt = mw.settle(call, usage(uncached=4000))
    assert (mw.counts["refused"], mw.counts["refused.tool_result"]) == (1, 1)
    assert receipt.saved == 0
    again = mw.prepare(body)
    assert again.plan.added
    assert all(not place.startswith("messages.3") for place in marked_places(again.body))
    assert mw.prepare(agent(), provider="databricks").plan.cache_read == 0


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, "cache_control"),
        (500, "cache_control"),
        (400, "prompt is too long"),
        (400, None),
        (400, {}),
        (404, "cache_control"),
        ("400", "cache_control"),
    ],
)
def test_error_about_anything_else_is_no_refusal(status: Any, error: Any) -> None:
    """Any other error is left to the caller."""
    mw = make_middleware()
    call = mw.prepare(agent())
    assert mw.refused(call, status, error) is None
    mw.fail(call)


def test_refusal_of_an_unchanged_or_begun_request_is_not_resent() -> None:
    """A request that left unchanged is not sent again; nor is one whose answer has begun."""
    mw = make_middleware(mode="off")
    assert mw.refused(mw.prepare(agent()), 400, "cache_control: no") is None
    mw = make_middleware()
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.refused(call, 400, "cache_control: no") is None


def test_refusal_of_a_client_marker_teaches_no_kind() -> None:
    """If the 400 names a kind that cachemw did not mark, cachemw gives up none of its kinds."""
    mw = make_middleware()
    call = mw.prepare(agent())
    assert (
        mw.refused(call, 400, "messages.1.content.0.thinking.cache_control: Extra inputs are not permitted")
        is not None
    )
    mw.settle(call, usage(uncached=4000))
    assert marked_places(mw.prepare(agent(2)).body)[-1] == "messages.6"
    assert not {name for name in mw.counts if name.startswith("refused.")}
