"""Of requests that would write the same prefix at once, let one go first; the others wait, and read it.

Lives here: who goes first, what is worth a wait, how long it may take. Must not know: how a plan is made
(`decisions`), how claims are kept (`stores`).

A request that is to write much claims it in the store before it leaves. One that would read much of what
another has claimed looks at the store again and again until that one's answer has begun, and then reads;
where that one fails, the next claims in its place. A wait is real time, whatever the middleware's clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

from cachemw.engine.call import State
from cachemw.engine.decisions import IN_FLIGHT, Decisions
from cachemw.stores.protocol import Arrival, AsyncStore, Entry, Store

# Seconds between two looks: the first few, and all others.
_PAUSES, _PAUSE = (0.002, 0.004, 0.008, 0.016), 0.025
_SHARE = 0.1
_REMEMBERED = 1024


class Claim(NamedTuple):
    """To be claimed; answered with whether it was."""

    entries: tuple[Entry, ...]


class Look(NamedTuple):
    """To be looked at after a pause in seconds; answered with the records."""

    pause: float


Steps: TypeAlias = Generator[Claim | Look, Any, None]


class Turns:
    """Make requests take turns, over all workers of a store. Any number of threads or tasks may use one."""

    def __init__(self, decisions: Decisions) -> None:
        self._decisions = decisions
        self._longest = decisions.settings.coalesce_wait_ms / 1000
        # Until when nobody waits for a prefix, since one waited in vain: its writer may be no more.
        self._hopeless: dict[bytes, float] = {}

    def wait(self, store: Store, state: State) -> None:
        """Return when a request should leave, its plan brought up to date. Raises `StoreError` at once."""
        if (arrival := state.arrival) is None:
            return
        steps, clock = self._steps(state), self._decisions.clock
        answer: Any = None
        while (step := _next(steps, answer)) is not None:
            if isinstance(step, Look):
                time.sleep(step.pause)
                answer = store.peek(arrival, clock())
                continue
            with _holding(state, step):
                answer = store.claim(arrival.namespace, arrival.root, arrival.trunk, step.entries, clock())
                state.held = step.entries if answer else ()

    async def wait_async(self, store: AsyncStore, state: State) -> None:
        """See `wait`. One that is cancelled while it claims notes what it got."""
        if (arrival := state.arrival) is None:
            return
        steps = self._steps(state)
        answer: Any = None
        while (step := _next(steps, answer)) is not None:
            if isinstance(step, Look):
                await asyncio.sleep(step.pause)
                answer = await store.peek(arrival, self._decisions.clock())
                continue
            claim = asyncio.ensure_future(self._claim(store, arrival, state, step))
            try:
                answer = await asyncio.shield(claim)
            except asyncio.CancelledError:
                # Only the store's answer tells whether there is something to give back.
                await asyncio.gather(claim, return_exceptions=True)
                raise

    async def _claim(self, store: AsyncStore, arrival: Arrival, state: State, step: Claim) -> bool:
        now = self._decisions.clock()
        with _holding(state, step):
            got = await store.claim(arrival.namespace, arrival.root, arrival.trunk, step.entries, now)
            state.held = step.entries if got else ()
        return got

    def _steps(self, state: State) -> Steps:
        """Yield what to ask of the store, until the request should leave."""
        decisions, ends = self._decisions, time.monotonic() + self._longest
        prefix, waited = self._awaited(state), False
        for pause in chain(_PAUSES, repeat(_PAUSE)):
            if prefix is None and (not (entries := self._claimable(state)) or (yield Claim(entries))):
                return
            if not waited:
                decisions.count("coalesce.waited")
                waited = True
            left = ends - time.monotonic()
            if left <= 0:
                decisions.count("coalesce.timed_out")
                self._give_up(prefix)
                return
            if decisions.weigh_again(state, (yield Look(min(pause, left)))):
                prefix = self._awaited(state)

    def _awaited(self, state: State) -> bytes | None:
        """Return the prefix that another request is just writing, if reading it is worth a wait."""
        if not any(depth.pending for depth in state.depths):
            return None
        begun = [d._replace(living="5m", pending=False) if d.pending else d for d in state.depths]
        plan = self._decisions.planned(state, begun)
        if plan.hit is None or not _much(state, plan.read - state.plan.read):
            return None
        prefix = state.chain[plan.hit]
        return prefix if self._hopeless.get(prefix, 0.0) <= time.monotonic() else None

    def _claimable(self, state: State) -> tuple[Entry, ...]:
        """Return what a request is to write and no other is writing, if others should wait for it."""
        if not _much(state, state.plan.write_5m + state.plan.write_1h):
            return ()
        taken = {state.chain[depth.block] for depth in state.depths if depth.pending}
        until = self._decisions.clock() + IN_FLIGHT
        return tuple([entry.announced(until) for entry in state.entries if entry.key not in taken])

    def _give_up(self, prefix: bytes | None) -> None:
        if len(self._hopeless) >= _REMEMBERED:
            self._hopeless.clear()
        if prefix is not None:
            self._hopeless[prefix] = time.monotonic() + IN_FLIGHT


@contextmanager
def _holding(state: State, claim: Claim) -> Iterator[None]:
    """Have an interrupt inside give the entries back, since nothing says whether the store noted them.

    Where it had refused them, two requests may write the same prefix; otherwise all others would wait in vain.
    """
    state.held = claim.entries
    try:
        yield
    except Exception:
        state.held = ()
        raise


def _much(state: State, tokens: int) -> bool:
    """Say whether tokens are worth a wait: as many as an entry has, and a tenth of the request."""
    return state.rules is not None and tokens >= max(state.rules.minimum, state.plan.total * _SHARE)


def _next(steps: Steps, answer: Any) -> Claim | Look | None:
    try:
        return steps.send(answer)
    except StopIteration:
        return None
