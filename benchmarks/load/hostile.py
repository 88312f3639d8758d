"""Hostile tenants: requests that are junk, refused, huge, abandoned, or made to mislead statistics.

Contains: one request of each kind, by seed. Must not depend on: their effect.
"""

from __future__ import annotations

import random
from itertools import count

import orjson

from benchmarks.load.accounts import Sample
from benchmarks.load.bodies import digest
from benchmarks.load.client import Client, message
from benchmarks.load.provider import PAID
from benchmarks.load.traffic import send
from benchmarks.workloads.conversations import small
from benchmarks.workloads.generated import MODEL

FIRST = 500_000_000  # their requests' numbers begin here

_JUNK = (
    b"",
    b"{",
    b"null",
    b"[1,2,3]",
    b'"text"',
    b'{"model":"%s"}' % MODEL.encode(),
    b'{"model":1,"messages":{}}',
    b'{"model":"%s","messages":[1,null,[],{}]}' % MODEL.encode(),
    b'{"model":"%s","messages":[{"role":"user","content":"a"}],"messages":[]}' % MODEL.encode(),
    b'{"model":"%s","messages":[{"role":"user","content":"\\ud800"}]}' % MODEL.encode(),
    b'{"model":"%s","messages":[{"role":"user","content":[{"type":"text","text":12345678901234567890123}]}]}'
    % MODEL.encode(),
    b'{"model":"%s","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;'
    b'base64,AAAA"}}]}]}' % MODEL.encode(),
    b'{"a":' * 2_000 + b"1" + b"}" * 2_000,
    b"\xff\xfe\x00" * 1_000,
    b'{"model":"%s","messages":[{"role":"user","content":NaN}]}' % MODEL.encode(),
)


class Hostile:
    """Hostile clients, some of them with a key that the provider accepts.

    `heads` are the seeds of good tenants' tools and system prompts, which these clients send as well.
    """

    def __init__(self, seed: str, heads: list[str]) -> None:
        self._rng, self._heads = random.Random(f"hostile {seed}"), heads
        self._numbers = count(FIRST)
        self._kinds = {
            self._labels: 4, self._models: 4, self._junk: 4, self._refused: 6, self._look_alike: 4,
            self._own_markers: 3, self._never_again: 3, self._twice: 3, self._huge: 1, self._leaves: 2,
        }  # fmt: skip

    async def ask(self, client: Client) -> Sample:
        """Send one hostile request, and return how it ended."""
        number, rng = next(self._numbers), self._rng
        kind = rng.choices(list(self._kinds), list(self._kinds.values()))[0]
        headers, raw = kind()
        key = headers.pop("key", f"{PAID}evil-{rng.randrange(3)}")
        sample = Sample(number, key, digest(raw), good=False)
        headers |= {"authorization": f"Bearer {key}", "x-chaos-request": str(number)}
        left = rng.uniform(0.0, 0.05) if kind == self._leaves else None
        return await send(client, sample, message(headers, raw), left)

    def _labels(self) -> tuple[dict[str, str], bytes]:
        junk = {f"x-cachemw-label-{self._word()}": self._word() for _ in range(self._rng.choice((1, 5, 40)))}
        return {**junk, "x-cachemw-label-app": self._word()}, self._small(self._word())

    def _models(self) -> tuple[dict[str, str], bytes]:
        name = self._rng.choice(("{}", "claude-{}", "databricks-claude-sonnet-{}", "gpt-{}")).format(
            self._word()
        )
        return {}, self._small(self._word(), model=name)

    def _junk(self) -> tuple[dict[str, str], bytes]:
        more = {"content-encoding": "gzip"} if self._rng.random() < 0.1 else {}
        return more, self._rng.choice(_JUNK)

    def _refused(self) -> tuple[dict[str, str], bytes]:
        return {"key": f"stolen-{self._word()}"}, self._small(self._word())

    def _look_alike(self) -> tuple[dict[str, str], bytes]:
        key = {} if self._rng.random() < 0.5 else {"key": f"stolen-{self._word()}"}
        return key, self._small(self._word(), self._rng.choice(self._heads))

    def _own_markers(self) -> tuple[dict[str, str], bytes]:
        wrong = self._rng.choice(
            ({"type": "persistent"}, {"type": "ephemeral", "ttl": "9h"}, {"type": 1}, "x")
        )
        part = {"type": "text", "text": "question", "cache_control": wrong}
        body = {"model": MODEL, "messages": [{"role": "user", "content": [part]}]}
        return {} if self._rng.random() < 0.7 else {"key": f"stolen-{self._word()}"}, orjson.dumps(body)

    def _never_again(self) -> tuple[dict[str, str], bytes]:
        return {}, self._small(self._word(), self._word())

    def _twice(self) -> tuple[dict[str, str], bytes]:
        """Send one of a few prompts of the moment, so that each comes again within seconds."""
        name = f"again {self._rng.random():.2f}"
        return {}, self._small(name, name)

    def _huge(self) -> tuple[dict[str, str], bytes]:
        if self._rng.random() < 0.5:
            text = "word " * self._rng.choice((100_000, 400_000))
            messages = [{"role": "user", "content": text}]
        else:
            roles = ("user", "assistant")
            messages = [{"role": roles[n % 2], "content": f"{self._word()} {n}"} for n in range(3_001)]
        return {}, orjson.dumps({"model": MODEL, "messages": messages})

    def _leaves(self) -> tuple[dict[str, str], bytes]:
        return {}, self._small(self._word())

    def _small(self, name: str, head: str = "evil", model: str = MODEL) -> bytes:
        return orjson.dumps({**next(small(name, head, 1)), "model": model})

    def _word(self) -> str:
        return f"{self._rng.getrandbits(40):010x}"
