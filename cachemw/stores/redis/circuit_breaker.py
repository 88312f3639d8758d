"""When to stop calling a server that does not answer, and when to try again.

Lives here: three states and the rule between them. Must not know: the calls, their errors, the clock
(`now` is given, in seconds of any clock that does not jump).
"""

from __future__ import annotations

from threading import RLock

from cachemw.fork_safety import after_fork_in_child

_FAILURES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 1.0


class CircuitBreaker:
    """Open after three failures in a row; half-open, for one probe, after a pause that doubles up to a second.

    No request probes: whoever works in the background does. Any thread may ask.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._pause = _FIRST_PAUSE
        self._probe_at: float | None = None
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = RLock()

    @property
    def closed(self) -> bool:
        """Say whether calls may be made."""
        return self._probe_at is None

    def may_probe(self, now: float) -> bool:
        """Say whether one may try whether the server is back: True once in each pause."""
        with self._lock:
            if self._probe_at is None or now < self._probe_at:
                return False
            self._probe_at = now + self._pause
            return True

    def succeeded(self) -> bool:
        """Note an answer; say whether it is the first after an outage."""
        if not self._failures:
            return False
        with self._lock:
            opened = self._probe_at is not None
            self._failures, self._pause, self._probe_at = 0, _FIRST_PAUSE, None
            return opened

    def failed(self, now: float) -> bool:
        """Note a failure; say whether it is the one that opens."""
        with self._lock:
            self._failures += 1
            if self._probe_at is not None:
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
                self._probe_at = now + self._pause
                return False
            if self._failures < _FAILURES:
                return False
            self._probe_at = now + self._pause
            return True
