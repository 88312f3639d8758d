"""Requests to OpenRouter: blocks that may be marked, and conversations that stay with one backend."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from typing import Any

import cachemw
from cachemw.core.request.equality import canonical
from cachemw.core.rules.models import MODELS
from cachemw.simulation.conversation_families import support
from cachemw.simulation.options import Options
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.traffic import schedule
from cachemw.simulation.usage_forms import openrouter_usage
from tests.bodies import Body, walk

MODEL = "anthropic/claude-sonnet-4.6"


def opening(body: Any) -> tuple[str, str]:
    """Return the first system message and the first other one, as OpenRouter may hash them."""
    messages = body["messages"]
    system = [message for message in messages if message["role"] in ("system", "developer")][:1]
    others = [message for message in messages if message["role"] not in ("system", "developer")][:1]
    return json.dumps(system, sort_keys=True), json.dumps(others, sort_keys=True)


def marked(body: Any) -> list[tuple[Any, ...]]:
    """Return the places of markers."""
    return [path[:-1] for path, _ in walk(body) if path and path[-1] == "cache_control"]


def test_conversation_keeps_its_first_bytes_and_its_cache_reads() -> None:
    """From its first marked turn on a conversation opens with the same bytes, and keeps its cache reads."""
    clock = [0.0]
    mw = cachemw.Middleware(provider="openrouter", clock=lambda: clock[0])
    cache = ProviderCache(MODELS["claude-sonnet-4-6"], Options(provider="openrouter"))
    seen: Counter[str] = Counter()
    first: dict[tuple[str, str], tuple[str, str]] = {}
    read = total = 0
    conversations = list(islice(support(1), 25))
    for arrival in schedule(conversations, 1):
        clock[0] = arrival.at
        body = {**arrival.body, "model": MODEL, "session_id": "s", "provider": {"sort": "price"}}
        call = mw.prepare(body)
        assert canonical(call.body) == canonical(body)
        assert {key: call.body[key] for key in body if key not in ("messages", "tools")} == {
            key: body[key] for key in body if key not in ("messages", "tools")
        }
        for path in marked(call.body):
            holder: Any = call.body
            for key in path:
                holder = holder[key]
            assert path[0] == "tools" or holder["type"] == "text"
            seen[call.body["messages"][path[1]]["role"] if path[0] == "messages" else "tools"] += 1
            # A part or a definition, never a message, a call or the body.
            assert path[0] == "tools" or path[2] == "content"
        if call.plan.added:
            conversation = opening(canonical(body))
            assert first.setdefault(conversation, opening(call.body)) == opening(call.body)
        ticket = cache.begin(call.body, arrival.at)
        cache.answer_began(ticket, arrival.at)
        mw.begun(call)
        receipt = mw.settle(call, {"usage": openrouter_usage(ticket, 9)})
        assert (receipt.usage.cache_read, receipt.usage.cache_write) == (
            ticket.cache_read,
            ticket.cache_write_5m,
        )
        read, total = read + ticket.cache_read, total + ticket.request.total
    assert read > 0.8 * total
    assert {"tools", "system", "user", "tool"} <= set(seen)


def test_marker_is_never_at_the_top_of_a_body() -> None:
    """A marker at the top would exclude all but one of Claude's hosts, so cachemw never places one there."""
    body: Body = {"model": MODEL, "messages": [{"role": "user", "content": "Answer shortly. " * 2000}]}
    mw = cachemw.Middleware(provider="openrouter")
    call = mw.prepare(body)
    mw.settle(call, None)
    for _ in range(3):
        call = mw.prepare(body)
        mw.settle(call, None)
        assert "cache_control" not in call.body
    assert marked(call.body)
