"""Hand store writes to one background thread, so that no caller waits for them.

Contains: a bounded queue, its thread, and the repeated flush. Must not depend on: the writes themselves.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue

from cachemw.fork_safety import after_fork_in_child
from cachemw.threads import start

_LIMIT, _NO_LIMIT = 10_000, math.inf
FLUSH_INTERVAL = 0.1
"""Seconds between two flushes."""
Job = Callable[[], None]


class _Line:
    """A queue and its one thread. `vacant` has one item, which the thread takes as long as it runs."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.ended: SimpleQueue[None] = SimpleQueue()
        self.vacant = [True]
        self.started = self.awake = False
        self.thread: int | None = None


class BackgroundWriter:
    """Run jobs in order on one thread, started with the first job and again after a fork.

    The thread runs `pulse` a tenth of a second after `schedule_flush`, and again as long as it returns True. `lost` is
    called for each job that finds the queue full. Neither a job nor `pulse` may raise.
    """

    def __init__(self, lost: Callable[[], None], pulse: Callable[[], bool]) -> None:
        self._lost, self._pulse = lost, pulse
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        """Start without thread and jobs, which belong to the parent."""
        self._lock = threading.RLock()
        self._line = _Line()

    def submit(self, job: Job) -> None:
        """Queue a job; never waits."""
        if not self._put(job, _LIMIT):
            self._lost()

    def schedule_flush(self) -> None:
        """Make the flush run soon; never waits."""
        line = self._line
        if not (line.started and line.awake):
            self.submit(_nothing)

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until all jobs queued by now are done; return True if they are."""
        if not self._line.started and self._line.jobs.empty():
            return True
        reached: SimpleQueue[None] = SimpleQueue()
        self._put(partial(reached.put, None), _NO_LIMIT)
        try:
            reached.get(timeout=timeout)
        except Empty:
            return False
        return True

    def close(self, timeout: float) -> None:
        """Finish the queued jobs, within `timeout` seconds, and end the thread."""
        fresh = _Line()
        with self._lock:
            line = self._line
            if not line.started and line.jobs.empty():
                return
            self._start(line)
            # Jobs queued from here on go to another thread. No exception can come between these two lines.
            self._line = fresh
            line.jobs.put(None)
        # The last job may hold the last reference to the middleware, whose end closes the writer on this very thread.
        if line.thread != threading.get_ident():
            with suppress(Empty):
                line.ended.get(timeout=timeout)

    def _put(self, job: Job, limit: float) -> bool:
        """Queue a job if fewer than `limit` wait; return True if it is queued."""
        with self._lock:
            line = self._line
            self._start(line)
            room = line.jobs.qsize() < limit
            if room:
                line.jobs.put(job)
        return room

    def _start(self, line: _Line) -> None:
        if not line.started:
            # If an exception comes before the next line, another thread is started, which finds no vacancy.
            start(partial(self._run, line))
            line.started = True

    def _run(self, line: _Line) -> None:
        try:
            place = line.vacant.pop()
        except IndexError:
            return
        line.thread = threading.get_ident()
        try:
            self._work(line)
        finally:
            line.started = line.awake = False
            line.vacant.append(place)
            line.ended.put(None)

    def _work(self, line: _Line) -> None:
        due = math.inf
        while True:
            try:
                job = line.jobs.get(timeout=None if due == math.inf else max(due - time.monotonic(), 0.0))
            except Empty:
                pass
            else:
                if job is None:
                    return
                job()
                # The reference would keep the job's objects alive during the next wait.
                del job
            if due == math.inf:
                line.awake, due = True, time.monotonic() + FLUSH_INTERVAL
            elif time.monotonic() >= due:
                # A `schedule_flush` from here on may be too late for this flush, and asks for another.
                line.awake = False
                due = time.monotonic() + FLUSH_INTERVAL if self._pulse() else math.inf
                line.awake = due < math.inf


def _nothing() -> None:
    """Do nothing: a job that only wakes the thread."""
