"""What a request was billed for, in the words of each provider.

Lives here: the `usage` objects. Must not know: how the numbers came about, prices.
"""

from __future__ import annotations

from typing import Any

from cachemw.simulation.provider import Ticket


def databricks_usage(ticket: Ticket, output_tokens: int, inclusive: bool = True) -> dict[str, Any]:
    """Return usage as of Databricks chat: `prompt_tokens` with what was read and written, or without.

    The total counts everything either way, which is what tells the two apart.
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
    """Return usage as of Anthropic Messages: `input_tokens` are those neither read nor written."""
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
    """Return usage as of OpenRouter chat: `prompt_tokens` hold everything, the parts are details."""
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
