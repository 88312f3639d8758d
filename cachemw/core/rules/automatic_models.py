"""Models that cache automatically, as data: OpenAI's, Gemini's and DeepSeek's.

Contains: their prices and minimums, for reports and for hints. Must not depend on: how a name finds its row
(`model_names`), requests. Money is USD per million tokens.
"""

from __future__ import annotations

from typing import NamedTuple

SOURCE, DATE = "genai-prices 0.2.3", "2026-11-24"


class AutomaticModel(NamedTuple):
    """One model that caches automatically.

    `prices` are uncached, cache write, cache read, output; `long_prices` hold above `long` input tokens. With
    `hints` it takes `prompt_cache_breakpoint`. If cache writes are free, a written token costs as much as an
    uncached one.
    """

    name: str
    prices: str
    long: int | None = None
    long_prices: str | None = None
    hints: bool = False


# Smallest cached prefix, in tokens: OpenAI, prompt caching guide, October 2026; Google, context caching page,
# mid-2026 (2,048 for Gemini 2.5, 4,096 from 3 on); DeepSeek, context caching page, 2024-08-02 (its unit).
MINIMUMS = {"gpt": 1024, "gemini": 4096, "gemini-2.5": 2048, "deepseek": 64}

# From GPT-5.6 on a cache write costs a quarter more, and its entry is cached for at least 30 minutes. Before,
# a write is free (the same guide). Models that take breakpoints: the guide and LiteLLM 1.109.3.
_LONG = 272_000
_OPENAI = (
    AutomaticModel("gpt-6.1-sol", "2 2.5 0.1 10", _LONG, "4 5 0.2 15", hints=True),
    AutomaticModel("gpt-6.1-terra", "1 1.25 0.05 5", _LONG, "2 2.5 0.1 7.5", hints=True),
    AutomaticModel("gpt-6-astra", "10 12.5 1 50", _LONG, "20 25 2 75", hints=True),
    AutomaticModel("gpt-6-sol", "2 2.5 0.2 10", _LONG, "4 5 0.4 15", hints=True),
    AutomaticModel("gpt-6-luna", "0.1 0.125 0.01 0.5", _LONG, "0.2 0.25 0.02 0.75", hints=True),
    AutomaticModel("gpt-5.6", "4 5 0.4 20", _LONG, "8 10 0.8 30", hints=True),
    AutomaticModel("gpt-5.6-terra", "2 2.5 0.2 12", _LONG, "4 5 0.4 18", hints=True),
    AutomaticModel("gpt-5.6-luna", "0.2 0.25 0.02 1.2", _LONG, "0.4 0.5 0.04 1.8", hints=True),
    AutomaticModel("gpt-5.5", "5 5 0.5 30", _LONG, "10 10 1 45"),
    AutomaticModel("gpt-5.4", "2.5 2.5 0.25 15", _LONG, "5 5 0.5 22.5"),
    AutomaticModel("gpt-5.4-mini", "0.75 0.75 0.075 4.5"),
    AutomaticModel("gpt-5.4-nano", "0.2 0.2 0.02 1.25"),
    AutomaticModel("gpt-5.3", "1.75 1.75 0.175 14"),
    AutomaticModel("gpt-5.2", "1.75 1.75 0.175 14"),
    AutomaticModel("gpt-5.1", "1.25 1.25 0.125 10"),
    AutomaticModel("gpt-5", "1.25 1.25 0.125 10"),
    AutomaticModel("gpt-5-mini", "0.25 0.25 0.025 2"),
    AutomaticModel("gpt-5-nano", "0.05 0.05 0.005 0.4"),
    AutomaticModel("gpt-4.1", "2 2 0.5 8"),
    AutomaticModel("gpt-4.1-mini", "0.4 0.4 0.1 1.6"),
    AutomaticModel("gpt-4.1-nano", "0.1 0.1 0.025 0.4"),
    AutomaticModel("gpt-4o", "2.5 2.5 1.25 10"),
    AutomaticModel("gpt-4o-mini", "0.15 0.15 0.075 0.6"),
    AutomaticModel("o3", "2 2 0.5 8"),
    AutomaticModel("o3-mini", "1.1 1.1 0.55 4.4"),
    AutomaticModel("o4-mini", "1.1 1.1 0.275 4.4"),
)
# Text, image and video; audio costs more. Models whose price changes on New Year's Day 2027 have no row.
_GEMINI = (
    AutomaticModel("gemini-3.5-flash", "1.5 1.5 0.15 9"),
    AutomaticModel("gemini-3.5-flash-lite", "0.3 0.3 0.03 2.5"),
    AutomaticModel("gemini-3.1-pro-preview", "2 2 0.2 12", 200_000, "4 4 0.4 18"),
    AutomaticModel("gemini-3.1-flash-lite", "0.25 0.25 0.025 1.5"),
    AutomaticModel("gemini-2.5-pro", "1.25 1.25 0.125 10", 200_000, "2.5 2.5 0.25 15"),
    AutomaticModel("gemini-2.5-flash", "0.3 0.3 0.03 2.5"),
    AutomaticModel("gemini-2.5-flash-lite", "0.1 0.1 0.01 0.4"),
)
# Off-peak prices; from 1 to 4 and from 6 to 10 o'clock UTC all prices double.
_DEEPSEEK = (
    AutomaticModel("deepseek-v4-pro", "0.66 0.66 0.022 1.98"),
    AutomaticModel("deepseek-v4-flash", "0.15 0.15 0.003 0.6"),
    AutomaticModel("deepseek-flash", "0.15 0.15 0.003 0.6"),
)
ROWS = (*_OPENAI, *_GEMINI, *_DEEPSEEK)
# Other spellings of the same model.
ALIASES = {"gpt-5.6-sol": "gpt-5.6"}
