"""An exception from a signal handler, or a cancelled task, leaves no lock held and no connection lent."""

from __future__ import annotations

import ast
import asyncio
import gc
import subprocess
import sys
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from types import coroutine
from typing import Any

import pytest

import cachemw
from benchmarks.redis_servers import standalone
from cachemw.stores.redis.client import servers
from cachemw.stores.redis.client.routes import PendingCommand
from tests.interrupted import CONNECTIONS, PATIENT, USAGE, body, middleware

ROOT = Path(__file__).parents[2]
# Locks that run Python code while they hold an inner lock, and waits that are made of them.
PURE_PYTHON = {
    "threading": {"Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore", "Thread", "Timer"},
    "queue": {"LifoQueue", "PriorityQueue", "Queue"},
    "concurrent": {"*"},
    "concurrent.futures": {"*"},
    "multiprocessing": {"*"},
}
ALLOWED = {
    (
        "cachemw/apps/simulated_gateway.py",
        "threading.Thread",
    ): "starts the simulated gateway, before any request is sent",
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Start a Valkey, and return its URL."""
    with standalone("valkey") as running:
        yield running.url


def run(*arguments: object) -> int:
    """Return how many calls the program interrupted; fail with its output if it found a fault or hangs."""
    command = [sys.executable, "-m", "tests.interrupted", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout)


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_exception_at_each_point_of_a_call_leaves_nothing_locked(
    server: str, shared: bool, coalesce: bool
) -> None:
    """The next call works in time, `flush` and `close` return, and each connection can be lent again."""
    assert run("points", server if shared else "memory://", coalesce) > (1000 if shared else 300)


@pytest.mark.parametrize("kind", ["Interrupt", "SoftLimit"])
@pytest.mark.parametrize("shared", [False, True])
def test_signal_handler_that_raises_at_random_stops_no_other_thread(
    server: str, shared: bool, kind: str
) -> None:
    """Other threads go on while the main thread is interrupted, and afterwards nothing is lost."""
    assert run("signals", server if shared else "memory://", True, 7, kind) > 20


def test_modules_use_no_lock_that_is_written_in_python() -> None:
    """An exception in such a lock leaves it held; `cachemw.threads` lists the safe locks."""
    assert SimpleQueue.__module__ == "_queue"
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in (ROOT / "cachemw").rglob("*.py")
        for name in unsafe(ast.parse(path.read_text()))
    }
    assert found == set(ALLOWED)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import threading\nthreading.Semaphore(1)", "threading.Semaphore"),
        ("import threading as t\nt.Event()", "threading.Event"),
        ("from queue import Queue", "queue.Queue"),
        ("from concurrent.futures import wait", "concurrent.futures.wait"),
        ("import concurrent.futures", "concurrent.futures"),
        ("lock.acquire()", "acquire"),
        ("class C:\n    def f(self):\n        self.lock.acquire(False)", "acquire"),
    ],
)
def test_search_for_unsafe_locks_finds_each_form(text: str, name: str) -> None:
    """A lock is found as an import, under another name, by name, or taken outside of a `with` statement."""
    assert name in set(unsafe(ast.parse(text)))


def unsafe(module: ast.Module) -> Iterator[str]:
    """Yield the names of unsafe locks in a module, and "acquire" where a lock is not taken by `with`."""
    modules: dict[str, str] = {}
    awaited = {node.value for node in ast.walk(module) if isinstance(node, ast.Await)}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            modules |= {name.asname or name.name: name.name for name in node.names}
            yield from [name.name for name in node.names if "*" in PURE_PYTHON.get(name.name, ())]
        elif isinstance(node, ast.ImportFrom):
            banned = PURE_PYTHON.get(node.module or "", set())
            yield from [f"{node.module}.{name.name}" for name in node.names if banned & {name.name, "*"}]
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = modules.get(node.value.id, "")
            if PURE_PYTHON.get(name, set()) & {node.attr, "*"}:
                yield f"{name}.{node.attr}"
        called = node.func if isinstance(node, ast.Call) and node not in awaited else None
        if isinstance(called, ast.Attribute) and called.attr == "acquire":
            yield "acquire"


def test_numbers_reach_hiredis_as_text() -> None:
    """Its `pack_command` ends the process where a signal handler raises while it turns a number into text."""
    sent: list[object] = []

    class Recorder:
        def pack_command(self, *parts: object) -> list[bytes]:
            sent.extend(parts)
            return [b""]

    servers._packed(Recorder(), [PendingCommand(0, ("EVALSHA", "sha", 2, b"key", -1))])
    assert sent == ["EVALSHA", "sha", "2", b"key", "-1"]


@coroutine
def cancelled_at(work: Coroutine[Any, Any, Any], at: int, again: bool) -> Generator[Any, Any, Any]:
    """Await `work`, and cancel the task at the wait number `at`, with `again` also at each later one."""
    step = partial(work.send, None)
    for number in count():
        try:
            waited = step()
        except StopIteration as end:
            return end.value
        if number == at or (again and number > at):
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        try:
            yield waited
        except BaseException as error:
            step = partial(work.throw, error)
        else:
            step = partial(work.send, None)


async def cancelled(work: Coroutine[Any, Any, Any], at: int, again: bool) -> bool:
    """Return True if the work was cancelled at the wait number `at`, False if it was done before."""
    task = asyncio.ensure_future(_awaited(cancelled_at(work, at, again)))
    await asyncio.wait((task,))
    return task.cancelled()


async def _awaited(work: Awaitable[Any]) -> Any:
    return await work


async def cycle(mw: cachemw.AsyncMiddleware, number: int) -> None:
    """Make one call that is settled and one that fails, and flush."""
    call = await mw.prepare(body(number % 3, number))
    await mw.begun(call)
    await mw.settle(call, USAGE)
    await mw.fail(await mw.prepare(body(number % 3, number)))
    await mw.flush()


def pools(mw: cachemw.AsyncMiddleware) -> list[Any]:
    """Return the pools of the middleware's store."""
    servers = getattr(getattr(mw._shell.store, "_client", None), "_servers", None)
    return list(servers._pools.values()) if servers is not None else []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("cold", [False, True])
async def test_task_cancelled_at_any_wait_of_a_call_loses_nothing(
    server: str, cold: bool, again: bool
) -> None:
    """The next call works, each connection can be lent again, and none is left open without an owner."""
    mw = middleware(server, True, cachemw.AsyncMiddleware)
    await cycle(mw, 0)
    for at in count():
        for pool in pools(mw) if cold else []:
            await pool.forget()
        was_cancelled = await cancelled(cycle(mw, at), at, again)
        before = mw.counts
        await cycle(mw, at)
        assert await mw.flush()
        new = {name for name, number in mw.counts.items() if number != before.get(name)}
        assert not [name for name in new if name.startswith(("error.", "pass."))], at
        for pool in pools(mw):
            async with asyncio.timeout(PATIENT):
                # A task in the background may still have one.
                for _ in range(CONNECTIONS):
                    await pool.room.acquire()
            for _ in range(CONNECTIONS):
                pool.room.release()
        if not was_cancelled:
            break
    assert at > 3
    await mw.close()
    gc.collect()


async def test_task_cancelled_at_any_wait_of_close_leaves_no_connection_open(server: str) -> None:
    """Closing goes on to the store, and closing again does the rest."""
    for at in count():
        mw = middleware(server, False, cachemw.AsyncMiddleware)
        # Two connections; the closing itself uses one.
        await asyncio.gather(cycle(mw, 0), cycle(mw, 1))
        held = [connection for pool in pools(mw) for connection in pool._idle]
        assert len(held) == CONNECTIONS
        await mw.prepare(body(0, "to be counted by the flush"))
        was_cancelled = await cancelled(mw.close(), at, False)
        await mw.close()
        assert not [connection for connection in held if connection.is_connected], at
        gc.collect()
        if not was_cancelled:
            break
    assert at > 1
