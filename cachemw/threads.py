"""Background threads, and the rules that keep an interrupted request from blocking other threads.

Contains: the start of a daemon thread. Must not depend on: the work of that thread.

A signal handler may raise anywhere in the main thread: Ctrl-C in a notebook, a soft time limit of Celery,
`signal.alarm`. CPython runs handlers when a Python function begins, at a backward jump, and when a call has
returned. A function that is written in C runs them only where it waits or turns an object into text. So the
request path keeps these rules, and `tests/engine/test_interrupts.py` raises at each of those points to check
them:

- `threading.RLock` is used in a `with` statement only. CPython 3.11 enters it and reaches its body, and
  leaves the body and releases it, without running a handler in between. `lock.acquire()` followed by `try`
  leaves a gap. Later versions are tested by the same program; 3.14 compiles `with` to a call, after which a
  handler may run.
- Locks are re-entrant. Garbage collection may close an abandoned coroutine of cachemw at any allocation, and
  its clean-up takes the same locks in the same thread.
- Waits and hand-overs use `queue.SimpleQueue`, which is written in C, with a timeout. Semaphores, conditions,
  events, `queue.Queue` and futures run Python code while they hold a lock of their own, and an exception in
  that code leaves the lock held for good.
- Borrowed resources return by one call of a C function that stands in the `finally` block itself.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable


def start(work: Callable[[], object]) -> None:
    """Run `work` on a daemon thread.

    `Thread.start` waits for an event of its own. An exception in that wait can hold the event's lock, on
    which the new thread then hangs.
    """
    _thread.start_new_thread(_run, (work,))


def _run(work: Callable[[], object]) -> None:
    # `Thread` does the same for debuggers and coverage.
    sys.settrace(threading.gettrace())
    work()
