"""Rules of peers that ship no package, ported from their sources and labelled as ports.

Contains: Goose's rule for Claude on Databricks and VS Code Copilot's for Claude. Must not depend on: the way a
marker is written into a body. Both applications set every marker themselves, so a client's markers are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from benchmarks.peers.skeleton import Mark, Path, Skeleton


def goose(body: Mapping[str, Any]) -> list[Mark]:
    """Mark the first system text, the last two `user` messages and the last tool's function.

    The system text counts only if it is a string. A user message is marked on its last part of any kind; a
    tool result is a message with its own role here, so it is never marked (block/goose, request
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

    Messages are Anthropic's: a run of one role, tool results included, is one message. Blank texts and
    thinking are skipped (microsoft/vscode, Copilot's Messages API, 2026; its default of 5 minutes).
    """
    heads: dict[str, list[Path]] = {"tools": [], "system": []}
    turns: list[list[Path]] = []
    for section, blocks in groupby(Skeleton(body).blocks, lambda block: _section(body, block.path)):
        paths = [block.path for block in blocks if block.carries]
        if section in heads:
            heads[section] += paths
        elif paths:
            turns.append(paths)
    return [(run[-1], "5m") for run in [*heads.values(), *turns[-2:]] if run]


def _section(body: Mapping[str, Any], path: Path) -> str:
    """Name the part of Anthropic's prompt that a block is in; within messages, whose turn it is."""
    if path[0] == "tools":
        return "tools"
    role: str = body["messages"][path[1]]["role"]
    return {"developer": "system", "tool": "user"}.get(role, role)
