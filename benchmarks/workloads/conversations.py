"""Conversations by name, the same in every process: the large reference body, and small ones of a fleet.

Contains: their requests. Must not depend on: stores, workers, times.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from benchmarks.workloads.generated import MODEL
from cachemw.simulation import text_generator
from cachemw.simulation.traffic import Body

_Message = dict[str, Any]
_TOOL = 1_200
# Characters of the parts of a reference conversation: its 60 messages are 418 KB of JSON.
_SYSTEM, _QUESTION, _RESULT, _REPLY = 16_000, 6_000, 18_080, 600


def reference(number: int) -> list[Body]:
    """Return five requests of one agent's conversation, two messages apart: the last has 60, and 418 KB as JSON.

    All numbers share the 20 tools and the system prompt.
    """
    rng = _rng("reference", number)
    tools, messages = _tools("reference", 20), [_said("system", _text(_rng("reference system"), _SYSTEM))]
    while len(messages) < 60:
        name = f"call_{rng.getrandbits(64):016x}"
        function = {"name": "tool_7", "arguments": f'{{"order_id":"{rng.randint(1000, 9999)}"}}'}
        call = {"id": name, "type": "function", "function": function}
        messages += [
            _said("user", _text(rng, _QUESTION)),
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": name, "content": _text(rng, _RESULT)},
            _said("assistant", _text(rng, _REPLY)),
        ]
    return [{"model": MODEL, "tools": tools, "messages": messages[:end]} for end in range(52, 61, 2)]


def small(name: str, head: str, turns: int) -> Iterator[Body]:
    """Yield a conversation's requests, some 12 KB each; those of one `head` share tools and system prompt."""
    rng, tools = _rng("small", name), _tools(head, 4)
    messages = [_said("system", _text(_rng("small system", head), 6_000))]
    for _ in range(turns):
        messages.append(_said("user", _text(rng, 300)))
        yield {"model": MODEL, "tools": tools, "messages": list(messages)}
        messages.append(_said("assistant", _text(rng, 300)))


@lru_cache(4)
def _tools(head: str, count: int) -> list[_Message]:
    rng = _rng("tools", head)
    schema = {"type": "object", "properties": {"order_id": {"type": "string", "description": "Like 4471-08"}}}
    names = [f"tool_{number}" for number in range(count)]
    functions = [{"name": name, "description": _text(rng, _TOOL), "parameters": schema} for name in names]
    return [{"type": "function", "function": function} for function in functions]


@lru_cache(1)
def _paragraphs() -> list[str]:
    rng = _rng("paragraphs")
    return [
        text_generator.paragraph(rng, text_generator.TICKET + text_generator.REPLY, 4) for _ in range(400)
    ]


def _text(rng: random.Random, size: int) -> str:
    """Return a text of so many characters that begins like no other."""
    parts, length = [f"No. {rng.getrandbits(64):016x}."], 21
    while length < size:
        parts.append(rng.choice(_paragraphs()))
        length += len(parts[-1]) + 1
    return " ".join(parts)[:size]


def _said(role: str, text: str) -> _Message:
    return {"role": role, "content": text}


def _rng(*parts: object) -> random.Random:
    return random.Random("/".join(map(str, parts)))
