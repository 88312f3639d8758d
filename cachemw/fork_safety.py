"""What holds in a process that was forked from another.

Lives here: who is told. Must not know: what they do then.

A lock that another thread of the parent held stays locked in the child for ever, and what the parent has yet
to send is the parent's to send.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from weakref import WeakMethod

_told: set[WeakMethod[Callable[[], None]]] = set()


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Call an object's method in each child that is forked while the object lives, before anything else runs."""
    _told.add(WeakMethod(method, _told.discard))


def _tell() -> None:
    for method in list(_told):
        if (alive := method()) is not None:
            alive()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell)
