"""The provider's own token counts are close to those of real tokenizers."""

from __future__ import annotations

import json

import pytest

from cachemw.simulation.counting import block_tokens, rate, text_tokens

PROSE = (
    "This licence lets anyone copy the work and share it with others, as long as the notice is kept. "
    "If you change a file, say so where a reader will see it, and give the date of the change. "
)
CODE = '''def total(rows: list[Row], since: float) -> Decimal:
    """Return what the rows cost."""
    return sum((row.cost for row in rows if row.time >= since), Decimal(0))
'''
DATA = json.dumps(
    {"type": "object", "properties": {"user_id": {"type": "string", "description": "The user's id"}}}
)


@pytest.mark.parametrize(
    ("text", "characters_per_token"),
    [
        (PROSE, (4.0, 5.2)),
        (CODE, (2.9, 4.0)),
        (DATA, (2.4, 3.4)),
        ("2026-11-24T08:15:00Z 73156 ", (1.4, 2.0)),
    ],
    ids=["prose", "code", "json", "digits"],
)
def test_text_tokens_match_the_density_of_their_kind(
    text: str, characters_per_token: tuple[float, float]
) -> None:
    """Characters per token of the older tokenizer, by kind of text."""
    low, high = characters_per_token
    assert low <= len(text) / text_tokens(text) <= high


def test_text_tokens_of_two_halves_add_up() -> None:
    """Cutting a text in two changes no count."""
    assert text_tokens(PROSE + CODE) == pytest.approx(text_tokens(PROSE) + text_tokens(CODE))


def test_tool_result_counts_its_parts() -> None:
    """Parts count; other values in the list do not."""
    part = {"type": "text", "text": PROSE}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [part, part, "odd"]}
    assert block_tokens(result) == pytest.approx(4 + 2 * (4 + text_tokens(PROSE)))


def test_newer_models_count_more_tokens() -> None:
    """The factor is about 1.3 with the same bias."""
    assert rate("m", "new", 0) == pytest.approx(1.3 * rate("m", "old", 0))
    assert rate("m", "old", 0) != rate("m", "old", 1)
    assert rate("m", "old", 0) != rate("n", "old", 0)
