"""The bill of a request as the `usage` object of each provider.

Contains: the `usage` objects. Must not depend on: how the numbers came about, prices.
"""

from __future__ import annotations

from typing import Any

from cachemw.simulation.provider import Ticket


def databricks_usage(ticket: Ticket, output_tokens: int, inclusive: bool = True) -> dict[str, Any]:
    """Return the usage of Databricks chat: `prompt_tokens` include cache reads and writes if `inclusive`.

    `total_tokens` counts everything in both cases, so a client can distinguish them.
    """
    written = ticket.cache_write_5m + ticket.cache_write_1h
    return {
        "prompt_tokens": ticket.request.total if inclusive else ticket.uncached,
        "completion_tokens": output_tokens,
        "total_tokens": ticket.request.total + output_tokens,
        "cache_read_input_tokens": ticket.cache_read,
        "cache_creation_input_tokens": written,
    }


def anthropic_usage(ticket: Ticket, output_tokens: int) -> dict[str, Any]:
    """Return the usage of Anthropic Messages: `input_tokens` are the uncached tokens only."""
    return {
        "input_tokens": ticket.uncached,
        "cache_creation_input_tokens": ticket.cache_write_5m + ticket.cache_write_1h,
        "cache_read_input_tokens": ticket.cache_read,
        "cache_creation": {
            "ephemeral_5m_input_tokens": ticket.cache_write_5m,
            "ephemeral_1h_input_tokens": ticket.cache_write_1h,
        },
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def openrouter_usage(ticket: Ticket, output_tokens: int) -> dict[str, Any]:
    """Return the usage of OpenRouter chat: `prompt_tokens` count everything, details split them."""
    return {
        "prompt_tokens": ticket.request.total,
        "completion_tokens": output_tokens,
        "total_tokens": ticket.request.total + output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": ticket.cache_read,
            "cache_write_tokens": ticket.cache_write_5m + ticket.cache_write_1h,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
