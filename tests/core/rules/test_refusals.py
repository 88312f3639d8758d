"""Reading a 400: is it about a marker, and which kind of block may carry none?"""

from __future__ import annotations

import pytest

from cachemw.core.rules.refusals import about_markers, refused_kinds, refuses_hour
from cachemw.core.rules.types import Kind

ALL = frozenset(Kind)
EXTRA = "cache_control: Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"messages.1.content.0.thinking.{EXTRA}", Kind.REASONING),
        (f"messages.1.content.0.redacted_thinking.{EXTRA}", Kind.REASONING),
        ("content of type 'reasoning' does not support cache_control", Kind.REASONING),
        (f"tools.0.custom.{EXTRA}", Kind.TOOL),
        (f"tools.3.{EXTRA}", Kind.TOOL),
        ("cache_control is not allowed on a tool definition", Kind.TOOL),
        (f"messages.2.content.0.tool_result.{EXTRA}", Kind.TOOL_RESULT),
        (f"messages.2.content.0.tool_result.content.0.text.{EXTRA}", Kind.TOOL_RESULT),
        ("messages with role 'tool' can't have cache_control", Kind.TOOL_RESULT),
        (f"messages.1.content.1.tool_use.{EXTRA}", Kind.TOOL_CALL),
        (f"messages.1.tool_calls.0.{EXTRA}", Kind.TOOL_CALL),
        (f"messages.0.content.1.image.{EXTRA}", Kind.IMAGE),
        (f"messages.0.content.1.image_url.{EXTRA}", Kind.IMAGE),
        (f"messages.0.content.1.document.{EXTRA}", Kind.DOCUMENT),
        (f"messages.0.content.0.text.{EXTRA}", Kind.TEXT),
        (f"system.1.{EXTRA}", Kind.TEXT),
        (f"Messages.0.Content.0.TEXT.{EXTRA}", Kind.TEXT),
    ],
)
def test_refusal_with_a_path_refuses_its_kind(text: str, kind: Kind) -> None:
    """The kind in the provider's path is refused if cachemw marked it."""
    assert about_markers(text)
    assert refused_kinds(text, ALL) == {kind}
    assert refused_kinds(text, {kind}) == {kind}
    assert refused_kinds(text, ALL - {kind}) == frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
        "messages.29.content.0.text: cache_control cannot be set for empty text blocks",
        "system.1: cache_control cannot be set for empty text blocks",
        "messages.3.content.0.text.cache_control.ttl: a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block.",
        "messages.0.content.3.text.cache_control.ephemeral.ttl: Extra inputs are not permitted",
    ],
)  # fmt: skip
def test_refusal_of_number_order_or_ttl_refuses_no_kind(text: str) -> None:
    """Too many markers, a blank text, the order and the TTL refuse no kind."""
    assert about_markers(text)
    assert refused_kinds(text, ALL) == frozenset()


def test_refusal_without_a_kind_refuses_all_marked_kinds() -> None:
    """A gateway that takes no markers at all names no kind, so every marked kind is refused."""
    text = "cache_control is not supported by this model"
    assert refused_kinds(text, {Kind.TEXT, Kind.TOOL_CALL}) == {Kind.TEXT, Kind.TOOL_CALL}
    assert refused_kinds(text, ()) == frozenset()


@pytest.mark.parametrize(
    "text",
    ["", "prompt is too long: 210000 tokens > 200000 maximum", "messages.0.role: Input should be 'user'"],
)
def test_refusal_about_something_else_is_ignored(text: str) -> None:
    """Any other 400 is not about markers."""
    assert not about_markers(text)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("messages.0.content.3.text.cache_control.ephemeral.ttl: Extra inputs are not permitted", True),
        ("a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block.", False),
        ("messages.1.content.0.thinking.cache_control: Extra inputs are not permitted", False),
    ],
)
def test_refusal_of_the_ttl_is_recognised(text: str, refused: bool) -> None:
    """Only a refusal of the TTL itself says that 1h is not accepted."""
    assert refuses_hour(text) is refused


@pytest.mark.parametrize("text", ["maximum of " + "1" * 2_000_000, "tools." * 400_000, ".ttl" * 500_000])
def test_refusal_with_a_long_text_is_read_at_its_beginning(text: str) -> None:
    """The end of an overlong text is not searched."""
    for about in (f"{text} cache_control", f"{text} prompt_cache_key"):
        assert not about_markers(about)
    assert refused_kinds(f"{'x' * 100_000} maximum of 4 blocks text", {Kind.TEXT}) == {Kind.TEXT}
    assert not refuses_hour(f"{'x' * 100_000}.ttl")
