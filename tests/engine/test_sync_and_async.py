"""The sync and the async middleware on the same calls."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cachemw
from tests.bodies import Body, Wire, bodies
from tests.clocks import Clock
from tests.engine.calls import MODEL, agent, finished, usage
from tests.kept import in_store
from tests.keys import equal_keys

USAGES = [
    None, {}, usage(uncached=4000), usage(cache_write=3000), usage(cache_read=3000), usage(cache_read=100, cache_write=50, uncached=0),
    {"model": MODEL, "usage": usage(cache_read=2000)}, "nonsense", {"usage": {"input_tokens": 9, "output_tokens": 1}},
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


async def play(mw: Any, drawn: tuple[Wire, Body], operations: list[tuple[Any, ...]]) -> list[Any]:
    """Do all operations, and return all that a caller can see."""
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
            call = await finished(mw.prepare(body, labels, namespace, wire="chat" if chat else "messages"))
            calls.append(call)
            seen.append((call.body, call.body is body, call.plan, call.labels))
        elif name in ("report", "flush"):
            seen.append(await finished(getattr(mw, name)(*arguments)))
        elif calls:
            call = calls[arguments[0] % len(calls)]
            if name == "settle":
                seen.append(await finished(mw.settle(call, USAGES[arguments[1]], partial=arguments[2])))
            elif name == "refused":
                seen.append(await finished(mw.refused(call, 400, arguments[1])))
            else:
                seen.append(await finished(getattr(mw, name)(call)))
    seen += [mw.counts, in_store(mw._shell.store), await finished(mw.report())]
    await finished(mw.close())
    return seen


def with_flushes(operations: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Wait for the queue after each step: the time of a queued write is no part of the contract."""
    return [step for operation in operations for step in (operation, ("flush",))]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bodies(),
    st.lists(OPERATIONS, max_size=25),
    st.sampled_from(["optimize", "observe", "off"]),
    st.booleans(),
)
def test_sync_and_async_return_the_same_for_any_calls(
    drawn: tuple[Wire, Body], operations: list[tuple[Any, ...]], mode: str, local: bool
) -> None:
    """Any sequence of calls has the same results on both, with queued writes and without."""

    async def both() -> tuple[list[Any], list[Any]]:
        found = []
        for kind in (cachemw.Middleware, cachemw.AsyncMiddleware):
            clock = Clock()
            with equal_keys():
                mw: Any = kind(provider="databricks", mode=mode, clock=clock, min_tokens=200)
            mw.clock = clock
            mw._shell.store.local = local
            found.append(
                await play(mw, copy.deepcopy(drawn), with_flushes(operations) if not local else operations)
            )
        return found[0], found[1]

    one, other = asyncio.run(both())
    assert one == other
