"""A provider cache of one organisation and one model, with the billing of OpenAI's models.

Contains: machines and their cached prefixes, automatic or, from GPT-5.6 on, at breakpoints. Rules: OpenAI,
prompt caching guide, October 2026. Must not depend on: how the middleware reads bodies or chooses; prices.

The first block and the `prompt_cache_key` of a request select a machine; above fifteen requests of one such
pair in a minute, further requests go to further machines. Older models read the prefix shared with any
earlier prompt on the machine, in steps of 128 tokens, and write for free; this simulation compares whole
blocks only. Newer models write at OpenAI's own breakpoint (the end of the request) and at the last three
breakpoints of the request. They read at a breakpoint, or at the end of one of the last 20 messages of other
roles than assistant, if that prefix was written.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from cachemw.core.rules.types import Model, Ttl
from cachemw.simulation.anthropic_form import Wire
from cachemw.simulation.options import Options, refuse
from cachemw.simulation.provider import Position, ProviderCache, Request, Ticket

_LIFE = 1800.0
_STEP = 128
_PER_MINUTE = 15
_WRITES = 4
_MESSAGES = 20


class OpenAICache:
    """Simulate the provider cache of one organisation for one model of OpenAI's. Not thread-safe."""

    def __init__(self, model: Model, options: Options | None = None) -> None:
        options = options or Options(provider="openai")
        self.model = model
        self.minimum = model.minimum if options.minimum is None else options.minimum
        # Bodies are read like Claude's, after breakpoints have been translated to `cache_control`.
        self._reader = ProviderCache(replace(model, caching="explicit"), options)
        self._expiry: dict[bytes, float] = {}  # by machine and digest
        self._recent: dict[bytes, deque[float]] = {}

    def begin(self, body: Mapping[str, Any], now: float, wire: Wire = "chat") -> Ticket:
        """Take a request at `now` (seconds) and return its bill. Raises `Refused` with the 400."""
        if wire != "chat":
            refuse("Unknown request URL")
        request = self._reader.convert(_translated(body), wire)
        machine = self._machine(body, request, now)
        positions = request.positions
        names = [machine + position.digest for position in positions]
        points = _points(positions) if self.model.hints else range(len(positions))
        candidates = {*points, *_endings(positions)} if self.model.hints else points
        hit = max((index for index in candidates if self._expiry.get(names[index], 0.0) > now), default=-1)
        read = positions[hit].prefix if hit >= 0 else 0
        if not self.model.hints:
            read -= read % _STEP
        if read < self.minimum:
            hit, read = -1, 0
        written = [index for index in points if positions[index].prefix >= self.minimum]
        end = max([read, *[positions[index].prefix for index in written]]) if self.model.hints else read
        if hit >= 0:
            self._expiry[names[hit]] = now + _LIFE
        writes: list[tuple[bytes, Ttl]] = [(names[index], "5m") for index in written]
        return Ticket(request, now, hit, read, end - read, 0, request.total - end, tuple(writes))

    def answer_began(self, ticket: Ticket, at: float) -> None:  # noqa: ARG002 - as in `ProviderCache`
        """Make the entries of a request readable; they expire half an hour after the request's start."""
        for name, _ in ticket.writes:
            self._expiry[name] = ticket.started + _LIFE

    def _machine(self, body: Mapping[str, Any], request: Request, now: float) -> bytes:
        """Return the machine of a request: one more machine for each fifteen requests in the last minute."""
        key = str(body.get("prompt_cache_key") or "")
        first = request.positions[0].digest if request.positions else b""
        name = hashlib.sha256(first + key.encode()).digest()
        recent = self._recent.setdefault(name, deque())
        while recent and recent[0] <= now - 60:
            recent.popleft()
        recent.append(now)
        return hashlib.sha256(name + bytes([(len(recent) - 1) // _PER_MINUTE % 256])).digest()


def _points(positions: Sequence[Position]) -> list[int]:
    """Return the positions at which a request writes: its end, and the last of its own breakpoints."""
    own = [index for index, position in enumerate(positions) if position.marker is not None]
    return sorted({*own[1 - _WRITES :], len(positions) - 1}) if positions else []


def _endings(positions: Sequence[Position]) -> list[int]:
    """Return the ends of the last messages of other roles than assistant."""
    ends = [
        index
        for index, (position, after) in enumerate(zip(positions, [*positions[1:], None], strict=True))
        if position.place[0] == "messages"
        and position.role != "assistant"
        and (after is None or after.place[:2] != position.place[:2])
    ]
    return ends[-_MESSAGES:]


def _translated(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body with `cache_control` for each breakpoint. Raises `Refused` for a misplaced one."""
    messages = body.get("messages")
    bare = {key: value for key, value in body.items() if not key.startswith("prompt_cache_")}
    if not isinstance(messages, list):
        return bare
    return {**bare, "messages": [_message(index, message) for index, message in enumerate(messages)]}


def _message(index: int, message: Any) -> Any:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return message
    parts = []
    for number, part in enumerate(content):
        if isinstance(part, Mapping) and "prompt_cache_breakpoint" in part:
            if message.get("role") == "assistant" or part["prompt_cache_breakpoint"] != {"mode": "explicit"}:
                refuse(f"Unknown parameter: 'messages[{index}].content[{number}].prompt_cache_breakpoint'.")
            rest = {key: value for key, value in part.items() if key != "prompt_cache_breakpoint"}
            parts.append({**rest, "cache_control": {"type": "ephemeral"}})
        else:
            parts.append(part)
    return {**message, "content": parts}
