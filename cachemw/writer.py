"""Hand store writes to one background thread, so that no caller waits for them.

Lives here: a bounded queue, its thread, and its pulse. Must not know: what the writes are.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable

from cachemw.forks import in_child

_LIMIT = 10_000
PULSE = 0.1
"""Seconds between what is done now and then."""
Job = Callable[[], None]


class Writer:
    """Run jobs in order on one thread, started with the first job and again after a fork.

    `pulse` is run on it a tenth of a second after a `wake`, and again as long as it says True. `lost` is told
    of each job that found the queue full. Neither a job nor `pulse` may raise.
    """

    def __init__(self, lost: Callable[[], None], pulse: Callable[[], bool]) -> None:
        self._lost, self._pulse = lost, pulse
        self._forked()
        in_child(self._forked)

    def _forked(self) -> None:
        """Have no thread and no job: those are the parent's."""
        self._lock = threading.Lock()
        self._queue: queue.Queue[Job | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._awake = False

    def submit(self, job: Job) -> None:
        """Queue a job; never waits."""
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, args=(self._queue,), name="cachemw-writer", daemon=True
                )
                self._thread.start()
            # The queue itself has no bound: there is always room for what ends its thread.
            full = self._queue.qsize() >= _LIMIT
            if not full:
                self._queue.put(job)
        if full:
            self._lost()

    def wake(self) -> None:
        """See that the pulse runs soon; never waits."""
        running = self._thread is not None and self._thread.is_alive()
        if not (running and self._awake):
            self.submit(lambda: None)

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until the queue is empty; say whether it is."""
        deadline, jobs = time.monotonic() + timeout, self._queue
        while jobs.unfinished_tasks:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self, timeout: float) -> None:
        """Finish what is queued, within `timeout` seconds, and end the thread."""
        deadline = time.monotonic() + timeout
        # The last job may have held the last reference to whoever closes at his end; it can't wait for itself.
        within = threading.current_thread() is self._thread
        if not within:
            self.flush(timeout)
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or not thread.is_alive():
                return
            self._queue.put(None)
            # What is queued from here on is for another thread.
            self._queue = queue.Queue()
        if not within:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self, jobs: queue.Queue[Job | None]) -> None:
        due = math.inf
        while True:
            try:
                job = jobs.get(timeout=None if due == math.inf else max(due - time.monotonic(), 0.0))
            except queue.Empty:
                pass
            else:
                try:
                    if job is None:
                        self._awake = False
                        return
                    job()
                finally:
                    jobs.task_done()
                    # Waiting for the next one must not keep alive what this one was about.
                    del job
            if due == math.inf:
                self._awake, due = True, time.monotonic() + PULSE
            elif time.monotonic() >= due:
                # Whoever wakes it from here on may have come too late for this pulse, and asks for another.
                self._awake = False
                due = time.monotonic() + PULSE if self._pulse() else math.inf
                self._awake = due < math.inf
