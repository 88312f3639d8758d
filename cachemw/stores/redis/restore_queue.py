"""The records that one worker has to give back to the store server.

Contains: the state of each record that the server lost or never received. Must not depend on: records,
commands, locks.

States of a key, and the events that move it:

| State     | Meaning                                            | The next state                         |
|-----------|----------------------------------------------------|----------------------------------------|
| in sync   | The server's record counts.                        | `schedule`: scheduled                  |
| scheduled | The worker's record counts; a flush will send it.  | `begin`: restoring                     |
| restoring | A flush has sent it; the server has not answered.  | `finish`: restored, or scheduled again |
| restored  | The server has it; older replies may still come.   | `begin` of the next flush: in sync     |

A record that the server lost once more while it is restored is in both of the last two states and scheduled.
"""

from __future__ import annotations

from collections.abc import Iterable

from cachemw.core.hash_types import StoreKey


class RestoreQueue:
    """Keep the keys of records to restore, at most `limit` and one call's keys. Not thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.scheduled: set[StoreKey] = set()
        # False until the server has answered.
        self._restoring: dict[StoreKey, bool] = {}

    def clear(self) -> None:
        """Forget all keys."""
        self.scheduled, self._restoring = set(), {}

    def schedule(self, keys: Iterable[StoreKey]) -> None:
        """Restore these records with the next flush."""
        keys = list(keys)
        for key in keys:
            self._restoring.pop(key, None)
        if len(self.scheduled) < self._limit:
            self.scheduled.update(keys)

    def schedule_lost(self, key: StoreKey) -> None:
        """Restore a record that the server has just lost, even if it is being restored."""
        self.scheduled.add(key)

    def holds(self, key: StoreKey) -> bool:
        """Return True if the server's record of a key may be older than the worker's."""
        return key in self.scheduled or key in self._restoring

    def holds_any(self, keys: Iterable[StoreKey]) -> bool:
        """Return True if that is so for any of these keys."""
        return not (self.scheduled.isdisjoint(keys) and self._restoring.keys().isdisjoint(keys))

    def is_restoring(self, key: StoreKey) -> bool:
        """Return True if a flush has sent a key's record, and no flush began after the answer."""
        return key in self._restoring

    def begin(self, keys: list[StoreKey]) -> None:
        """Add to `keys` those that a flush sends now, before anything is changed: an interrupt loses none."""
        keys += self.scheduled
        self._restoring = {key: answered for key, answered in self._restoring.items() if not answered}
        self._restoring.update(dict.fromkeys(keys, False))
        self.scheduled.difference_update(keys)

    def finish(self, keys: Iterable[StoreKey]) -> None:
        """Note that the server has answered for these keys."""
        self._restoring.update({key: True for key in keys if key in self._restoring})
