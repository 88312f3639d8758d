"""The good tenants of a run: conversations that grow, end, and give way to new ones.

Contains: their requests and the pace. Must not depend on: processes, accounts of a run.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import orjson

from benchmarks.load.accounts import Sample
from benchmarks.load.bodies import digest
from benchmarks.load.client import Client, message
from benchmarks.load.provider import PAID
from benchmarks.workloads.conversations import small
from cachemw.simulation.traffic import Body

_STREAMED = 0.5  # share of requests that ask for a stream
_TURNS = (4, 24)
_LABELS = ("app", "team")  # names of labels, by generation of tenants


@dataclass
class Conversation:
    """A conversation of a tenant: its requests come one after another."""

    tenant: str
    label: str
    bodies: Iterator[Body]
    turn: asyncio.Lock


class Tenants:
    """Good tenants, each with its own key, label, tools and system prompt, and several conversations at once.

    After `lifetime` new conversations the tenants leave and new tenants come, with new keys and labels; 0 keeps them.
    The same seed makes the same requests in the same order. With `pause` the requests of a tenant come one after
    another, each so many seconds after the answer before, so breakpoints depend less on the load of the machine.
    Numbers of requests begin with `first`, and must differ between the `Tenants` of a run.
    """

    def __init__(
        self,
        seed: str,
        tenants: int,
        conversations: int,
        lifetime: int = 0,
        pause: float = 0.0,
        first: int = 1,
    ) -> None:
        self._rng, self._pause = random.Random(seed), pause
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seed, self._tenants, self._lifetime = seed, tenants, lifetime
        self._numbers, self._names = count(first), count()
        self._ready = deque(self._new() for _ in range(conversations))

    async def ask(
        self, client: Client, faults: Mapping[str, float], leave_after: float | None = None
    ) -> Sample:
        """Send the next request of the conversation that has rested longest, and return its outcome.

        `faults` has the share of requests on which the provider shall fail, by fault; with `leave_after` the client
        leaves after so many seconds.
        """
        number, rng = next(self._numbers), self._rng
        talk = self._ready.popleft()
        body = next(talk.bodies, None)
        if body is None:
            talk = self._new()
            body = next(talk.bodies)
        self._ready.append(talk)
        raw = orjson.dumps({**body, "stream": True} if rng.random() < _STREAMED else body)
        fault = _drawn(rng, faults)
        label = f"{talk.label}={talk.tenant}"
        sample = Sample(number, f"{PAID}{talk.tenant}", digest(raw), fault, label=label)
        headers = {"authorization": f"Bearer {sample.key}", f"x-cachemw-label-{talk.label}": talk.tenant}
        headers |= {"x-chaos-request": str(number), "x-chaos-fault": fault}
        async with talk.turn:
            await send(client, sample, message(headers, raw), leave_after)
            await asyncio.sleep(self._pause)
        return sample

    @property
    def heads(self) -> list[str]:
        """Return the seeds of the first tenants' tools and system prompts."""
        return [self._head(f"{self._seed}-0-{number}") for number in range(self._tenants)]

    def _new(self) -> Conversation:
        number = next(self._names)
        generation = number // self._lifetime if self._lifetime else 0
        tenant = f"{self._seed}-{generation}-{number % self._tenants}"
        turns = self._rng.randint(*_TURNS)
        bodies = small(f"{self._seed} {number}", self._head(tenant), turns)
        turn = self._turns[tenant] if self._pause else asyncio.Lock()
        return Conversation(tenant, _LABELS[generation % len(_LABELS)], bodies, turn)

    @staticmethod
    def _head(tenant: str) -> str:
        return f"head of {tenant}"


async def send(client: Client, sample: Sample, raw: bytes, leave_after: float | None = None) -> Sample:
    """Send a request, and note its outcome in the sample."""
    answer = await client.ask(raw, leave_after)
    sample.began, sample.ended, sample.port = answer.began, answer.ended, answer.port
    sample.status, sample.complete, sample.error = answer.status, answer.complete, answer.error
    inside = b"chatcmpl-%09d" % sample.number in answer.body or not answer.complete or answer.status != 200
    sample.echoed = inside and answer.number == str(sample.number)
    return sample


def _drawn(rng: random.Random, faults: Mapping[str, float]) -> str:
    drawn = rng.random()
    for name, share in faults.items():
        if drawn < share:
            return name
        drawn -= share
    return ""


async def paced(ask: Callable[[], Awaitable[Sample]], requests: int, rate: float) -> list[Sample]:
    """Send so many requests at a steady rate, without waiting for earlier ones; return all of them."""
    loop = asyncio.get_running_loop()
    start, tasks = loop.time(), []
    for number in range(requests):
        await asyncio.sleep(max(0.0, start + number / rate - loop.time()))
        tasks.append(asyncio.ensure_future(ask()))
    return list(await asyncio.gather(*tasks))


async def beside(ask: Callable[[], Awaitable[Sample]], rate: float, stop: asyncio.Event) -> list[Sample]:
    """Send requests at a steady rate until the event; return all of them."""
    loop, tasks = asyncio.get_running_loop(), []
    start = loop.time()
    while not stop.is_set():
        tasks.append(asyncio.ensure_future(ask()))
        await asyncio.sleep(max(0.0, start + len(tasks) / rate - loop.time()))
    return list(await asyncio.gather(*tasks))
