"""`printable`: one line, nothing but visible characters, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.errors import ConfigError
from cachemw.printable import printable
from tests import hostile

ANY = st.text(st.characters())


@settings(deadline=None)
@given(ANY, st.integers(3, 50))
def test_printable_any_text_is_one_visible_line(text: str, limit: int) -> None:
    """The result is printable, is no longer than the limit, can be encoded, and stays if it is shown again."""
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert shown.encode().decode() == shown
    assert printable(shown, limit) == shown


@pytest.mark.parametrize("text", ["", "Grüße", "日本語", "שלום", "🙂", "a\\x1b", "[red]", "a" * 4_000])
def test_printable_visible_text_is_unchanged(text: str) -> None:
    """Letters of any script, backslashes and brackets stay as they are."""
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\r\nb\tc", r"a\r\nb\tc"),
        ("gpj\u202e", r"gpj\u202e"),
        ("a\u200bb", r"a\u200bb"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        ("a" * 4_001, "a" * 3_997 + "..."),
        ("\0" * 10_000, r"\x00" * 999 + r"\..."),
    ],
)
def test_printable_hostile_text_is_escaped(text: str, shown: str) -> None:
    """Characters that act on a terminal, and those that cannot be seen, are written as escapes."""
    assert printable(text) == shown


@pytest.mark.parametrize("name", hostile.NAMES.values(), ids=hostile.NAMES)
def test_config_error_with_hostile_name_is_one_visible_line(name: str) -> None:
    """A message goes to terminals and logs, so names in it are made printable."""
    assert str(ConfigError(f"labels: {name} is 5; a string is needed")).isprintable()
