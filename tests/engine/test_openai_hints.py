"""Requests to models that cache by themselves, such as OpenAI's: hints by opt-in, never a marker."""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cachemw
from cachemw.core.opt_ins.openai_hints import KEY, canonical
from cachemw.core.planner.plan import Reason
from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.providers import PROVIDERS
from cachemw.core.rules.resolve import resolve
from cachemw.engine.learned_facts import LearnedFacts
from cachemw.simulation.openai_cache import OpenAICache
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.replay import Weights
from cachemw.simulation.usage_forms import openrouter_usage
from tests.bodies import PARAGRAPH, Body, chat_bodies, walk
from tests.clocks import Clock, clocked

MANUAL = "\n".join(f"{n}. Returns are free within {n} days of delivery." for n in range(400))
BREAKPOINT = {"mode": "explicit"}


def make_middleware(kind: Any = cachemw.Middleware, **chosen: Any) -> Any:
    """Return a make_middleware for OpenAI with hints and its own clock, `mw.clock`."""
    return clocked(kind, **{"provider": "openai", "openai_hints": True, **chosen})


def turn(number: int, turns: int = 1, model: str = "gpt-5.6") -> Body:
    """Return a conversation after some turns, under a system prompt that all share."""
    messages: list[Body] = [{"role": "system", "content": MANUAL}]
    for at in range(turns):
        messages.append({"role": "user", "content": f"Question {number}.{at}. {PARAGRAPH}"})
        if at < turns - 1:
            messages.append({"role": "assistant", "content": f"Answer {number}.{at}. {PARAGRAPH}"})
    return {"model": model, "messages": messages}


def breakpoints(body: Body) -> list[tuple[Any, ...]]:
    """Return the places of OpenAI's breakpoints."""
    return [path[:-1] for path, _ in walk(body) if path and path[-1] == "prompt_cache_breakpoint"]


def repeat(mw: Any, body: Body) -> None:
    """Send a body again and again for ten minutes."""
    for _ in range(20):
        mw.settle(mw.prepare(body), None)
        mw.clock.now += 31


def test_shared_prompt_is_marked_at_once_and_read_by_later_requests() -> None:
    """The system prompt is marked from the first request on, and all later requests read it."""
    mw, model = make_middleware(), MODELS["gpt-5.6"]
    cache = OpenAICache(model)
    for number in range(4):
        call = mw.prepare(turn(number))
        assert breakpoints(call.body) == [("messages", 0, "content", 0)]
        ticket = cache.begin(call.body, mw.clock.now)
        cache.answer_began(ticket, mw.clock.now)
        mw.begun(call)
        receipt = mw.settle(call, {"usage": openrouter_usage(ticket, 5)})
        assert receipt.usage.cache_read == (ticket.request.positions[0].prefix if number else 0)
        assert receipt.miss is None
        mw.clock.now += 1500  # within half an hour
    assert call.plan.cache_read
    assert call.plan.hit == 0
    mw.clock.now += 1801
    assert mw.prepare(turn(9)).plan.hit is None


def test_last_turns_are_marked_beside_the_shared_prompt() -> None:
    """The last turns are marked as well, with at most three breakpoints added to OpenAI's own."""
    mw = make_middleware()
    body = turn(1, turns=6)
    call = mw.prepare(body)
    assert breakpoints(call.body) == [("messages", at, "content", 0) for at in (0, 7, 9)]
    assert [point.from_client for point in call.plan.breakpoints] == [False, False, False, True]
    assert canonical(call.body) == canonical(body)


HINTED = ["gpt-5.6", "gpt-6.1-sol", "gpt-6-vega"]
PARTS = st.sampled_from([None, None, None, BREAKPOINT])
ODD = {
    "prompt_cache_key": st.sampled_from(["mine", "", None]),
    "prompt_cache_options": st.sampled_from([{"mode": "explicit"}, {"mode": "implicit", "ttl": "30m"}]),
}


def test_random_bodies_change_by_hints_only_and_are_never_refused() -> None:
    """Random bodies change by hints only, keep the client's cache fields, and none is refused."""
    seen: Counter[str] = Counter()

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        chat_bodies(),
        st.sampled_from([*HINTED, "gpt-5.2", "o3"]),
        st.fixed_dictionaries({}, optional=ODD),
        st.lists(PARTS, min_size=1, max_size=5),
    )
    def arrive(drawn: Body, model: str, odd: Body, marks: list[Any]) -> None:
        body = {**copy.deepcopy(drawn), "model": model, **odd}
        parts = [
            part
            for path, part in walk(body)
            if len(path) == 4 and path[2] == "content" and isinstance(part, dict)
        ]
        for part, mark in zip(parts, marks, strict=False):
            if mark:
                part["prompt_cache_breakpoint"] = mark
        mw = make_middleware(min_tokens=0)
        repeat(mw, body)
        before, own = copy.deepcopy(body), breakpoints(body)
        call = mw.prepare(body)
        assert body == before
        assert canonical(call.body) == canonical(body)
        assert [call.body.get(name) for name in odd if odd[name] is not None] == [
            odd[name] for name in odd if odd[name] is not None
        ]
        added = len(breakpoints(call.body)) - len(own)
        assert added == len(call.plan.added) <= 3
        if own or model not in HINTED or odd.get("prompt_cache_options") == {"mode": "explicit"}:
            assert not added
        keyed = call.body.get(KEY) != body.get(KEY)
        if not added and not keyed:
            assert call.body is body
        seen["breakpoints"] += bool(added)
        seen["own"] += bool(own)
        seen["key"] += keyed
        seen["untouched"] += call.body is body
        taken = find_model(model)
        assert taken is not None
        try:
            OpenAICache(taken, Options(provider="openai", minimum=0)).begin(body, 0.0)
        except Refused:
            return
        OpenAICache(taken, Options(provider="openai", minimum=0)).begin(call.body, 0.0)
        assert not [name for name in mw.counts if name.startswith("error")], mw.counts

    arrive()
    assert min(seen["breakpoints"], seen["key"], seen["own"], seen["untouched"]) > 10, seen


def test_known_prompt_gets_one_key_for_all_its_conversations() -> None:
    """A known prompt gets a key, equal for all its conversations, and for models before GPT-5.6 too."""
    for model in ("gpt-5.2", "gpt-5.6"):
        mw = make_middleware()
        assert KEY not in mw.prepare(turn(0, model=model)).body
        repeat(mw, turn(0, model=model))
        keys = {mw.prepare(turn(number, turns, model)).body[KEY] for number in range(5) for turns in (1, 2)}
        assert len(keys) == 1
        assert mw.prepare({**turn(0, model=model), KEY: "mine"}).body[KEY] == "mine"
        mw.close()


def test_async_middleware_adds_the_same_hints() -> None:
    """The async middleware adds the hints of the sync one."""

    async def both() -> None:
        mw, sync = make_middleware(cachemw.AsyncMiddleware, secret="s"), make_middleware(secret="s")
        for at in range(25):
            body = turn(at % 3)
            other, call = await mw.prepare(body), sync.prepare(body)
            assert other.body == call.body
            await mw.settle(other, None)
            sync.settle(call, None)
            mw.clock.now += 40
            sync.clock.now += 40
        assert call.body[KEY]
        await mw.close()

    asyncio.run(both())


@pytest.mark.parametrize("chosen", [{"openai_hints": False}, {"mode": "observe"}, {"mode": "off"}])
@pytest.mark.parametrize("model", ["gpt-5.6", "gpt-5.2"])
def test_hints_are_absent_without_the_setting(chosen: Body, model: str) -> None:
    """Without the setting, or in a mode that changes no body, no hint is added."""
    mw, body = make_middleware(**chosen), turn(1, model=model)
    repeat(mw, body)
    assert mw.prepare(body).body is body


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize("provider", list(PROVIDERS))
def test_model_without_explicit_caching_is_never_marked(provider: str, hints: bool) -> None:
    """A row without explicit caching gets no `cache_control` at any provider, and hints at OpenAI only."""
    seen: Counter[str] = Counter()
    clock = Clock()
    mw = cachemw.Middleware(clock=clock, openai_hints=hints, min_tokens=0)
    for name, row in MODELS.items():
        for wire in ("chat", "messages"):
            body = turn(1, turns=3, model=name)
            call = mw.prepare(body, provider=provider, wire=wire)  # type: ignore[arg-type]
            left = {path[-1] for path, _ in walk(call.body) if path}
            if row.caching != "explicit":
                assert "cache_control" not in left
                assert ("prompt_cache_breakpoint" in left) == (
                    hints and provider == "openai" and row.hints and wire == "chat"
                )
            if row.caching != "explicit" and not (hints and provider == "openai"):
                assert call.body is body
                assert call.plan.skipped in (Reason.MODEL_AUTOMATIC, Reason.MARKERS_IGNORED)
            seen["cache_control" if "cache_control" in left else "none"] += 1
    assert bool(seen["cache_control"]) == (PROVIDERS[provider].max_markers > 0 and provider != "openai")


def test_refused_key_is_not_sent_again() -> None:
    """An endpoint that rejects the field gets the original once, and no key from then on."""
    mw, body = make_middleware(), turn(0, model="gpt-5.2")
    repeat(mw, body)
    call = mw.prepare(body)
    assert call.body[KEY]
    assert mw.refused(call, 400, "Unrecognized request argument supplied: prompt_cache_key") is body
    assert mw.refused(call, 400, "Unrecognized request argument supplied: prompt_cache_key") is None
    mw.settle(call, None)
    assert mw.prepare(body).body is body
    assert mw.counts["refused.key"] == 1


def test_refused_breakpoints_are_not_sent_again() -> None:
    """A refused breakpoint switches off its kind; an unrelated error is left to the client."""
    mw, body = make_middleware(), turn(0)
    call = mw.prepare(body)
    assert mw.refused(call, 400, "Invalid value for 'temperature'") is None
    assert (
        mw.refused(call, 400, "Unknown parameter: 'messages[0].content[0].prompt_cache_breakpoint'.") is body
    )
    mw.settle(call, None)
    assert mw.prepare(body).body is body


def test_refused_key_is_learned_by_other_workers() -> None:
    """A fact that one worker publishes reaches every worker."""
    publisher, other = LearnedFacts(cachemw.Settings()), LearnedFacts(cachemw.Settings())
    rules = resolve("openai", "gpt-5.2")
    assert rules is not None
    publisher.of("default").refuse_key(rules)
    assert other.of("default").takes_key(rules)
    other.merge_updates(publisher.drain_updates())
    assert not other.of("default").takes_key(rules)


def cost(model: str, hints: bool, turns: int) -> float:
    """Return the cost of busy conversations of an app, at 1 for an uncached token."""
    mw, row = make_middleware(openai_hints=hints), MODELS[model]
    cache, weights = OpenAICache(row), Weights.of(row)
    paid = total = 0.0
    coming = sorted((5.0 * n + 20 * at, n, at) for n in range(300) for at in range(turns))
    for at, number, earlier in coming:
        mw.clock.now = 1e6 + at
        call = mw.prepare(turn(number, earlier + 1, model))
        ticket = cache.begin(call.body, mw.clock.now)
        cache.answer_began(ticket, mw.clock.now)
        mw.begun(call)
        mw.settle(call, openrouter_usage(ticket, 5))
        paid += weights.cost(ticket)
        total += ticket.request.total
    mw.close()
    return paid / total


def test_hints_save_most_of_a_shared_prompt() -> None:
    """If no prefix shorter than a breakpoint is found, marking the shared part saves most of it."""
    assert cost("gpt-5.6", True, 1) < 0.3 < 1.2 < cost("gpt-5.6", False, 1)
    assert cost("gpt-5.6", True, 4) < 0.5 * cost("gpt-5.6", False, 4)


USAGES: list[tuple[str, str, Body, Decimal]] = [
    (
        "gemini",
        "gemini-2.5-flash",
        {"prompt_tokens": 5000, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4000}},
        Decimal("0.00108"),
    ),
    (
        "gemini",
        "gemini-2.5-pro",
        {"usageMetadata": {"promptTokenCount": 5000, "cachedContentTokenCount": 4000, "candidatesTokenCount": 9}},
        Decimal("0.0045"),
    ),
    (
        "deepseek",
        "deepseek-v4-flash",
        {"prompt_tokens": 5000, "completion_tokens": 9, "prompt_cache_hit_tokens": 4000,
         "prompt_cache_miss_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 4000}},
        Decimal("0.000588"),
    ),
    (
        "openai",
        "gpt-5.2-2025-12-11",
        {"prompt_tokens": 5000, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 4000}},
        Decimal("0.0063"),
    ),
    (
        "openai",
        "gpt-6.1-terra",
        {"prompt_tokens": 5000, "completion_tokens": 9,
         "prompt_tokens_details": {"cached_tokens": 4000, "cache_write_tokens": 900}},
        Decimal("0.003575"),
    ),
    (
        "openrouter",
        "anthropic/claude-sonnet-4.6",
        {"prompt_tokens": 5000, "completion_tokens": 9, "cost": 0.1,
         "prompt_tokens_details": {"cached_tokens": 4000, "cache_write_tokens": 900, "audio_tokens": 0}},
        Decimal("0.010125"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "model", "usage", "saved"), USAGES)
def test_report_shows_the_money_saved_by_the_provider(
    provider: str, model: str, usage: Body, saved: Decimal
) -> None:
    """The report has the saving of the provider's own caching, at its prices."""
    mw = cachemw.Middleware(clock=Clock())
    call = mw.prepare({"model": model, "messages": [{"role": "user", "content": "Hello"}]}, provider=provider)
    receipt = mw.settle(call, usage)
    assert receipt.usage is not None
    assert (receipt.usage.cache_read, receipt.usage.total) == (4000, 5000)
    assert receipt.saved == saved
    assert mw.report().totals.saved_by_client == saved
