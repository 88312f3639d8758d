"""Events as frozen facts, and the hook that receives them.

Contains: events, the hook's protocol, and the counters of each process. Must not depend on: the receivers of
events. An event holds sizes, reasons, labels and class names, but no text, no key and no credential.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from threading import RLock
from typing import Protocol, TypeAlias

from cachemw.core.billing.receipt import Receipt
from cachemw.core.planner.plan import Plan
from cachemw.fork_safety import after_fork_in_child


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request is about to leave, with or without added breakpoints."""

    call: str
    labels: Mapping[str, str]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Settled:
    """An answer's usage was read; `partial` is True if its stream was closed early or broke."""

    call: str
    labels: Mapping[str, str]
    receipt: Receipt
    partial: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter was increased; its `name` is dotted, for example "error.prepare.TimeoutError"."""

    name: str


Event: TypeAlias = Prepared | Settled | Counted


class Hook(Protocol):
    """Receive each event on the thread where it happens. Return soon; an exception is counted and dropped."""

    def __call__(self, event: Event) -> None:
        """Take one event."""


class Counters:
    """The counters of this process by name."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = RLock()

    def add(self, name: str) -> None:
        """Increase a counter by one."""
        with self._lock:
            self._counts[name] += 1

    def all(self) -> dict[str, int]:
        """Return all counts by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))
