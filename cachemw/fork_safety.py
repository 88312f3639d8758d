"""Clean-up in a forked child process.

Contains: the methods to call in a child. Must not depend on: the effect of these methods.

A lock that another thread of the parent held would stay locked in the child for ever. The unsent data of the
parent belongs to the parent, which sends it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

_methods: set[WeakMethod[Callable[[], None]]] = set()


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Call a method in each child that is forked while its object exists, before other code runs."""
    _methods.add(WeakMethod(method, _methods.discard))


def _call_methods() -> None:
    for method in list(_methods):
        if (alive := method()) is not None:
            alive()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_call_methods)
