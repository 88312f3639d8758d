"""Requests in `prepare`: markers where they pay, and the very same object elsewhere."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace

import pytest

import cachemw
from cachemw.core.planner.plan import Reason
from cachemw.core.rules.models import MODELS
from cachemw.engine import base, shared
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.usage_forms import databricks_usage
from tests.bodies import EPHEMERAL, PARAGRAPH, Body
from tests.engine.calls import MODEL, TOOLS, agent, make_middleware, marked_places, usage


def test_agent_conversation_is_marked_and_saves() -> None:
    """A normal conversation leaves with markers in each turn, and costs a fraction of the uncached price."""
    mw, provider, now = make_middleware(), ProviderCache(MODELS["claude-sonnet-4-6"]), 0.0
    for turn in range(1, 9):
        body = agent(turn)
        call = mw.prepare(body)
        assert call.body is not body, "a normal request passed unmarked"
        assert call.plan.added
        assert marked_places(call.body)[-1] == f"messages.{3 * turn}"
        assert len(marked_places(call.body)) <= 4
        ticket = provider.begin(call.body, now)
        mw.begun(call)
        provider.answer_began(ticket, now + 1)
        receipt = mw.settle(call, {"usage": databricks_usage(ticket, 10)})
        assert receipt.usage is not None
        assert receipt.miss is None
        assert (receipt.usage.cache_read > 0) is (turn > 1)
        if turn > 1:
            assert call.plan.cache_read == pytest.approx(receipt.usage.cache_read, rel=0.25)
        now += 20
        mw.clock.now += 20  # type: ignore[attr-defined]
    totals = mw.report().totals
    assert totals.calls == 8
    assert totals.hit_rate > 0.7
    assert totals.saved_by_cachemw == totals.saved > Decimal("0.6") * totals.baseline
    assert totals.saved_by_client == 0
    mw.close()


def test_prompt_that_never_returns_gets_no_marker() -> None:
    """Single questions that share no prefix are not written to the provider cache."""
    mw = make_middleware()
    for number in range(20):
        call = mw.prepare(
            {"model": MODEL, "messages": [{"role": "user", "content": f"{number} {PARAGRAPH * 20}"}]}
        )
        assert call.plan.skipped is Reason.NOT_WORTH_IT
        mw.settle(call, usage(uncached=5000))
    assert mw.counts["skip.not_worth_it"] == 20


@pytest.mark.parametrize(
    ("settings_", "body", "reason"),
    [
        ({}, agent(model="databricks-llama-4-maverick"), "model_unknown"),
        ({}, agent(model="gpt-5"), "model_automatic"),
        ({"provider": "openai"}, agent(), "model_automatic"),
        ({"provider": "auto"}, agent(), "provider_unknown"),
        ({"mode": "off"}, agent(), "not_optimizing"),
        ({"mode": "observe"}, agent(), "not_optimizing"),
        ({"min_tokens": 10**6}, agent(), "below_minimum"),
        ({"mark_kinds": {"text": "off", "tool_call": "off", "tool_result": "off", "tool_definition": "off"}}, agent(), "nothing_markable"),
        ({}, {**agent(), "tools": [{**tool, "cache_control": EPHEMERAL} for tool in TOOLS * 2]}, "no_slot"),
        ({}, {"model": MODEL, "messages": []}, "unreadable"),
    ],
)  # fmt: skip
def test_request_without_a_marker_is_the_same_object_and_counts_its_reason(
    settings_: Body, body: Body, reason: str
) -> None:
    """A request to which no marker is added is the very same object, and one counter has the reason."""
    mw = make_middleware(**settings_)
    call = mw.prepare(body)
    assert call.body is body
    assert call.plan.skipped == reason
    assert call.plan.added == ()
    assert mw.counts[f"skip.{reason}"] == 1
    assert mw.settle(call, usage()).usage is not None
    assert mw.report().totals.calls == 1


def test_provider_auto_is_replaced_by_the_integrations_provider() -> None:
    """The integration names the provider; a provider in the settings has precedence."""
    mw = make_middleware(provider="auto")
    assert mw.prepare(agent(), provider="databricks").plan.added
    assert mw.prepare(agent()).plan.skipped is Reason.PROVIDER_UNKNOWN
    assert make_middleware(provider="databricks").prepare(agent(), provider="openai").plan.added
    assert mw.prepare(agent(), provider="nowhere").body is not None
    assert mw.counts["error.prepare.ConfigError"] == 1


def test_unknown_model_is_resolved_by_setting_or_answer() -> None:
    """The settings say which model a custom name stands for; without them the first answer does."""
    assert (
        make_middleware(models={"custom-*": "claude-sonnet-4-6"}).prepare(agent(model="custom-1")).plan.added
    )
    mw = make_middleware()
    call = mw.prepare(agent(model="main.ai.support"))
    assert call.plan.skipped is Reason.MODEL_UNKNOWN
    mw.settle(call, {"model": "claude-sonnet-4-6-20260101", "usage": usage()})
    assert mw.prepare(agent(model="main.ai.support")).plan.added
    other = mw.prepare(agent(model="main.ai.other"))
    mw.settle(other, SimpleNamespace(model="mystery", usage=usage()))
    assert mw.prepare(agent(model="main.ai.other")).plan.skipped is Reason.MODEL_UNKNOWN


def test_markers_of_the_client_stay_and_own_their_saving() -> None:
    """Client markers stay in place, cachemw fills the free slots, and each saving counts for its owner."""
    body = agent(2)
    body["messages"][0]["content"] = [
        {"type": "text", "text": body["messages"][0]["content"], "cache_control": dict(EPHEMERAL)}
    ]
    mw = make_middleware()
    call = mw.prepare(body)
    assert [point.from_client for point in call.plan.breakpoints].count(True) == 1
    assert call.body["messages"][0] is body["messages"][0]
    mw.settle(call, usage(cache_write=3000))
    assert mw.report().totals.saved_by_cachemw < 0

    full = copy.deepcopy(body)
    full["tools"] = [{**tool, "cache_control": dict(EPHEMERAL)} for tool in TOOLS]
    call = mw.prepare(full)
    assert call.body is full
    mw.settle(call, usage(cache_read=3000))
    assert mw.report().totals.saved_by_client > 0


def test_messages_body_is_marked_in_its_own_shape() -> None:
    """An Anthropic Messages body gets its markers in the Messages format."""
    native = {
        "model": "claude-sonnet-4-6", "max_tokens": 9, "system": PARAGRAPH * 20, "tools": [{"name": "f", "input_schema": {}}],
        "messages": [{"role": "user", "content": "Hi."}],
    }  # fmt: skip
    mw = make_middleware(provider="anthropic")
    call = mw.prepare(native, wire="messages")
    assert call.body["messages"][0]["content"] == [
        {"type": "text", "text": "Hi.", "cache_control": EPHEMERAL}
    ]
    assert call.body["system"] == [{"type": "text", "text": PARAGRAPH * 20, "cache_control": EPHEMERAL}]
    answer = {
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 4000,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
        }
    }
    receipt = mw.settle(call, answer)
    assert receipt.usage is not None
    assert receipt.usage.rule == "anthropic"
    assert receipt.paid == Decimal("0.015015")


def test_mode_off_looks_nothing_up_and_keeps_the_ledger() -> None:
    """Mode off uses the store for the ledger only."""
    mw = make_middleware(mode="off")
    mw._shell.store.lookup = mw._shell.store.observe = None  # type: ignore[method-assign, assignment]
    call = mw.prepare(agent())
    receipt = mw.settle(call, usage(cache_read=1000))
    assert receipt.saved is not None
    assert receipt.saved > 0
    assert mw.report().totals.saved_by_client == receipt.saved
    assert not {name for name in mw.counts if name.startswith("error")}


def test_entry_of_one_namespace_is_not_expected_by_another() -> None:
    """A namespace expects cache reads of its own entries only."""
    mw = make_middleware()
    mw.settle(mw.prepare(agent(), namespace="a"), None)
    assert mw.prepare(agent(), namespace="b").plan.cache_read == 0
    assert mw.prepare(agent(), namespace="a").plan.cache_read > 0


@pytest.mark.parametrize("fails", [False, True])
def test_tokens_are_estimated_until_the_encoding_is_loaded(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request waits for the encoding; if it can't be loaded, tokens stay estimated."""
    loaded = threading.Event()

    def load() -> Callable[[str], int]:
        loaded.wait(60)
        if fails:
            raise ConnectionError
        return len

    monkeypatch.setattr(base, "load_counter", load)
    mw = make_middleware(tokens="tiktoken")
    before = mw.prepare(agent()).plan
    assert before.added
    loaded.set()
    deadline = time.monotonic() + 60
    while mw.prepare(agent()).plan.total == before.total and not mw.counts.get(
        "error.tokens.ConnectionError"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (mw.prepare(agent()).plan.total > 2 * before.total) is not fails


def test_hash_key_is_the_secret_or_made_of_the_namespace() -> None:
    """The key is the secret; without a secret it is derived from the namespace."""
    keys = [
        shared.hash_key(cachemw.Settings(**fields))
        for fields in ({}, {"namespace": "n"}, {"secret": "s"}, {"secret": "s", "namespace": "n"})
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3] == b"s"
