"""The promises on random bodies: only markers are added, never too many, never refused, never a failure.

`EXAMPLES=10000 pytest tests/engine/test_promises.py` takes as many bodies.
"""

from __future__ import annotations

import asyncio
import copy
import os
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cachemw
from cachemw.core.request.equality import canonical
from cachemw.core.rules.model_names import find_model
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.usage_forms import anthropic_usage, databricks_usage
from tests.bodies import SAME, Body, Wire, bodies, broken, chat_bodies, pairs, walk
from tests.faults import Boom, raising
from tests.kept import in_store, plain

EXAMPLES = int(os.environ.get("EXAMPLES", "200"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

SETTINGS = st.fixed_dictionaries(
    {"min_tokens": st.sampled_from([0, 0, 0, 60, None])},
    optional={
        "ttl": st.sampled_from(["5m", "1h", "auto"]),
        "mode": st.sampled_from(["optimize", "optimize", "optimize", "observe", "off"]),
        "mark_kinds": st.sampled_from(
            [{}, {"text": "off"}, {"tool_result": "off"}, {"image": "off", "tool_definition": "off"}]
        ),
        "max_labels": st.just(1),
    },
)
PROVIDERS = {
    "chat": st.sampled_from(["databricks", "databricks", "openrouter", "litellm"]),
    "messages": st.sampled_from(["anthropic", "databricks"]),
}
WAYS = ("messages", "content", "tool_calls", "tools", "system", "function")


def markers(body: Body) -> dict[tuple[Any, ...], Any]:
    """Return every marker that counts by the path of its holder: entries of lists, and functions."""
    return {
        path[:-1]: node
        for path, node in walk(body)
        if path
        and path[-1] == "cache_control"
        and node is not None
        and all(isinstance(key, int) or key in WAYS for key in path[:-1])
        and (len(path) == 1 or isinstance(path[-2], int) or path[-2] == "function")
    }


def same_place(path: tuple[Any, ...], body: Body) -> tuple[Any, ...]:
    """Return a path with the string that it led to in `body` in the place of its one part."""
    node: Any = body
    for depth, key in enumerate(path):
        if isinstance(node, str):
            return path[:depth]
        node = node[key]
    return path


def check(call: cachemw.Call, body: Body, before: Body, identities: dict[Any, int]) -> None:
    """Check one request against the promises."""
    assert body == before, "the caller's objects were changed"
    assert {path: id(node) for path, node in walk(body)} == identities, "the caller's objects were replaced"
    assert canonical(call.body) == canonical(body), "more than markers was added"
    came, left = markers(body), markers(call.body)
    assert {path: left.get(path) for path in came} == came, "a client marker is gone"
    added = [same_place(path, body) for path in left if path not in came]
    assert len(added) == len(call.plan.added)
    assert sorted(map(str, added)) == sorted(str(point.path) for point in call.plan.added)
    assert len(left) <= max(4, len(came)), "too many markers"
    if len(came) >= 4 or not added:
        assert call.body is body
    for path in added:
        assert left.get(path) or left[(*path, 0)]


def accepted(provider: ProviderCache, body: Body, now: float, wire: Wire) -> Ticket | None:
    """Return the bill of a request, or None if the provider refuses it."""
    try:
        return provider.begin(body, now, wire)
    except Refused:
        return None


def test_nothing_but_markers_never_too_many_never_refused() -> None:
    """Random bodies come several times, equal, in another form or changed, against a billing provider."""
    seen: Counter[str] = Counter()

    @many
    @given(st.data(), pairs(), SETTINGS)
    def arrive(data: st.DataObject, drawn: tuple[Wire, Body, Body], chosen: Body) -> None:
        wire, one, other = drawn
        provider = data.draw(PROVIDERS[wire])
        clock = [1e6]
        mw = cachemw.Middleware(provider=provider, clock=lambda: clock[0], **chosen)
        model = find_model(one["model"])
        assert model is not None
        billed = ProviderCache(model, Options(provider=provider, minimum=chosen["min_tokens"]))
        for body in (one, data.draw(st.sampled_from(SAME))(one), other, one, other):
            before, identities = copy.deepcopy(body), {path: id(node) for path, node in walk(body)}
            call = mw.prepare(body, wire=wire)
            check(call, body, before, identities)
            seen["added" if call.plan.added else "unmarked"] += 1
            seen.update(point.reason for point in call.plan.added)
            seen.update(f"{point.ttl} after {len(markers(body))} own" for point in call.plan.added)
            if accepted(billed, body, clock[0], wire) is None:
                seen["refused as it came"] += 1
                mw.fail(call)
            else:
                ticket = accepted(billed, call.body, clock[0], wire)
                assert ticket is not None, "the provider refuses a request whose original it accepts"
                mw.begun(call)
                billed.answer_began(ticket, clock[0] + 1)
                report = anthropic_usage if wire == "messages" else databricks_usage
                mw.settle(call, {"usage": report(ticket, 3)})
            clock[0] += data.draw(st.sampled_from([2, 2, 60, 280, 301, 3000]))
        assert not [name for name in mw.counts if name.startswith("error")], mw.counts
        assert mw.report("process").totals.unsettled == 0

    reasons = ("tail", "end_of_system", "end_of_tools", "earlier_tail")
    lives = ("5m after 0 own", "1h after 0 own", "5m after 1 own", "5m after 2 own")
    for rounds in range(1, 6):  # a round may miss the rare ones
        arrive()
        assert seen["added"] > rounds * EXAMPLES, f"almost everything passed unmarked: {seen}"
        assert seen["refused as it came"] < 2 * rounds * EXAMPLES
        if all(seen[name] for name in reasons + lives):
            return
    raise AssertionError(seen)


def test_marker_that_the_provider_overlooks_makes_no_request_refused() -> None:
    """Databricks overlooks a 1h marker on a message, which follows the client's 5m marker on a tool."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("one", "two")]
    hour = {"type": "ephemeral", "ttl": "1h"}
    body = {
        "model": "databricks-claude-sonnet-4-5",
        "tools": [{**tools[0], "cache_control": {"type": "ephemeral"}}, tools[1]],
        "messages": [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": [{"type": "text", "text": "Hello."}], "cache_control": hour},
            {"role": "user", "content": "And then?"},
        ],
    }
    model = find_model(body["model"])
    assert model is not None
    billed = ProviderCache(model, Options(provider="databricks", minimum=0))
    mw = cachemw.Middleware(provider="databricks", clock=lambda: 1e6, min_tokens=0)
    before, identities = copy.deepcopy(body), {path: id(node) for path, node in walk(body)}
    ttls: set[str] = set()
    for _ in range(3):
        call = mw.prepare(body)
        check(call, body, before, identities)
        ttls.update(point.ttl for point in call.plan.added)
        ticket = billed.begin(call.body, 1e6, "chat")
        mw.settle(call, {"usage": databricks_usage(ticket, 3)})
    assert ttls == {"5m"}


def test_whatever_is_no_body_passes() -> None:
    """Bodies with any values anywhere raise no exception and leave equal."""
    seen: Counter[str] = Counter()

    @many
    @given(broken(), SETTINGS)
    def arrive(drawn: tuple[Wire, Any], chosen: Body) -> None:
        wire, body = drawn
        mw = cachemw.Middleware(
            provider="databricks" if wire == "chat" else "anthropic", clock=lambda: 1e6, **chosen
        )
        before = copy.deepcopy(body)
        for _ in range(2):
            call = mw.prepare(body, wire=wire)
            if isinstance(body, dict):
                assert canonical(call.body) == canonical(body)
                assert len(markers(call.body)) <= max(4, len(markers(body)))
            else:
                assert call.body is body
            assert _alike(body, before)
            mw.settle(call, None)
        seen["read" if call.plan.skipped != "unreadable" else "unreadable"] += 1
        assert not [name for name in mw.counts if name.startswith("error")], mw.counts

    arrive()
    assert min(seen["read"], seen["unreadable"]) > EXAMPLES / 10


def _alike(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


def test_a_bug_anywhere_is_never_in_the_way() -> None:
    """A failure at a random call, sync, async or streamed: the body leaves equal, and the call settles."""
    seen: Counter[str] = Counter()

    async def run(data: st.DataObject, body: Body, asynchronous: bool, streamed: bool) -> None:
        kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
        mw = kind(provider="databricks", min_tokens=0, clock=lambda: 1e6, hooks=[lambda event: None])

        async def do(step: str, *arguments: Any, broken: bool = False, **rest: Any) -> Any:
            method = getattr(mw, step)
            at = data.draw(st.integers(0, 120)) if broken else -2
            with raising(Boom(), at, step) as names:
                result = method(*arguments, **rest)
                result = await result if asynchronous else result
            seen[f"{step}.{'broken' if len(names) == at + 1 else 'whole'}"] += 1
            return result

        before = copy.deepcopy(body)
        for _ in range(2):
            call = await do("prepare", body, broken=True)
            assert canonical(call.body) == canonical(before)
            assert body == before
            assert len(markers(call.body)) <= max(4, len(markers(body)))
            if streamed:
                await do("begun", call, broken=True)
            receipt = await do("settle", call, {"usage": {"prompt_tokens": 9}}, broken=True, partial=streamed)
            assert isinstance(receipt, cachemw.Receipt)
        call = await do("prepare", body)
        assert isinstance(call.body, dict)
        assert (await do("settle", call, {"usage": {"prompt_tokens": 9}})).usage is not None

    @many
    @given(st.data(), chat_bodies(), st.booleans(), st.booleans())
    def breaks(data: st.DataObject, body: Body, asynchronous: bool, streamed: bool) -> None:
        asyncio.run(run(data, body, asynchronous, streamed))

    breaks()
    assert seen["prepare.broken"] > EXAMPLES / 2
    assert seen["settle.broken"] > EXAMPLES / 10


@many
@given(bodies())
def test_stores_hold_no_text(drawn: tuple[Wire, Body]) -> None:
    """No piece of a prompt is kept in records, sums, counts or the memo of the parser."""
    wire, body = drawn
    secret = "xyzzy-plugh"
    marked = copy.deepcopy(body)
    for message in marked["messages"]:
        if isinstance(message.get("content"), str):
            message["content"] += f" {secret}"
    for tool in marked.get("tools", ()):
        tool.get("function", tool)["name"] = secret
    mw = cachemw.Middleware(provider="databricks", min_tokens=0, clock=lambda: 1e6)
    mw.settle(mw.prepare(marked, wire=wire), None)
    kept = repr((in_store(mw._shell.store), mw.counts, plain(mw._shared)))
    assert secret not in kept
    assert "FairTable" in kept
