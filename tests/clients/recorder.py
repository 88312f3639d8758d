"""A middleware that records the calls of its methods, and one conversation that is worth marking."""

from __future__ import annotations

from typing import Any

from cachemw import AsyncMiddleware, Call, Middleware, Receipt
from cachemw.settings import Settings

MODEL = "databricks-claude-sonnet-4"
Event = tuple[Any, ...]


class Recorder(Middleware):
    """A middleware that keeps the order of its calls: ("prepare", provider), ("settle", receipt, partial), ..."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(Settings(**{"provider": "databricks", "store": "memory://", **fields}))
        self.events: list[Event] = []

    def prepare(self, body: Any, *args: Any, **kwargs: Any) -> Call:
        self.events.append(("prepare", kwargs.get("provider")))
        return super().prepare(body, *args, **kwargs)

    def begun(self, call: Call) -> None:
        self.events.append(("begun",))
        super().begun(call)

    def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        receipt = super().settle(call, usage, partial=partial)
        self.events.append(("settle", receipt, partial))
        return receipt

    def fail(self, call: Call) -> None:
        self.events.append(("fail",))
        super().fail(call)

    def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Any:
        body = super().refused(call, status, error, resent=resent)
        self.events.append(("refused", status, body is not None))
        return body

    def count(self, name: str) -> None:
        self.events.append(("count", name))
        super().count(name)

    def close(self) -> None:
        self.events.append(("close",))
        super().close()


class AsyncRecorder(AsyncMiddleware):
    """The same, awaited."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(Settings(**{"provider": "databricks", "store": "memory://", **fields}))
        self.events: list[Event] = []

    async def prepare(self, body: Any, *args: Any, **kwargs: Any) -> Call:
        self.events.append(("prepare", kwargs.get("provider")))
        return await super().prepare(body, *args, **kwargs)

    async def begun(self, call: Call) -> None:
        self.events.append(("begun",))
        await super().begun(call)

    async def settle(self, call: Call, usage: Any, *, partial: bool = False) -> Receipt:
        receipt = await super().settle(call, usage, partial=partial)
        self.events.append(("settle", receipt, partial))
        return receipt

    async def fail(self, call: Call) -> None:
        self.events.append(("fail",))
        await super().fail(call)

    async def refused(self, call: Call, status: int, error: Any, *, resent: bool = True) -> Any:
        body = await super().refused(call, status, error, resent=resent)
        self.events.append(("refused", status, body is not None))
        return body

    def count(self, name: str) -> None:
        self.events.append(("count", name))
        super().count(name)

    async def close(self) -> None:
        self.events.append(("close",))
        await super().close()


def conversation() -> dict[str, Any]:
    """Return the keywords of one call: an agent with tools, well over every model's minimum."""
    rules = "\n".join(
        f"Rule {n}: answer politely, check the booking first, and never guess a date." for n in range(600)
    )
    tool = {
        "type": "function",
        "function": {
            "name": "find_flight",
            "description": "Find a flight by its number.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "string"}},
                "required": ["number"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
    called = {
        "id": "t1",
        "type": "function",
        "function": {"name": "find_flight", "arguments": '{"number":"X1"}'},
    }
    messages = [
        {"role": "system", "content": rules},
        {"role": "user", "content": "When does X1 leave?"},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "t1", "content": '{"leaves": "09:00"}'},
        {"role": "assistant", "content": "At nine."},
        {"role": "user", "content": [{"type": "text", "text": "And from which gate?"}]},
    ]
    return {"model": MODEL, "messages": messages, "tools": [tool], "max_tokens": 50}


def marks(body: Any) -> int:
    """Count the markers anywhere in a body."""
    if isinstance(body, dict):
        return ("cache_control" in body) + sum(map(marks, body.values()))
    return sum(map(marks, body)) if isinstance(body, list) else 0
