"""A program that interrupts the sync middleware, and checks that no lock stays held and no connection lent.

    python -m tests.interrupted points STORE COALESCE
    python -m tests.interrupted signals STORE COALESCE SEED CLASS

`points` raises once at each place at which CPython may run a signal handler: at the entry of a Python
function, and at the return of a C function. `signals` has a handler raise at random times, while other
threads work. Both exit 1 with a traceback if a check fails or a thread hangs.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import cachemw
from benchmarks.redis_servers import until

CONNECTIONS = 2
PATIENT = 10.0
USAGE = {
    "prompt_tokens": 9000,
    "completion_tokens": 1,
    "cache_creation_input_tokens": 8000,
    "cache_read_input_tokens": 0,
}
Point = tuple[Any, ...]


class Interrupt(BaseException):
    """An exception that a signal handler raises, such as `KeyboardInterrupt`."""


class SoftLimit(Exception):
    """An exception of the class that Celery's soft time limit has."""


def middleware(store: str, coalesce: bool, kind: Any = cachemw.Middleware) -> Any:
    """Open a middleware whose pool lends few connections, so that one lost permit shows."""
    url = f"{store}?max_connections={CONNECTIONS}" if store.startswith("redis") else store
    return kind(
        provider="databricks",
        store=url,
        secret="s",
        coalesce=coalesce,
        coalesce_wait_ms=50,
        split_text=True,
        store_timeout_ms=2000,
        namespace=f"{time.time_ns()}",
    )


def body(text: int, question: object) -> dict[str, Any]:
    """Return a request whose system prompt can be cached."""
    system = {"role": "system", "content": f"manual {text} " * 1500}
    return {
        "model": "claude-sonnet-4-6",
        "messages": [system, {"role": "user", "content": f"question {question}"}],
    }


def cycle(mw: cachemw.Middleware, number: int) -> None:
    """Make one call that is settled and one that fails."""
    call = mw.prepare(body(number % 3, number))
    mw.begun(call)
    mw.settle(call, USAGE)
    mw.fail(mw.prepare(body(number % 3, number)))


def pools(mw: cachemw.Middleware) -> list[Any]:
    """Return the pools of the middleware's store."""
    link = getattr(mw._shell.store, "_client", None)
    return list(link._servers._pools.values()) if link is not None else []


def check(mw: cachemw.Middleware, number: int, where: object) -> None:
    """Exit unless calls work as before, all connections can be lent, and the writer finishes in time."""
    before = mw.counts
    cycle(mw, number)
    # After an interrupted flush, two batches of the ledger may wait, and one call sends one.
    until(lambda: mw.flush(PATIENT), f"the writer hangs: {where}")
    after = {
        name: count
        for name, count in mw.counts.items()
        if count != before.get(name) and name.startswith(("error.", "pass."))
    }
    assert not after, (where, after)
    for pool in pools(mw):
        until(lambda pool=pool: pool.room.qsize() == CONNECTIONS, f"a permit is lost: {where}")


@contextmanager
def profiled(hook: Callable[[FrameType, str, Any], None]) -> Iterator[None]:
    """Call `hook` at the entry of Python functions, and at the return of C functions, in this thread."""
    sys.setprofile(hook)
    try:
        yield
    finally:
        sys.setprofile(None)


def point(frame: FrameType, event: str) -> Point | None:
    """Return a name for a place at which a signal handler may run."""
    if event == "call":
        return event, frame.f_code
    if event == "c_return":
        return event, frame.f_code, frame.f_lasti
    return None


def recorded(act: Callable[[], object]) -> list[Point]:
    """Return the points that a call of `act` passes."""
    found: dict[Point, None] = {}
    mine = sys._getframe().f_code.co_filename

    def note(frame: FrameType, event: str, argument: object) -> None:
        if (name := point(frame, event)) is not None and frame.f_code.co_filename != mine:
            found[name] = None

    with profiled(note):
        act()
    return list(found)


def interrupted(act: Callable[[], object], at: Point) -> bool:
    """Raise at the first pass of a point; return True if it was passed."""
    raised = False

    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        nonlocal raised
        if not raised and point(frame, event) == at:
            raised = True
            raise Interrupt

    try:
        with profiled(interrupt):
            act()
    except Interrupt:
        pass
    return raised


def at_each_point(store: str, coalesce: bool) -> int:
    """Interrupt a call at each point, once with a connection at hand and once with none."""
    # Garbage collection would pass other points each time.
    gc.disable()
    mw, number = middleware(store, coalesce), 0
    check(mw, number, "at the start")

    def act() -> None:
        cycle(mw, number)
        mw.flush(PATIENT)

    def act_without_connection() -> None:
        for pool in pools(mw):
            pool.forget()
        act()

    acts = [act, act_without_connection] if pools(mw) else [act]
    done = 0
    for doing in acts:
        for at in recorded(doing):
            faulthandler.dump_traceback_later(60, exit=True)
            number += 1
            done += interrupted(doing, at)
            check(mw, number, at)
    assert mw.counts.get("error.store.TimeoutError", 0) == 0
    for at in recorded(mw.close):
        faulthandler.dump_traceback_later(60, exit=True)
        mw = middleware(store, coalesce)
        cycle(mw, number)
        done += interrupted(mw.close, at)
        close(mw)
    return done


def close(mw: cachemw.Middleware) -> None:
    """Exit unless a middleware closes in time, and leaves no connection open and no thread at work."""
    started = time.monotonic()
    mw.close()
    assert time.monotonic() - started < PATIENT
    assert not mw._shell.writer._line.started
    for pool in pools(mw):
        until(
            lambda pool=pool: pool.room.qsize() == CONNECTIONS and not pool._idle, "a connection stays open"
        )


def by_signals(store: str, coalesce: bool, seed: int, kind: type[BaseException]) -> int:
    """Interrupt the main thread at random while other threads call as well."""
    mw, chance = middleware(store, coalesce), random.Random(seed)
    stop, progress, hits = [False], [0, 0], 0
    armed = False

    def handle(*_: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise kind

    def work(mine: int) -> None:
        while not stop[0]:
            cycle(mw, progress[mine])
            progress[mine] += 1

    signal.signal(signal.SIGALRM, handle)
    others = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in range(2)]
    for other in others:
        other.start()
    for number in range(400):
        faulthandler.dump_traceback_later(60, exit=True)
        try:
            armed = True
            signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.01 + 1e-5)
            try:
                cycle(mw, number)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                armed = False
        except kind:
            hits += 1
    before = list(progress)
    until(lambda: all(now > then for now, then in zip(progress, before, strict=True)), "other threads hang")
    stop[0] = True
    for other in others:
        other.join(PATIENT)
        assert not other.is_alive()
    check(mw, 0, "at the end")
    # The middleware goes on after an `Exception`, and counts it.
    counted = sum(count for name, count in mw.counts.items() if name.endswith(f".{kind.__name__}"))
    close(mw)
    return hits + counted


def main() -> None:
    """Run the program that the command line names, and print how often a call was interrupted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["points", "signals"])
    parser.add_argument("store")
    parser.add_argument("coalesce", type=lambda text: text == "True")
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("kind", nargs="?", default="Interrupt")
    asked = parser.parse_args()
    # An exception in a finalizer is swallowed by Python itself.
    sys.unraisablehook = lambda _: None
    faulthandler.dump_traceback_later(60, exit=True)
    if asked.how == "points":
        print(at_each_point(asked.store, asked.coalesce))
    else:
        print(by_signals(asked.store, asked.coalesce, asked.seed, globals()[asked.kind]))


if __name__ == "__main__":
    main()
