"""Cases for the planner: a request of given blocks, each with its forecast, and the plan of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cachemw.core.planner.plan import Plan
from cachemw.core.planner.planner import plan
from cachemw.core.request.message_blocks import Block
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.request.tokens import Calibration
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Kind, MarkPolicy, Rules, Ttl

EXACT = Calibration(1.0, 0.0)
ON: dict[Kind, MarkPolicy] = dict.fromkeys(Kind, "on")


def rules(
    lookback: int = 20,
    minimum: int = 0,
    ttl: Literal["5m", "1h", "auto"] = "5m",
    model: str = "claude-sonnet-4-6",
) -> Rules:
    """Return Databricks' rules for a model: read 0.1, 5m 1.25, 1h 2, unless it is another."""
    found = resolve("databricks", model, ttl=ttl, minimum=minimum)
    assert found is not None
    return replace(found, provider=replace(found.provider, lookback=lookback))


@dataclass
class B:
    """One block of a case: tokens, probabilities, the entry's TTL, and its markers."""

    tokens: float = 1000
    chance: float = 0.5
    hour: float = 0.5
    living: Ttl | None = None
    role: str = "user"
    kind: Kind = Kind.TEXT
    markable: bool = True
    marker: Ttl | None = None
    more: float = 99.0


def case(
    blocks: Sequence[B],
    tools: int = 0,
    system: int = 0,
    automatic: Ttl | None = None,
    owned: int | None = None,
) -> tuple[ParsedRequest, list[PrefixForecast]]:
    """Return a request of these blocks, each watched."""
    parsed = ParsedRequest(
        "chat", "m", tools_end=tools, system_end=max(system, tools), automatic_marker=automatic
    )
    for number, b in enumerate(blocks):
        role = "tool" if number < tools else "system" if number < system else b.role
        parsed.blocks.append(
            Block(role, b.kind, ("content",), bytes([number]) * 16, b.tokens, b.markable, b.marker)
        )
        parsed.items.append(number)
    parsed.client_marker_count = (
        sum(b.marker is not None for b in blocks) + (automatic is not None) if owned is None else owned
    )
    depths = [
        PrefixForecast(number, b.chance, b.more, b.hour, b.more, b.living) for number, b in enumerate(blocks)
    ]
    return parsed, depths


def planned(
    blocks: Sequence[B], *, calibration: Calibration = EXACT, kinds: Mapping[Kind, MarkPolicy] = ON, tools: int = 0, system: int = 0,
    automatic: Ttl | None = None, owned: int | None = None, **rest: Any,
) -> Plan:  # fmt: skip
    """Plan a case."""
    return plan(*case(blocks, tools, system, automatic, owned), rules(**rest), calibration, kinds)


def marks(found: Plan) -> dict[int, Ttl]:
    """Return our breakpoints, block to TTL."""
    return {point.block: point.ttl for point in found.added}
