"""The steps that an operation of the middleware yields, and the shell that carries them out.

Contains: types, and two constructors of steps. Must not depend on: operations, threads, event loops.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, Protocol, TypeAlias, TypeVar

from cachemw.engine.call import CallLifecycle, StoreWrite
from cachemw.slices import Slices
from cachemw.stores.protocol import Arrival, CacheEntry

T = TypeVar("T")


class Shell(Protocol):
    """The I/O of a driver. Each method, and each method of `store`, returns its result or an awaitable of it."""

    store: Any

    def run_slices(self, work: Slices[Any]) -> Any:
        """Run work in slices, and return its result."""

    def pause(self, seconds: float) -> Any:
        """Wait."""

    def claim(self, lifecycle: CallLifecycle, arrival: Arrival, entries: tuple[CacheEntry, ...]) -> Any:
        """Claim entries in the store; note in the lifecycle whether the store granted them, and return that."""

    def write_later(self, write: StoreWrite, job: Flow[None]) -> Any:
        """Run the job in the background, after earlier writes of the same call."""

    def later(self, job: Flow[None]) -> Any:
        """Run the job in the background."""

    def schedule_flush(self) -> Any:
        """Flush the store soon, and until it holds nothing back."""

    def flush(self, seconds: float) -> Any:
        """Wait for background work, then flush the store; return True if nothing is left."""


Step: TypeAlias = Callable[[Shell], Any]
Flow: TypeAlias = Generator[Step, Any, T]


def shell_call(method: str, *arguments: Any) -> Step:
    """Return the step that calls a method of the shell."""
    return lambda shell: getattr(shell, method)(*arguments)


def store_call(method: str, *arguments: Any) -> Step:
    """Return the step that calls a method of the shell's store."""
    return lambda shell: getattr(shell.store, method)(*arguments)
