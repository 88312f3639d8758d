"""Rules of peers that ship no package: written from what their sources do, and labelled as ports.

Lives here: Goose's rule for Claude on Databricks and VS Code Copilot's for Claude. Must not know: how a
marker is written into a body. Both applications author every marker themselves, so a body's own are not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby, islice
from typing import Any

from benchmarks.peers.skeleton import Mark, Path


def goose(body: Mapping[str, Any]) -> list[Mark]:
    """Mark the first system text, the last two `user` messages and the last tool's function.

    Only a system content that is a string. A user message is marked on its last part whatever that is;
    a tool result is a message of its own role here, so it is never marked (block/goose, request
    formats for Databricks, 2026).
    """
    messages = body["messages"]
    paths: list[Path] = []
    if body.get("tools"):
        paths.append(("tools", len(body["tools"]) - 1, "function"))
    system = next((index for index, message in enumerate(messages) if message["role"] == "system"), None)
    if system is not None and isinstance(messages[system].get("content"), str):
        paths.append(("messages", system, "content"))
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    for index in users[-2:]:
        content = messages[index].get("content")
        if isinstance(content, str):
            paths.append(("messages", index, "content"))
        elif content:
            paths.append(("messages", index, "content", len(content) - 1))
    return [(path, "5m") for path in paths]


def copilot(body: Mapping[str, Any]) -> list[Mark]:
    """Mark the last tool, the last system block and the last block of each of the last two messages.

    Messages are Anthropic's, so a run of one role, tool results included, is one. Blank texts and
    thinking are passed over (microsoft/vscode, Copilot's Messages API, 2026; 5 minutes, its default).
    """
    messages = body["messages"]
    paths: list[Path] = []
    if body.get("tools"):
        paths.append(("tools", len(body["tools"]) - 1))
    systems = [index for index, message in enumerate(messages) if message["role"] in ("system", "developer")]
    paths += islice(_last(messages, systems), 1)
    rest = [index for index in range(len(messages)) if index not in set(systems)]
    runs = [list(run) for _, run in groupby(rest, lambda index: messages[index]["role"] == "assistant")]
    ends = (next(_last(messages, run), None) for run in reversed(runs))
    paths += islice((path for path in ends if path is not None), 2)
    return [(path, "5m") for path in paths]


def _last(messages: list[Mapping[str, Any]], indices: list[int]) -> Iterator[Path]:
    """Yield the paths of the blocks of some messages that may carry a marker, the last first."""
    for index in reversed(indices):
        message = messages[index]
        calls = message.get("tool_calls") or ()
        for number in reversed(range(len(calls))):
            yield ("messages", index, "tool_calls", number)
        content = message.get("content")
        if isinstance(content, str) and content.strip():
            yield ("messages", index, "content")
        elif isinstance(content, list):
            for number in reversed(range(len(content))):
                part = content[number]
                if part["type"] != "reasoning" and (part["type"] != "text" or part["text"].strip()):
                    yield ("messages", index, "content", number)
