"""The ledger on real servers: any worker reports exactly for all, also after the death of a worker."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

import cachemw
from benchmarks.redis_servers import until
from cachemw.stores.redis._sync import RedisStore

MODEL = "claude-sonnet-4-6"
WEEK = 7 * 24 * 3_600_000
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Who pays for what? " * 500}]}
SUMS = ("calls", "unsettled", "cache_read", "cache_write_5m", "cache_write_1h", "uncached", "output")
MONEY = ("paid", "baseline", "saved_by_cachemw", "saved_by_client")


@pytest.fixture(params=["valkey", "three"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the URL of each topology."""
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, str) else str(found.url)


def options(url: str, namespace: str) -> dict[str, Any]:
    """Return a patient worker's settings."""
    return {
        "provider": "databricks", "store": url, "secret": "of all", "namespace": namespace, "store_timeout_ms": 5000,
    }  # fmt: skip


def usage(number: int) -> dict[str, int]:
    """Return odd numbers of tokens, no two alike."""
    return {
        "prompt_tokens": 50_021 + 7 * number,
        "completion_tokens": number,
        "cache_read_input_tokens": 10_007 + number,
        "cache_creation_input_tokens": 20_011 + 3 * number,
    }


def sums(report: cachemw.Report) -> dict[str, int | Decimal]:
    """Return the totals by name."""
    return {name: getattr(report.totals, name) for name in (*SUMS, *MONEY)}


def test_report_of_any_worker_covers_all_workers(url: str) -> None:
    """Threads of sync workers and tasks of an async one report the same sums, those of all receipts."""
    namespace = f"all {time.time_ns()}"
    workers = [cachemw.Middleware(**options(url, namespace)) for _ in range(3)]

    def work(number: int) -> cachemw.Receipt:
        worker = workers[number % 3]
        return worker.settle(worker.prepare(BODY, {"app": f"app {number % 2}"}), usage(number))

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(work, range(120)))

    async def others() -> tuple[list[cachemw.Receipt], cachemw.Report]:
        worker = cachemw.AsyncMiddleware(**options(url, namespace))

        async def act(number: int) -> cachemw.Receipt:
            return await worker.settle(await worker.prepare(BODY, {"app": "app 1"}), usage(number))

        made = await asyncio.gather(*(act(number) for number in range(120, 180)))
        for mw in workers:
            assert await asyncio.to_thread(mw.flush)
        report = await worker.report()
        await worker.close()
        return made, report

    more, told = asyncio.run(others())
    receipts += more
    reports = [told, *(mw.report() for mw in workers)]
    assert all(report == told for report in reports)
    assert [row.calls for row in told.rows] == [60, 120]
    money = [(each.paid, each.baseline, each.saved) for each in receipts]
    used = [each.usage for each in receipts if each.usage is not None]
    assert sums(told) == {
        "calls": 180,
        "unsettled": 0,
        "cache_read": sum(each.cache_read for each in used),
        "cache_write_5m": sum(each.cache_write_5m for each in used),
        "cache_write_1h": 0,
        "uncached": sum(each.uncached for each in used),
        "output": sum(range(180)),
        "paid": sum(paid for paid, _, _ in money if paid is not None),
        "baseline": sum(plain for _, plain, _ in money if plain is not None),
        "saved_by_cachemw": told.totals.saved_by_cachemw,
        "saved_by_client": told.totals.saved_by_client,
    }
    assert told.totals.saved == sum(saved for _, _, saved in money if saved is not None)
    assert [mw.report("process").totals.calls for mw in workers] == [40, 40, 40]
    for mw in workers:
        mw.close()


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(
                st.integers(0, 2),
                st.sampled_from(["hour 1", "hour 2"]),
                st.dictionaries(
                    st.sampled_from(["calls", "paid ü"]), st.integers(-(10**15), 10**15), min_size=1
                ),
            ),
            st.tuples(st.integers(0, 2), st.sampled_from(["flush", "lost answer", "script flush"])),
        ),
        max_size=30,
    )
)
def test_amounts_through_any_failures_are_added_once(valkey: str, steps: list[Any]) -> None:
    """The sums equal plain addition, in any order of workers and lost replies."""
    namespace = f"orders {time.time_ns()}"
    stores = [RedisStore(valkey, secret=b"s", timeout_ms=5000, namespace=namespace) for _ in range(3)]
    expected: dict[str, dict[str, int]] = {"hour 1": {}, "hour 2": {}}
    for number, what, *rest in steps:
        store = stores[number]
        if what == "flush":
            store.flush()
        elif what == "script flush":
            store._client.execute([("SCRIPT", "FLUSH")], 5)
        elif what == "lost answer":
            execute = store._client.execute

            def lose(commands: Any, seconds: float, execute: Any = execute) -> Any:
                execute(commands, seconds)
                raise redis.ConnectionError

            store._client.execute = lose  # type: ignore[method-assign]
            store.flush()
            store._client.execute = execute  # type: ignore[method-assign]
        else:
            store.add(namespace, what, rest[0], 60)
            for name, amount in rest[0].items():
                expected[what][name] = expected[what].get(name, 0) + amount
    for store in stores:
        # A worker with an open circuit tries again after a pause.
        until(lambda store=store: not store.flush(), "what is held back is not sent")
    for table, wanted in expected.items():
        assert stores[0].read(namespace, [table]) == wanted
    for store in stores:
        store.close()


CHILD = """
import asyncio, os, signal, sys, cachemw
url, namespace, body, kind = sys.argv[1], sys.argv[2], {"model": sys.argv[3], "messages": []}, sys.argv[4]
body["messages"] = [{"role": "user", "content": "Who pays for what? " * 500}]
fields = dict(provider="databricks", store=url, secret="of all", namespace=namespace, store_timeout_ms=5000)
usage = {"prompt_tokens": 100, "completion_tokens": 1}

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def say(word):
    print(word, flush=True)

if kind == "sync":
    mw = cachemw.Middleware(**fields)
    calls = [mw.prepare(body) for _ in range(5)]
    for call in calls:
        mw.begun(call)
    for call in calls[:2]:
        mw.settle(call, usage)
    say("sent")
    sys.stdin.readline()
    mw.settle(calls[2], usage)
    die()

async def main():
    mw = cachemw.AsyncMiddleware(**fields)
    calls = [await mw.prepare(body) for _ in range(5)]
    for call in calls:
        await mw.begun(call)
    for call in calls[:2]:
        await mw.settle(call, usage)
    say("sent")
    await asyncio.to_thread(sys.stdin.readline)
    await mw.settle(calls[2], usage)
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_calls_of_a_killed_worker_are_unsettled(url: str, kind: str) -> None:
    """`kill -9` between settle and flush loses queued data only; other workers see the open calls."""
    namespace = f"killed {kind} {time.time_ns()}"
    looking = cachemw.Middleware(**options(url, namespace))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, url, namespace, MODEL, kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "sent\n"
        # The child calls no flush: its background writer does, after a tenth of a second.
        until(lambda: looking.report().totals.calls == 5, "what is held back is not sent", seconds=60)
        until(lambda: looking.report().totals.unsettled == 3, "what is settled is not sent", seconds=60)
        child.stdin.write("settle one more\n")
        child.stdin.flush()
        assert child.wait(60) == -signal.SIGKILL
    finally:
        child.kill()
        child.wait(60)
        for pipe in (child.stdin, child.stdout):
            pipe.close()
    time.sleep(0.2)
    totals = looking.report().totals
    assert totals.calls == 5
    # The settlement of the third call has left the child with its tokens, or not at all.
    assert totals.unsettled in (2, 3)
    assert totals.uncached == 100 * (5 - totals.unsettled)
    # Other workers continue to count.
    looking.settle(looking.prepare(BODY), {"prompt_tokens": 50, "completion_tokens": 1})
    after = looking.report().totals
    assert (after.calls, after.unsettled, after.uncached) == (6, totals.unsettled, totals.uncached + 50)
    looking.close()


def test_table_is_kept_for_seven_days(valkey: str) -> None:
    """Each sum renews the table of its hour and its batch numbers; another namespace's table stays."""
    namespace = f"kept {time.time_ns()}"
    mw = cachemw.Middleware(**options(valkey, namespace))

    def settle() -> None:
        mw.settle(mw.prepare(BODY), usage(1))
        assert mw.flush()

    before = _tables(valkey)
    settle()
    with redis.Redis.from_url(valkey) as client:
        mine = _tables(valkey) - before
        (ledger,) = [name for name in mine if any(b"calls " in field for field in _fields(client, name))]
        batches = ledger[:-1] + b"b"
        for name in (ledger, batches):
            assert WEEK - 60_000 < client.pttl(name) <= WEEK
            client.pexpire(name, 60_000)
        settle()
        for name in (ledger, batches):
            assert WEEK - 60_000 < client.pttl(name) <= WEEK
        client.delete(ledger)
    assert mw.report().totals.calls == 0
    mw.close()


def _tables(url: str) -> set[bytes]:
    with redis.Redis.from_url(url) as client:
        return {name for name in client.keys("cachemw:*") if name[-2:] in (b":t", b":b")}


def _fields(client: Any, name: bytes) -> list[bytes]:
    return list(client.hkeys(name))
