"""The parser of cachemw against that of the simulated provider, which shares no code with it.

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


def parse(wire: Wire, body: Body) -> ParsedRequest:
    """Parse a body as the planner does."""
    return Parser().parse(body, model(body), wire)


def provider_positions(wire: Wire, body: Body) -> list[Position] | None:
    """Return the provider's positions of a body, or None if it refuses the body or finds no content."""
    provider = "databricks" if wire == "chat" else "anthropic"
    try:
        positions = list(ProviderCache(model(body), Options(provider=provider)).positions(body, wire))
    except Refused:
        return None
    if not positions:
        with pytest.raises(BodyError, match="no_content"):
            parse(wire, body)
    return positions or None


def model(body: Body) -> Model:
    """Return the row of a body's model."""
    found = find_model(body["model"])
    assert found is not None
    return found


def role_and_kind(position: Position) -> tuple[str, str]:
    """Return the role and block kind of a position."""
    tools = position.place[0] == "tools"
    return ("tool", "tool_definition") if tools else (position.role, KINDS.get(position.type, "opaque"))


def test_blocks_and_markers_are_those_of_the_provider() -> None:
    """Both parsers find the same blocks in order, with the same kinds and markers."""
    seen: Counter[str] = Counter()

    @many
    @given(bodies())
    def compare(drawn: tuple[Wire, Body]) -> None:
        wire, body = drawn
        positions = provider_positions(wire, body)
        seen["refused" if positions is None else "read"] += 1
        if positions is None:
            return
        parsed = parse(wire, body)
        assert [(block.role, str(block.kind)) for block in parsed.blocks] == [
            role_and_kind(p) for p in positions
        ]
        if not body.get("cache_control") and not any(
            "cache_control" in message for message in body["messages"]
        ):
            # Databricks ignores a marker on a message itself; cachemw counts it and leaves its slot.
            markers: list[Ttl | None] = [block.marker for block in parsed.blocks]
            assert markers == [position.marker for position in positions]

    compare()
    assert seen["read"] > 2 * seen["refused"]


def test_prefixes_are_equal_where_the_providers_are() -> None:
    """Both parsers agree on the shared prefixes of two related bodies."""
    seen: Counter[str] = Counter()

    @many
    @given(pairs())
    def compare(drawn: tuple[Wire, Body, Body]) -> None:
        wire, *both = drawn
        for body in both:
            drop_null_citations(body)
        positions = [provider_positions(wire, body) for body in both]
        if positions[0] is None or positions[1] is None:
            seen["refused"] += 1
            return
        chains = [hash_prefixes(parse(wire, body), "n") for body in both]
        same = [a == b for a, b in zip(*chains, strict=False)]
        expected = [a.digest == b.digest for a, b in zip(positions[0], positions[1], strict=False)]
        seen["equal" if all(same) else "partly" if any(same) else "different"] += 1
        assert same == expected

    compare()
    assert min(seen["equal"], seen["partly"], seen["different"]) > EXAMPLES / 40
    assert seen["refused"] < EXAMPLES / 2


def drop_null_citations(body: Body) -> None:
    """Remove `citations` that are null, which the simulated provider treats as present."""
    for _, node in walk(body):
        if isinstance(node, dict) and "citations" in node and node["citations"] is None:
            del node["citations"]


def test_digests_of_unrelated_blocks_are_equal_only_for_equal_content() -> None:
    """Two blocks share a digest only if the provider's content is the same."""
    found: dict[bytes, set[Any]] = {}

    @many
    @given(bodies())
    def collect(drawn: tuple[Wire, Body]) -> None:
        wire, body = drawn
        drop_null_citations(body)
        positions = provider_positions(wire, body)
        if positions is not None:
            for digest, position in zip(hash_prefixes(parse(wire, body), "n"), positions, strict=True):
                found.setdefault(digest, set()).add((model(body).name, position.digest))

    collect()
    assert all(len(each) == 1 for each in found.values())
