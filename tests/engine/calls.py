"""Requests, usage and middlewares for tests of the engine.

Contains: helpers that several test modules of the engine share. Must not depend on: any test module.
"""

from __future__ import annotations

import asyncio
from typing import Any

import cachemw
from tests.bodies import PARAGRAPH, Body
from tests.clocks import Clock
from tests.keys import equal_keys

MODEL = "databricks-claude-sonnet-4-6"

TOOLS = [
    {"type": "function", "function": {"name": f"tool_{n}", "description": PARAGRAPH, "parameters": {}}}
    for n in range(3)
]


def agent(turns: int = 1, **rest: Any) -> Body:
    """Return an agent's request after some turns, each with a tool call: about 4,000 tokens, 400 a turn."""
    messages: list[Body] = [{"role": "system", "content": PARAGRAPH * 12}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"Question {turn}. {PARAGRAPH}"})
        call = {"id": f"call_{turn}", "type": "function", "function": {"name": "tool_0", "arguments": "{}"}}
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        messages.append({"role": "tool", "tool_call_id": f"call_{turn}", "content": PARAGRAPH})
    return {"model": MODEL, "tools": TOOLS, "messages": messages, **rest}


def usage(cache_read: int = 0, cache_write: int = 0, uncached: int = 100) -> Body:
    """Return usage in the form that Databricks reports."""
    prompt = cache_read + cache_write + uncached
    return {
        "prompt_tokens": prompt, "completion_tokens": 10, "total_tokens": prompt + 10,
        "cache_read_input_tokens": cache_read, "cache_creation_input_tokens": cache_write,
    }  # fmt: skip


def make_middleware(**settings_: Any) -> cachemw.Middleware:
    """Return a middleware for Databricks with its own clock, `mw.clock`."""
    clock = Clock()
    with equal_keys():
        mw = cachemw.Middleware(**{"provider": "databricks", **settings_}, clock=clock)
    mw.clock = clock  # type: ignore[attr-defined]
    return mw


def marked_places(body: Any) -> list[str]:
    """Return the places of all markers, in the body's order."""
    found = []
    for tool in body.get("tools") or ():
        found += ["tools"] if "cache_control" in tool else []
    for index, message in enumerate(body["messages"]):
        for part in [
            *(message["content"] if isinstance(message["content"], list) else ()),
            *(message.get("tool_calls") or ()),
        ]:
            found += [f"messages.{index}"] if "cache_control" in part else []
    return found


async def finished(result: Any) -> Any:
    """Return a result, awaited if it is a coroutine."""
    return await result if asyncio.iscoroutine(result) else result


def make_hooked(asynchronous: bool) -> Any:
    """Return a sync or async middleware with a hook and a model name of the user's."""
    kind: Any = cachemw.AsyncMiddleware if asynchronous else cachemw.Middleware
    clock = Clock()
    hooks, models = [lambda event: None], {"custom": "claude-sonnet-4-6"}
    with equal_keys():
        mw = kind(provider="databricks", clock=clock, hooks=hooks, models=models)
    mw.clock = clock
    return mw


def write_in_background(mw: Any) -> None:
    """Make a middleware with a memory store work in the background, as with a shared store."""
    mw._shell.store.local = False
    mw._flow._shares_store = True
