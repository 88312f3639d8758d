"""The provider cache of OpenAI's models: machines, automatic reads, breakpoints from GPT-5.6 on."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from cachemw.apps.simulated_gateway import build
from cachemw.core.billing.usage import read_usage
from cachemw.core.rules.models import MODELS
from cachemw.simulation.openai_cache import OpenAICache
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import Ticket

LONG = "One more sentence of the manual. " * 400
OLD, NEW = "gpt-5.2", "gpt-5.6"


def said(role: str, text: str, marked: bool = False) -> dict[str, Any]:
    """Return a message of one part."""
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}} if marked else {}
    return {"role": role, "content": [{"type": "text", "text": text, **mark}]}


def body(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a request."""
    return {"messages": list(messages), **fields}


def send(cache: OpenAICache, request: dict[str, Any], at: float = 0.0) -> Ticket:
    """Send a request that is answered at once."""
    ticket = cache.begin(request, at)
    cache.answer_began(ticket, at)
    return ticket


def test_older_models_read_a_shared_prefix_without_breakpoints() -> None:
    """The prefix shared with an earlier prompt is read in steps of 128 tokens, and writes are free."""
    cache = OpenAICache(MODELS[OLD])
    first = send(cache, body(said("system", LONG), said("user", "One?")))
    second = send(cache, body(said("system", LONG), said("user", "Two?")))
    assert (first.cache_read, first.cache_write_5m, first.uncached) == (0, 0, first.request.total)
    head = second.request.positions[0].prefix
    assert second.cache_read == head - head % 128
    assert second.cache_read + second.uncached == second.request.total
    assert send(cache, body(said("system", "Short."), said("user", "One?"))).cache_read == 0
    assert send(cache, body(said("system", "Short."), said("user", "One?"))).cache_read == 0


def test_newer_models_read_up_to_a_breakpoint() -> None:
    """A shared head is found with breakpoints only; growing conversations need none."""
    for marked in (False, True):
        cache = OpenAICache(MODELS[NEW])
        head = said("system", LONG, marked)
        one = send(cache, body(head, said("user", "One?")))
        two = send(cache, body(head, said("user", "Two?")))
        assert one.cache_write_5m == one.request.positions[-1].prefix
        assert two.cache_read == (one.request.positions[0].prefix if marked else 0)
        on = send(cache, body(head, said("user", "One?"), said("assistant", "Yes."), said("user", "Why?")))
        assert on.cache_read == one.request.positions[-1].prefix
        assert on.cache_read + on.cache_write_5m + on.uncached == on.request.total


def test_entry_expires_after_half_an_hour() -> None:
    """Each use extends an entry by half an hour from the start of the request."""
    cache = OpenAICache(MODELS[NEW])
    request = body(said("system", LONG), said("user", "One?"))
    send(cache, request)
    assert send(cache, request, 1799).cache_read
    assert send(cache, request, 3598).cache_read
    assert not send(cache, request, 5398).cache_read


def test_entry_is_unreadable_before_its_answer_has_begun() -> None:
    """A prefix that another request is writing cannot be read."""
    cache = OpenAICache(MODELS[NEW])
    request = body(said("system", LONG), said("user", "One?"))
    ticket = cache.begin(request, 0)
    assert cache.begin(request, 1).cache_read == 0
    cache.answer_began(ticket, 2)
    assert cache.begin(request, 3).cache_read


def test_requests_above_fifteen_a_minute_go_to_another_machine() -> None:
    """A key selects the machine; one machine takes fifteen requests a minute of one key."""
    cache = OpenAICache(MODELS[OLD])
    request = body(said("system", LONG), said("user", "One?"))
    assert [bool(send(cache, request, at).cache_read) for at in range(16)] == [False, *[True] * 14, False]
    assert not send(cache, {**request, "prompt_cache_key": "k"}, 20).cache_read
    assert send(cache, {**request, "prompt_cache_key": "k"}, 21).cache_read
    assert send(cache, request, 90).cache_read


def test_only_the_last_breakpoints_are_written() -> None:
    """Of a client's five breakpoints the last three are written, and the end."""
    cache = OpenAICache(MODELS[NEW])
    parts = [said("user", f"{n}. {LONG}", marked=True) for n in range(5)]
    send(cache, body(*parts, said("user", "One?")))
    ticket = cache.begin(body(*parts[:2], said("user", "Other?")), 1)
    assert ticket.cache_read == 0
    ticket = cache.begin(body(*parts[:3], said("user", "Other?")), 1)
    assert ticket.cache_read == ticket.request.positions[2].prefix


@pytest.mark.parametrize(
    "message",
    [
        said("assistant", "Yes.", marked=True),
        {
            "role": "user",
            "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "odd"}}],
        },
    ],
)
def test_misplaced_breakpoint_is_refused(message: dict[str, Any]) -> None:
    """A breakpoint in an assistant message is refused, and so is one of another mode."""
    with pytest.raises(Refused, match=r"messages\[1\]\.content\[0\]\.prompt_cache_breakpoint"):
        OpenAICache(MODELS[NEW]).begin(body(said("user", "One?"), message), 0)
    with pytest.raises(Refused):
        OpenAICache(MODELS[NEW]).begin({"messages": "none"}, 0)
    with pytest.raises(Refused):
        OpenAICache(MODELS[NEW]).begin(body(said("user", "One?")), 0, "messages")


def test_gateway_bills_openai_models_at_breakpoints() -> None:
    """The gateway bills OpenAI's models with OpenAI's usage object."""
    client = TestClient(build(Options(provider="openai")), headers={"authorization": "Bearer t"})
    for model, key in ((OLD, "cached_tokens"), (NEW, "cache_write_tokens")):
        request = body(said("system", LONG), said("user", "One?"), model=model)
        answers = [client.post("/v1/chat/completions", json=request).json() for _ in range(2)]
        first, second = (read_usage(answer) for answer in answers)
        assert first is not None
        assert second is not None
        assert key in answers[0]["usage"]["prompt_tokens_details"]
        assert (bool(first.cache_read), bool(second.cache_read)) == (False, True)
        assert bool(first.cache_write) == (model == NEW)
