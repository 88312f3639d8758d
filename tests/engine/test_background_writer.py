"""One background thread: in order, bounded, never waited for, alive after a fork."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cachemw.engine import background_writer as module
from cachemw.engine.background_writer import BackgroundWriter


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    """Give a writer that counts what it loses, and end it."""
    made = BackgroundWriter(lost=lambda: lost.append(1), pulse=lambda: False)
    lost: list[int] = []
    made.losses = lost  # type: ignore[attr-defined]
    yield made
    made.close(1.0)


def losses(writer: BackgroundWriter) -> int:
    """Return how many jobs were lost."""
    return len(writer.losses)  # type: ignore[attr-defined]


def ended(writer: BackgroundWriter) -> bool:
    """Return True if the writer has no thread."""
    return not writer._line.started


def test_jobs_run_in_order_on_one_thread(writer: BackgroundWriter) -> None:
    """The first job starts the one thread, which runs all of them as they came."""
    done: list[tuple[int, int]] = []
    assert writer.flush(0.0)
    for number in range(100):
        writer.submit(lambda number=number: done.append((number, threading.get_ident())))
    assert writer.flush(5.0)
    assert [number for number, _ in done] == list(range(100))
    assert len({thread for _, thread in done}) == 1


def test_no_thread_before_the_first_job(writer: BackgroundWriter) -> None:
    """A writer that is never used starts nothing."""
    assert ended(writer)
    writer.close(0.1)
    assert ended(writer)


def test_submit_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue loses the job, and says so, at once."""
    monkeypatch.setattr(module, "_LIMIT", 3)
    lost: list[int] = []
    writer, gate, done = (
        BackgroundWriter(lost=lambda: lost.append(1), pulse=lambda: False),
        threading.Event(),
        list[int](),
    )
    writer.submit(gate.wait)
    while not writer._line.jobs.empty():
        time.sleep(0.001)
    started = time.monotonic()
    for number in range(10):
        writer.submit(lambda number=number: done.append(number))
    assert time.monotonic() - started < 3
    assert len(lost) == 7
    assert not writer.flush(0.01)
    gate.set()
    assert writer.flush(5.0)
    assert done == [0, 1, 2]
    writer.close(1.0)


def test_close_finishes_the_queue(writer: BackgroundWriter) -> None:
    """What is queued is run before the thread ends; closing again does nothing."""
    done: list[int] = []
    for number in range(50):
        writer.submit(lambda number=number: done.append(number))
    writer.close(5.0)
    assert len(done) == 50
    assert ended(writer)
    writer.close(5.0)


def test_a_job_after_closing(writer: BackgroundWriter) -> None:
    """A late job starts the thread once more, so nothing that is said is lost."""
    writer.submit(lambda: None)
    writer.close(5.0)
    done: list[int] = []
    writer.submit(lambda: done.append(1))
    assert writer.flush(5.0)
    assert done == [1]


def test_a_job_may_close() -> None:
    """It waits for nobody, least of all for itself; the thread ends after it."""
    writer = BackgroundWriter(lost=lambda: None, pulse=lambda: False)
    started = time.monotonic()
    line = writer._line
    writer.submit(lambda: writer.close(5.0))
    line.ended.get(timeout=2.0)
    assert time.monotonic() - started < 2


def test_closing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that hangs, behind a queue that is full, holds up no exit."""
    monkeypatch.setattr(module, "_LIMIT", 1)
    writer, gate = BackgroundWriter(lost=lambda: None, pulse=lambda: False), threading.Event()
    for _ in range(3):
        writer.submit(gate.wait)
        time.sleep(0.01)
    started = time.monotonic()
    writer.close(0.1)
    assert time.monotonic() - started < 3
    gate.set()


def test_closing_takes_its_time_once_and_holds_nobody() -> None:
    """A job that hangs is waited for no longer than was said; meanwhile others queue at once."""
    writer, gate, done = (
        BackgroundWriter(lost=lambda: None, pulse=lambda: False),
        threading.Event(),
        list[int](),
    )
    writer.submit(gate.wait)
    times: list[float] = []

    def close() -> None:
        started = time.monotonic()
        writer.close(1.0)
        times.append(time.monotonic() - started)

    closing = threading.Thread(target=close)
    closing.start()
    while closing.is_alive():
        started = time.monotonic()
        writer.submit(lambda: done.append(1))
        assert time.monotonic() - started < 0.5
        time.sleep(0.01)
    assert 1.0 <= times[0] < 1.7
    gate.set()
    writer.submit(lambda: done.append(2))
    until(lambda: 2 in done)
    writer.close(5.0)


def test_a_thread_that_hangs_at_its_end_is_left_alone() -> None:
    """What is queued while a thread is waited for is run by another."""
    gate, started, done = threading.Event(), threading.Event(), list[int]()

    def pulse() -> bool:
        started.set()
        gate.wait(5.0)
        return False

    writer = BackgroundWriter(lost=lambda: None, pulse=pulse)
    writer.schedule_flush()
    assert started.wait(5.0)
    closing = threading.Thread(target=writer.close, args=(2.0,))
    closing.start()
    until(lambda: ended(writer))
    writer.submit(lambda: done.append(1))
    until(lambda: done == [1])
    assert closing.is_alive()
    gate.set()
    closing.join(5.0)
    writer.close(5.0)


def test_closing_loses_no_job(writer: BackgroundWriter) -> None:
    """However often it is closed while threads queue, every job runs once."""
    done: list[int] = []

    def queue() -> None:
        for _ in range(500):
            writer.submit(lambda: done.append(1))

    callers = [threading.Thread(target=queue) for _ in range(4)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        writer.close(5.0)
    writer.close(5.0)
    assert len(done) == 2000
    assert losses(writer) == 0


def test_a_job_that_raises(writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs must not raise; one that does loses itself only, and is reported."""
    done, reported = list[int](), list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: reported.append(failure.exc_type))
    line = writer._line
    writer.submit(lambda: done.append(1 // 0))
    line.ended.get(timeout=5.0)
    writer.submit(lambda: done.append(2))
    assert writer.flush(5.0)
    assert done == [2]
    assert losses(writer) == 0
    until(lambda: reported == [ZeroDivisionError])


def test_many_threads(writer: BackgroundWriter) -> None:
    """Any number of threads may queue at once: one writer thread, every job once."""
    done: list[int] = []

    def queue() -> None:
        for _ in range(200):
            writer.submit(lambda: done.append(threading.get_ident()))

    callers = [threading.Thread(target=queue) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert writer.flush(5.0)
    assert len(done) == 1600
    assert len(set(done)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork(writer: BackgroundWriter) -> None:
    """A child has a thread and a queue of its own, even where the lock was held, and leaves the parent's alone."""
    gate = threading.Event()
    writer.submit(gate.wait)
    writer.submit(lambda: None)
    reader, speaker = os.pipe()
    with writer._lock:
        child = os.fork()
        if child == 0:
            said = b"hangs"
            try:
                quiet = writer.flush(0.0)
                writer.close(0.1)
                writer.submit(lambda: None)
                said = b"works" if quiet and writer.flush(5.0) else b"waits"
            finally:
                os.write(speaker, said)
                os._exit(0)
    os.close(speaker)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    assert os.read(reader, 100) == b"works"
    os.close(reader)
    gate.set()
    assert writer.flush(5.0)


def test_the_pulse_beats_as_long_as_it_is_wanted() -> None:
    """It runs a tenth of a second after a wake, again while it says so, and between jobs that never end."""
    beats: list[float] = []
    writer = BackgroundWriter(
        lost=lambda: None, pulse=lambda: beats.append(time.monotonic()) or len(beats) % 3 != 0
    )
    started = time.monotonic()
    writer.schedule_flush()
    writer.schedule_flush()
    until(lambda: len(beats) == 3)
    assert beats[0] - started >= module.FLUSH_INTERVAL
    assert beats[1] - beats[0] >= module.FLUSH_INTERVAL
    time.sleep(2 * module.FLUSH_INTERVAL)
    assert len(beats) == 3

    writer.schedule_flush()
    while len(beats) < 5:
        writer.submit(lambda: time.sleep(0.001))
    writer.close(5.0)
    count = len(beats)
    writer.schedule_flush()
    until(lambda: len(beats) > count)
    writer.close(5.0)


def until(done: Callable[[], bool]) -> None:
    """Wait for something."""
    end = time.monotonic() + 5.0
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
