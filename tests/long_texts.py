"""Texts that are long and begin alike, and random bodies with them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from tests.bodies import Body, Wire, bodies


def lines(name: str, count: int) -> str:
    """Return lines of 64 bytes that no other name has."""
    return "".join(f"{f'{name} line {number}.':<63}\n" for number in range(count))


HEAD = lines("Policy", 80)  # 5,120 bytes

LONG = [
    HEAD,
    HEAD.replace("\n", " "),
    "漢字かな交じり文。" * 300,
    "\n" * 300 + lines("Late", 30),
    lines("Rules", 40) + " " * 600 + HEAD,
]


@st.composite
def long_bodies(draw: DrawFn, odd: bool = True) -> tuple[Wire, Body]:
    """Draw a body whose texts are often long and begin like others."""
    wire, body = draw(bodies(odd))
    body = copy.deepcopy(body)
    for message in [*body["messages"], {"content": body.get("system")}]:
        for holder, key in list(_texts(message)):
            if draw(st.booleans()) and (odd or holder[key].strip()):
                head = draw(st.sampled_from(LONG))
                tail = draw(st.sampled_from(["", " ", "\n\n", "1", "22", holder[key]]))
                holder[key] = head[: draw(st.integers(900, len(head)))] + tail
        if "role" not in message and isinstance(body.get("system"), str):
            body["system"] = message["content"]
    return wire, body


def _texts(message: Body) -> Iterator[tuple[Any, str]]:
    content = message.get("content")
    if isinstance(content, str):
        yield message, "content"
    elif isinstance(content, list):
        seen = set()
        for part in content:
            if id(part) not in seen and isinstance(part.get("text"), str) and part.get("type") == "text":
                seen.add(id(part))
                yield part, "text"
