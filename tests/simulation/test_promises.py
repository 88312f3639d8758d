"""Rules that hold for every request: tokens add up, entries are read to their end, markers are no content."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.core.rules.types import Model
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import Position, ProviderCache, Request
from cachemw.simulation.usage_forms import anthropic_usage, databricks_usage, openrouter_usage

MODEL = Model("claude-test", 60, None, thinking="stripped")
MARKER = st.sampled_from([{}, {}, {"cache_control": {"type": "ephemeral"}}])
WORDS = st.sampled_from(["a", "b", "hello there", " ", "x" * 300, "{}", "é☃"])


def _text(words: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {"type": "text", "text": words, **(marker if words.strip() else {})}


TEXTS = st.lists(st.builds(_text, WORDS, MARKER), min_size=1, max_size=3)
CALLS = st.lists(
    st.builds(
        lambda arguments, marker: {
            "id": "c",
            "type": "function",
            "function": {"name": "look", "arguments": arguments},
            **marker,
        },
        WORDS,
        MARKER,
    ),
    min_size=1,
    max_size=3,
)
THOUGHTS = st.builds(
    lambda words: {"type": "reasoning", "summary": [{"type": "summary_text", "text": words}]}, WORDS
)
MESSAGES = st.one_of(
    st.builds(lambda content: {"role": "user", "content": content}, st.one_of(WORDS, TEXTS)),
    st.builds(lambda content: {"role": "system", "content": content}, st.one_of(WORDS, TEXTS)),
    st.builds(
        lambda thought, content, calls: {
            "role": "assistant",
            "content": [thought, *content],
            "tool_calls": calls,
        },
        THOUGHTS,
        TEXTS,
        CALLS,
    ),
    st.builds(lambda content: {"role": "tool", "tool_call_id": "c", "content": content}, WORDS),
)
TOOLS = st.lists(
    st.builds(
        lambda name, marker: {"type": "function", "function": {"name": name, "parameters": {}}, **marker},
        st.sampled_from(["look", "buy"]),
        MARKER,
    ),
    max_size=2,
)
BODIES = st.fixed_dictionaries({"tools": TOOLS, "messages": st.lists(MESSAGES, min_size=1, max_size=12)})
STEPS = st.lists(
    st.tuples(BODIES, st.sampled_from([0.0, 1.0, 200.0, 299.0, 300.0, 4000.0]), st.booleans()), max_size=8
)


def unmarked(value: Any) -> Any:
    """Return a body without markers."""
    if isinstance(value, list):
        return [unmarked(item) for item in value]
    if isinstance(value, dict):
        return {key: unmarked(inner) for key, inner in value.items() if key != "cache_control"}
    return value


@settings(deadline=None)
@given(STEPS)
def test_every_token_is_billed_once(steps: list[tuple[Any, float, bool]]) -> None:
    """Cached, written and uncached tokens add up to the prompt; no usage has a negative number."""
    provider = ProviderCache(MODEL)
    now = 0.0
    for body, gap, answered in steps:
        now += gap
        try:
            ticket = provider.begin(body, now)
        except Refused:
            continue
        parts = (ticket.cache_read, ticket.cache_write_5m, ticket.cache_write_1h, ticket.uncached)
        assert min(parts) >= 0
        assert sum(parts) == ticket.request.total
        usage = databricks_usage(ticket, 5, inclusive=False)
        assert usage["total_tokens"] == sum(
            usage[key] for key in usage if key.startswith(("prompt", "completion", "cache"))
        )
        assert sum(
            value for key, value in anthropic_usage(ticket, 5).items() if key.endswith("input_tokens")
        ) == sum(parts)
        details = openrouter_usage(ticket, 5)["prompt_tokens_details"]
        assert (
            details["cached_tokens"] + details["cache_write_tokens"] == ticket.request.total - ticket.uncached
        )
        if answered:
            provider.answer_began(ticket, now)


@settings(deadline=None)
@given(BODIES, st.floats(0, 299.9))
def test_identical_request_reads_up_to_the_last_marker(body: Any, later: float) -> None:
    """Any body that was written is read again, and no token is written twice."""
    provider = ProviderCache(MODEL)
    try:
        first = provider.begin(body, 0)
    except Refused:
        return
    provider.answer_began(first, 0)
    marked = [p.prefix for p in first.request.positions if p.marker and p.prefix >= MODEL.minimum]
    again = provider.begin(body, later)
    assert again.cache_read == (marked[-1] if marked else 0)
    assert again.cache_write_5m == 0
    assert again.uncached == first.uncached


@settings(deadline=None)
@given(BODIES)
def test_markers_are_no_content(body: Any) -> None:
    """Digests and tokens are the same with and without markers."""
    provider = ProviderCache(MODEL, Options(max_markers=99))

    def bare(position: Position) -> Position:
        return position._replace(marker=None)

    try:
        found = [bare(position) for position in provider.positions(body)]
    except Refused:
        return
    assert found == list(provider.positions(unmarked(body)))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.sets(st.integers(0, 59), max_size=4),
    st.sets(st.integers(0, 59), max_size=4),
)
def test_hit_is_the_longest_written_prefix_in_reach(
    tokens: list[int], written: set[int], marked: set[int]
) -> None:
    """The read equals a direct search for the longest entry within 20 positions of a marker."""

    def request(markers: set[int]) -> Request:
        positions = [
            Position(
                ("messages", n),
                "user",
                "text",
                bytes([n]),
                count,
                sum(tokens[: n + 1]),
                "5m" if n in markers else None,
            )
            for n, count in enumerate(tokens)
        ]
        return Request(positions, sum(tokens))

    provider = ProviderCache(MODEL, Options(minimum=0))
    provider.answer_began(provider.begin(request(written), 0), 0)
    reach = [
        entry
        for entry in written
        for marker in marked
        if entry <= marker < len(tokens) and marker - entry < 20
    ]
    ticket = provider.begin(request(marked), 1)
    assert ticket.hit == max(reach, default=-1)
