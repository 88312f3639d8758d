"""Any provider's usage as one `Usage`: which of the input tokens were read, written, or plain.

Contains: the formats in which providers report tokens, which of them count cached tokens inside the prompt,
and how the usage of a stream adds up. Must not depend on: prices, plans, rows of providers. The format alone
decides, so the name of a gateway does not matter. Arguments are never changed.

`Usage.rule` names the rule by which the numbers were read:

================== ===================================================================================
anthropic          `input_tokens` excludes cache reads and cache writes
bedrock            `inputTokens`, the same in camel case
responses          `input_tokens` of OpenAI Responses, cached tokens inside
openai_details     `prompt_tokens` with `prompt_tokens_details`, cached tokens inside
inclusive_default  `prompt_tokens` with flat counters and nothing against their being inside
exclusive_by_total outside, because `total_tokens` is the sum of all four
exclusive_by_size  outside, because cache reads and writes exceed the prompt
inclusive_told     inside, by the argument `inclusive`
exclusive_told     outside, by the argument `inclusive`
deepseek           `prompt_cache_hit_tokens` inside `prompt_tokens`
gemini             `cachedContentTokenCount` inside `promptTokenCount`
no_counters        the answer has no cache counters: all tokens count as uncached
================== ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from cachemw.core.rules.types import Ttl

NO_COUNTERS = "no_counters"

_Get = Callable[[str], object]

# No prompt has this many tokens: a higher number is a broken counter and would spoil the sums of a ledger.
_LIMIT = 10**12
_CARRIERS = ("usage", "usageMetadata", "usage_metadata")
_ENVELOPES = ("message", "response", "metadata")
_COUNTERS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
_TABLES = ("cache_creation", "input_tokens_details", "total_tokens")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answered request. Input is the disjoint sum of cache read, cache writes and uncached."""

    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    uncached: int
    output: int
    rule: str

    @property
    def cache_write(self) -> int:
        """Return the tokens written to the provider cache with any TTL."""
        return self.cache_write_5m + self.cache_write_1h

    @property
    def total(self) -> int:
        """Return all input tokens."""
        return self.cache_read + self.cache_write_5m + self.cache_write_1h + self.uncached


def read_usage(response: object, *, ttl: Ttl | None = None, inclusive: bool | None = None) -> Usage | None:
    """Return the usage in `response`: a usage, a response or a stream event, as a mapping or SDK object.

    Return None if no input tokens are reported. A value that is no count (negative, text, NaN, a bool) counts
    as absent.

    Args:
        response: the object to read.
        ttl: the TTL of all breakpoints, if they have one. It holds for cache writes that are reported without
            a TTL,
            which else count as 5m.
        inclusive: if `prompt_tokens` includes cached tokens; None lets the numbers decide.
    """
    get = _reader(_carried(response))
    if (prompt := _count(get("prompt_tokens"))) is not None:
        return _chat(get, prompt, ttl, inclusive)
    if (given := _count(get("input_tokens"))) is not None:
        return _messages(get, given, ttl, inclusive)
    if (given := _count(get("inputTokens"))) is not None:
        return _bedrock(get, given, ttl)
    if (prompt := _either(get, "promptTokenCount", "prompt_token_count")) is not None:
        return _gemini(get, prompt)
    return None


def merge_chunk(previous: object, chunk: object) -> object:
    """Return the usage that a stream has reported so far, for `read_usage` at its end.

    Start with None and pass each chunk or event. Usage that is repeated in every chunk is replaced, never
    summed. Anthropic's usage comes in parts and is overwritten counter by counter.
    """
    found = _carried(chunk)
    get = _reader(found)
    if get("prompt_tokens") is None and (
        fresh := {key: get(key) for key in _COUNTERS if _count(get(key)) is not None}
    ):
        fresh |= {key: get(key) for key in _TABLES if get(key) is not None}
        return {**previous, **fresh} if isinstance(previous, dict) else fresh
    return found if read_usage(found) is not None else previous


def _chat(get: _Get, prompt: int, ttl: Ttl | None, inclusive: bool | None) -> Usage:
    details = _reader(get("prompt_tokens_details"))
    flat_read, flat_write = _count(get("cache_read_input_tokens")), _count(get("cache_creation_input_tokens"))
    hit = _count(get("prompt_cache_hit_tokens"))
    cached = _count(details("cached_tokens"))
    made = _most(_count(details("cache_write_tokens")), _count(details("cache_creation_tokens")))
    # Gateways repeat one figure in several places, or fill an unknown one with 0: take the highest.
    read = _most(flat_read, cached, hit)
    written = _most(flat_write, made)
    made_by_ttl = details("cache_creation_token_details") or get("cache_creation_token_details")
    write_5m, write_1h = _split(written, ttl, made_by_ttl, get("cache_creation"))
    if hit is not None:
        rule = "deepseek"
    elif flat_read is not None or flat_write is not None:
        rule = "inclusive_default"
    else:
        rule = NO_COUNTERS if read is None and not write_5m + write_1h else "openai_details"
    output = _count(get("completion_tokens")) or 0
    total = _count(get("total_tokens"))
    return _inside(prompt, read or 0, write_5m, write_1h, output, total, rule, inclusive)


def _messages(get: _Get, given: int, ttl: Ttl | None, inclusive: bool | None) -> Usage:
    read, written = _count(get("cache_read_input_tokens")), _count(get("cache_creation_input_tokens"))
    output = _count(get("output_tokens")) or 0
    details, total = get("input_tokens_details"), _count(get("total_tokens"))
    if details is None and total is None:
        write_5m, write_1h = _split(written, ttl, get("cache_creation"))
        silent = read is None and written is None and not write_5m + write_1h
        return Usage(read or 0, write_5m, write_1h, given, output, NO_COUNTERS if silent else "anthropic")
    inner = _reader(details)
    read = _most(read, _count(inner("cached_tokens")))
    written = _most(written, _count(inner("cache_write_tokens")))
    write_5m, write_1h = _split(written, ttl)
    rule = NO_COUNTERS if read is None and written is None else "responses"
    return _inside(given, read or 0, write_5m, write_1h, output, total, rule, inclusive)


def _bedrock(get: _Get, given: int, ttl: Ttl | None) -> Usage:
    read, written = _count(get("cacheReadInputTokens")), _count(get("cacheWriteInputTokens"))
    split: dict[str, object] = {}
    details = get("cacheDetails")
    for entry in details if isinstance(details, (list, tuple)) else ():
        inner = _reader(entry)
        if (lifetime := inner("ttl")) == "5m" or lifetime == "1h":
            split[f"ephemeral_{lifetime}_input_tokens"] = inner("inputTokens")
    write_5m, write_1h = _split(written, ttl, split)
    rule = NO_COUNTERS if read is None and written is None and not write_5m + write_1h else "bedrock"
    return Usage(read or 0, write_5m, write_1h, given, _count(get("outputTokens")) or 0, rule)


def _gemini(get: _Get, prompt: int) -> Usage:
    read = min(_either(get, "cachedContentTokenCount", "cached_content_token_count") or 0, prompt)
    answer = _either(get, "candidatesTokenCount", "candidates_token_count") or 0
    thoughts = _either(get, "thoughtsTokenCount", "thoughts_token_count") or 0
    return Usage(read, 0, 0, prompt - read, answer + thoughts, "gemini")


def _inside(
    prompt: int,
    read: int,
    write_5m: int,
    write_1h: int,
    output: int,
    total: int | None,
    rule: str,
    inclusive: bool | None,
) -> Usage:
    """Subtract cached tokens from the prompt, unless the numbers or the caller say that it excludes them."""
    cached = read + write_5m + write_1h
    if inclusive is not None:
        rule = "inclusive_told" if inclusive else "exclusive_told"
    elif cached and total == prompt + cached + output:
        inclusive, rule = False, "exclusive_by_total"
    elif prompt < cached:
        inclusive, rule = False, "exclusive_by_size"
    plain = prompt if inclusive is False else max(0, prompt - cached)
    return Usage(read, write_5m, write_1h, plain, output, rule)


def _split(written: int | None, ttl: Ttl | None, *tables: object) -> tuple[int, int]:
    """Return written tokens as 5m and 1h tokens by the first table that has them, up to the total."""
    for table in tables:
        if table is None:
            continue
        get = _reader(table)
        write_5m = _count(get("ephemeral_5m_input_tokens")) or 0
        write_1h = _count(get("ephemeral_1h_input_tokens")) or 0
        if write_5m or write_1h:
            if written is None:
                return write_5m, write_1h
            write_1h = min(write_1h, written)
            return written - write_1h, write_1h
    return (0, written or 0) if ttl == "1h" else (written or 0, 0)


def _carried(response: object) -> object:
    """Return the usage inside a response or stream event, or the argument itself if it holds none."""
    get = _reader(response)
    for name in _CARRIERS:
        if (found := get(name)) is not None:
            return found
    for envelope in _ENVELOPES:
        if (inner := get(envelope)) is not None:
            read = _reader(inner)
            for name in _CARRIERS:
                if (found := read(name)) is not None:
                    return found
    return response


def _reader(source: object) -> _Get:
    """Return a function that reads a field of a mapping or an object; a missing field is None."""
    if isinstance(source, Mapping) or source is None:
        return cast("_Get", (source or {}).get)
    # The attribute lookup of a pydantic model costs microseconds for each missing name.
    extra = getattr(source, "__pydantic_extra__", False)
    if extra is None or isinstance(extra, dict):
        return cast("_Get", {**vars(source), **(extra or {})}.get)
    return lambda name: getattr(source, name, None)


def _count(value: object) -> int | None:
    if type(value) is int:
        return value if 0 <= value <= _LIMIT else None
    if isinstance(value, float) and 0 <= value <= _LIMIT and value.is_integer():
        return int(value)
    return None


def _most(*counts: int | None) -> int | None:
    most = None
    for count in counts:
        if count is not None and (most is None or count > most):
            most = count
    return most


def _either(get: _Get, camel: str, snake: str) -> int | None:
    found = _count(get(camel))
    return _count(get(snake)) if found is None else found
