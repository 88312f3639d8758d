"""One background thread: in order, bounded, never waited for, working after a fork."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty

import pytest

from cachemw.engine import background_writer as module
from cachemw.engine.background_writer import BackgroundWriter


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    """Return a writer that counts the jobs it loses, and close it after the test."""
    made = BackgroundWriter(lost=lambda: lost.append(1), pulse=lambda: False)
    lost: list[int] = []
    made.losses = lost  # type: ignore[attr-defined]
    yield made
    made.close(60.0)


def losses(writer: BackgroundWriter) -> int:
    """Return how many jobs were lost."""
    return len(writer.losses)  # type: ignore[attr-defined]


def ended(writer: BackgroundWriter) -> bool:
    """Return True if the writer has no thread."""
    return not writer._line.started


def test_jobs_run_in_order_on_one_thread(writer: BackgroundWriter) -> None:
    """The first job starts the one thread, which runs all jobs in their order."""
    done: list[tuple[int, int]] = []
    assert writer.flush(0.0)
    for number in range(100):
        writer.submit(lambda number=number: done.append((number, threading.get_ident())))
    assert writer.flush(60.0)
    assert [number for number, _ in done] == list(range(100))
    assert len({thread for _, thread in done}) == 1


def test_writer_without_jobs_starts_no_thread(writer: BackgroundWriter) -> None:
    """A writer that is never used starts no thread."""
    assert ended(writer)
    writer.close(0.1)
    assert ended(writer)


def test_submit_to_a_full_queue_loses_the_job_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue loses the job, and reports the loss, without waiting."""
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
    for number in range(10):  # a submit that waits would wait for the gate, which opens later
        writer.submit(lambda number=number: done.append(number))
    assert len(lost) == 7
    assert not writer.flush(0.01)
    gate.set()
    assert writer.flush(60.0)
    assert done == [0, 1, 2]
    writer.close(60.0)


def test_close_finishes_the_queue_and_ends_the_thread(writer: BackgroundWriter) -> None:
    """Queued jobs run before the thread ends; closing again does nothing."""
    done: list[int] = []
    for number in range(50):
        writer.submit(lambda number=number: done.append(number))
    writer.close(60.0)
    assert len(done) == 50
    assert ended(writer)
    writer.close(60.0)


def test_job_after_close_starts_the_thread_again(writer: BackgroundWriter) -> None:
    """A late job starts the thread once more, so that no job is lost."""
    writer.submit(lambda: None)
    writer.close(60.0)
    done: list[int] = []
    writer.submit(lambda: done.append(1))
    assert writer.flush(60.0)
    assert done == [1]


def test_close_inside_a_job_returns() -> None:
    """A job that closes the writer does not wait for itself; the thread ends after it."""
    writer = BackgroundWriter(lost=lambda: None, pulse=lambda: False)
    line = writer._line
    writer.submit(lambda: writer.close(600.0))
    line.ended.get(timeout=60.0)


def test_close_behind_a_job_that_hangs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that hangs, with a full queue behind it, does not delay the exit."""
    monkeypatch.setattr(module, "_LIMIT", 1)
    writer, gate = BackgroundWriter(lost=lambda: None, pulse=lambda: False), threading.Event()
    for _ in range(3):
        writer.submit(lambda: gate.wait(300.0))
        time.sleep(0.01)
    started = time.monotonic()
    writer.close(0.1)
    assert time.monotonic() - started < 60
    gate.set()


def test_submit_during_close_returns_at_once() -> None:
    """While one thread waits in `close`, other threads queue jobs without waiting."""
    writer, gate, done = (
        BackgroundWriter(lost=lambda: None, pulse=lambda: False),
        threading.Event(),
        list[int](),
    )
    line = writer._line
    writer.submit(gate.wait)
    closing = threading.Thread(target=writer.close, args=(600.0,))
    closing.start()
    until(lambda: writer._line is not line)
    for _ in range(100):
        writer.submit(lambda: done.append(1))
    assert closing.is_alive()
    until(lambda: len(done) == 100)
    assert closing.is_alive()
    gate.set()
    closing.join(60.0)
    assert not closing.is_alive()
    writer.close(60.0)


def test_close_waits_for_its_limit_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of `close` is given to one wait for the thread, and to no other."""
    writer, gate, limits = (
        BackgroundWriter(lost=lambda: None, pulse=lambda: False),
        threading.Event(),
        list[float](),
    )
    writer.submit(gate.wait)
    line = writer._line

    class Ended:
        def get(self, timeout: float) -> None:
            limits.append(timeout)
            raise Empty

    monkeypatch.setattr(line, "ended", Ended())
    writer.close(600.0)
    assert limits == [600.0]
    monkeypatch.undo()
    gate.set()
    line.ended.get(timeout=60.0)


def test_jobs_queued_during_close_run_on_a_new_thread() -> None:
    """A job that is queued while `close` waits for the old thread runs on another."""
    gate, started, done = threading.Event(), threading.Event(), list[int]()

    def pulse() -> bool:
        started.set()
        gate.wait(120.0)
        return False

    writer = BackgroundWriter(lost=lambda: None, pulse=pulse)
    writer.schedule_flush()
    assert started.wait(60.0)
    closing = threading.Thread(target=writer.close, args=(120.0,))
    closing.start()
    until(lambda: ended(writer))
    writer.submit(lambda: done.append(1))
    until(lambda: done == [1])
    assert closing.is_alive()
    gate.set()
    closing.join(60.0)
    writer.close(60.0)


def test_close_during_submits_loses_no_job(writer: BackgroundWriter) -> None:
    """Each job runs once, however often the writer is closed while threads queue."""
    done: list[int] = []

    def queue() -> None:
        for _ in range(500):
            writer.submit(lambda: done.append(1))

    callers = [threading.Thread(target=queue) for _ in range(4)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        writer.close(60.0)
    writer.close(60.0)
    assert len(done) == 2000
    assert losses(writer) == 0


def test_job_that_raises_loses_itself_only(writer: BackgroundWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a job is reported, and the jobs after it run."""
    done, reported = list[int](), list[object]()
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: reported.append(failure.exc_type))
    line = writer._line
    writer.submit(lambda: done.append(1 // 0))
    line.ended.get(timeout=60.0)
    writer.submit(lambda: done.append(2))
    assert writer.flush(60.0)
    assert done == [2]
    assert losses(writer) == 0
    until(lambda: reported == [ZeroDivisionError])


def test_jobs_of_many_threads_run_once_on_one_thread(writer: BackgroundWriter) -> None:
    """Any number of threads may queue at once: one writer thread runs every job once."""
    done: list[int] = []

    def queue() -> None:
        for _ in range(200):
            writer.submit(lambda: done.append(threading.get_ident()))

    callers = [threading.Thread(target=queue) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert writer.flush(60.0)
    assert len(done) == 1600
    assert len(set(done)) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_child_of_a_fork_gets_its_own_thread_and_queue(writer: BackgroundWriter) -> None:
    """The child works even if the lock was held, and leaves the parent's thread and queue alone."""
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
                said = b"works" if quiet and writer.flush(60.0) else b"waits"
            finally:
                os.write(speaker, said)
                os._exit(0)
    os.close(speaker)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.01)
    assert os.read(reader, 100) == b"works"
    os.close(reader)
    gate.set()
    assert writer.flush(60.0)


def test_flush_is_repeated_while_it_returns_true() -> None:
    """The flush runs an interval after it is scheduled, again while it returns True, and between jobs."""
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

    def endless() -> None:
        time.sleep(0.001)
        if len(beats) < 5:
            writer.submit(endless)

    writer.schedule_flush()
    writer.submit(endless)
    until(lambda: len(beats) == 5)
    writer.close(60.0)
    count = len(beats)
    writer.schedule_flush()
    until(lambda: len(beats) > count)
    writer.close(60.0)


def until(done: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 60.0
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
