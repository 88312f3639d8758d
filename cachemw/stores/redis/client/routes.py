"""Where commands go, and where they go next when a server says that it did not run them.

Lives here: a cluster's slots, and what NOSCRIPT, MOVED and ASK ask for. Must not know: connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from cachemw.stores.redis.commands import Command, with_text
from cachemw.stores.url import Address

# A script, a move, an asking and a script again: more is a cluster that does not know itself.
MAX_REDIRECTS = 5


class PendingCommand(NamedTuple):
    """One command on its way: which of the call's it is, and to whom, where a server named one."""

    place: int
    command: Command
    to: Address | None = None
    asking: bool = False

    def after(self, error: Exception, asked: Address) -> PendingCommand | None:
        """Return how it goes on after an error that says it was not run; None where that is the answer."""
        if isinstance(error, NoScriptError) and self.command[0] == "EVALSHA":
            return self._replace(command=with_text(self.command))
        if isinstance(error, AskError):
            # Without a name, it is the host that was asked.
            to = (error.host or asked[0], error.port)
            return self._replace(to=to, asking=not isinstance(error, MovedError))
        return None


class CommandBatch:
    """The commands of one call: what is still to be sent, and what was answered."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.replies: list[Any] = [None] * len(commands)
        self.errands = [PendingCommand(index, command) for index, command in enumerate(commands)]

    def answered(
        self, groups: Mapping[Address, list[PendingCommand]], answers: list[list[Any]]
    ) -> list[tuple[ResponseError, Address]]:
        """Take the answers to all errands, keep those that go on, and return what was refused, and by whom."""
        refusals = []
        self.errands = []
        for (address, group), replies in zip(groups.items(), answers, strict=True):
            for errand, reply in zip(group, replies, strict=True):
                self.replies[errand.place] = reply
                if isinstance(reply, ResponseError):
                    refusals.append((reply, address))
                    if (further := errand.after(reply, address)) is not None:
                        self.errands.append(further)
        return refusals


def slot_of(command: Command) -> int | None:
    """Return the slot of a command's first key; None where it has none."""
    place = 3 if command[0] in ("EVAL", "EVALSHA") else 1
    if len(command) <= place:
        return None
    key = command[place]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


class SlotMap:
    """Know which node of a cluster serves which slot."""

    def __init__(self, reply: Sequence[Any], asked: Address) -> None:
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._asked = asked
        self.nodes: set[Address] = set()
        for first, last, *servers in reply:
            named = [(_text(host) or asked[0], int(port)) for host, port, *_ in servers]
            self._owners[first : last + 1] = [named[0]] * (last - first + 1)
            self.nodes.update(named)

    def owner(self, command: Command) -> Address:
        """Return whom to send a command to: the node that told of the slots where nobody is known to serve it."""
        slot = slot_of(command)
        return (None if slot is None else self._owners[slot]) or self._asked

    def moved(self, slot: int, to: Address) -> None:
        """Learn where a slot has gone."""
        self._owners[slot] = to
        self.nodes.add(to)


def grouped(errands: Iterable[PendingCommand], slots: SlotMap) -> dict[Address, list[PendingCommand]]:
    """Return errands by whom they go to."""
    groups: dict[Address, list[PendingCommand]] = {}
    for errand in errands:
        groups.setdefault(errand.to or slots.owner(errand.command), []).append(errand)
    return groups


def _text(host: bytes | str | None) -> str:
    text = host.decode() if isinstance(host, bytes) else host or ""
    return "" if text == "?" else text
