"""LiteLLM: the injection hook with the points that its documentation and its own default give.

The default switches itself off for Databricks, so the driver configures the points, as a user would. The body
on the wire is LiteLLM's Databricks transform of it, which drops empty texts and markers on tools.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import asks the network

from litellm.integrations.anthropic_cache_control_hook import AnthropicCacheControlHook
from litellm.llms.databricks.chat.transformation import DatabricksConfig

_MODEL = "databricks-claude-sonnet-4-5"
_HOOK = AnthropicCacheControlHook()
_WIRE = DatabricksConfig()


def send(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request as LiteLLM sends it to Databricks."""
    options: dict[str, Any] = {}
    if body.get("tools"):
        options = _WIRE.map_openai_params({"tools": body["tools"]}, {}, _MODEL, drop_params=False)
    return _WIRE.transform_request(_MODEL, _hooked(body["messages"]), options, {}, {})


def time_hook(body: dict[str, Any], repeat: int) -> list[float]:
    """Return the seconds that the hook alone takes, once for each repetition, on the body as it is."""
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        _hooked(body["messages"])
        seconds.append(time.perf_counter() - start)
    return seconds


def _hooked(messages: list[Any]) -> list[Any]:
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    params = {"cache_control_injection_points": points, "custom_llm_provider": "databricks"}
    return _HOOK.get_chat_completion_prompt(_MODEL, messages, params, None, None, {})[1]
