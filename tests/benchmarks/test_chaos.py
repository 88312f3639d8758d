"""The accounts of a chaos run on invented requests, and the relay and clients on real sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from benchmarks.chaos import PHASES, killed, table
from benchmarks.load.accounts import DUE, Account, Kill, Sample, account, crossings, fate, saved, unreported
from benchmarks.load.bodies import breakpoints, digest
from benchmarks.load.client import Client, message
from benchmarks.load.hostile import FIRST, Hostile
from benchmarks.load.processes import provider, received, running
from benchmarks.load.provider import Received, numbered, without_usage
from benchmarks.load.traffic import Tenants, paced
from benchmarks.ports import free_port
from benchmarks.workloads.generated import MODEL

SENT = Sample(
    1, "paid-a", "digest", label="app=a", began=10.0, ended=10.1, port=4000, status=200, complete=True
)
ROW = Received(1, "paid-a", "digest", status=200, prompt=1000)
KILL = Kill(10.05, frozenset({4000}))
BODY = {
    "model": MODEL,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"cache_control": "a name"}}}],
    "messages": [{"role": "system", "content": "rules"}, {"role": "user", "content": "question"}],
}


@pytest.mark.parametrize(
    ("changed", "due"),
    [
        ({}, "answered"),
        ({"status": 0, "complete": False, "error": "ConnectionResetError"}, "lost"),
        ({"complete": False}, "lost"),
        ({"status": 502, "echoed": False}, "lost"),
        ({"fault": "500"}, "lost"),
        ({"fault": "500", "status": 500}, "answered"),
        ({"fault": "never", "status": 504, "echoed": False}, "answered"),
        ({"fault": "closed", "status": 502, "echoed": False}, "answered"),
        ({"echoed": False}, "crossed"),
        ({"fault": "half", "complete": False}, "answered"),
        ({"fault": "half", "complete": True}, "changed"),
        ({"fault": "stall", "status": 500, "complete": True}, "lost"),
        ({"status": 0, "complete": False, "error": "deadline"}, "hang"),
    ],
)
def test_fate_of_a_request_follows_its_clients_view(changed: dict[str, object], due: str) -> None:
    """Each way in which a request can end has one fate."""
    assert fate(replace(SENT, **changed)) == due  # type: ignore[arg-type]


def test_fate_on_a_killed_worker_is_killed_only_at_the_time_and_connection_of_the_kill() -> None:
    """A kill excuses only the requests in flight at that worker."""
    broken = replace(SENT, status=0, complete=False, error="IncompleteReadError")
    assert fate(broken, [KILL]) == "killed"
    assert fate(replace(broken, port=4001), [KILL]) == "lost"
    assert fate(replace(broken, began=20.0, ended=20.1), [KILL]) == "lost"
    assert fate(replace(broken, error="deadline"), [KILL]) == "hang"
    assert fate(SENT, [KILL]) == "answered"


def test_account_of_a_body_with_another_digest_counts_it_as_changed() -> None:
    """Bodies of good and hostile tenants are compared, and so is a second arrival of the same request."""
    hostile = replace(SENT, number=2, good=False, status=400)
    rows = [ROW, replace(ROW, digest="other"), replace(ROW, number=2, digest="other"), replace(ROW, number=9)]
    found = account([SENT, hostile], rows, [], MODEL)
    assert (found.requests, found.hostile, found.changed) == (1, 1, 2)
    assert "2 requests changed" in found.broken()


def test_account_of_a_request_with_another_key_counts_a_crossing() -> None:
    """A request that arrives with the key of another tenant has crossed."""
    assert account([SENT], [replace(ROW, key="paid-b")], [], MODEL).broken() == [
        "1 requests crossed to another tenant"
    ]


def test_account_of_times_leaves_out_requests_with_a_fault() -> None:
    """Slow answers of the provider are not the proxy's delay."""
    slow = replace(SENT, number=2, fault="slow", ended=12.0)
    late = replace(SENT, number=3, ended=11.5)
    found = account([SENT, slow, late], [], [], MODEL)
    assert found.times == [pytest.approx(0.1), pytest.approx(1.5)]
    assert found.late == 1
    assert not found.broken()


def test_account_of_a_hostile_request_that_hangs_breaks_a_promise() -> None:
    """Hostile requests may be refused, but must end."""
    hang = replace(SENT, good=False, error="deadline")
    assert account([hang], [], [], MODEL).broken() == ["1 requests over their deadline"]


def test_saved_share_is_net_of_the_premium_for_writes() -> None:
    """A read saves nine tenths of its tokens' price, a write costs a quarter more."""
    assert saved([replace(ROW, read=1000)], MODEL) == pytest.approx(0.9)
    assert saved([replace(ROW, written=1000)], MODEL) == pytest.approx(-0.25)
    assert saved([], MODEL) == 0.0


def test_crossings_count_only_requests_on_which_control_runs_agree() -> None:
    """Breakpoints that differ by chance between control runs do not count."""
    one, other = {1: ["a"], 2: ["b"], 3: ["c"]}, {1: ["a"], 2: ["b"], 3: ["d"]}
    assert crossings(one, other, {1: ["a"], 2: [], 3: []}) == ([2], 1)


def test_unreported_calls_are_those_missing_under_their_own_label() -> None:
    """A call that the report has under another label is missing under its own; refused calls are not due."""
    samples = [SENT, replace(SENT, number=2), replace(SENT, number=3, status=502)]
    assert unreported(samples, {"app=a": 1, "app=other": 5}) == 1
    assert unreported(samples, {"app=a": 3}) == 0


def test_digest_ignores_breakpoints_and_nothing_else() -> None:
    """Breakpoints and their lists do not count; texts, order and names of parameters do."""
    mark = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "rules", **mark}
    tools = [{**BODY["tools"][0], **mark}]  # type: ignore[dict-item]
    marked = {
        **BODY,
        "tools": tools,
        "messages": [{"role": "system", "content": [part]}, BODY["messages"][1]],
    }
    sent = orjson.dumps(BODY)
    assert digest(orjson.dumps(marked)) == digest(sent)
    assert breakpoints(orjson.dumps(marked)) == ["tools.0:5m", "messages.0.content.0:5m"]
    for change in (
        {"messages": BODY["messages"][::-1]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"temperature": 0},
        {"cache_control": {"type": "ephemeral"}},
    ):
        assert digest(orjson.dumps({**BODY, **change})) != digest(sent)
    assert digest(b"{") != digest(b"{ ")


def test_altered_answers_keep_their_length() -> None:
    """A number in an answer and usage taken out of it move no byte after them."""
    answer = b'{"id":"chatcmpl-simulated","usage":{"a":1,"b":{"c":2}},"x":1}'
    assert len(numbered(answer, 7)) == len(without_usage(answer)) == len(answer)
    assert orjson.loads(without_usage(answer)) == {"id": "chatcmpl-simulated", "usage": None, "x": 1}
    assert orjson.loads(numbered(answer, 7))["id"] == "chatcmpl-000000007"


def test_tenants_of_one_seed_send_the_same_bodies() -> None:
    """Control runs and the run beside hostile tenants can be compared request by request."""
    bodies = []

    class Kept(Client):
        async def ask(self, message: bytes, leave_after: float | None = None):  # type: ignore[no-untyped-def]
            bodies.append(message)
            return await super().ask(message, leave_after)

    async def both() -> None:
        for _ in range(2):
            tenants = Tenants("seed", 2, 3, lifetime=4)
            await paced(lambda tenants=tenants: tenants.ask(Kept(1, 5.0), {}), 20, 1e6)  # type: ignore[misc]

    asyncio.run(both())
    assert bodies[:20] == bodies[20:]
    assert b"x-cachemw-label-app: seed-0-1" in b"".join(bodies)


def test_provider_asked_for_each_fault_gives_the_due_answer(tmp_path: Path) -> None:
    """Without a proxy between, the provider gives the requested answers and records each request."""
    faults = [name for name in DUE if name not in ("never", "closed")] + ["half"]

    async def asked(port: int) -> list[Sample]:
        client, found = Client(port, 60.0), []
        tenants = Tenants("seed", 1, 1)
        for fault in faults:
            found.append(await tenants.ask(client, {fault: 1.0}))  # noqa: PERF401 - one after another
        evil = Hostile("seed", ["head of seed-0-0"])
        found += [await evil.ask(client) for _ in range(30)]
        client.close()
        return found

    with provider(tmp_path) as upstream:
        samples, rows = asyncio.run(asked(upstream.port)), received(upstream)
        assert received(upstream) == []
    good = [sample for sample in samples if sample.good]
    assert [fate(sample) for sample in good] == ["answered"] * len(faults)
    assert {row.digest for row in rows if row.number < FIRST} == {sample.digest for sample in good}
    assert not account(samples, rows, [], MODEL).broken()


@pytest.fixture
def echo() -> Callable[[int], list[str]]:
    """Return the command of a server that answers every line with itself."""
    text = (
        "import asyncio,sys\n"
        "async def one(r,w):\n"
        "    while d:=await r.readline(): w.write(d)\n"
        "async def main():\n"
        "    await (await asyncio.start_server(one,'127.0.0.1',int(sys.argv[1]))).serve_forever()\n"
        "asyncio.run(main())\n"
    )
    return lambda port: [sys.executable, "-c", text, str(port)]


def test_relay_in_each_mode_passes_refuses_or_holds_back(
    tmp_path: Path, echo: Callable[[int], list[str]]
) -> None:
    """A relay lets data through, holds it back without loss, and ends connections."""
    target, port = free_port(), free_port()

    async def first_held(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """Return the first line that does not come back: the relay needs a moment to change its mode."""
        for number in range(1_000):
            line = b"%d\n" % number
            writer.write(line)
            try:
                assert await asyncio.wait_for(reader.readline(), 0.5) == line
            except TimeoutError:
                return line
        raise AssertionError("the relay still passes lines")

    async def through(set_to: Callable[[str], None]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        set_to("blackhole")
        held = await first_held(reader, writer)
        set_to("pass")
        assert await asyncio.wait_for(reader.readline(), 60) == held
        set_to("refuse")
        with pytest.raises((ConnectionError, EOFError)):
            await asyncio.wait_for(reader.readexactly(1), 60)
        writer.close()

    relay = [sys.executable, "-m", "benchmarks.load.relay", f"{port}:{target}"]
    with (
        running(echo(target), target, tmp_path / "echo.log"),
        running(relay, port, tmp_path / "relay.log") as process,
    ):

        def set_to(mode: str) -> None:
            assert process.popen.stdin is not None
            process.popen.stdin.write(f"{mode}\n".encode())
            process.popen.stdin.flush()

        asyncio.run(through(set_to))


def test_kill_of_a_worker_names_the_connections_that_it_held(
    tmp_path: Path, echo: Callable[[int], list[str]]
) -> None:
    """A kill knows the clients' ports of the worker's connections, and ends the worker."""
    port = free_port()

    async def connected(pid: int) -> tuple[Kill, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"accepted\n")
        assert await reader.readline() == b"accepted\n"
        kill = killed(pid, port)
        own: int = writer.get_extra_info("sockname")[1]
        writer.transport.abort()
        return kill, own

    with running(echo(port), port, tmp_path / "echo.log") as process:
        kill, own = asyncio.run(connected(process.popen.pid))
        assert process.popen.wait(60) == -signal.SIGKILL
    assert own in kill.ports
    assert os.getpid() not in kill.ports


def test_running_server_ends_when_its_block_raises(tmp_path: Path, echo: Callable[[int], list[str]]) -> None:
    """No process outlives a run that fails."""
    port = free_port()
    with pytest.raises(KeyError), running(echo(port), port, tmp_path / "log") as process:
        raise KeyError
    assert process.popen.poll() is not None
    with pytest.raises(RuntimeError, match="does not serve"), running(["false"], port, tmp_path / "log"):
        pass


def test_client_that_leaves_or_waits_too_long_reports_it(
    tmp_path: Path, echo: Callable[[int], list[str]]
) -> None:
    """A server that never answers is a hang; a client that leaves is none."""

    async def asked(port: int) -> list[str]:
        raw = b"no answer"
        return [(await Client(port, 0.3).ask(raw)).error, (await Client(port, 60.0).ask(raw, 0.1)).error]

    port = free_port()
    with running(echo(port), port, tmp_path / "log"):
        assert asyncio.run(asked(port)) == ["deadline", "left"]
    assert message({"a": "b"}, b"{}").endswith(b"\r\na: b\r\ncontent-length: 2\r\n\r\n{}")


def test_table_shows_times_over_the_healthy_phase() -> None:
    """A phase shows its added delay; the healthy phase shows its own times."""
    accounts = {"healthy": Account(times=[0.1]), "fault": Account(times=[0.3])}
    cells = [list(column.cells) for column in table(accounts).columns]
    assert cells[8] == ["+100", "+200"]
    assert len({phase.name for phase in PHASES}) == len(PHASES)
