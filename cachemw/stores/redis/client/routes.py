"""The server of each command, and the next server after a refusal to run it.

Contains: the slots of a cluster, and the reactions to NOSCRIPT, MOVED and ASK. Must not depend on:
connections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from cachemw.stores.redis.commands import Command, with_text
from cachemw.stores.url import Address

# NOSCRIPT, MOVED, ASK and NOSCRIPT again. With more, the nodes of the cluster disagree.
MAX_REDIRECTS = 5


class PendingCommand(NamedTuple):
    """One command without a reply: its place in the call, and its server if another server named it."""

    place: int
    command: Command
    to: Address | None = None
    asking: bool = False

    def after(self, error: Exception, asked: Address) -> PendingCommand | None:
        """Return the command to send after a refusal to run it, None if the error is its reply."""
        if isinstance(error, NoScriptError) and self.command[0] == "EVALSHA":
            return self._replace(command=with_text(self.command))
        if isinstance(error, AskError):
            # Without a host name, the host of the asked server is meant.
            to = (error.host or asked[0], error.port)
            return self._replace(to=to, asking=not isinstance(error, MovedError))
        return None


class CommandBatch:
    """The commands of one call: those still to send, and the replies so far."""

    def __init__(self, commands: Sequence[Command]) -> None:
        self.replies: list[Any] = [None] * len(commands)
        self.pending = [PendingCommand(index, command) for index, command in enumerate(commands)]

    def answered(
        self, groups: Mapping[Address, list[PendingCommand]], answers: list[list[Any]]
    ) -> list[tuple[ResponseError, Address]]:
        """Take the replies, keep the commands to send again, and return each refusal with its server."""
        refusals = []
        self.pending = []
        for (address, group), replies in zip(groups.items(), answers, strict=True):
            for command, reply in zip(group, replies, strict=True):
                self.replies[command.place] = reply
                if isinstance(reply, ResponseError):
                    refusals.append((reply, address))
                    if (further := command.after(reply, address)) is not None:
                        self.pending.append(further)
        return refusals


def slot_of(command: Command) -> int | None:
    """Return the slot of a command's first key, None without a key."""
    place = 3 if command[0] in ("EVAL", "EVALSHA") else 1
    if len(command) <= place:
        return None
    key = command[place]
    return key_slot(key if isinstance(key, bytes) else str(key).encode())


class SlotMap:
    """The node of each slot of a cluster."""

    def __init__(self, reply: Sequence[Any], asked: Address) -> None:
        self._owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._asked = asked
        self.nodes: set[Address] = set()
        for first, last, *servers in reply:
            named = [(_text(host) or asked[0], int(port)) for host, port, *_ in servers]
            self._owners[first : last + 1] = [named[0]] * (last - first + 1)
            self.nodes.update(named)

    def owner(self, command: Command) -> Address:
        """Return the node of a command. Without a known one, return the node that reported the slots."""
        slot = slot_of(command)
        return (None if slot is None else self._owners[slot]) or self._asked

    def moved(self, slot: int, to: Address) -> None:
        """Note the new node of a slot."""
        self._owners[slot] = to
        self.nodes.add(to)


def grouped(pending: Iterable[PendingCommand], slots: SlotMap) -> dict[Address, list[PendingCommand]]:
    """Return commands by their server."""
    groups: dict[Address, list[PendingCommand]] = {}
    for each in pending:
        groups.setdefault(each.to or slots.owner(each.command), []).append(each)
    return groups


def _text(host: bytes | str | None) -> str:
    text = host.decode() if isinstance(host, bytes) else host or ""
    return "" if text == "?" else text
