"""The JSON texts that cost too much to read, and their cost in slices."""

from __future__ import annotations

import json
from typing import Any

import jiter
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.large_bodies import bodies
from cachemw.core.request import json_budget
from cachemw.errors import BodyError

MIB = 1 << 20
STRUCTURE = '"\\{[:,é€\n' + "ab"


def check(text: bytes) -> tuple[str | None, int]:
    """Return the reason why a text is not read, if any, and in how many slices it was counted."""
    slices = 0
    try:
        for _ in json_budget.check(text):
            slices += 1
    except BodyError as error:
        return error.reason, slices
    return None, slices


@pytest.mark.parametrize("text", [b"", b"[" * json_budget.SMALL, b'"' * json_budget.SMALL])
def test_small_text_is_not_counted(text: bytes) -> None:
    """A small text costs no slice, whatever is in it."""
    assert check(text) == (None, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" + b"[]," * MIB + b"[]]", "too_many_values"),
        (b"[" + b"{}," * MIB + b"{}]", "too_many_values"),
        (b"[" + b"0," * MIB + b"0]", "too_many_values"),
        (b"[" + b'"",' * MIB + b'""]', "too_many_values"),
        (b'"' * 4 * MIB, "too_many_values"),
        (b"{" + b",".join(b'"%d":0' % number for number in range(500_000)) + b"}", "too_many_values"),
        (b"[" + b",".join([b"1" * 4_000] * 2_500) + b"]", "too_many_values"),
        (b"1" * 10 * MIB, "too_many_values"),
        (b" " * 10 * MIB, "too_many_values"),
        (b'["' + b"a" * 33 * MIB + b'"]', "too_large"),
        (b'["' + b"\\n" * 4 * MIB + b'"]', "too_large"),
        (b'["' + b"\\u0001" * 4 * MIB + b'"]', "too_large"),
        (b'["' + b"\\" * 8 * MIB + b'"]', "too_large"),
        (b'["' + "東".encode() * 8 * MIB + b'"]', "too_large"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_text_that_is_too_much_work_is_refused(text: bytes, reason: str) -> None:
    """Structure and strings have a limit each way, and the dearer of the two is the reason."""
    assert check(text)[0] == reason


@pytest.mark.parametrize(
    "text",
    [
        b'["' + b"a" * (31 * MIB) + b'"]',
        b'["' + b"{[:,}] " * MIB + b'"]',
        b'["' + b'\\"' * MIB + b'"]',
        b'["' + b"\\\\\\n{" * (MIB // 4) + b'"]',
        b'["' + "東京".encode() * (3 * MIB) + b'"]',
        json.dumps({"x": [{"a": [1.5], "b": None, "c": "\u20ac"}] * 15_000}).encode(),
        json.dumps({"x": list(range(200_000))}, indent=1).encode(),
        b"[" + b"0." + b"1" * 7 * MIB + b"]",
        b"[1e-" + b"1" * 7 * MIB + b"]",
    ],
    ids=range(9),
)
def test_large_text_within_the_budget_is_counted_in_slices(text: bytes) -> None:
    """Each slice is of a quarter MiB, so the work between two yields does not grow with the text."""
    reason, slices = check(text)
    assert reason is None
    assert slices >= len(text) * 4 // MIB
    assert jiter.from_json(text)


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, build()) for name, path, build in bodies(12 * MIB) if not name.startswith(("one", "read", "no"))],
)
def test_hostile_request_is_refused_after_a_few_slices(name: str, text: bytes) -> None:
    """The counting of a text ends with the budget, not with the text."""
    reason, slices = check(text)
    assert reason == "too_many_values"
    assert slices < 12


@given(
    texts=st.lists(st.text(STRUCTURE, max_size=30), min_size=1, max_size=8),
    size=st.integers(1, 20),
    escaped=st.booleans(),
)
def test_cost_of_strings_does_not_depend_on_where_slices_end(
    texts: list[str], size: int, escaped: bool
) -> None:
    """A string has no structure inside, also behind escaped quotes or at a slice within an escape."""
    raw = json.dumps(texts, ensure_ascii=escaped, separators=(",", ":")).encode()
    structure = 400 + 5 * (len(texts) + 1) + 50 * len(texts) + 80 * (len(texts) - 1)
    cheapest = structure + 12 * raw.count(b"\\") + 0.6 * (len(raw) - len(texts) - 1)
    dearest = cheapest + 1.2 * len(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_budget, "_SLICE", size)
        patch.setattr(json_budget, "BUDGET", dearest + 0.01)
        assert len(list(json_budget._exact(raw))) >= len(raw) // (size + 1)
        patch.setattr(json_budget, "BUDGET", cheapest - 0.01)
        with pytest.raises(BodyError):
            list(json_budget._exact(raw))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(STRUCTURE),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(STRUCTURE), inner),
    )
)
def test_cheap_count_never_accepts_what_the_exact_one_refuses(value: Any) -> None:
    """The first pass, which does not look for strings, counts at least as much as the second."""
    raw = json.dumps(value).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_budget, "SMALL", -1)
        for budget in (100, 1_000, 10_000):
            patch.setattr(json_budget, "BUDGET", budget)
            exact = None
            try:
                list(json_budget._exact(raw))
            except BodyError as error:
                exact = error.reason
            assert check(raw)[0] == exact
