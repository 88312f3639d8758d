"""What happens, as frozen facts, and the one hook that is told.

Lives here: events, the hook's protocol, and the counters that are always there. Must not know: who
listens. An event holds no text, no key and no credential: sizes, reasons, labels and class names.
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
    """A request is about to leave, with or without breakpoints of ours."""

    call: str
    labels: Mapping[str, str]
    plan: Plan


@dataclass(frozen=True, slots=True)
class Settled:
    """An answer's usage was read; `partial` where its stream was closed early or broke."""

    call: str
    labels: Mapping[str, str]
    receipt: Receipt
    partial: bool


@dataclass(frozen=True, slots=True)
class Counted:
    """Something was counted: `name` is dotted, such as "error.prepare.TimeoutError"."""

    name: str


Event: TypeAlias = Prepared | Settled | Counted


class Hook(Protocol):
    """Be told of each event, on the thread where it happens: return soon. What it raises is counted."""

    def __call__(self, event: Event) -> None:
        """Take one event."""


class Counters:
    """How often each thing was counted in this process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = RLock()

    def add(self, name: str) -> None:
        """Count one more."""
        with self._lock:
            self._counts[name] += 1

    def all(self) -> dict[str, int]:
        """Return all counts by name."""
        with self._lock:
            return dict(sorted(self._counts.items()))
