"""Requests that leave with more than markers added, by opt-in: savings and limits."""

from __future__ import annotations

import asyncio
import copy
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cachemw
from cachemw.core.opt_ins.sort_tools import unordered
from cachemw.core.opt_ins.split_text import joined
from cachemw.core.planner.plan import Reason
from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.models import MODELS
from cachemw.simulation.equality import same_request
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import anthropic_usage, databricks_usage
from tests.bodies import PARAGRAPH, Body, Wire, walk
from tests.clocks import clocked
from tests.faults import NOWHERE, Boom, raising, sampled
from tests.long_texts import HEAD, lines, long_bodies

MODEL = "databricks-claude-sonnet-4-6"
EXAMPLES = int(os.environ.get("EXAMPLES", "100"))
BOTH = {"split_text": True, "sort_tools": True}


def make_middleware(kind: Any = cachemw.Middleware, **chosen: Any) -> Any:
    """Return a make_middleware for Databricks with its own clock, `mw.clock`."""
    return clocked(kind, **{"provider": "databricks", **BOTH, **chosen})


def tools(order: Iterable[int]) -> list[Body]:
    """Return tool definitions of some 600 tokens each, in this order."""
    return [
        {
            "type": "function",
            "function": {"name": f"tool_{n}", "description": PARAGRAPH * 3, "parameters": {}},
        }
        for n in order
    ]


def request(number: int, **rest: Any) -> Body:
    """Return a single question under a prompt of some 2,000 tokens that ends with the time."""
    system = f"{HEAD * 4}It is {number // 60:02}:{number % 60:02}."
    messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {number}?"}]
    return {"model": MODEL, "messages": messages, **rest}


def played(mw: Any, bodies: Iterable[Body]) -> Iterator[tuple[Any, Ticket]]:
    """Send bodies to a simulated provider, one every ten seconds, and yield each call with its bill."""
    provider = ProviderCache(MODELS["claude-sonnet-4-6"])
    for body in bodies:
        call = mw.prepare(body)
        ticket = provider.begin(call.body, mw.clock.now)
        provider.answer_began(ticket, mw.clock.now + 1)
        mw.settle(call, {"usage": databricks_usage(ticket, 10)})
        mw.clock.now += 10
        yield call, ticket


# -- savings ---------------------------------------------------------------------------------------


def test_prompt_that_ends_with_the_time_is_read_up_to_its_last_line() -> None:
    """All but the last line is read from the third request on; without the opt-in there is no cache read."""
    reads = [ticket.cache_read for _, ticket in played(make_middleware(), map(request, range(6)))]
    assert reads[:2] == [0, 0]
    assert min(reads[2:]) > 2000
    assert not any(
        ticket.cache_read for _, ticket in played(make_middleware(split_text=False), map(request, range(6)))
    )


def test_document_is_read_by_its_second_question() -> None:
    """Once texts were seen to part near their ends, a new document is written for the next question."""

    def asked() -> Iterator[Body]:
        for document in range(8):
            for question in range(4):
                text = (
                    f"{lines(f'Document {document}', 320)}\n{lines(f'{document} {question}', 4)}What of it?"
                )
                yield {"model": MODEL, "messages": [{"role": "user", "content": text}]}

    tickets = [ticket for _, ticket in played(make_middleware(), asked())]
    assert not any(ticket.cache_read for ticket in tickets[::4])
    assert all(ticket.cache_write_5m > 1500 for ticket in tickets[16::4])
    assert all(ticket.cache_read > 1500 for ticket in tickets[17::4])


def test_shuffled_tools_leave_in_one_order_and_are_read() -> None:
    """The same tools leave in the same order, in whatever order they come."""
    orders = [(0, 1, 2), (2, 1, 0), (1, 0, 2), (2, 0, 1)]
    bodies = [{**request(0), "tools": tools(order)} for order in orders]
    assert [ticket.cache_read > 2000 for _, ticket in played(make_middleware(), bodies)] == [
        False,
        True,
        True,
        True,
    ]
    assert not any(ticket.cache_read for _, ticket in played(make_middleware(sort_tools=False), bodies))


def test_opt_ins_are_off_by_default() -> None:
    """Without an opt-in only markers are added."""
    mw = make_middleware(split_text=False, sort_tools=False)
    for number in range(4):
        body = request(number, tools=tools((2, 1, 0)))
        call = mw.prepare(body)
        assert same_request(body, call.body)
        assert mw._shared.splitter is None
        mw.settle(call, None)


# -- limits ----------------------------------------------------------------------------------------


def test_request_without_a_breakpoint_is_the_callers_object() -> None:
    """A prompt below the minimum, or one that is observed, leaves as the caller's own object."""
    for chosen, reason in (
        ({"min_tokens": 10**6}, Reason.BELOW_MINIMUM),
        ({"mode": "observe"}, Reason.NOT_OPTIMIZING),
    ):
        mw = make_middleware(**chosen)
        for call, _ in played(mw, (request(number, tools=tools((1, 0))) for number in range(4))):
            assert call.plan.skipped is reason
            assert call.body is call._lifecycle.parsed.body


def test_observe_mode_reports_the_saving_of_opt_ins() -> None:
    """Observe mode plans the body that would have left."""
    mw = make_middleware(mode="observe")
    list(played(mw, map(request, range(8))))
    assert mw.report().totals.would_save > 0
    whole = make_middleware(mode="observe", split_text=False)
    list(played(whole, map(request, range(8))))
    assert whole.report().totals.would_save <= 0


def test_refusal_gives_the_original_body() -> None:
    """The body to resend is the caller's: whole texts, tools in their original order."""
    mw = make_middleware()
    list(played(mw, (request(number, tools=tools((0, 1))) for number in range(3))))
    body = request(9, tools=tools((1, 0)))
    call = mw.prepare(body)
    assert len(call.body["messages"][0]["content"]) == 2
    assert call.body["tools"][0]["function"]["name"] == "tool_0"
    assert mw.refused(call, 400, "system.0.cache_control: Extra inputs are not permitted") is body


def test_unreadable_bodies_pass_with_the_usual_reason() -> None:
    """A body that is no chat request leaves unchanged, for the same reason as without the opt-ins."""
    mw = make_middleware()
    for body in (
        {"model": MODEL, "messages": [], "tools": tools((1, 0))},
        {"model": MODEL, "messages": [3], "tools": tools((1, 0))},
        {"model": MODEL, "messages": [{"role": "user", "content": "\ud800" * 2000}]},
        {"model": MODEL, "messages": [{"role": "user", "content": HEAD}], "tools": [1]},
    ):
        call = mw.prepare(body)
        assert call.body is body
        assert call.plan.skipped is Reason.UNREADABLE
    assert not [name for name in mw.counts if name.startswith("error")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_exception_at_any_call_sends_the_original(asynchronous: bool) -> None:
    """An exception on the way sends the original, and the next request works as usual."""
    body = request(9, tools=tools((1, 0)))

    async def done(result: Any) -> Any:
        return await result if asynchronous else result

    async def run(at: int) -> list[str]:
        mw = make_middleware(cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware)
        for number in range(3):
            await done(mw.settle(await done(mw.prepare(request(number, tools=tools((0, 1))))), None))
        with raising(Boom(), at, "prepare") as names:
            call = await done(mw.prepare(body))
        if at == NOWHERE:
            assert len(call.body["messages"][0]["content"]) == 2
            return names
        (failed,) = [name for name in mw.counts if name.endswith(".Boom")]
        assert call.body is body or failed != "error.prepare.Boom"
        await done(mw.settle(call, None))
        assert (await done(mw.prepare(request(10, tools=tools((0, 1)))))).plan.added
        await done(mw.close())
        return names

    async def every() -> None:
        names = await run(NOWHERE)
        assert {"Splitter.split", "Splitter.read", "sort_tools", "RequestPlanner._apply_opt_ins"} <= set(
            names
        )
        for at in sampled(names, 1):
            assert (await run(at))[-1] == names[at]

    asyncio.run(every())


def strings_in(root: Any) -> Iterator[str]:
    """Yield all strings and bytes in an object of the package, in its fields and in their contents."""
    seen: set[int] = set()
    left = [root]
    while left:
        node = left.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, (str, bytes)):
            yield repr(node)
        elif isinstance(node, Mapping):
            left += [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple, set, frozenset, deque)):
            left += node
        elif type(node).__module__.startswith("cachemw."):
            slots = (name for kind in type(node).__mro__ for name in getattr(kind, "__slots__", ()))
            left += [*getattr(node, "__dict__", {}).values(), *(getattr(node, name, None) for name in slots)]


def test_opt_ins_keep_no_text() -> None:
    """A process keeps neither texts nor tools."""
    mw = make_middleware()
    for number in range(4):
        mw.settle(mw.prepare(request(number, tools=tools((1, 0)))), None)
    store, shared = mw._shell.store, mw._shared
    kept = "\n".join(strings_in([store._records, store._tables, shared, shared.splitter, shared.parser]))
    for table in (shared.parser._memo, shared.splitter._pieces, shared.splitter._texts):
        (name, *_) = table.read("default")
        assert repr(name) in kept
    assert not any(word in kept for word in ("Policy", "quick brown", "It is", "tool_0"))


def accepted(provider: ProviderCache, body: Body, now: float, wire: Wire) -> Ticket | None:
    """Return the bill of a request, or None if the provider refuses it."""
    try:
        return provider.begin(body, now, wire)
    except Refused:
        return None


def markers(body: Body) -> int:
    """Return how many markers a body has, schemas apart."""
    inner = ("parameters", "input_schema", "input", "properties", "response_format")
    return sum(
        isinstance(node, dict) and node.get("cache_control") is not None
        for path, node in walk(body)
        if not any(key in inner for key in path)
    )


def test_random_bodies_change_by_opt_ins_only_and_are_never_refused() -> None:
    """Random bodies that come again are equal but for the opt-ins, and accepted if the original is."""
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data(), st.lists(long_bodies(odd=False), min_size=2, max_size=4))
    def arrive(data: st.DataObject, drawn: list[tuple[Wire, Body]]) -> None:
        mw = make_middleware(provider="auto", min_tokens=0)
        billed: dict[str, ProviderCache] = {}
        for wire, body in [*drawn, *drawn]:
            provider = "anthropic" if wire == "messages" else "databricks"
            before, identities = copy.deepcopy(body), {path: id(node) for path, node in walk(body)}
            call = mw.prepare(body, wire=wire, provider=provider)
            assert body == before, "the caller's objects were changed"
            assert {path: id(node) for path, node in walk(body)} == identities
            assert unordered(joined(call.body)) == unordered(joined(body))
            if wire == "chat":
                assert same_request(body, call.body, **BOTH)
            assert markers(call.body) <= max(4, markers(body))
            seen["added" if call.plan.added else "unmarked"] += 1
            seen["cut"] += (
                bool(call.plan.breakpoints) and call._lifecycle.parsed.prompt.outgoing_body is not body
            )
            model = find_model(body["model"])
            assert model is not None
            cache = billed.setdefault(
                body["model"] + wire, ProviderCache(model, Options(provider=provider, minimum=0))
            )
            if accepted(cache, body, mw.clock.now, wire) is None:
                seen["refused as it came"] += 1
                mw.fail(call)
            else:
                ticket = accepted(cache, call.body, mw.clock.now, wire)
                assert ticket is not None, "the provider refuses what it took as it came"
                cache.answer_began(ticket, mw.clock.now + 1)
                report = anthropic_usage if wire == "messages" else databricks_usage
                mw.settle(call, {"usage": report(ticket, 3)})
            mw.clock.now += data.draw(st.sampled_from([2, 60, 301]))
        assert not [name for name in mw.counts if name.startswith("error")], mw.counts

    arrive()
    assert seen["added"] > EXAMPLES, seen
    assert seen["cut"] > EXAMPLES / 2, seen
    assert seen["refused as it came"] < EXAMPLES, seen
