"""Our reading of bodies held against the simulated provider's, which shares no code with it.

`EXAMPLES=10000 pytest tests/test_differential.py` takes as many bodies.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from cachemw.core.request.parser import ParsedRequest, Parser
from cachemw.core.request.prefix_hashes import hash_prefixes
from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.types import Model, Ttl
from cachemw.errors import BodyError
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import Position, ProviderCache
from tests.bodies import Body, Wire, bodies, pairs, walk

EXAMPLES = int(os.environ.get("EXAMPLES", "200"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

KINDS = {
    "text": "text", "image": "image", "document": "document", "search_result": "document", "thinking": "reasoning",
    "redacted_thinking": "reasoning", "tool_use": "tool_call", "tool_result": "tool_result",
}  # fmt: skip


def ours(wire: Wire, body: Body) -> ParsedRequest:
    """Read a body as the planner does."""
    return Parser().parse(body, model(body), wire)


def theirs(wire: Wire, body: Body) -> list[Position] | None:
    """Read a body as the simulated provider does; None where it refuses, or finds nothing in it."""
    provider = "databricks" if wire == "chat" else "anthropic"
    try:
        positions = list(ProviderCache(model(body), Options(provider=provider)).positions(body, wire))
    except Refused:
        return None
    if not positions:
        with pytest.raises(BodyError, match="no_content"):
            ours(wire, body)
    return positions or None


def model(body: Body) -> Model:
    """Return the row of a body's model."""
    found = find_model(body["model"])
    assert found is not None
    return found


def border(position: Position) -> tuple[str, str]:
    """Say what a position is in our words."""
    tools = position.place[0] == "tools"
    return ("tool", "tool_definition") if tools else (position.role, KINDS.get(position.type, "opaque"))


def test_borders_and_markers() -> None:
    """Both see the same blocks in the same order, of the same kinds, with the same markers."""
    seen: Counter[str] = Counter()

    @many
    @given(bodies())
    def compare(drawn: tuple[Wire, Body]) -> None:
        wire, body = drawn
        positions = theirs(wire, body)
        seen["refused" if positions is None else "read"] += 1
        if positions is None:
            return
        parsed = ours(wire, body)
        assert [(block.role, str(block.kind)) for block in parsed.blocks] == [border(p) for p in positions]
        if not body.get("cache_control") and not any(
            "cache_control" in message for message in body["messages"]
        ):
            # A marker on a message as such is none on Databricks; we take it for one and leave its slot.
            markers: list[Ttl | None] = [block.marker for block in parsed.blocks]
            assert markers == [position.marker for position in positions]

    compare()
    assert seen["read"] > 2 * seen["refused"]


def test_equal_prefixes() -> None:
    """Of two related bodies, both see the same prefixes as shared and the same as different."""
    seen: Counter[str] = Counter()

    @many
    @given(pairs())
    def compare(drawn: tuple[Wire, Body, Body]) -> None:
        wire, *both = drawn
        for body in both:
            _drop_null_citations(body)
        positions = [theirs(wire, body) for body in both]
        if positions[0] is None or positions[1] is None:
            seen["refused"] += 1
            return
        chains = [hash_prefixes(ours(wire, body), "n") for body in both]
        same = [a == b for a, b in zip(*chains, strict=False)]
        expected = [a.digest == b.digest for a, b in zip(positions[0], positions[1], strict=False)]
        seen["equal" if all(same) else "partly" if any(same) else "different"] += 1
        assert same == expected

    compare()
    assert min(seen["equal"], seen["partly"], seen["different"]) > EXAMPLES / 40
    assert seen["refused"] < EXAMPLES / 2


def _drop_null_citations(body: Body) -> None:
    """The simulator takes a `citations` that is null for one that is there."""
    for _, node in walk(body):
        if isinstance(node, dict) and "citations" in node and node["citations"] is None:
            del node["citations"]


def test_any_two_bodies_share_what_is_equal() -> None:
    """No two blocks of unrelated bodies share a digest unless the provider's content is the same."""
    found: dict[bytes, set[Any]] = {}

    @many
    @given(bodies())
    def collect(drawn: tuple[Wire, Body]) -> None:
        wire, body = drawn
        _drop_null_citations(body)
        positions = theirs(wire, body)
        if positions is not None:
            for digest, position in zip(hash_prefixes(ours(wire, body), "n"), positions, strict=True):
                found.setdefault(digest, set()).add((model(body).name, position.digest))

    collect()
    assert all(len(each) == 1 for each in found.values())
