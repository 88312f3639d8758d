"""Hand store writes to one background thread, so that no caller waits for them.

Lives here: a bounded queue and its thread. Must not know: what the writes are.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

_LIMIT = 10_000
Job = Callable[[], None]


class Writer:
    """Run jobs in order on one thread, started with the first job and again after a fork.

    `lost` is told of each job that found the queue full. A job must not raise.
    """

    def __init__(self, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._reset()

    def _reset(self) -> None:
        # A lock that another thread held at a fork would stay locked in the child.
        self._lock = threading.Lock()
        self._queue: queue.Queue[Job | None] = queue.Queue(_LIMIT)
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def submit(self, job: Job) -> None:
        """Queue a job; never waits."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="cachemw-writer", daemon=True)
                self._thread.start()
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self._lost()

    def flush(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until the queue is empty; say whether it is."""
        deadline = time.monotonic() + timeout
        while self._queue.unfinished_tasks and self._process == os.getpid():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def close(self, timeout: float) -> None:
        """Finish what is queued, within `timeout` seconds, and end the thread."""
        if self._process != os.getpid():
            return
        self.flush(timeout)
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                with suppress(queue.Full):
                    self._queue.put(None, timeout=1)
                self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        jobs = self._queue
        while True:
            job = jobs.get()
            try:
                if job is None:
                    return
                job()
            finally:
                jobs.task_done()
