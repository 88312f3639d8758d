"""Prompts of numbered blocks: each test states its markers, this module the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cachemw.core.rules.types import Model, Ttl
from cachemw.simulation.options import Options
from cachemw.simulation.provider import Position, ProviderCache, Request, Ticket

MODEL = Model("claude-test", 1024, None, tokenizer="old")
TAIL = 7


def prompt(
    length: int, markers: Mapping[int, Ttl], *, tokens: int = 100, kinds: Sequence[str] = (), seed: str = ""
) -> Request:
    """Return blocks 1 to `length` of `tokens` each; equal numbers and seeds make equal prefixes."""
    positions = [
        Position(
            ("messages", number, "content", 0),
            "user",
            kinds[number - 1] if kinds else "text",
            hashlib.sha256(f"{seed}/{number}".encode()).digest(),
            tokens,
            tokens * number,
            markers.get(number),
        )
        for number in range(1, length + 1)
    ]
    return Request(positions, tokens * length + TAIL)


def cache(**options: object) -> ProviderCache:
    """Return a fresh provider; its minimum is 0 by default."""
    return ProviderCache(MODEL, Options(**{"minimum": 0, **options}))  # type: ignore[arg-type]


def send(provider: ProviderCache, request: Request, at: float, begins: float | None = None) -> Ticket:
    """Send a request whose answer begins at once, or at `begins`."""
    ticket = provider.begin(request, at)
    provider.answer_began(ticket, at if begins is None else begins)
    return ticket
