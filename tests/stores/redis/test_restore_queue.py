"""The states of a record that the server lost or never received, by the table at the head of the module."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cachemw.core.hash_types import StoreKey
from cachemw.stores.redis.restore_queue import RestoreQueue

KEY = StoreKey(b"key")

Event = Callable[[RestoreQueue], None]


def schedule(queue: RestoreQueue) -> None:
    """Schedule the key."""
    queue.schedule([KEY])


def begin(queue: RestoreQueue) -> None:
    """Begin a flush."""
    queue.begin([])


def finish(queue: RestoreQueue) -> None:
    """Note the server's answer."""
    queue.finish([KEY])


@pytest.mark.parametrize(
    ("events", "held", "restoring", "sent"),
    [
        ([], False, False, []),
        ([schedule], True, False, [KEY]),
        ([schedule, begin], True, True, []),
        ([schedule, begin, finish], True, True, []),
        ([schedule, begin, begin], True, True, []),
        ([schedule, begin, finish, begin], False, False, []),
        ([schedule, begin, schedule], True, False, [KEY]),
        ([schedule, begin, schedule, finish], True, False, [KEY]),
        ([finish], False, False, []),
    ],
    ids=["in sync", "scheduled", "restoring", "restored", "still restoring", "in sync again", "failed",
         "late answer", "answer without a restore"],
)  # fmt: skip
def test_key_after_events_is_in_its_state(
    events: list[Event], held: bool, restoring: bool, sent: list[StoreKey]
) -> None:
    """The state decides whose record counts, and whether the next flush sends the worker's."""
    queue = RestoreQueue(9)
    for event in events:
        event(queue)
    assert (queue.holds(KEY), queue.holds_any([KEY]), queue.is_restoring(KEY)) == (held, held, restoring)
    keys: list[StoreKey] = []
    queue.begin(keys)
    assert keys == sent


def test_key_lost_while_it_is_restored_is_sent_again() -> None:
    """The server lost it once more: it stays in restoring, and the next flush sends it."""
    queue = RestoreQueue(9)
    schedule(queue)
    begin(queue)
    queue.schedule_lost(KEY)
    assert queue.is_restoring(KEY)
    keys: list[StoreKey] = []
    queue.begin(keys)
    assert keys == [KEY]


def test_full_queue_takes_no_more_keys() -> None:
    """A long outage does not grow the queue; one call's keys may exceed the limit."""
    queue = RestoreQueue(2)
    queue.schedule([StoreKey(b"%d" % number) for number in range(3)])
    queue.schedule([KEY])
    assert len(queue.scheduled) == 3
    assert not queue.holds(KEY)


def test_cleared_queue_restores_nothing() -> None:
    """A forked child leaves all restores to its parent."""
    queue = RestoreQueue(9)
    schedule(queue)
    begin(queue)
    schedule(queue)
    queue.clear()
    assert not queue.holds(KEY)
