"""Providers as data: hosts, TTLs, marker limits and markable kinds, and the provider of a URL.

Contains: one row for each provider, each fact with its source and date. Must not depend on: requests, stores,
time, models (`rules.models`). A new provider is a new row, never a new branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from cachemw.core.rules.types import Kind, MarkPolicy, Provider


def _kinds(on: tuple[Kind, ...] = (), learn: tuple[Kind, ...] = ()) -> Mapping[Kind, MarkPolicy]:
    return {kind: "on" if kind in on else "learn" if kind in learn else "off" for kind in Kind}


_ROWS = (
    # Databricks, "Query foundation models", 2026: text, images, tool calls, results and definitions take
    # markers. It lists thinking too, which Anthropic refuses; it says nothing of documents or 1h.
    # Hosts: databricks-sdk 0.162.0. Paths: the same page, for workspaces behind a name of their own.
    Provider(
        "databricks",
        hosts=(
            "databricks.com",
            "azuredatabricks.net",
            "cloud.databricks.us",
            "databricks.azure.us",
            "databricks.azure.cn",
        ),
        ttls=("5m",),
        kinds=_kinds(
            on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL), learn=(Kind.REASONING,)
        ),
        paths=("/serving-endpoints/", "/ai-gateway/"),
    ),
    # Anthropic, prompt caching page, 2026-08-21: thinking blocks take no marker (a 400).
    Provider(
        "anthropic",
        hosts=("api.anthropic.com",),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.DOCUMENT, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL)),
    ),
    # Anthropic, OpenAI SDK compatibility page, 2026-08-21: its endpoint in OpenAI format ignores markers.
    Provider(
        "anthropic-openai",
        hosts=(),
        ttls=(),
        kinds=_kinds(),
        max_markers=0,
        paths=("/chat/completions/",),
        parent_provider="anthropic",
    ),
    # OpenRouter, prompt caching guide, mid-2026: text parts, both TTLs, never at the top of a body, which
    # keeps to one of Claude's hosts. Its client libraries and pydantic-ai 2.68.0 (run, November 2026) mark
    # tool definitions, and the text parts of tool results; as LiteLLM 1.108.7 (run) they pass. A marker on
    # a `role: tool` message itself makes a request hang (hermes-agent #2362, March 2026): never there. Of
    # images and calls nothing is said. The same guide: a conversation stays with the backend that served
    # it, known by its first system and its first other message.
    Provider(
        "openrouter",
        hosts=("openrouter.ai",),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.TOOL_RESULT, Kind.TOOL)),
        sticky_routing=True,
    ),
    # LiteLLM 1.108.7 and 1.109.3, run: markers on parts, calls and results reach Claude with their TTL;
    # those on definitions do too, but for its databricks route, which drops them.
    Provider(
        "litellm",
        hosts=(),
        ttls=("5m", "1h"),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT, Kind.TOOL)),
    ),
    # LiteLLM 1.108.7, run 2026-11-24: its databricks route builds tool definitions anew, without their
    # markers, and a hook can't send again what was refused, so nothing is tried. For the rest Databricks'
    # row holds. Only LiteLLM's hook names it: no URL tells the route.
    Provider(
        "litellm-databricks",
        hosts=(),
        ttls=("5m",),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_CALL, Kind.TOOL_RESULT)),
    ),
    # OpenAI, prompt caching guide, October 2026, and openai 3.57.0: caching is automatic; `cache_control` is
    # not its word. From GPT-5.6 on it takes breakpoints of its own sort, four a request with the one that it
    # sets itself, on text and image parts of any message but an assistant's; what is written lives at least
    # 30 minutes, its only TTL. What is found how far back is stated in two ways: 20 blocks is less than
    # either.
    Provider(
        "openai",
        hosts=("api.openai.com", "openai.azure.com"),
        ttls=("5m",),
        kinds=_kinds(on=(Kind.TEXT, Kind.IMAGE, Kind.TOOL_RESULT)),
        marker_key="prompt_cache_breakpoint",
        adds_own_breakpoint=True,
        ttl_seconds={"5m": 1800, "1h": 1800},
    ),
    # Google, context caching page, mid-2026: implicit since Gemini 2.5, nothing to mark in OpenAI's format.
    Provider(
        "gemini",
        hosts=("generativelanguage.googleapis.com", "aiplatform.googleapis.com"),
        ttls=(),
        kinds=_kinds(),
        max_markers=0,
    ),
    # DeepSeek, context caching page, 2024-08-02: automatic, nothing to mark.
    Provider("deepseek", hosts=("api.deepseek.com",), ttls=(), kinds=_kinds(), max_markers=0),
)
PROVIDERS: Mapping[str, Provider] = {row.name: row for row in _ROWS}


def find_provider(base_url: str) -> Provider | None:
    """Return the provider of a URL by its host, or else by its path; None if it is unknown."""
    try:
        url = urlsplit(base_url if "//" in base_url else f"//{base_url}")
        host, path = url.hostname or "", f"{url.path}/"
    except ValueError:
        return None
    for row in _ROWS:
        if any(host == domain or host.endswith(f".{domain}") for domain in row.hosts):
            return _by_path(path, within=row.name) or row
    return _by_path(path)


def _by_path(path: str, within: str = "") -> Provider | None:
    rows = (row for row in _ROWS if row.parent_provider == within)
    return next((row for row in rows if any(part in path for part in row.paths)), None)
