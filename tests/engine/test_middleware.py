"""The life of a call, its twins, and what happens when anything of ours breaks."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
import weakref
from collections.abc import Callable
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import cachemw
from cachemw.core.planner.plan import Reason
from cachemw.core.request.markers import canonical
from cachemw.core.rules.providers import MODELS
from cachemw.engine import aio, background_writer, base, shared, sync
from cachemw.errors import StoreError
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.usage_forms import databricks_usage
from tests.bodies import EPHEMERAL, PARAGRAPH, Body, Wire, bodies
from tests.clocks import Clock
from tests.faults import NOWHERE, Boom, raising, sampled
from tests.kept import announcements, in_store
from tests.keys import equal_keys

MODEL = "databricks-claude-sonnet-4-6"
TOOLS = [
    {"type": "function", "function": {"name": f"tool_{n}", "description": PARAGRAPH, "parameters": {}}}
    for n in range(3)
]


def agent(turns: int = 1, **rest: Any) -> Body:
    """Return an agent's request after some turns, each with a tool call: about 4,000 tokens and 400 a turn."""
    messages: list[Body] = [{"role": "system", "content": PARAGRAPH * 12}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}. {PARAGRAPH}"})
        call = {"id": f"call_{turn}", "type": "function", "function": {"name": "tool_0", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": PARAGRAPH})
    return {"model": MODEL, "tools": TOOLS, "messages": messages, **rest}


def usage(read: int = 0, written: int = 0, plain: int = 100) -> Body:
    """Return usage as Databricks tells it."""
    prompt = read + written + plain
    return {
        "prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10,
        "cache_read_input_tokens": read, "cache_creation_input_tokens": written,
    }  # fmt: skip


def middleware(**settings_: Any) -> cachemw.Middleware:
    """Return a middleware for Databricks with a clock of its own, `mw.clock`."""
    clock = Clock()
    with equal_keys():
        mw = cachemw.Middleware(**{"provider": "databricks", **settings_}, clock=clock)
    mw.clock = clock  # type: ignore[attr-defined]
    return mw


def places(body: Any) -> list[str]:
    """Return the kinds of places that are marked, in the body's order."""
    found = []
    for tool in body.get("tools") or ():
        found += ["tools"] if "cache_control" in tool else []
    for index, message in enumerate(body["messages"]):
        for part in [
            *(message["content"] if isinstance(message["content"], list) else ()),
            *(message.get("tool_calls") or ()),
        ]:
            found += [f"messages.{index}"] if "cache_control" in part else []
    return found


# -- the main job ---------------------------------------------------------------------------------


def test_an_agent_is_marked_and_saves() -> None:
    """A normal conversation leaves with markers, turn after turn, and pays a fraction of the plain price."""
    mw, provider, now = middleware(), ProviderCache(MODELS["claude-sonnet-4-6"]), 0.0
    for turn in range(1, 9):
        body = agent(turn)
        call = mw.prepare(body)
        assert call.body is not body, "a normal request passed unmarked"
        assert call.plan.added
        assert places(call.body)[-1] == f"messages.{3 * turn}"
        assert len(places(call.body)) <= 4
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


def test_a_prompt_that_never_returns_is_left_alone() -> None:
    """Single questions without tools that share nothing are not written for nobody."""
    mw = middleware()
    for number in range(20):
        call = mw.prepare(
            {"model": MODEL, "messages": [{"role": "user", "content": f"{number} {PARAGRAPH * 20}"}]}
        )
        assert call.plan.skipped is Reason.NOT_WORTH_IT
        mw.settle(call, usage(plain=5000))
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
def test_why_a_request_is_not_ours(settings_: Body, body: Body, reason: str) -> None:
    """A request without a marker of ours is the very same object, says why, and is counted so."""
    mw = middleware(**settings_)
    call = mw.prepare(body)
    assert call.body is body
    assert call.plan.skipped == reason
    assert call.plan.added == ()
    assert mw.counts[f"skip.{reason}"] == 1
    assert mw.settle(call, usage()).usage is not None
    assert mw.report().totals.calls == 1


def test_auto_takes_the_provider_that_is_told() -> None:
    """The door says which provider it is; a setting that says another wins."""
    mw = middleware(provider="auto")
    assert mw.prepare(agent(), provider="databricks").plan.added
    assert mw.prepare(agent()).plan.skipped is Reason.PROVIDER_UNKNOWN
    assert middleware(provider="databricks").prepare(agent(), provider="openai").plan.added
    assert mw.prepare(agent(), provider="nowhere").body is not None
    assert mw.counts["error.prepare.ConfigError"] == 1


def test_models_by_setting_and_by_answer() -> None:
    """A name of your own is what you say it is, or what the first answer says it is."""
    assert middleware(models={"ours-*": "claude-sonnet-4-6"}).prepare(agent(model="ours-1")).plan.added
    mw = middleware()
    call = mw.prepare(agent(model="main.ai.support"))
    assert call.plan.skipped is Reason.MODEL_UNKNOWN
    mw.settle(call, {"model": "claude-sonnet-4-6-20260101", "usage": usage()})
    assert mw.prepare(agent(model="main.ai.support")).plan.added
    other = mw.prepare(agent(model="main.ai.other"))
    mw.settle(other, SimpleNamespace(model="mystery", usage=usage()))
    assert mw.prepare(agent(model="main.ai.other")).plan.skipped is Reason.MODEL_UNKNOWN


def test_the_clients_own_markers_are_kept() -> None:
    """What the client marked stays, as it was; ours fill what is left, and the saving has its owner."""
    body = agent(2)
    body["messages"][0]["content"] = [
        {"type": "text", "text": body["messages"][0]["content"], "cache_control": dict(EPHEMERAL)}
    ]
    mw = middleware()
    call = mw.prepare(body)
    assert [point.from_client for point in call.plan.breakpoints].count(True) == 1
    assert call.body["messages"][0] is body["messages"][0]
    mw.settle(call, usage(written=3000))
    assert mw.report().totals.saved_by_cachemw < 0

    full = copy.deepcopy(body)
    full["tools"] = [{**tool, "cache_control": dict(EPHEMERAL)} for tool in TOOLS]
    call = mw.prepare(full)
    assert call.body is full
    mw.settle(call, usage(read=3000))
    assert mw.report().totals.saved_by_client > 0


def test_the_native_wire() -> None:
    """An Anthropic Messages body is marked in its own shape."""
    native = {
        "model": "claude-sonnet-4-6", "max_tokens": 9, "system": PARAGRAPH * 20, "tools": [{"name": "f", "input_schema": {}}],
        "messages": [{"role": "user", "content": "Hi."}],
    }  # fmt: skip
    mw = middleware(provider="anthropic")
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


# -- modes ----------------------------------------------------------------------------------------


def test_observe_changes_nothing_and_tells_what_it_would_save() -> None:
    """Bodies go as they came, while what breakpoints would have saved is summed up."""
    mw = middleware(mode="observe")
    for turn in range(1, 6):
        body = agent(turn)
        call = mw.prepare(body)
        assert call.body is body
        assert call.plan.breakpoints == ()
        mw.settle(call, usage(plain=4000 + 400 * turn))
        mw.clock.now += 20  # type: ignore[attr-defined]
    totals = mw.report().totals
    assert totals.saved == 0
    assert totals.would_save > totals.baseline / 4


def test_observe_keeps_entries_of_its_own() -> None:
    """What observe thinks is written, optimize never counts on."""
    seen, sent = middleware(mode="observe"), middleware()
    sent._shell.store = seen._shell.store
    for _ in range(4):
        seen.settle(seen.prepare(agent()), usage(plain=4000))
    assert sent.prepare(agent()).plan.cache_read == 0
    assert seen.prepare(agent())._lifecycle.planned.observed_plan.cache_read > 3000  # type: ignore[union-attr]


def test_off_asks_no_store() -> None:
    """Mode off keeps nothing but the account."""
    mw = middleware(mode="off")
    mw._shell.store.lookup = mw._shell.store.observe = None  # type: ignore[method-assign, assignment]
    call = mw.prepare(agent())
    receipt = mw.settle(call, usage(read=1000))
    assert receipt.saved is not None
    assert receipt.saved > 0
    assert mw.report().totals.saved_by_client == receipt.saved
    assert not {name for name in mw.counts if name.startswith("error")}


# -- the end of a call ----------------------------------------------------------------------------


def test_settling_twice() -> None:
    """The second settle changes nothing and returns the first receipt."""
    mw = middleware()
    call = mw.prepare(agent())
    first = mw.settle(call, usage(written=3000))
    before = mw.report(), in_store(mw._shell.store)
    assert mw.settle(call, usage(read=9)) is first
    assert mw.settle(call, None, partial=True) is first
    mw.begun(call)
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None
    assert (mw.report(), in_store(mw._shell.store)) == before
    assert mw.counts.get("settle.partial") is None
    assert mw.counts.get("fail") is None


def test_an_answer_without_usage() -> None:
    """It counts as a call without money, and what was to be written is assumed to be."""
    mw = middleware()
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
def test_usage_that_cant_be_read(odd: Any) -> None:
    """Whatever an answer says, it is settled."""
    mw = middleware()
    assert mw.settle(mw.prepare(agent()), odd) == cachemw.Receipt()
    assert mw.report().totals.calls == 1


def test_begun_makes_entries_readable() -> None:
    """From the first byte on a request of the same prompt expects to read; before it, it doesn't."""
    mw = middleware()
    call = mw.prepare(agent())
    assert mw.prepare(agent()).plan.cache_read == 0
    mw.begun(call)
    mw.begun(call)
    mw.clock.now += 299  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read > 3000
    mw.clock.now += 2  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read == 0


def test_entries_live_from_the_requests_start() -> None:
    """A long answer shortens the life of what it wrote."""
    mw = middleware()
    call = mw.prepare(agent())
    mw.clock.now += 290  # type: ignore[attr-defined]
    mw.begun(call)
    mw.clock.now += 11  # type: ignore[attr-defined]
    assert mw.prepare(agent()).plan.cache_read == 0


def test_a_failed_call_leaves_no_entry() -> None:
    """No answer, no entry, no money; and nothing of it can be settled later."""
    mw = middleware()
    call = mw.prepare(agent())
    mw.fail(call)
    mw.fail(call)
    assert mw.settle(call, usage(written=5000)) == cachemw.Receipt()
    mw.begun(call)
    assert mw.report().totals.calls == 0
    assert mw.prepare(agent()).plan.cache_read == 0
    assert mw.counts["fail"] == 1


def test_a_partial_answer() -> None:
    """A stream that broke is settled with what it had, and counted."""
    mw = middleware()
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.settle(call, usage(written=3000), partial=True).usage is not None
    assert mw.counts["settle.partial"] == 1


def test_a_mirror_that_was_wrong_is_corrected() -> None:
    """Where less is read than was expected, the entry counts as gone, and why is told."""
    mw = middleware()
    mw.settle(mw.prepare(agent()), usage(written=3300))
    mw.clock.now += 10  # type: ignore[attr-defined]
    call = mw.prepare(agent())
    assert call.plan.cache_read > 3000
    receipt = mw.settle(call, usage(plain=3400))
    assert receipt.miss is not None
    assert mw.counts["mirror.corrected"] == 1
    assert mw.prepare(agent()).plan.cache_read == 0


def test_what_was_written_again_lives() -> None:
    """Where the provider had lost an entry and has just written it anew, the next request expects to read it."""
    mw = middleware()
    for read, written in ((0, 3300), (3300, 0), (0, 3300)):
        mw.settle(mw.prepare(agent()), usage(read, written))
        mw.clock.now += 10  # type: ignore[attr-defined]
    assert mw.counts["mirror.corrected"] == 1
    assert mw.prepare(agent()).plan.cache_read > 3000


@pytest.mark.parametrize(("ttl", "lives"), [("1h", True), ("5m", False)])
def test_what_was_written_anew_for_less_counts_as_gone(ttl: str, lives: bool) -> None:
    """Where an entry of an hour was lost and its breakpoint now asks for five minutes, no hour is expected."""

    def body(question: str, ttl: str) -> Body:
        marker = {"type": "ephemeral", "ttl": ttl}
        system = [{"type": "text", "text": PARAGRAPH * 20, "cache_control": marker}]
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        return {"model": MODEL, "messages": messages}

    mw = middleware()
    mw.settle(mw.prepare(body("One?", "1h")), usage(written=3300))
    mw.clock.now += 400  # type: ignore[attr-defined]
    call = mw.prepare(body("Two?", ttl))
    assert call.plan.cache_read > 3000
    mw.settle(call, usage(written=3300))
    mw.clock.now += 10  # type: ignore[attr-defined]
    assert (mw.prepare(body("Three?", ttl)).plan.cache_read > 3000) is lives


def test_usage_calibrates_tokens() -> None:
    """What was counted teaches what the next request is expected to cost."""
    mw = middleware()
    first = mw.prepare(agent()).plan
    for _ in range(3):
        mw.settle(mw.prepare(agent()), usage(written=8000))
    plan = mw.prepare(agent()).plan
    assert plan.cache_read + plan.cache_write_5m + plan.uncached == pytest.approx(8100, rel=0.02)
    assert first.cache_write_5m + first.uncached < 5000


def test_unsettled_calls() -> None:
    """A call whose answer has begun is unsettled until it is settled or fails after all."""
    mw = middleware()
    calls = [
        mw.prepare(agent(), labels={"app": "a"}),
        mw.prepare(agent(), namespace="tenant"),
        mw.prepare({"model": MODEL, "messages": []}),
    ]
    mw.prepare(agent())  # counts nowhere, since no answer begins
    assert mw.report().rows == ()
    for call in calls:
        mw.begun(call)
    for _ in range(2):
        mw.clock.now += 3601  # type: ignore[attr-defined]
        report = mw.report()
        assert (report.totals.calls, report.totals.unsettled) == (3, 3)
        assert mw.report("process").totals.unsettled == 3
    assert {row.labels.get("app") for row in report.rows} == {"a", None}
    assert mw.settle(calls[0], usage(plain=50)).usage is not None
    assert (mw.report().totals.calls, mw.report().totals.unsettled, mw.report().totals.uncached) == (3, 2, 50)
    mw.fail(calls[2])
    assert (mw.report().totals.calls, mw.report().totals.unsettled) == (2, 1)


def test_a_worker_that_dies_leaves_its_calls_unsettled() -> None:
    """Any worker reports for all: answers that began at another and were never settled, and settled money."""
    dead, alive = middleware(), middleware()
    alive._shell.store = dead._shell.store
    dead.settle(dead.prepare(agent()), usage(read=900, plain=100))
    dead.begun(dead.prepare(agent()))
    del dead
    totals = alive.report().totals
    assert (totals.calls, totals.unsettled, totals.cache_read) == (2, 1, 900)


def test_model_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that no two requests share make no row each."""
    monkeypatch.setattr(shared, "_MODELS", 3)
    mw = middleware(mode="off")
    for number in range(9):
        mw.settle(mw.prepare({"model": f"m{number}", "messages": []}), usage(plain=1))
    assert sorted(row.model for row in mw.report().rows) == ["m0", "m1", "m2", "other"]


def test_reports() -> None:
    """The ledger is of all workers of a namespace, whoever they serve; the process has its own."""
    one, two = middleware(), middleware()
    two._shell.store = one._shell.store
    for mw, namespace in ((one, None), (two, None), (two, "tenant")):
        mw.settle(mw.prepare(agent(), namespace=namespace), usage(read=900, plain=100))
    assert one.report().totals.calls == two.report().totals.calls == 3
    assert one.report("process").totals.calls == 1
    assert two.report("process").totals.calls == 2
    totals = one.report().totals
    assert totals.hit_rate == 0.9
    assert totals.paid == 3 * (900 * Decimal("0.3") + 100 * 3) / 10**6
    assert totals.saved == totals.baseline - totals.paid
    one.clock.now += 8 * 24 * 3600  # type: ignore[attr-defined]
    assert one.report().totals.calls == 0


@pytest.mark.parametrize("local", [True, False])
def test_many_threads_on_one_middleware(local: bool) -> None:
    """Nothing is lost or counted twice where many threads prepare and settle at once."""
    mw = middleware()
    mw._shell.store.local = local
    calls: list[cachemw.Call] = []

    def work(thread: int) -> None:
        for number in range(40):
            call = mw.prepare(agent(1 + number % 5), labels={"thread": str(thread)})
            calls.append(call)
            mw.begun(call)
            mw.settle(call, usage(read=10, written=20, plain=30))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # All threads race to settle the same call once more, and a fresh one.
    fresh = mw.prepare(agent(), labels={"thread": "0"})
    racing = [
        threading.Thread(target=mw.settle, args=(call, usage(plain=1))) for call in [fresh] * 8 + calls[:8]
    ]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    report = mw.report()
    assert (report.totals.calls, report.totals.cache_read, report.totals.uncached) == (241, 2400, 7201)
    assert len(report.rows) == 6
    assert len({call.id for call in calls}) == 240
    assert not [name for name in mw.counts if name.startswith("error")]
    assert report.totals.unsettled == 0
    mw.close()


def test_tenants_share_no_prefix() -> None:
    """What one namespace wrote, another never expects to read."""
    mw = middleware()
    mw.settle(mw.prepare(agent(), namespace="a"), None)
    assert mw.prepare(agent(), namespace="b").plan.cache_read == 0
    assert mw.prepare(agent(), namespace="a").plan.cache_read > 0


def test_closing() -> None:
    """Closing twice is fine, and a call after it still goes out and is settled."""
    mw = middleware()
    call = mw.prepare(agent())
    mw.close()
    mw.close()
    assert mw.settle(call, usage()).usage is not None
    assert mw.prepare(agent()).body is not None
    assert mw.flush(0.1)


# -- refusals -------------------------------------------------------------------------------------


def test_a_refused_marker() -> None:
    """A 400 that names a marker gives the original body once; if that is accepted, the kind stays unmarked."""
    mw, body = middleware(), agent()
    call = mw.prepare(body)
    refusal = "messages.3.content.0.tool_result.cache_control: Extra inputs are not permitted"
    assert mw.refused(call, 400, {"error_code": "BAD_REQUEST", "message": refusal}) is body
    assert mw.refused(call, 400, refusal) is None
    assert mw.counts["refused"] == 1
    other = mw.prepare(body)
    assert places(other.body)[-1] == "messages.3"
    mw.fail(other)
    assert "refused.tool_result" not in mw.counts
    receipt = mw.settle(call, usage(plain=4000))
    assert (mw.counts["refused"], mw.counts["refused.tool_result"]) == (1, 1)
    assert receipt.saved == 0
    again = mw.prepare(body)
    assert again.plan.added
    assert all(not place.startswith("messages.3") for place in places(again.body))
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
def test_what_is_no_refusal_of_ours(status: Any, error: Any) -> None:
    """Any other error is the caller's to handle."""
    mw = middleware()
    call = mw.prepare(agent())
    assert mw.refused(call, status, error) is None
    mw.fail(call)


def test_a_refusal_where_nothing_is_ours() -> None:
    """A request that went as it came is not sent again; nor one whose answer has begun."""
    mw = middleware(mode="off")
    assert mw.refused(mw.prepare(agent()), 400, "cache_control: no") is None
    mw = middleware()
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.refused(call, 400, "cache_control: no") is None


def test_a_clients_refused_marker_teaches_nothing() -> None:
    """Where the 400 names a kind that we did not mark, no kind of ours is given up."""
    mw = middleware()
    call = mw.prepare(agent())
    assert (
        mw.refused(call, 400, "messages.1.content.0.thinking.cache_control: Extra inputs are not permitted")
        is not None
    )
    mw.settle(call, usage(plain=4000))
    assert places(mw.prepare(agent(2)).body)[-1] == "messages.6"
    assert not {name for name in mw.counts if name.startswith("refused.")}


# -- bodies that are none -------------------------------------------------------------------------


def deep(levels: int = 10_000) -> Any:
    """Return lists in lists."""
    node: Any = "a"
    for _ in range(levels):
        node = [node]
    return node


def looped() -> list[Any]:
    """Return a list that holds itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


class Message(BaseModel):
    """A message as an SDK returns it."""

    role: str = "assistant"
    content: str = "Hi."


def with_message(message: Any) -> Body:
    """Return an agent's request that ends with something."""
    body = agent()
    body["messages"].append(message)
    return body


def user(content: Any) -> Body:
    """Return an agent's request that ends with a user message of some content."""
    return with_message({"role": "user", "content": content})


BAD_BODIES: list[tuple[Any, str]] = [
    (None, "not_a_mapping"), ("body", "not_a_mapping"), (b"{}", "not_a_mapping"), (7, "not_a_mapping"), ([agent()], "not_a_mapping"),
    ({"model": MODEL}, "no_messages"), (agent(messages=None), "no_messages"), (agent(messages=[]), "no_messages"),
    (agent(messages="Hi."), "no_messages"), (agent(messages={"role": "user"}), "no_messages"), (agent(messages=7), "no_messages"),
    (agent(tools=7), "bad_tools"), (agent(tools=["f"]), "bad_tools"), (agent(tools={"f": 1}), "bad_tools"),
    (with_message(None), "bad_message"), (with_message("Hi."), "bad_message"), (with_message({"role": 7, "content": "a"}), "bad_message"),
    (user(7), "bad_message"), (user({"type": "text"}), "bad_message"), (user(["a"]), "bad_message"), (user([None]), "bad_message"),
    (with_message(Message()), "not_json"), (user([Message()]), "not_json"), (user(object()), "not_json"), (user(b"a"), "not_json"),
    (user(deep()), "not_json"), (user([{"type": "text", "text": "a", "x": deep()}]), "not_json"), (user(looped()), "not_json"),
    (agent(tools=[{"function": looped()}]), "not_json"), (agent(tool_choice=deep()), "not_json"), (agent(response_format=looped()), "not_json"),
    (user("\ud800"), "not_json"), (user([{"type": "text", "text": "a\udfff"}]), "not_json"), (agent(model=MODEL + "\ud800"), "not_json"),
    (user([{"type": "text", "text": "a", "x": float("nan")}]), "not_json"), (agent(tools=[{"function": {"x": float("inf")}}]), "not_json"),
    (agent(temperature=float("nan")), "not_json"), (agent(top_p=float("-inf")), "not_json"), (agent(thinking={"budget_tokens": float("nan")}), "not_json"),
    (user([{"type": "text", "text": "a", "x": 2**70}]), "not_json"), (user([{"type": "text", "text": "a", "x": 10**400}]), "not_json"),
    (with_message({"role": "user", "content": "a", 5: 6}), "not_json"), (user([{5: 6}]), "not_json"), (user({1, 2}), "not_json"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), BAD_BODIES)
def test_what_is_no_chat_request_passes(body: Any, reason: str) -> None:
    """The same object goes out, counted by reason, settled like any other; nothing is raised."""
    mw = middleware()
    call = mw.prepare(body, labels={"app": "a"})
    assert call.body is body
    assert call.plan.skipped is Reason.UNREADABLE
    assert mw.counts[f"pass.{reason}"] == 1
    assert not {name for name in mw.counts if name.startswith("error")}
    assert call.labels == {"app": "a"}
    mw.begun(call)
    assert mw.settle(call, usage(plain=9)).usage is not None
    (row,) = mw.report().rows
    assert (row.calls, row.labels, row.uncached) == (1, {"app": "a"}, 9)
    assert call.plan.explain() == "No breakpoint: the body can't be read as a chat request."
    # What is read next is none the worse for it.
    assert mw.prepare(agent()).plan.added


def test_models_that_are_none_pass() -> None:
    """Without a name there is no model to have rules for."""
    for body in ({}, *(agent(model=model) for model in (None, 7, ["m"], ""))):
        mw = middleware()
        assert mw.prepare(body).body is body
        assert mw.counts["skip.model_unknown"] == 1


# -- anything of ours may break -------------------------------------------------------------------


async def _ours(result: Any) -> Any:
    return await result if asyncio.iscoroutine(result) else result


def twin(asynchronous: bool) -> Any:
    """Return one of the twins, with hooks, labels and a call that is long overdue."""
    kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
    clock = Clock()
    hooks, models = [lambda event: None], {"ours": "claude-sonnet-4-6"}
    with equal_keys():
        mw = kind(provider="databricks", clock=clock, hooks=hooks, models=models)
    mw.clock = clock
    return mw


def in_background(mw: Any) -> None:
    """Make a middleware with a memory store work in the background, as with a shared store."""
    mw._shell.store.local = False
    mw._flow._shares_store = True


STEPS: dict[str, Callable[[Any, Any], Any]] = {
    "prepare": lambda mw, call: mw.prepare(agent(3), labels={"app": "a"}),
    "begun": lambda mw, call: mw.begun(call),
    "settle": lambda mw, call: mw.settle(call, {"model": MODEL, "usage": usage(plain=4000)}, partial=True),
    "fail": lambda mw, call: mw.fail(call),
    "refused": lambda mw, call: mw.refused(
        call, 400, "system.0.cache_control: Extra inputs are not permitted"
    ),
}


async def _until(mw: Any, step: str) -> Any:
    """Bring a middleware to where a step is due, and return the call."""
    await _ours(mw.settle(await _ours(mw.prepare(agent(2))), usage(written=3000)))
    overdue = await _ours(mw.prepare(agent(1)))
    mw.clock.now += 4000
    await _ours(mw.settle(await _ours(mw.prepare(agent(2))), usage(written=3000)))
    assert overdue
    return None if step == "prepare" else await _ours(mw.prepare(agent(3), labels={"app": "a"}))


@pytest.mark.parametrize("error", [Boom(), MemoryError(), StoreError("x"), TimeoutError()], ids=repr)
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_bug_at_any_call(step: str, asynchronous: bool, error: Exception) -> None:
    """Whatever of ours raises, wherever: nothing gets out, the body goes as it came, the failure is counted."""

    async def run(at: int) -> list[str]:
        mw = twin(asynchronous)
        call = await _until(mw, step)
        asks = STEPS[step](mw, call) if asynchronous else None
        with raising(error, at, step) as names:
            result = await asks if asks is not None else STEPS[step](mw, call)
        if at == NOWHERE:
            return names
        assert len(names) == at + 1
        assert (
            sum(count for name, count in mw.counts.items() if name.endswith(f".{type(error).__name__}")) == 1
        ), names[at]
        if step == "prepare":
            assert canonical(result.body) == canonical(agent(3))
            await _ours(mw.begun(result))
            await _ours(mw.settle(result, usage(written=3000)))
        elif step == "refused":
            assert result is None or result == agent(3)
        # The next call is none the worse for it.
        after = await _ours(mw.prepare(agent(3)))
        assert after.plan.added
        assert (await _ours(mw.settle(after, usage(written=3000)))).usage is not None
        return names

    async def every() -> list[str]:
        names = await run(NOWHERE)
        for at in sampled(names, 1 if isinstance(error, Boom) else 7):
            assert (await run(at))[-1] == names[at]
        return names

    reached = set(asyncio.run(every()))
    if isinstance(error, Boom):
        wanted = {
            "prepare": {"Parser.steps", "hash_prefixes", "track_prefixes", "MemoryStore.lookup", "ReuseModel.forecast", "plan", "insert", "same_structure", "RequestPlanner.build_call", "Shared.emit"},
            "begun": {"Settlement.start_response", "MemoryStore.observe", "ReuseModel.observe", "MemoryStore.write", "MemoryStore.add", "Parser.learn", "LabelLimits.learn"},
            "settle": {"MemoryStore.observe", "ReuseModel.observe", "read_usage", "make_receipt", "Settlement.settle", "MemoryStore.add", "amounts", "diagnose", "Shared.emit", "Calibration.learn"},
            "fail": {"Settlement.fail", "Counters.add"},
            "refused": {"refused_kinds", "about_markers", "Settlement.refuse"},
        }  # fmt: skip
        assert wanted[step] <= reached


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_at_any_call(step: str, error: type[BaseException]) -> None:
    """What is no `Exception` always gets out, and leaves neither a held lock nor a call that waits."""

    def run(at: int) -> list[str]:
        mw = twin(False)
        call = asyncio.run(_until(mw, step))
        with raising(error(), at, step) as names:
            if at == NOWHERE:
                STEPS[step](mw, call)
                return names
            with pytest.raises(error):
                STEPS[step](mw, call)
        after = mw.prepare(agent(3))
        assert after.plan.added
        assert mw.settle(after, usage(written=3000)).usage is not None
        assert mw.report().totals.calls >= 1
        return names

    for at in sampled(run(NOWHERE), 1 if error is KeyboardInterrupt else 9):
        run(at)


def test_a_cancelled_prepare_releases_what_it_held() -> None:
    """A task that is cancelled while the store is asked leaves no call behind."""

    async def cancelled() -> None:
        mw = cachemw.AsyncMiddleware(provider="databricks")

        async def hang(*_: Any) -> None:
            await asyncio.sleep(60)

        lookup, mw._shell.store.lookup = mw._shell.store.lookup, hang  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(mw.prepare(agent()))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await mw.report("process")).totals.calls == 0
        mw._shell.store.lookup = lookup  # type: ignore[method-assign]
        assert (await mw.prepare(agent())).plan.cache_write_5m > 0
        await mw.close()

    asyncio.run(cancelled())


@pytest.mark.parametrize("name", ["lookup", "observe", "write", "add", "read", "close"])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("local", [True, False])
def test_a_store_that_fails(name: str, asynchronous: bool, local: bool) -> None:
    """Each call of a store may fail, on the caller's thread or behind it: requests and receipts go on."""

    async def run() -> None:
        mw = twin(asynchronous)

        def broken(*_: Any) -> Any:
            raise StoreError("ConnectionError")

        async def broken_async(*_: Any) -> Any:
            raise StoreError("ConnectionError")

        mw._shell.store.local = local
        setattr(mw._shell.store, name, broken_async if asynchronous else broken)
        body = agent()
        call = await _ours(mw.prepare(body))
        assert canonical(call.body) == canonical(body)
        assert (call.body is body) is (name == "lookup")
        await _ours(mw.begun(call))
        assert (await _ours(mw.settle(call, usage(written=3000)))).usage is not None
        assert await _ours(mw.flush(5.0))
        report = await _ours(mw.report())
        assert report.totals.calls == (0 if name == "add" else 1)
        assert (await _ours(mw.report("process"))).totals.calls == 1
        await _ours(mw.close())
        where = {"lookup": "prepare", "observe": "write", "add": "ledger", "read": "report"}.get(name, name)
        # An entry is announced before the answer begins, and noted when it has; a call counts, and its end.
        assert mw.counts[f"error.{where}.StoreError"] == (2 if name in ("write", "add") else 1)

    asyncio.run(run())


def test_a_writer_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, or the queue is full, the receipt is given all the same."""
    mw = middleware()
    in_background(mw)

    def refuse(job: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(mw._shell.writer, "submit", refuse)
    call = mw.prepare(agent())
    mw.begun(call)
    assert mw.settle(call, usage()).usage is not None
    # The announcement, the exchange with other workers, the arrival with its entries; the ledger, twice.
    assert mw.counts["error.writer.RuntimeError"] == 3
    assert mw.counts["error.ledger.RuntimeError"] == 2
    monkeypatch.undo()
    monkeypatch.setattr("cachemw.engine.background_writer._LIMIT", 0)
    mw._shell.writer._lost()
    assert mw.counts["error.writer.full"] == 1


def test_a_clock_that_fails() -> None:
    """Without the time nothing can be planned, and everything goes on."""

    def clock() -> float:
        raise OSError

    mw, body = cachemw.Middleware(provider="databricks", clock=clock), agent()
    call = mw.prepare(body)
    assert call.body is body
    mw.begun(call)
    assert mw.settle(call, usage()) == cachemw.Receipt()
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None
    assert mw.report().totals.calls == 0
    assert mw.counts["error.prepare.OSError"] == 1
    mw.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "planner.begin_call",
        "planner.parse",
        "planner.forecast_and_plan",
        "planner.build_call",
        "planner.pass_through",
        "settlement.mark_in_flight",
        "settlement.start_response",
        "settlement.observe",
        "settlement.settle",
        "settlement.fail",
        "settlement.refuse",
    ],
)
def test_a_decision_that_fails(name: str, asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each decision may fail, in both twins: what the caller gets is what it would have had without us."""

    async def run() -> None:
        mw, body = twin(asynchronous), agent()

        def broken(*_: Any, **__: Any) -> Any:
            raise Boom

        part, _, method = name.partition(".")
        monkeypatch.setattr(getattr(mw._flow, part), method, broken)
        bad = await _ours(mw.prepare({"model": MODEL, "messages": []}))
        assert bad.body == {"model": MODEL, "messages": []}
        call, other = [await _ours(mw.prepare(body)) for _ in range(2)]
        assert canonical(call.body) == canonical(body)
        assert (call.body is body) is (part == "planner" and method != "pass_through")
        await _ours(mw.begun(call))
        assert isinstance(await _ours(mw.settle(call, usage(written=3000))), cachemw.Receipt)
        assert await _ours(mw.refused(other, 400, "cache_control: no")) in (None, body)
        await _ours(mw.fail(other))
        assert (await _ours(mw.report())).totals.calls <= 3
        await _ours(mw.close())
        assert any(key.endswith(".Boom") for key in mw.counts)

    asyncio.run(run())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interrupt_after_the_decision(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that was announced but never given out is released, and counts nowhere."""

    async def run() -> None:
        mw = twin(asynchronous)

        def interrupted() -> Any:
            assert announcements(mw._shell.store)
            raise KeyboardInterrupt

        in_background(mw)
        drive = aio.drive if asynchronous else sync.drive
        at_once = lambda _write, job: drive(job, mw._shell)  # noqa: E731
        monkeypatch.setattr(mw._shell, "write_later", at_once)  # without a queue
        monkeypatch.setattr(mw._flow.worker_exchange, "is_due", interrupted)
        with pytest.raises(KeyboardInterrupt):
            await _ours(mw.prepare(agent()))
        monkeypatch.undo()
        assert not announcements(mw._shell.store)
        assert (await _ours(mw.prepare(agent()))).plan.cache_write_5m > 0
        assert (await _ours(mw.report("process"))).totals.calls == 0

    asyncio.run(run())


def test_even_counting_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last resort needs nothing that could be broken."""
    mw, body = middleware(), agent()

    def broken(*_: Any, **__: Any) -> Any:
        raise Boom

    for name in ("begin_call", "pass_through"):
        monkeypatch.setattr(mw._flow.planner, name, broken)
    for name in ("start_response", "settle", "fail", "refuse"):
        monkeypatch.setattr(mw._flow.settlement, name, broken)
    monkeypatch.setattr(mw._shared.counters, "add", broken)
    call = mw.prepare(body)
    assert call.body is body
    mw.begun(call)
    assert mw.settle(call, usage()) == cachemw.Receipt()
    mw.fail(call)
    assert mw.refused(call, 400, "cache_control") is None


# -- what runs beside the requests ----------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_workers_share_what_they_learned(asynchronous: bool) -> None:
    """What one worker was refused, another does not try, half a minute later; a store that fails is counted."""

    async def run() -> None:
        one, two = twin(asynchronous), twin(asynchronous)
        two._shell.store = one._shell.store
        in_background(one)
        in_background(two)
        call = await _ours(one.prepare(agent()))
        await _ours(
            one.refused(
                call, 400, "messages.3.content.0.tool_result.cache_control: Extra inputs are not permitted"
            )
        )
        await _ours(one.settle(call, usage(plain=4000)))
        assert places((await _ours(two.prepare(agent(2)))).body)[-1] == "messages.6"
        for mw in (one, two):
            mw.clock.now += 31
            await _ours(mw.prepare(agent()))
            assert await _ours(mw.flush(5.0))
        two.clock.now += 100  # what was announced and never came is forgotten
        marked = places((await _ours(two.prepare(agent(3)))).body)
        assert marked
        assert not {"messages.3", "messages.6", "messages.9"} & set(marked)
        assert await _ours(two.flush(5.0))

        def broken(*_: Any) -> Any:
            raise StoreError("x")

        one._shell.store.read = broken
        two.clock.now += 31
        await _ours(two.prepare(agent()))
        assert await _ours(two.flush(5.0))
        assert two.counts["error.share.StoreError"] == 1
        for mw in (one, two):
            await _ours(mw.close())

    asyncio.run(run())


def test_what_is_queued_holds_no_request() -> None:
    """However long the store takes, what waits for it keeps no body alive."""

    class Held(dict[str, Any]):
        """A body that tells when it is gone."""

    mw, gate = middleware(), threading.Event()
    in_background(mw)
    mw._shell.store.write = lambda *_: gate.wait(10)  # type: ignore[method-assign, assignment, return-value]
    bodies = [Held(agent(turn)) for turn in range(1, 4)]
    gone = [weakref.ref(body) for body in bodies]
    for body in bodies:
        call = mw.prepare(body)
        mw.begun(call)
        mw.settle(call, usage(written=3000))
    del bodies, body, call
    assert mw._shell.writer._line.jobs.qsize() >= 4
    assert [reference() for reference in gone] == [None] * 3
    gate.set()
    mw.close()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_flush_reaches_the_store_whatever_is_queued(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store holds back is sent also where a write hangs, or the store can't send it."""
    monkeypatch.setattr(background_writer, "FLUSH_INTERVAL", 60.0)
    monkeypatch.setattr(aio, "FLUSH_INTERVAL", 60.0)

    async def run() -> None:
        mw, gate = twin(asynchronous), threading.Event()
        in_background(mw)
        flushed: list[float] = []

        def flush() -> bool:
            flushed.append(time.monotonic())
            raise StoreError("x")

        async def flush_async() -> bool:
            return flush()

        async def hang(*_: Any) -> None:
            await asyncio.to_thread(gate.wait, 10)

        mw._shell.store.write = hang if asynchronous else lambda *_: gate.wait(10)
        await _ours(mw.prepare(agent()))
        mw._shell.store.flush = flush_async if asynchronous else flush
        assert not await _ours(mw.flush(0.01))
        assert flushed
        gate.set()
        assert await _ours(mw.flush(5.0))
        assert mw.counts["error.flush.StoreError"] >= 2
        await _ours(mw.close())

    asyncio.run(run())


def test_a_flush_waits_for_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load there is always a task under way: one that came later is not waited for."""
    monkeypatch.setattr(background_writer, "FLUSH_INTERVAL", 60.0)
    monkeypatch.setattr(aio, "FLUSH_INTERVAL", 60.0)

    async def run() -> None:
        mw = twin(True)
        in_background(mw)
        first, later, flushed = asyncio.Event(), asyncio.Event(), list[int]()

        async def flush() -> bool:
            flushed.append(1)
            return False

        mw._shell.store.flush = flush
        mw._shell._start(first.wait())
        flushing = asyncio.create_task(mw.flush(5.0))
        await asyncio.sleep(0.01)
        mw._shell._start(later.wait())
        first.set()
        assert await flushing
        assert flushed == [1]
        later.set()
        await mw.close()

    asyncio.run(run())


def test_another_event_loop() -> None:
    """Where a loop was closed with tasks of ours on it, what the store holds back is sent from the next one."""
    mw = twin(True)
    in_background(mw)
    write, flushed, closed = mw._shell.store.write, list[int](), list[int]()

    async def hang(*_: Any) -> None:
        await asyncio.sleep(60)

    async def flush() -> bool:
        flushed.append(1)
        return False

    async def close() -> None:
        closed.append(1)

    async def call() -> None:
        await mw.settle(await mw.prepare(agent()), usage(written=3000))
        await asyncio.sleep(0.01)

    async def go_on() -> None:
        await call()
        await asyncio.sleep(3 * background_writer.FLUSH_INTERVAL)
        assert flushed
        assert await mw.flush(5.0)

    mw._shell.store.write, mw._shell.store.flush, mw._shell.store.close = hang, flush, close
    loops = [asyncio.new_event_loop() for _ in range(3)]
    for loop in loops:
        # It tells of each task that is dropped with it.
        loop.set_exception_handler(lambda *_: None)
    loops[0].run_until_complete(call())
    loops[0].close()
    assert not flushed
    mw._shell.store.write = write
    loops[1].run_until_complete(go_on())
    mw._shell.store.write = hang
    loops[1].run_until_complete(call())
    loops[1].close()
    flushed.clear()
    loops[2].run_until_complete(mw.close())
    loops[2].close()
    assert (flushed, closed) == ([1], [1])
    assert not {name for name in mw.counts if name.startswith("error")}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_each_step_of_closing_is_taken(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what is queued can't be flushed, the store is given back all the same."""

    async def run() -> None:
        mw, closed = twin(asynchronous), list[int]()

        def broken(*_: Any) -> Any:
            raise RuntimeError

        def close() -> None:
            closed.append(1)

        async def close_async() -> None:
            close()

        async def broken_async(*_: Any) -> Any:
            raise RuntimeError

        if asynchronous:
            monkeypatch.setattr(mw._shell, "flush", broken_async)
        else:
            monkeypatch.setattr(mw._shell.writer, "close", broken)
        mw._shell.store.close = close_async if asynchronous else close
        await _ours(mw.close())
        assert closed == [1]
        assert mw.counts["error.close.RuntimeError"] == 1

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_exact_counts_come_when_they_can(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the encoding is loaded, or where it can't be, tokens are estimated; no request waits for it."""
    loaded = threading.Event()

    def load() -> Callable[[str], int]:
        loaded.wait(10)
        if fails:
            raise ConnectionError
        return len

    monkeypatch.setattr(base, "load_counter", load)
    mw = middleware(tokens="tiktoken")
    before = mw.prepare(agent()).plan
    assert before.added
    loaded.set()
    deadline = time.monotonic() + 10
    while mw.prepare(agent()).plan.total == before.total and not mw.counts.get(
        "error.tokens.ConnectionError"
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (mw.prepare(agent()).plan.total > 2 * before.total) is not fails


def test_hashes_are_keyed_by_the_secret() -> None:
    """The key is the secret, or made from the namespace where there is none."""
    keys = [
        shared.hash_key(cachemw.Settings(**fields))
        for fields in ({}, {"namespace": "n"}, {"secret": "s"}, {"secret": "s", "namespace": "n"})
    ]
    assert len(set(keys)) == 3
    assert keys[2] == keys[3] == b"s"


# -- the twins ------------------------------------------------------------------------------------

USAGES = [
    None, {}, usage(plain=4000), usage(written=3000), usage(read=3000), usage(read=100, written=50, plain=0),
    {"model": MODEL, "usage": usage(read=2000)}, "nonsense", {"usage": {"input_tokens": 9, "output_tokens": 1}},
]  # fmt: skip
OPERATIONS = st.one_of(
    st.tuples(
        st.just("prepare"),
        st.integers(0, 5),
        st.sampled_from([None, {}, {"app": "a"}, {"app": "x" * 99}]),
        st.sampled_from([None, "tenant"]),
    ),
    st.tuples(st.just("begun"), st.integers(0, 9)),
    st.tuples(st.just("settle"), st.integers(0, 9), st.sampled_from(range(len(USAGES))), st.booleans()),
    st.tuples(st.just("fail"), st.integers(0, 9)),
    st.tuples(
        st.just("refused"),
        st.integers(0, 9),
        st.sampled_from(["cache_control: no", "system.0.cache_control: no", "other"]),
    ),
    st.tuples(st.just("wait"), st.sampled_from([1, 100, 301, 3700])),
    st.tuples(st.just("report"), st.sampled_from(["all", "process"])),
    st.tuples(st.just("flush")),
)


async def _play(mw: Any, drawn: tuple[Wire, Body], operations: list[tuple[Any, ...]]) -> list[Any]:
    """Do all of them and return what can be seen of it."""
    wire, odd = drawn
    seen: list[Any] = []
    calls: list[Any] = []
    for name, *arguments in operations:
        if name == "wait":
            mw.clock.now += arguments[0]
        elif name == "prepare":
            number, labels, namespace = arguments
            chat = number or wire == "chat"
            body = agent(number) if number else odd
            call = await _ours(mw.prepare(body, labels, namespace, wire="chat" if chat else "messages"))
            calls.append(call)
            seen.append((call.body, call.body is body, call.plan, call.labels))
        elif name in ("report", "flush"):
            seen.append(await _ours(getattr(mw, name)(*arguments)))
        elif calls:
            call = calls[arguments[0] % len(calls)]
            if name == "settle":
                seen.append(await _ours(mw.settle(call, USAGES[arguments[1]], partial=arguments[2])))
            elif name == "refused":
                seen.append(await _ours(mw.refused(call, 400, arguments[1])))
            else:
                seen.append(await _ours(getattr(mw, name)(call)))
    seen += [mw.counts, in_store(mw._shell.store), await _ours(mw.report())]
    await _ours(mw.close())
    return seen


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bodies(),
    st.lists(OPERATIONS, max_size=25),
    st.sampled_from(["optimize", "observe", "off"]),
    st.booleans(),
)
def test_the_twins_are_equal(
    drawn: tuple[Wire, Body], operations: list[tuple[Any, ...]], mode: str, local: bool
) -> None:
    """Any sequence of calls does and returns the same on both, whether writes are queued or not."""

    async def both() -> tuple[list[Any], list[Any]]:
        found = []
        for kind in (cachemw.Middleware, cachemw.AsyncMiddleware):
            clock = Clock()
            with equal_keys():
                mw: Any = kind(provider="databricks", mode=mode, clock=clock, min_tokens=200)
            mw.clock = clock
            mw._shell.store.local = local
            found.append(
                await _play(mw, copy.deepcopy(drawn), _settled(operations) if not local else operations)
            )
        return found[0], found[1]

    one, other = asyncio.run(both())
    assert one == other


def _settled(operations: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Wait for the queue after each step: when a queued write is done is no part of the contract."""
    return [step for operation in operations for step in (operation, ("flush",))]
