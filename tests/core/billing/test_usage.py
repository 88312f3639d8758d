"""Every provider's usage read as one, streams added up, and nonsense taken as absent."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage
from openai.types.responses import ResponseUsage

from cachemw.core.billing.usage import NO_COUNTERS, Usage, merge_chunk, read_usage

Json = dict[str, Any]

ANTHROPIC = {
    "input_tokens": 100,
    "cache_read_input_tokens": 4000,
    "cache_creation_input_tokens": 900,
    "cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 300},
    "output_tokens": 7,
}
DATABRICKS = {
    "prompt_tokens": 5000,
    "completion_tokens": 7,
    "total_tokens": 5007,
    "cache_read_input_tokens": 4000,
    "cache_creation_input_tokens": 900,
}
ROWS: list[tuple[str, Json, Usage]] = [
    ("anthropic", ANTHROPIC, Usage(4000, 600, 300, 100, 7, "anthropic")),
    (
        "anthropic without a split",
        {key: value for key, value in ANTHROPIC.items() if key != "cache_creation"},
        Usage(4000, 900, 0, 100, 7, "anthropic"),
    ),
    (
        "anthropic without counters",
        {"input_tokens": 12, "output_tokens": 6},
        Usage(0, 0, 0, 12, 6, NO_COUNTERS),
    ),
    ("databricks", DATABRICKS, Usage(4000, 900, 0, 100, 7, "inclusive_default")),
    (
        "databricks, exclusive, told by the total",
        {**DATABRICKS, "total_tokens": 9907},
        Usage(4000, 900, 0, 5000, 7, "exclusive_by_total"),
    ),
    (
        "databricks, exclusive, told by the size",
        {**DATABRICKS, "prompt_tokens": 100, "total_tokens": 107},
        Usage(4000, 900, 0, 100, 7, "exclusive_by_size"),
    ),
    (
        "databricks, small and exclusive by both",
        {**DATABRICKS, "prompt_tokens": 100, "total_tokens": 5007},
        Usage(4000, 900, 0, 100, 7, "exclusive_by_total"),
    ),
    (
        "databricks, nothing cached",
        {**DATABRICKS, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0},
        Usage(0, 0, 0, 5000, 7, "inclusive_default"),
    ),
    (
        "chat without counters",
        {"prompt_tokens": 50, "completion_tokens": 5, "total_tokens": 55, "prompt_tokens_details": None},
        Usage(0, 0, 0, 50, 5, NO_COUNTERS),
    ),
    (
        "openai, azure, openrouter",
        {
            "prompt_tokens": 5000,
            "completion_tokens": 7,
            "total_tokens": 5007,
            "prompt_tokens_details": {"cached_tokens": 4000, "cache_write_tokens": 900, "audio_tokens": 0},
            "cost": 0.01,
        },
        Usage(4000, 900, 0, 100, 7, "openai_details"),
    ),
    (
        "litellm",
        {
            **DATABRICKS,
            "prompt_tokens_details": {
                "cached_tokens": 4000,
                "cache_write_tokens": None,
                "cache_creation_tokens": 900,
                "cache_creation_token_details": {
                    "ephemeral_5m_input_tokens": 600,
                    "ephemeral_1h_input_tokens": 300,
                },
            },
        },
        Usage(4000, 600, 300, 100, 7, "inclusive_default"),
    ),
    (
        "flat counters filled with 0 beside real details",
        {
            **DATABRICKS,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "prompt_tokens_details": {"cached_tokens": 4000},
        },
        Usage(4000, 0, 0, 1000, 7, "inclusive_default"),
    ),
    (
        "openai responses",
        {
            "input_tokens": 5000,
            "input_tokens_details": {"cached_tokens": 4000, "cache_write_tokens": 900},
            "output_tokens": 7,
            "total_tokens": 5007,
        },
        Usage(4000, 900, 0, 100, 7, "responses"),
    ),
    (
        "openai responses without details",
        {"input_tokens": 50, "output_tokens": 7, "total_tokens": 57},
        Usage(0, 0, 0, 50, 7, NO_COUNTERS),
    ),
    (
        "bedrock",
        {
            "inputTokens": 100,
            "outputTokens": 7,
            "totalTokens": 5007,
            "cacheReadInputTokens": 4000,
            "cacheWriteInputTokens": 900,
            "cacheDetails": [{"ttl": "1h", "inputTokens": 300}, {"ttl": "5m", "inputTokens": 600}],
        },
        Usage(4000, 600, 300, 100, 7, "bedrock"),
    ),
    (
        "bedrock without counters",
        {"inputTokens": 100, "outputTokens": 7, "cacheDetails": "none"},
        Usage(0, 0, 0, 100, 7, NO_COUNTERS),
    ),
    (
        "gemini",
        {
            "promptTokenCount": 5000,
            "cachedContentTokenCount": 4000,
            "candidatesTokenCount": 5,
            "thoughtsTokenCount": 2,
        },
        Usage(4000, 0, 0, 1000, 7, "gemini"),
    ),
    (
        "gemini's python sdk",
        {"prompt_token_count": 5000, "cached_content_token_count": None, "candidates_token_count": 7},
        Usage(0, 0, 0, 5000, 7, "gemini"),
    ),
    (
        "deepseek",
        {
            "prompt_tokens": 5000,
            "completion_tokens": 7,
            "total_tokens": 5007,
            "prompt_cache_hit_tokens": 4000,
            "prompt_cache_miss_tokens": 1000,
            "prompt_tokens_details": {"cached_tokens": 4000},
        },
        Usage(4000, 0, 0, 1000, 7, "deepseek"),
    ),
]


@pytest.mark.parametrize(("raw", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_usage_of_each_provider_is_read(raw: Json, expected: Usage) -> None:
    """Each provider's usage is read as its tokens in any container, and is not changed."""
    before = copy.deepcopy(raw)
    shapes = [
        raw,
        MappingProxyType(raw),
        SimpleNamespace(**raw),
        {"id": "x", "usage": raw},
        SimpleNamespace(id="x", usage=SimpleNamespace(**raw)),
        {"usageMetadata": raw},
        {"type": "message_start", "message": {"usage": raw}},
        {"type": "response.completed", "response": {"usage": raw}},
        {"metadata": {"usage": raw, "metrics": {}}},
    ]
    assert [read_usage(shape) for shape in shapes] == [expected] * len(shapes)
    assert raw == before


def test_usage_of_sdk_objects_is_read() -> None:
    """Pydantic objects are read with their declared, nested and extra fields."""
    chat = CompletionUsage.model_validate(ROWS[10][1])
    responses = ResponseUsage.model_validate(
        {**ROWS[12][1], "output_tokens_details": {"reasoning_tokens": 0}},
    )
    assert read_usage(chat) == ROWS[10][2]
    assert read_usage(responses) == ROWS[12][2]
    assert read_usage(SimpleNamespace(usage=CompletionUsage.model_validate(DATABRICKS))) == ROWS[3][2]


def test_usage_of_objects_with_slots_is_read() -> None:
    """An object without a dictionary is read by its attributes."""

    @dataclass(slots=True)
    class Slotted:
        input_tokens: int
        output_tokens: int
        cache_read_input_tokens: int

    assert read_usage(Slotted(10, 5, 7)) == Usage(7, 0, 0, 10, 5, "anthropic")


@pytest.mark.parametrize(
    ("ttl", "raw", "expected"),
    [
        ("1h", {"cache_creation_input_tokens": 900}, (0, 900)),
        ("5m", {"cache_creation_input_tokens": 900}, (900, 0)),
        (None, {"cache_creation_input_tokens": 900}, (900, 0)),
        (
            "1h",
            {"cache_creation_input_tokens": 900, "cache_creation": {"ephemeral_5m_input_tokens": 900}},
            (900, 0),
        ),
        (
            "1h",
            {"cache_creation_input_tokens": 900, "cache_creation": {"ephemeral_5m_input_tokens": 0}},
            (0, 900),
        ),
        (
            None,
            {"cache_creation_input_tokens": 900, "cache_creation": {"ephemeral_1h_input_tokens": 300}},
            (600, 300),
        ),
        (
            None,
            {"cache_creation_input_tokens": 900, "cache_creation": {"ephemeral_1h_input_tokens": 999}},
            (0, 900),
        ),
        (
            None,
            {"cache_creation": {"ephemeral_5m_input_tokens": 600, "ephemeral_1h_input_tokens": 300}},
            (600, 300),
        ),
        ("1h", {}, (0, 0)),
    ],
)
def test_ttl_of_writes_is_the_reported_one(ttl: Any, raw: Json, expected: tuple[int, int]) -> None:
    """The reported split wins, within the reported total; without a split the TTL of the request holds."""
    for base in ({"input_tokens": 10}, {"prompt_tokens": 5000}):
        found = read_usage({**base, **raw}, ttl=ttl)
        assert found is not None
        assert (found.cache_write_5m, found.cache_write_1h) == expected


@pytest.mark.parametrize(
    ("inclusive", "plain", "rule"),
    [(True, 100, "inclusive_told"), (False, 5000, "exclusive_told"), (None, 100, "inclusive_default")],
)
def test_inclusive_argument_wins_over_the_rules(inclusive: bool | None, plain: int, rule: str) -> None:
    """The argument `inclusive` wins over the rules."""
    found = read_usage(DATABRICKS, inclusive=inclusive)
    assert found is not None
    assert (found.uncached, found.rule) == (plain, rule)


def test_inclusive_usage_above_the_prompt_leaves_no_uncached_tokens() -> None:
    """More cached tokens than the prompt holds leave zero uncached tokens, not a negative number."""
    found = read_usage({**DATABRICKS, "prompt_tokens": 100}, inclusive=True)
    assert found == Usage(4000, 900, 0, 0, 7, "inclusive_told")


@pytest.mark.parametrize("bad", [None, -1, "12", float("nan"), float("inf"), 1.5, True, 10**13, [], {}, b"1"])
def test_bad_number_counts_as_absent(bad: object) -> None:
    """A value that cannot be a count is treated as absent."""
    without = {key: value for key, value in DATABRICKS.items() if key != "cache_read_input_tokens"}
    assert read_usage({**DATABRICKS, "cache_read_input_tokens": bad}) == read_usage(without)
    assert read_usage({**DATABRICKS, "prompt_tokens": bad}) is None
    assert read_usage({"input_tokens": bad, "output_tokens": 5}) is None


def test_whole_float_is_a_count() -> None:
    """A count that passed through a language of floats is a count."""
    assert read_usage({"prompt_tokens": 12.0, "completion_tokens": 3.0}) == Usage(0, 0, 0, 12, 3, NO_COUNTERS)


@pytest.mark.parametrize(
    "nothing", [None, {}, {"usage": None}, {"usage": {}}, "text", 7, [], {"choices": []}, object]
)
def test_answer_without_input_tokens_has_no_usage(nothing: object) -> None:
    """An answer without input tokens has no usage."""
    assert read_usage(nothing) is None


tokens = st.integers(0, 10**9)
usages = st.builds(Usage, tokens, tokens, tokens, tokens, tokens, st.just(""))


def _flat(usage: Usage, prompt: int, total: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": total,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_creation": _ephemeral(usage),
    }


def _ephemeral(usage: Usage) -> Json:
    return {
        "ephemeral_5m_input_tokens": usage.cache_write_5m,
        "ephemeral_1h_input_tokens": usage.cache_write_1h,
    }


def inclusive(usage: Usage) -> Json:
    """Render as Databricks is taken to: cached tokens inside the prompt."""
    return _flat(usage, usage.total, usage.total + usage.output)


def exclusive(usage: Usage) -> Json:
    """Render with cached tokens beside the prompt."""
    return _flat(usage, usage.uncached, usage.total + usage.output)


def anthropic(usage: Usage) -> Json:
    """Render as the Messages API does."""
    return {
        "input_tokens": usage.uncached,
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_creation": _ephemeral(usage),
        "output_tokens": usage.output,
    }


def litellm(usage: Usage) -> Json:
    """Render as LiteLLM does, everything twice."""
    whole = inclusive(usage)
    split = whole.pop("cache_creation")
    details = {"cached_tokens": usage.cache_read, "cache_creation_tokens": usage.cache_write}
    return {**whole, "prompt_tokens_details": {**details, "cache_creation_token_details": split}}


def bedrock(usage: Usage) -> Json:
    """Render as Bedrock Converse does."""
    details = [
        {"ttl": "5m", "inputTokens": usage.cache_write_5m},
        {"ttl": "1h", "inputTokens": usage.cache_write_1h},
    ]
    return {
        "inputTokens": usage.uncached,
        "outputTokens": usage.output,
        "cacheReadInputTokens": usage.cache_read,
        "cacheWriteInputTokens": usage.cache_write,
        "cacheDetails": details,
    }


def openai(usage: Usage) -> Json:
    """Render as OpenAI chat does."""
    return {
        "prompt_tokens": usage.total,
        "completion_tokens": usage.output,
        "total_tokens": usage.total + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
    }


def responses(usage: Usage) -> Json:
    """Render as OpenAI Responses does."""
    return {
        "input_tokens": usage.total,
        "output_tokens": usage.output,
        "total_tokens": usage.total + usage.output,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
    }


def gemini(usage: Usage) -> Json:
    """Render as Gemini does."""
    return {
        "promptTokenCount": usage.total,
        "cachedContentTokenCount": usage.cache_read,
        "candidatesTokenCount": usage.output,
    }


def deepseek(usage: Usage) -> Json:
    """Render as DeepSeek does."""
    return {
        "prompt_tokens": usage.total,
        "completion_tokens": usage.output,
        "total_tokens": usage.total + usage.output,
        "prompt_cache_hit_tokens": usage.cache_read,
        "prompt_cache_miss_tokens": usage.uncached,
    }


def same(found: Usage | None, expected: Usage) -> bool:
    """Compare all but the rule."""
    return found is not None and found == Usage(
        expected.cache_read,
        expected.cache_write_5m,
        expected.cache_write_1h,
        expected.uncached,
        expected.output,
        found.rule,
    )


@pytest.mark.parametrize("render", [inclusive, exclusive, anthropic, litellm, bedrock])
@given(usage=usages)
def test_usage_survives_each_format(render: Callable[[Usage], Json], usage: Usage) -> None:
    """A usage written in a provider's format is read as the same usage, TTLs included."""
    found = read_usage(json.loads(json.dumps(render(usage))))
    assert same(found, usage)
    assert found is not None
    assert found.total == usage.cache_read + usage.cache_write + usage.uncached


@pytest.mark.parametrize("render", [openai, responses])
@given(usage=usages, hour=st.booleans())
def test_writes_without_a_ttl_have_that_of_the_request(
    render: Callable[[Usage], Json], usage: Usage, hour: bool
) -> None:
    """Cache writes that are reported without a TTL have the TTL of the request."""
    written = usage.cache_write
    expected = Usage(
        usage.cache_read, 0 if hour else written, written if hour else 0, usage.uncached, usage.output, ""
    )
    assert same(read_usage(render(usage), ttl="1h" if hour else None), expected)


@pytest.mark.parametrize("render", [gemini, deepseek])
@given(usage=st.builds(Usage, tokens, st.just(0), st.just(0), tokens, tokens, st.just("")))
def test_format_with_reads_only_has_no_writes(render: Callable[[Usage], Json], usage: Usage) -> None:
    """Providers that report only reads have zero writes."""
    assert same(read_usage(render(usage)), usage)


@given(usages)
def test_exclusive_usage_without_a_total_is_recognised_by_size(usage: Usage) -> None:
    """Without a total, cached tokens above the prompt prove an exclusive count; the rest stays in doubt."""
    assume(usage.uncached < usage.cache_read + usage.cache_write)
    raw = exclusive(usage)
    del raw["total_tokens"]
    found = read_usage(raw)
    assert same(found, usage)
    assert found is not None
    assert found.rule == "exclusive_by_size"


KEYS = sorted({key for _, raw, _ in ROWS for key in raw} | {"usage", "message", "response", "usageMetadata"})
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS, "cached_tokens", "ttl", "inputTokens"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(junk, st.sampled_from([None, "5m", "1h"]), st.sampled_from([None, True, False]))
def test_read_usage_of_any_json_raises_nothing(value: Any, ttl: Any, told: bool | None) -> None:
    """Any JSON gives a usage of whole numbers from 0, or none, and is not changed."""
    before = repr(value)
    found = read_usage(value, ttl=ttl, inclusive=told)
    assert repr(value) == before
    if found is not None:
        counts = (found.cache_read, found.cache_write_5m, found.cache_write_1h, found.uncached, found.output)
        assert all(type(count) is int and count >= 0 for count in counts)


@given(st.lists(junk, max_size=4))
def test_merge_of_any_json_raises_nothing(chunks: list[Any]) -> None:
    """A stream of any JSON merges to something readable, and no chunk is changed."""
    before = repr(chunks)
    folded: object = None
    for chunk in chunks:
        folded = merge_chunk(folded, chunk)
    read_usage(folded)
    assert repr(chunks) == before


def _folded(*chunks: object) -> Usage | None:
    folded: object = None
    for chunk in chunks:
        folded = merge_chunk(folded, chunk)
    return read_usage(folded)


def test_usage_in_every_chunk_counts_once() -> None:
    """If each chunk repeats the usage, the last one counts."""
    early = {"usage": {**DATABRICKS, "completion_tokens": 1, "total_tokens": 5001}}
    assert _folded(early, {"usage": DATABRICKS}, {"usage": None}, {"choices": []}) == ROWS[3][2]


def test_sdk_chunks_merge_like_their_json() -> None:
    """Chunks as the SDK parses them merge like the JSON that they came from."""
    frame = {"id": "x", "choices": [], "created": 1, "model": "m", "object": "chat.completion.chunk"}
    chunks = [
        ChatCompletionChunk.model_validate({**frame, "usage": usage}) for usage in (None, DATABRICKS, None)
    ]
    assert _folded(*chunks) == ROWS[3][2]


def test_messages_stream_overwrites_counters() -> None:
    """The start of Anthropic's stream has the input; its deltas overwrite counters and never add to them."""
    start = {"type": "message_start", "message": {"usage": {**ANTHROPIC, "output_tokens": 1}}}
    delta = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 4, "input_tokens": None}}
    last = {"type": "message_delta", "usage": {"output_tokens": 7, "cache_read_input_tokens": 4000}}
    assert _folded(start, {"type": "ping"}, delta, last, {"type": "message_stop"}) == ROWS[0][2]


def test_messages_stream_of_mappings_changes_none() -> None:
    """Merging makes a new mapping each time."""
    first = merge_chunk(None, ANTHROPIC)
    kept = copy.deepcopy(first)
    assert merge_chunk(first, {"output_tokens": 9}) != first
    assert first == kept


def test_responses_stream_has_its_usage_at_the_end() -> None:
    """The completed event of a Responses stream carries the whole usage."""
    created = {"type": "response.created", "response": {"usage": None}}
    done = {"type": "response.completed", "response": {"usage": ROWS[12][1]}}
    assert _folded(created, done) == ROWS[12][2]


def test_stream_without_usage_has_none() -> None:
    """A stream that reported no usage merges to None."""
    assert _folded() is None
    assert _folded({"choices": []}, None) is None


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("ttl", [_nested(5_000), {"a": _nested(5_000)}, "x" * 1_000_000, 5, None])
def test_usage_with_a_lifetime_of_no_known_form_is_read_without_it(ttl: object) -> None:
    """Details of any depth or length that no provider sends are ignored, and the total counts."""
    usage = {
        "inputTokens": 10,
        "outputTokens": 1,
        "cacheWriteInputTokens": 7,
        "cacheDetails": [{"ttl": ttl, "inputTokens": 7}],
    }
    assert read_usage(usage) == Usage(0, 7, 0, 10, 1, "bedrock")


@pytest.mark.parametrize(
    "name", ["cache_creation", "prompt_tokens_details", "cacheDetails", "total_tokens", "message"]
)
@pytest.mark.parametrize(
    "value", [_nested(5_000), [{}] * 100_000, dict.fromkeys(range(100_000)), 10**4_000, "1" * 100_000]
)
def test_usage_with_a_huge_field_is_read_as_if_it_were_absent(name: str, value: object) -> None:
    """A field of the wrong form or size neither raises nor counts."""
    for usage in (
        {"prompt_tokens": 5, name: value},
        {"input_tokens": 5, name: value},
        {"inputTokens": 5, name: value},
    ):
        found = read_usage(usage)
        assert found is not None
        assert (found.cache_read, found.cache_write, found.uncached) == (0, 0, 5)
        assert read_usage(merge_chunk(None, {"usage": usage})) == found
