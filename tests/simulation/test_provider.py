"""Cache reads, cache writes and entries of requests: the provider's worked examples, and the edge cases."""

from __future__ import annotations

import pytest

from cachemw.core.rules.types import Model, Ttl
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache, Ticket
from tests.simulation.prompts import MODEL, TAIL, cache, prompt, send


def tokens(ticket: Ticket) -> tuple[int, int, int, int]:
    """Return cache_read, cache_write_5m, cache_write_1h, uncached."""
    return ticket.cache_read, ticket.cache_write_5m, ticket.cache_write_1h, ticket.uncached


def test_lookback_matches_the_example_of_the_document() -> None:
    """A marker at 35 misses the entry at 15 by one position; a second marker finds it."""
    provider = cache()
    assert tokens(send(provider, prompt(10, {10: "5m"}), 0)) == (0, 1000, 0, TAIL)
    assert tokens(send(provider, prompt(15, {15: "5m"}), 1)) == (1000, 500, 0, TAIL)
    assert provider.begin(prompt(35, {35: "5m"}), 2).cache_read == 0
    assert provider.begin(prompt(35, {15: "5m", 35: "5m"}), 2).cache_read == 1500


@pytest.mark.parametrize(
    ("options", "distance", "found"),
    [({}, 0, True), ({}, 19, True), ({}, 20, False), ({"lookback": 1}, 0, True), ({"lookback": 1}, 1, False)],
)
def test_marker_examines_twenty_positions_including_its_own(
    options: dict[str, object], distance: int, found: bool
) -> None:
    """An entry 19 blocks back is found, one 20 blocks back is not."""
    provider = cache(**options)
    send(provider, prompt(10, {10: "5m"}), 0)
    ticket = provider.begin(prompt(10 + distance, {10 + distance: "5m"}), 1)
    assert ticket.cache_read == (1000 if found else 0)
    assert ticket.hit == (9 if found else -1)


def test_longest_cached_prefix_is_read() -> None:
    """With entries at 5 and 10 and a marker on both, 10 is read."""
    provider = cache()
    send(provider, prompt(10, {5: "5m", 10: "5m"}), 0)
    assert tokens(provider.begin(prompt(12, {5: "5m", 12: "5m"}), 1)) == (1000, 200, 0, TAIL)


def test_shorter_prompt_reads_at_former_markers_only() -> None:
    """A prefix without a marker was not written, so a shorter prompt cannot read it."""
    provider = cache()
    send(provider, prompt(10, {10: "5m"}), 0)
    assert provider.begin(prompt(9, {9: "5m"}), 1).cache_read == 0
    assert provider.begin(prompt(9, {}), 1).uncached == 900 + TAIL


@pytest.mark.parametrize(
    ("ttl", "begins", "refreshed", "at", "found"),
    [
        ("5m", 0.0, None, 299.999, True),
        ("5m", 0.0, None, 300.0, False),
        ("5m", 290.0, None, 299.999, True),
        ("5m", 290.0, None, 300.0, False),
        ("5m", 0.0, 200.0, 499.999, True),
        ("5m", 0.0, 200.0, 500.0, False),
        ("1h", 0.0, None, 3599.999, True),
        ("1h", 0.0, None, 3600.0, False),
        ("1h", 0.0, 3000.0, 6599.999, True),
        ("1h", 0.0, 3000.0, 6600.0, False),
    ],
)
def test_ttl_runs_from_the_start_of_the_writer_or_reader(
    ttl: Ttl, begins: float, refreshed: float | None, at: float, found: bool
) -> None:
    """A slow answer does not extend an entry; a read does, from the reader's start."""
    provider = cache()
    send(provider, prompt(10, {10: ttl}), 0, begins)
    if refreshed is not None:
        # The reader marks 5m: the entry keeps the TTL that it was written with.
        assert send(provider, prompt(10, {10: "5m"}), refreshed, refreshed + 60).cache_read == 1000
    assert provider.begin(prompt(10, {10: ttl}), at).cache_read == (1000 if found else 0)


def test_only_entries_under_a_marker_are_refreshed() -> None:
    """The head is refreshed by its own marker only, however often the tail is read."""
    cases: list[tuple[dict[int, Ttl], bool]] = [({5: "5m", 10: "5m"}, True), ({10: "5m"}, False)]
    for marked, alive in cases:
        provider = cache()
        send(provider, prompt(10, {5: "5m", 10: "5m"}), 0)
        assert send(provider, prompt(10, marked), 200).cache_read == 1000
        assert provider.begin(prompt(5, {5: "5m"}), 400).cache_read == (500 if alive else 0)


@pytest.mark.parametrize(
    ("warm", "length", "markers", "expected"),
    [
        ({}, 12, {5: "1h", 10: "5m"}, (0, 500, 500, 200 + TAIL)),
        ({}, 12, {5: "1h", 10: "1h"}, (0, 0, 1000, 200 + TAIL)),
        ({10: "5m"}, 15, {12: "1h", 15: "5m"}, (1000, 300, 200, TAIL)),
        ({10: "5m"}, 15, {5: "1h", 15: "5m"}, (1000, 500, 0, TAIL)),
        ({10: "5m"}, 15, {15: "1h"}, (1000, 0, 500, TAIL)),
        ({10: "1h"}, 15, {5: "1h", 10: "1h"}, (1000, 0, 0, 500 + TAIL)),
        ({10: "1h"}, 15, {}, (0, 0, 0, 1500 + TAIL)),
    ],
)
def test_mixed_ttls_are_billed_up_to_the_last_1h_marker(
    warm: dict[int, Ttl], length: int, markers: dict[int, Ttl], expected: tuple[int, int, int, int]
) -> None:
    """Cache read up to the hit, 1h up to the last 1h marker, 5m up to the last marker, then uncached."""
    provider = cache()
    if warm:
        send(provider, prompt(10, warm), 0)
    assert tokens(provider.begin(prompt(length, markers), 1)) == expected


def test_1h_marker_on_a_cached_5m_prefix_keeps_its_ttl() -> None:
    """A marker at or before the hit writes and bills nothing."""
    provider = cache()
    send(provider, prompt(10, {10: "5m"}), 0)
    assert tokens(send(provider, prompt(10, {10: "1h"}), 100)) == (1000, 0, 0, TAIL)
    assert provider.begin(prompt(10, {10: "1h"}), 400).cache_read == 0


@pytest.mark.parametrize(
    ("source", "marker", "life"),
    [("5m", "1h", 300), ("1h", "5m", 300), ("1h", "1h", 3600), ("5m", "5m", 300)],
)
@pytest.mark.parametrize("late", [False, True])
def test_expired_head_is_restored_with_the_shorter_ttl(
    source: Ttl, marker: Ttl, life: int, late: bool
) -> None:
    """The head gets the TTL of its marker, but at most that of the entry that was read."""
    provider = cache()
    again = {"5m": 200.0, "1h": 3000.0}[source]
    send(provider, prompt(10, {5: source, 10: source}), 0)
    send(provider, prompt(10, {10: source}), again)
    now = {"5m": 400.0, "1h": 4000.0}[source]
    back = send(provider, prompt(10, {5: marker, 10: "5m"}), now)
    assert tokens(back) == (1000, 0, 0, TAIL)
    assert provider.begin(prompt(5, {5: "5m"}), now + life - 0.001 + late).cache_read == (0 if late else 500)


def test_entry_is_readable_once_its_answer_has_begun() -> None:
    """Requests before that write the same prefix again; the first one after it reads."""
    provider = cache()
    request = prompt(10, {10: "5m"})
    cold = [provider.begin(request, at) for at in (0.0, 0.0, 0.5)]
    assert [ticket.cache_write_5m for ticket in cold] == [1000] * 3
    provider.answer_began(cold[0], 2.0)
    assert provider.begin(request, 1.999).cache_write_5m == 1000
    assert provider.begin(request, 2.0).cache_read == 1000


def test_unanswered_request_writes_no_entry() -> None:
    """Only `answer_began` writes."""
    provider = cache()
    provider.begin(prompt(10, {10: "5m"}), 0)
    assert provider.begin(prompt(10, {10: "5m"}), 100).cache_read == 0


def test_two_writers_keep_the_longer_ttl() -> None:
    """A 1h write keeps its TTL, whichever answer begins first."""
    for order in ((0, 1), (1, 0)):
        provider = cache()
        tickets = [provider.begin(prompt(10, {10: ttl}), 0) for ttl in ("5m", "1h")]
        for index in order:
            provider.answer_began(tickets[index], 1 + index)
        assert provider.begin(prompt(10, {10: "5m"}), 1).cache_read == 1000
        assert provider.begin(prompt(10, {10: "5m"}), 3599).cache_read == 1000


def test_expired_entry_is_replaced() -> None:
    """A new 5m write over an expired 1h entry has a TTL of five minutes."""
    provider = cache()
    send(provider, prompt(10, {10: "1h"}), 0)
    send(provider, prompt(10, {10: "5m"}), 4000)
    assert provider.begin(prompt(10, {10: "5m"}), 4299).cache_read == 1000
    assert provider.begin(prompt(10, {10: "5m"}), 4600).cache_read == 0


@pytest.mark.parametrize(("minimum", "written"), [(1000, 1000), (1001, 0), (None, 0)])
def test_prefix_under_the_minimum_is_not_stored(minimum: int | None, written: int) -> None:
    """1,000 tokens pass a minimum of 1,000, but not 1,001, and not the model's own 1,024."""
    provider = cache(minimum=minimum)
    assert tokens(send(provider, prompt(10, {10: "5m"}), 0)) == (0, written, 0, 1000 - written + TAIL)
    assert provider.begin(prompt(10, {10: "5m"}), 1).cache_read == written


def test_minimum_counts_the_whole_prefix() -> None:
    """A marker on a head below the minimum has no effect; a later one writes head and all."""
    provider = cache(minimum=1024)
    assert tokens(send(provider, prompt(11, {5: "1h", 11: "5m"}), 0)) == (0, 1100, 0, TAIL)
    assert provider.begin(prompt(5, {5: "5m"}), 1).cache_read == 0


@pytest.mark.parametrize(("collapse", "read"), [(False, 0), (True, 100)])
def test_wide_fan_out_is_bridged_if_runs_collapse(collapse: bool, read: int) -> None:
    """24 calls and their 24 results are 48 positions, or two."""
    provider = cache(run_collapse=collapse)
    kinds = ["text", *["tool_use"] * 24, *["tool_result"] * 24]
    send(provider, prompt(1, {1: "5m"}, kinds=kinds), 0)
    assert provider.begin(prompt(49, {49: "5m"}, kinds=kinds), 1).cache_read == read


def test_too_many_markers_and_a_late_1h_are_refused() -> None:
    """The texts of these two 400s, for a prompt of numbered blocks."""
    provider = cache()
    with pytest.raises(Refused) as many:
        provider.begin(prompt(5, dict.fromkeys(range(1, 6), "5m")), 0)
    assert (many.value.status, many.value.message) == (
        400,
        "A maximum of 4 blocks with cache_control may be provided. Found 5.",
    )
    with pytest.raises(Refused, match="a ttl='1h' cache_control block must not come after a ttl='5m'"):
        provider.begin(prompt(5, {1: "5m", 2: "1h"}), 0)


def test_model_without_breakpoints_ignores_markers() -> None:
    """Databricks serves some models without prompt caching: their markers bill nothing and are no 400."""
    provider = ProviderCache(Model("gpt-test", 0, None, caching="automatic"), Options(minimum=0))
    part = {"type": "text", "text": "hello", "cache_control": {"type": "odd"}}
    ticket = provider.begin({"messages": [{"role": "user", "content": [part]}]}, 0)
    assert tokens(ticket) == (0, 0, 0, ticket.request.total)


def test_expired_entries_are_dropped_and_cached_ones_stay() -> None:
    """Thousands of expired entries are dropped; a cached one is still read."""
    provider = cache()
    send(provider, prompt(1, {1: "1h"}, seed="kept"), 0)
    for number in range(9000):
        send(provider, prompt(1, {1: "5m"}, seed=str(number)), number * 0.3)
    assert len(provider._entries) < 5000
    assert provider.begin(prompt(1, {1: "1h"}, seed="kept"), 3000).cache_read == 100


def test_token_bias_differs_by_seed() -> None:
    """Token counts differ by seed, within 0.9 to 1.2 of the unbiased count."""
    body = {"messages": [{"role": "user", "content": "Some words to count. " * 500}]}
    totals = {ProviderCache(MODEL, Options(bias_seed=seed)).convert(body).total for seed in range(20)}
    assert len(totals) > 15
    assert 1.1 < max(totals) / min(totals) < 1.34
