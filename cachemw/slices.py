"""Run long work in slices, so that an event loop serves other requests in between.

Contains: the type of such work and its two drivers. Must not depend on: the work itself. Work is a generator that
yields between slices and returns its result; work that is short yields never, and costs no turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeAlias, TypeVar
from weakref import WeakKeyDictionary

_T = TypeVar("_T")
Slices: TypeAlias = Generator[None, None, _T]

_LONG = 0.005
"""Seconds of a slice after which the loop has as long for other requests; after a shorter one it has a turn."""
_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()


def run(work: Slices[_T]) -> _T:
    """Run work straight through and return its result."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        result: _T = end.value
        return result


async def run_in_loop(work: Slices[_T]) -> _T:
    """Run work with pauses for other requests, and return its result.

    Long work runs one after another: a turn of the loop holds one slice, however many requests are long.
    """
    try:
        next(work)
        loop = asyncio.get_running_loop()
        async with _locks.setdefault(loop, asyncio.Lock()):
            while True:
                await asyncio.sleep(0)
                begun = loop.time()
                next(work)
                if (took := loop.time() - begun) > _LONG:
                    await asyncio.sleep(took)
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        work.close()
