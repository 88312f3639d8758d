"""Conversations with and without tools: agents, long chats, and clients that change the history.

Contains: the texts and times of each. Must not depend on: policies.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from benchmarks.workloads import arrivals, generated
from benchmarks.workloads.generated import MODEL, Talk
from benchmarks.workloads.recorded import talks
from cachemw.simulation import text_generator
from cachemw.simulation.replay import Sent
from cachemw.simulation.traffic import Body

_FAN = 24  # calls of a turn
_KEPT = 14  # messages that a truncating client keeps, about


def human(rng: random.Random) -> list[Sent]:
    """Return a customer-service agent with tools and human users."""
    bodies = (talk.requests() for talk in talks("A1", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 60.0), arrivals.person, 700)


def busy(rng: random.Random) -> list[Sent]:
    """Return a customer-service agent with tools and programs as users: a conversation every 15 seconds."""
    bodies = (talk.requests() for talk in talks("A2", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 15.0), arrivals.busy, 700)


def coding(rng: random.Random) -> list[Sent]:
    """Return a coding agent: long conversations, a tool's gap between turns."""
    bodies = (talk.requests() for talk in talks("A3", rng, generated.coder))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 120.0), lambda rng, _: arrivals.tool(rng), 700)


def slow(rng: random.Random) -> list[Sent]:
    """Return conversations whose person comes back after 3 to 40 minutes; tools answer in seconds."""
    bodies = (talk.requests() for talk in talks("A1", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 1200.0), arrivals.slow, 600)


def truncated(rng: random.Random) -> list[Sent]:
    """Return two agents, one with tools, whose client drops all but the latest messages."""
    both = zip(talks("A2", rng, generated.agent), talks("A3", rng, generated.coder), strict=False)
    bodies = (tuple([_cut(body) for body in talk.requests()]) for pair in both for talk in pair)
    return arrivals.played(rng, bodies, arrivals.begins(rng, 60.0), arrivals.person, 600)


def _cut(body: Body) -> Body:
    messages = list(body["messages"])
    head = 1 if messages[0]["role"] == "system" else 0
    start = max(head, len(messages) - _KEPT)
    while start < len(messages) - 1 and messages[start]["role"] != "user":
        start += 1
    if messages[start]["role"] != "user":
        start = next(i for i in range(start, -1, -1) if messages[i]["role"] == "user")
    return {**body, "messages": [*messages[:head], *messages[start:]]}


def fan_out(rng: random.Random) -> list[Sent]:
    """Return an agent that calls 24 tools a turn and reads all their results."""
    bodies = (_fanned(rng, talk).requests() for talk in talks("A1", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 25.0), arrivals.person, 350)


def _fanned(rng: random.Random, talk: Talk) -> Talk:
    """Return a conversation with these tools and this opening, and 24 generated calls in each turn."""
    names = [tool["function"]["name"] for tool in talk.tools] or ["search"]
    messages = list(talk.messages[: 2 if talk.messages[0]["role"] == "system" else 1])
    for _ in range(rng.randint(3, 8)):
        calls, results = [], []
        for _ in range(_FAN):
            call_id = f"call_{rng.getrandbits(64):016x}"
            arguments = json.dumps({"query": text_generator.sentence(rng, text_generator.QUESTION)})
            function = {"name": rng.choice(names), "arguments": arguments}
            calls.append({"id": call_id, "type": "function", "function": function})
            found = text_generator.paragraph(rng, text_generator.CLAUSE, rng.randint(1, 4))
            results.append({"role": "tool", "tool_call_id": call_id, "content": found})
        messages += [{"role": "assistant", "content": None, "tool_calls": calls}, *results]
    return Talk(talk.tools, [*messages, {"role": "assistant", "content": ""}])


def dated_tools(rng: random.Random) -> list[Sent]:
    """Return an agent with tools whose system prompt ends with the minute of the request."""
    bodies = (talk.requests() for talk in talks("A1", rng, generated.agent))
    return dated(
        arrivals.played(rng, bodies, arrivals.begins(rng, 150.0), arrivals.unhurried, 700), "%Y-%m-%d %H:%M"
    )


def dated(sent: list[Sent], form: str) -> list[Sent]:
    """Return requests whose system prompts end with the time of sending."""
    return [request._replace(body=_with_time(request.body, request.at, form)) for request in sent]


def _with_time(body: Body, at: float, form: str) -> Body:
    first, *rest = body["messages"]
    now = datetime.fromtimestamp(at, UTC).strftime(form)
    system = {**first, "content": f"{first['content']}\n\nThe current time is {now} UTC."}
    return {**body, "messages": [system, *rest]}


def shuffled_tools(rng: random.Random) -> list[Sent]:
    """Return an agent whose client sends its tools in another order each time."""
    bodies = (talk.requests() for talk in talks("A2", rng, generated.agent))
    sent = arrivals.played(rng, bodies, arrivals.begins(rng, 30.0), arrivals.person, 600)
    return [request._replace(body=_shuffled(rng, request.body)) for request in sent]


def _shuffled(rng: random.Random, body: Body) -> Body:
    tools = list(body["tools"])
    rng.shuffle(tools)
    return {**body, "tools": tools}


def thinking(rng: random.Random, model: str) -> list[Sent]:
    """Return an agent with thinking on: each answer begins with a reasoning part that the client sends back."""
    bodies = (_thought(rng, talk, model) for talk in talks("A1", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 40.0), arrivals.person, 500)


def _thought(rng: random.Random, talk: Talk, model: str) -> tuple[Body, ...]:
    messages = [
        _with_reasoning(rng, message) if message["role"] == "assistant" else message
        for message in talk.messages
    ]
    on = {"thinking": {"type": "enabled", "budget_tokens": 4096}}
    return tuple([{**body, **on} for body in Talk(talk.tools, messages).requests(model)])


def _with_reasoning(rng: random.Random, message: Mapping[str, Any]) -> Mapping[str, Any]:
    text = text_generator.paragraph(rng, text_generator.REPLY, rng.randint(2, 8))
    signature = f"{rng.getrandbits(512):0128x}"
    summary = [{"type": "summary_text", "text": text, "signature": signature}]
    content = message.get("content")
    texts = [{"type": "text", "text": content}] if content else []
    return {**message, "content": [{"type": "reasoning", "summary": summary}, *texts]}


def images(rng: random.Random) -> list[Sent]:
    """Return conversations about photographs: a third of the user's messages bring one."""
    bodies = (_pictured(rng, talk) for talk in talks("A2", rng, generated.agent))
    return arrivals.played(rng, bodies, arrivals.begins(rng, 40.0), arrivals.person, 400)


def _pictured(rng: random.Random, talk: Talk) -> tuple[Body, ...]:
    pictures = _pictures(rng)
    messages = [
        {**message, "content": [next(pictures), {"type": "text", "text": message["content"]}]}
        if message["role"] == "user" and message["content"] and rng.random() < 0.33
        else message
        for message in talk.messages
    ]
    return Talk(talk.tools, messages).requests(MODEL)


def _pictures(rng: random.Random) -> Iterator[Mapping[str, Any]]:
    """Yield PNG parts of a drawn size, with noise as pixels."""
    while True:
        width, height = rng.choice(((640, 480), (1024, 768), (1200, 900)))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = b""
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rng.randbytes(600))), (b"IEND", b"")):
            chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        encoded = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode()
        yield {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
