"""The usage objects, field by field."""

from __future__ import annotations

import pytest

from cachemw.simulation.provider import Ticket
from cachemw.simulation.usage_forms import anthropic_usage, databricks_usage, openrouter_usage
from tests.simulation.prompts import TAIL, cache, prompt, send


def _ticket() -> Ticket:
    """Return a request of 1,500 tokens: 1,000 cache read, 200 written for 1h, 200 for 5m."""
    provider = cache()
    send(provider, prompt(10, {10: "5m"}), 0)
    return provider.begin(prompt(15, {12: "1h", 14: "5m"}), 1)


@pytest.mark.parametrize(("inclusive", "prompt_tokens"), [(True, 1500 + TAIL), (False, 100 + TAIL)])
def test_databricks_usage_has_flat_counters(inclusive: bool, prompt_tokens: int) -> None:
    """`prompt_tokens` include cached tokens by option; `total_tokens` always do."""
    assert databricks_usage(_ticket(), 9, inclusive) == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 9,
        "total_tokens": 1509 + TAIL,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 400,
    }


def test_anthropic_usage_splits_writes_by_ttl() -> None:
    """`input_tokens` are the uncached tokens; the creation is split by TTL."""
    assert anthropic_usage(_ticket(), 9) == {
        "input_tokens": 100 + TAIL,
        "cache_creation_input_tokens": 400,
        "cache_read_input_tokens": 1000,
        "cache_creation": {"ephemeral_5m_input_tokens": 200, "ephemeral_1h_input_tokens": 200},
        "output_tokens": 9,
        "service_tier": "standard",
    }


def test_openrouter_usage_has_details() -> None:
    """`prompt_tokens` count everything; details hold cached tokens and cache writes."""
    assert openrouter_usage(_ticket(), 9) == {
        "prompt_tokens": 1500 + TAIL,
        "completion_tokens": 9,
        "total_tokens": 1509 + TAIL,
        "prompt_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 400, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
