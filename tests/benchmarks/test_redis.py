"""The Redis benchmarks: their bodies, and the breaches that they find."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import orjson
import pytest

from benchmarks.fleet import Sample, Told, Traffic, fleet, usage
from benchmarks.redis_faults import REQUESTS as EACH
from benchmarks.redis_faults import STREAMS, TWINS, Moments, Probe, Run, table
from benchmarks.redis_overhead import Overhead, overhead
from benchmarks.redis_scale import Read, Row, learned
from benchmarks.redis_scale import table as rows
from benchmarks.redis_servers import standalone
from benchmarks.workloads.conversations import reference, small
from cachemw.core.planner.plan import Plan

BUDGET = 0.02


def test_reference_request_has_its_documented_size() -> None:
    """60 messages, 20 tools, 410 to 420 KB; each request of the conversation begins with the one before."""
    requests = reference(3)
    assert 410_000 < len(orjson.dumps(requests[-1])) < 420_000
    assert [len(request["messages"]) for request in requests] == [52, 54, 56, 58, 60]
    assert len(requests[-1]["tools"]) == 20
    assert requests[-1]["messages"][:58] == requests[-2]["messages"]
    assert requests == reference(3)
    assert requests[0]["messages"][1] != reference(4)[0]["messages"][1]


def test_small_conversations_of_one_head_share_only_the_head() -> None:
    """Conversations of one head have the same tools and system prompt, and no common message."""
    one, other = (list(small(name, "head", 3)) for name in ("one", "other"))
    assert one[0]["tools"] == other[2]["tools"] != next(small("one", "another", 1))["tools"]
    assert one[0]["messages"][0] == other[0]["messages"][0]
    assert one[0]["messages"][1] != other[0]["messages"][1]
    assert one[2]["messages"][:3] == [*one[0]["messages"], one[1]["messages"][2]]


def test_usage_of_an_answer_is_the_plans_estimate() -> None:
    """The usage has the plan's cache read and cache write."""
    assert usage(Plan(cache_read=5, cache_write_5m=3, uncached=2)) == {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 3,
    }


def test_fleet_of_both_twins_reports_every_request() -> None:
    """Sync and async workers send one kind of traffic after another, and report each request."""
    traffic = Traffic("memory://", "a fleet", ("sync", "async"), 10, streams=2, checked=True)
    with fleet(traffic, replace(traffic, hot=False, drained=True, gap=0.001)) as started:
        for _ in range(2):
            started.ready()
            started.go()
            for told in started.told():
                assert len(told.samples) == 20
                assert not told.failures
                assert told.ended > told.began
                assert all(sample.seconds > 0 and not sample.changed for sample in told.samples)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_overhead_of_a_round_has_times_of_both_stores(asynchronous: bool) -> None:
    """Each round has its times over both stores; the bare call names the keys of the request."""
    with standalone() as server:
        found = overhead(server.url, 2, asynchronous=asynchronous)
    assert found.keys > 20
    assert len(found.bare) == len(found.grown["redis"]) == len(found.again["memory"])
    assert [row[0].partition(",")[2] for row in found.rows()] == [" a turn more", " again"]


def test_process_after_another_ones_write_reads_its_entries() -> None:
    """The second process plans to read all tokens that the first one wrote in the same conversation."""
    with standalone() as server:
        assert list(learned(server.url, 1)) == []


def test_overhead_above_its_limit_is_named() -> None:
    """One and a half bare calls more than memory are allowed."""
    held = Overhead("sync")
    for times in (held.grown, held.again):
        times["memory"], times["redis"] = [0.001] * 20, [0.00129] * 20
    held.bare = [0.0002] * 20
    assert not list(held.broken())
    held.again["redis"] = [0.00131] * 20
    assert ["sync, again" in line for line in held.broken()] == [True]


ROW = Row(
    "cluster", 2, hot=True, rate=900.0, p50=1.0, p99=2.0, trips=1.0, reads=(Read(300, 9.0, 4, 5, 6),), requests=100,
    root=0.1, root_rate=30.0, root_bytes=20.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("row", "broken"),
    [
        (ROW, []),
        (replace(ROW, trips=1.1), ["round trips"]),
        (replace(ROW, root=0.5), ["commands a request"]),
        (replace(ROW, root=0.5, root_rate=200.0, hot=False), []),
        (replace(ROW, root_rate=200.0), ["a second and worker"]),
        (replace(ROW, store="memory", trips=0.0), []),
    ],
)
def test_fleet_over_a_limit_names_it(row: Row, broken: list[str]) -> None:
    """A row names more than one round trip, and a shared root that loads its slot with each request."""
    lines = list(row.broken())
    assert len(lines) == len(broken)
    assert all(part in line for part, line in zip(broken, lines, strict=True))
    assert rows([row, replace(row, reads=())]).row_count == 2


def run() -> Run:
    """Return a run in which no promise breaks."""
    requests = STREAMS * EACH
    told = [
        Told(samples=[Sample(float(n), 0.002, True, False, False) for n in range(requests)]) for _ in TWINS
    ]
    for one in told:
        one.counted = [(100.1, "error.store.TimeoutError"), (100.2, "store.away"), (103.5, "store.back")]
    seen = [(50.0, "sync"), (50.1, "async"), (104.0, "sync"), (104.5, "async")]
    return Run("freeze", Moments(100.0, 103.0), told, Probe(seen), len(TWINS) * requests, opens=True)


def slow(found: Run, count: int) -> None:
    """Slow down so many requests of each worker during the outage."""
    for one in found.told:
        one.samples[101 : 101 + count] = [s._replace(seconds=0.031) for s in one.samples[101 : 101 + count]]


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (lambda found: None, []),
        (lambda found: found.told[0].samples.pop(), ["1999 of 2000"]),
        (lambda found: found.told[0].failures.append("OSError"), ["OSError"]),
        (lambda found: slow(found, 1), ["p99 of prepare 31.0 ms, 30.0", "maximum of prepare"]),
        (lambda found: found.probe.seen.pop(), ["learned from another inf s"]),
        (lambda found: found.told[1].counted.pop(), ["asked again inf s"]),
        (lambda found: found.told[1].counted.clear(), ["only 3 of 4"]),
        (lambda found: found.told[2].counted.__setitem__(slice(0, 1), [found.told[2].counted[0]] * 6), ["6 calls"]),
        (lambda found: setattr(found, "reported", 7), ["7 calls in the report"]),
    ],
)  # fmt: skip
def test_outage_with_one_breach_names_it(spoil: object, broken: list[str]) -> None:
    """A run names lost, changed and slow requests, and workers that do not stop asking or do not learn again."""
    found = run()
    assert callable(spoil)
    spoil(found)
    lines = list(found.broken(BUDGET))
    assert len(lines) == len(broken), lines
    assert all(part in line for part, line in zip(broken, lines, strict=True))
    assert table([found]).row_count == 1


@pytest.mark.parametrize(
    ("field", "line"), [("changed", "1 bodies"), ("passed", "1 requests went as they came")]
)
def test_outage_with_one_changed_or_unplanned_request_names_it(field: str, line: str) -> None:
    """A single request breaks the promise."""
    found = run()
    found.told[0].samples[7] = found.told[0].samples[7]._replace(**{field: True})
    assert [line in found_line for found_line in found.broken(BUDGET)] == [True]


def test_unmarked_request_during_the_outage_is_named() -> None:
    """Before the outage a first arrival may stay unmarked."""
    found = run()
    samples = found.told[0].samples
    samples[7] = samples[7]._replace(marked=False)
    assert not list(found.broken(BUDGET))
    samples[102] = samples[102]._replace(marked=False)
    assert ["without a breakpoint" in line for line in found.broken(BUDGET)] == [True]


def test_bodies_of_an_endless_stream_are_made_one_by_one() -> None:
    """A stream's requests come one by one, five of each conversation."""
    traffic = Traffic("memory://", "lazily", ("sync",), 10**9)
    lengths = [len(body["messages"]) for body in islice(traffic.bodies(0, 0), 6)]
    assert lengths == [2, 4, 6, 8, 10, 2]
