"""Every kept input of the fuzzers keeps the rules of its target, without a fuzzer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
KEPT = sorted(path for folder in ("seeds", "found") for path in HERE.glob(f"{folder}/*/*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: str(path.relative_to(HERE)))
def test_target_holds_for_a_kept_input(path: Path) -> None:
    """An input that once broke a rule, or that covers much of a parser, keeps the rules."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_target_holds_for_random_bytes(name: str) -> None:
    """A few hundred inputs of random bytes break no rule."""
    drawn = random.Random(name)
    for _ in range(300):
        TARGETS[name](drawn.randbytes(drawn.choice((0, 1, 8, 64, 300))))


def test_corpus_has_seeds_for_every_target() -> None:
    """Each target has seeds, and no folder has another name."""
    assert {path.parent.name for path in KEPT if path.parent.parent.name == "seeds"} == set(TARGETS)
    assert {path.parent.name for path in KEPT} <= set(TARGETS)
