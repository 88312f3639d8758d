"""The positional policy: the blocks that it marks, and those that it leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cachemw.apps.demo.policies import POLICIES, positional
from cachemw.core.request.equality import canonical

MARK = {"type": "ephemeral"}
BLANK = " \n"


def text(words: str, **more: Any) -> dict[str, Any]:
    """Return a text part."""
    return {"type": "text", "text": words, **more}


def marked(body: Any) -> list[tuple[int, int]]:
    """Return message and part of each marker."""
    return [
        (i, j)
        for i, message in enumerate(body["messages"])
        for j, part in enumerate(message["content"] if isinstance(message["content"], list) else ())
        if "cache_control" in part
    ]


@pytest.mark.parametrize(
    ("contents", "places"),
    [
        ([("system", "s"), ("user", "u")], [(0, 0), (1, 0)]),
        ([("user", "u")], [(0, 0)]),
        ([("system", "s")], [(0, 0)]),
        (
            [("system", "a"), ("developer", "b"), ("user", "u"), ("assistant", "a"), ("user", "v")],
            [(1, 0), (4, 0)],
        ),
        ([("system", "s"), ("user", "u"), ("system", "late"), ("user", "v")], [(0, 0), (3, 0)]),
        ([("system", BLANK), ("user", "")], []),
        ([("system", None), ("user", [])], []),
        ([("system", [text("a"), text("b")]), ("tool", "r")], [(0, 1), (1, 0)]),
        ([("user", [text("a"), text(BLANK)])], [(0, 0)]),
        ([("user", [text("a"), {"type": "image_url", "image_url": {"url": "data:x"}}])], [(0, 1)]),
        ([("user", [text("a"), {"type": "reasoning", "summary": []}, {"type": "new"}])], [(0, 0)]),
        ([("user", [text("a", cache_control=MARK), text("b")])], [(0, 0)]),
    ],
)
def test_positional_marks_system_end_and_last_message(
    contents: list[tuple[str, Any]], places: list[tuple[int, int]]
) -> None:
    """Markers stand on the last eligible block of both."""
    body = {"model": "m", "messages": [{"role": role, "content": content} for role, content in contents]}
    before = copy.deepcopy(body)
    after = positional(body)
    assert marked(after) == places
    assert body == before
    assert canonical(after) == canonical(before)


def test_no_caching_drops_the_markers_of_the_client() -> None:
    """The first policy sends no marker, the last one the unchanged request."""
    body = {"model": "m", "messages": [{"role": "user", "content": [text("a", cache_control=MARK)]}]}
    first, _, last = POLICIES
    assert marked(first.prepare(body)) == []
    assert last.prepare(body) is body
