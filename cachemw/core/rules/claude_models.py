"""Claude models as data: minimums, prices, thinking, tokenizer.

Contains: one row for each known Claude model. Prices carry their source and date; those of the other columns
stand above the table. Must not depend on: providers, settings, requests. A new model is a new row.
"""

from __future__ import annotations

from cachemw.core.rules.types import Model, usd

# Read 0.05x and 0.025x on the newest models: the model pages of October 2026 say the same.
_NEWER = ("genai-prices 0.2.3", "2026-11-24")
_FABLE_5_1 = usd("10 12.5 20 0.25 50", *_NEWER)
_FABLE_5_2 = usd("8 10 16 0.20 40", *_NEWER)
_FABLE_5 = usd("10 12.5 20 1.00 50")
_OPUS_5_5 = usd("4 5 8 0.20 20", *_NEWER)
_OPUS_4_5 = usd("5 6.25 10 0.50 25")
_OPUS_4 = usd("15 18.75 30 1.50 75")
_SONNET_5_5 = usd("2 2.5 4 0.10 10", *_NEWER)
_SONNET_5 = usd("2 2.5 4 0.20 10")
_SONNET_4 = usd("3 3.75 6 0.30 15")
_HAIKU_5_5 = usd("0.10 0.125 0.20 0.01 0.50", "Anthropic, Haiku 5.5 page", "2026-10-07")
_HAIKU_5_5_LONG = usd("0.50 0.625 1.00 0.05 2.50", "Anthropic, Haiku 5.5 page", "2026-10-07")

# The row of an unknown Claude: the highest known minimum, no price.
SAFE = Model("claude", 4096, None)

# Minimums: Anthropic's prompt caching page, 2026-08-21, and its revisions to 2026-10-02. Haiku 5.5 from
# LiteLLM 1.109.3; the 5.2 models are taken for their predecessors (nothing found); Mythos Preview keeps
# the page's 2048 where LiteLLM says 512; Sonnet 3.7 and Haiku 3 from Anthropic's skills repository,
# 2026-07-01. Thinking: the same page; Haiku 5.5 because it says "Haiku through 4.5" are stripped.
# Tokenizer: Anthropic's pricing page, 2026-08-21. Mid-list system messages: the page of that name,
# 2026-08-21 (Opus 4.8, Opus 5, Fable 5, Mythos 5, not Sonnet 5) and LangChain's model profiles,
# 2026-10-20, for the 5.1 and 5.5 models. Unlisted is False: hoisting is the reading that predicts less.
ROWS = (
    Model("claude-fable-5-2", 512, _FABLE_5_2),
    Model("claude-mythos-5-2", 512, _FABLE_5_2),
    Model("claude-fable-5-1", 512, _FABLE_5_1, mid_system=True),
    Model("claude-mythos-5-1", 512, _FABLE_5_1, mid_system=True),
    Model("claude-fable-5", 512, _FABLE_5, mid_system=True),
    Model("claude-mythos-5", 512, _FABLE_5, mid_system=True),
    Model("claude-mythos-preview", 2048, None),
    Model("claude-opus-5-5", 512, _OPUS_5_5, mid_system=True),
    Model("claude-opus-5", 512, _OPUS_4_5, mid_system=True),
    Model("claude-opus-4-8", 1024, _OPUS_4_5, mid_system=True),
    Model("claude-opus-4-7", 2048, _OPUS_4_5),
    Model("claude-opus-4-6", 4096, _OPUS_4_5, tokenizer="old"),
    Model("claude-opus-4-5", 4096, _OPUS_4_5, tokenizer="old"),
    Model("claude-opus-4-1", 1024, _OPUS_4, "stripped", "old"),
    Model("claude-opus-4", 1024, _OPUS_4, "stripped", "old"),
    Model("claude-sonnet-5-5", 512, _SONNET_5_5, mid_system=True),
    Model("claude-sonnet-5", 1024, _SONNET_5),
    Model("claude-sonnet-4-6", 1024, _SONNET_4, tokenizer="old"),
    Model("claude-sonnet-4-5", 1024, _SONNET_4, "stripped", "old"),
    Model("claude-sonnet-4", 1024, _SONNET_4, "stripped", "old"),
    Model("claude-sonnet-3-7", 1024, usd("3 3.75 6 0.30 15", *_NEWER), "stripped", "old"),
    Model("claude-haiku-5-5", 512, _HAIKU_5_5, mid_system=True, long=100_000, long_prices=_HAIKU_5_5_LONG),
    Model("claude-haiku-4-5", 4096, usd("1 1.25 2 0.10 5"), "stripped", "old"),
    Model("claude-haiku-3-5", 2048, usd("0.8 1 1.6 0.08 4"), "stripped", "old"),
    Model("claude-haiku-3", 2048, usd("0.25 0.3 0.5 0.03 1.25", *_NEWER), "stripped", "old"),
)
