"""Blocks of images and of undocumented shapes: type and token count."""

from __future__ import annotations

import base64

import pytest

from cachemw.core.rules.types import Model
from tests.simulation.chat_bodies import (
    PNG,
    Body,
    read,
    tool,
    user,
)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((300, 250), 100), ((4000, 3000), 1600), (None, 1600)],
    ids=["small", "large", "unreadable"],
)
def test_image_tokens_follow_its_pixels(size: tuple[int, int] | None, tokens: int) -> None:
    """Width times height over 750, at most 1,600; 1,600 if the size cannot be read."""
    data = (
        b"nothing"
        if size is None
        else (
            b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
            + size[0].to_bytes(4, "big")
            + size[1].to_bytes(4, "big")
            + bytes(9)
        )
    )
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    model = Model("claude-image", 0, None, tokenizer="old")
    (position,) = read({"messages": [user({"type": "image_url", "image_url": {"url": url}})]}, model=model)
    assert 0.9 * (tokens + 4) - 1 <= position.tokens <= 1.2 * (tokens + 4) + 1


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"messages": [user({"type": "file", "file": {"file_id": "f"}})]}, "document"),
        ({"messages": [user({"type": "input_audio", "input_audio": {"data": "x"}})]}, "input_audio"),
        ({"messages": [user({"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"})]}, "image"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "custom": {"input": "x"}}]}]},
            "tool_use",
        ),
        ({"messages": [user("a")], "tools": [{"type": "web_search", "max_uses": 2}]}, "web_search"),
        ({"messages": [user("a")], "tools": [{**tool("look"), "defer_loading": True}]}, "custom"),
        ({"messages": [{"role": "tool", "tool_call_id": "c", "content": None}]}, "tool_result"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "reasoning", "summary": []}]}]},
            "thinking",
        ),
    ],
)
def test_undocumented_shape_is_read_as_the_nearest_block(body: Body, kind: str) -> None:
    """Shapes that the document does not show are counted as the most similar block."""
    first = read(body)[0]
    assert first.type == kind
    assert first.tokens > 0


def test_cut_image_header_counts_as_the_largest_image() -> None:
    """Bytes that end after the start of a PNG, or that are no base64, do not fail the count."""
    model = Model("claude-image", 0, None, tokenizer="old")
    for data in ("iVBORw0KGgo=", "iVBOR", "é"):
        url = f"data:image/png;base64,{data}"
        (position,) = read(
            {"messages": [user({"type": "image_url", "image_url": {"url": url}})]}, model=model
        )
        assert position.tokens > 1400
