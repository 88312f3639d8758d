"""A call as logs and tracebacks show it."""

from __future__ import annotations

from cachemw import Middleware

PROMPT = "Kundennummer 4711 "


def test_repr_of_a_call_shows_no_prompt() -> None:
    """A call and its state are shown without the request's body, before and after the answer."""
    body = {"model": "claude-sonnet-4-6", "messages": [{"role": "user", "content": PROMPT * 2000}]}
    mw = Middleware(provider="databricks")
    calls = [mw.prepare(body), mw.prepare(body, wire="messages"), mw.prepare({**body, "messages": PROMPT})]
    mw.settle(calls[0], {"usage": {"prompt_tokens": 9, "completion_tokens": 1}})
    assert calls[0].body["messages"][0]["role"] == "user"
    for call in calls:
        assert call.id in repr(call)
        assert PROMPT not in repr(call) + str(call) + repr(call._lifecycle)
