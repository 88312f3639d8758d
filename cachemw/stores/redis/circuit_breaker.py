"""A circuit breaker: it stops the calls to a server that does not answer, and probes for its return.

Contains: three states and the rules between them. Must not depend on: the calls, their errors, the clock
(`now` is given, in seconds of any monotonic clock).

| State     | Event                                | Next state                                        |
|-----------|--------------------------------------|---------------------------------------------------|
| closed    | the third failure in a row           | open, for a pause of 0.2 seconds                  |
| open      | `may_probe` after the pause          | half-open, for one probe                          |
| half-open | the probe fails                      | open, for twice the pause, a second at most       |
| half-open | the probe succeeds                   | closed                                            |
"""

from __future__ import annotations

from threading import RLock

from cachemw.fork_safety import after_fork_in_child

_FAILURES = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 1.0


class CircuitBreaker:
    """Count failures and decide whether calls may be made. Any number of threads may use one.

    Requests never probe; the background flush does.
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
        """Return True if calls may be made."""
        return self._probe_at is None

    def may_probe(self, now: float) -> bool:
        """Return True if the caller may probe the server, once in each pause."""
        with self._lock:
            if self._probe_at is None or now < self._probe_at:
                return False
            self._probe_at = now + self._pause
            return True

    def succeeded(self) -> bool:
        """Note an answer; return True if it is the first after an outage."""
        if not self._failures:
            return False
        with self._lock:
            opened = self._probe_at is not None
            self._failures, self._pause, self._probe_at = 0, _FIRST_PAUSE, None
            return opened

    def failed(self, now: float) -> bool:
        """Note a failure; return True if it opens the circuit."""
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
