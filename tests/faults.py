"""Break any call of cachemw: raise an exception at the entry of a function of the package."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import cachemw

NOWHERE = -2
_PACKAGE = str(Path(cachemw.__file__).parent)
# Functions that catch and count failures.
_CATCHERS = {"failed", "_pass_through", "suppress", "pass_through_call"}
# The driver of operations, and the operations: a bug there is not survived, so they must be short.
_DRIVERS = ("engine/sync.py", "engine/aio.py", "engine/flow.py", "engine/steps.py")


class Boom(Exception):
    """A bug in cachemw."""


@contextmanager
def raising(error: BaseException, at: int, entry: str) -> Iterator[list[str]]:
    """Raise `error` at the given call of cachemw inside the engine's method `entry`; yield the calls' names.

    At `NOWHERE` no exception is raised.
    """
    names: list[str] = []

    def trace(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_PACKAGE) or code.co_name == "<genexpr>":
            return  # a generator is also entered to be closed, where no exception can be raised
        if code.co_filename.endswith(_DRIVERS) or code.co_name in _CATCHERS:
            return
        names.append(code.co_qualname)
        if len(names) == at + 1:
            raise error

    before = sys.gettrace()
    # Garbage collection would call functions of cachemw, too.
    gc.disable()
    sys.settrace(trace)
    try:
        yield names
    finally:
        sys.settrace(before)
        gc.enable()


def sampled(names: list[str], stride: int) -> list[int]:
    """Return the calls to break: the first two of each function and the last, or one in `stride` of those."""
    times: Counter[str] = Counter()
    chosen = []
    for at, name in enumerate(names):
        times[name] += 1
        if times[name] <= 2 or name not in names[at + 1 :]:
            chosen.append(at)
    return chosen[::stride]
