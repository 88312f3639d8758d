"""The parts of the golden files that are quick to compare."""

from __future__ import annotations

import json

import pytest

from tests.golden import freeze


@pytest.mark.parametrize("part", ["signatures", "counters", "lua"])
def test_surface_part_equals_its_golden_file(part: str) -> None:
    """Public signatures, counter names and Lua texts change only together with `tests/golden/surface.json`."""
    golden = json.loads((freeze.FOLDER / "surface.json").read_text("utf-8"))[part]
    made = {"signatures": lambda: dict(freeze.signatures()), "counters": freeze.counters, "lua": freeze.lua}
    assert made[part]() == golden
