"""The nodes of commands in a cluster, and the effect of refusals."""

from __future__ import annotations

from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, ReadOnlyError, ResponseError

from cachemw.stores.redis import commands
from cachemw.stores.redis.client.routes import CommandBatch, PendingCommand, SlotMap, grouped, slot_of
from cachemw.stores.redis.commands import Command

ASKED = ("asked", 1)
REPLY = [
    [0, 8191, [b"one", 7001, b"id"], [b"copy", 7004, b"id"]],
    [8192, 16000, [b"", 7002, b"id", []]],
    [16001, 16382, [None, 7003]],
]


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", b"a"), b"a"),
        (("MGET", b"{x}1", b"{x}2"), b"x"),
        (("HGETALL", "text"), b"text"),
        (("GET", 12), b"12"),
        (("EVALSHA", "sha", 2, b"{y}1", b"{y}2", b"argument"), b"y"),
        (("EVAL", "text", 1, b"z"), b"z"),
        (("EVALSHA", "sha", 0), None),
        (("PING",), None),
    ],
)
def test_slot_of_a_command_is_that_of_its_first_key(command: Command, key: bytes | None) -> None:
    """Scripts name their keys after their number."""
    assert slot_of(command) == (None if key is None else key_slot(key))


def test_slot_map_without_an_owner_names_the_asked_node() -> None:
    """An unserved slot, and a command without a key, go to the node that reported the slots."""
    slots = SlotMap(REPLY, ASKED)
    assert slots.nodes == {("one", 7001), ("copy", 7004), ("asked", 7002), ("asked", 7003)}
    owners = {slots.owner(("GET", b"%d" % number)) for number in range(2000)}
    assert owners == {("one", 7001), ("asked", 7002), ("asked", 7003)}
    assert slots.owner(("PING",)) == ASKED
    lost = next(b"%d" % number for number in range(10**6) if key_slot(b"%d" % number) == 16383)
    assert slots.owner(("GET", lost)) == ASKED
    slots.moved(16383, ("new", 7005))
    assert slots.owner(("GET", lost)) == ("new", 7005)
    assert ("new", 7005) in slots.nodes


def test_redirected_command_goes_to_the_named_server() -> None:
    """A redirect counts more than the known slots."""
    slots = SlotMap([[0, 16383, [b"one", 7001]]], ASKED)
    plain, sent = PendingCommand(0, ("GET", b"a")), PendingCommand(1, ("GET", b"b"), ("two", 7002))
    assert grouped([plain, sent, plain], slots) == {("one", 7001): [plain, plain], ("two", 7002): [sent]}


EVALSHA = commands.run(commands.WRITE, [b"k"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NoScriptError("x"), PendingCommand(0, commands.with_text(EVALSHA))),
        (MovedError("12 there:7009"), PendingCommand(0, EVALSHA, ("there", 7009))),
        (MovedError("12 :7009"), PendingCommand(0, EVALSHA, ("asked", 7009))),
        (MovedError("12 ::1:7009"), PendingCommand(0, EVALSHA, ("::1", 7009))),
        (AskError("12 there:7009"), PendingCommand(0, EVALSHA, ("there", 7009), asking=True)),
        (ReadOnlyError("x"), None),
        (ResponseError("x"), None),
    ],
)
def test_only_a_command_that_did_not_run_is_sent_again(
    error: Exception, expected: PendingCommand | None
) -> None:
    """It goes to another server or with the script's text; any other refusal is the reply."""
    assert PendingCommand(0, EVALSHA).after(error, ASKED) == expected


def test_script_text_that_is_refused_is_the_reply() -> None:
    """The client asks no server in circles."""
    assert PendingCommand(0, commands.with_text(EVALSHA)).after(NoScriptError("x"), ASKED) is None


def test_batch_keeps_its_replies_in_order() -> None:
    """The groups may answer in any order; a later reply replaces a refusal."""
    call = CommandBatch([("GET", b"a"), EVALSHA, ("GET", b"b")])
    first, second, third = call.pending
    answers: list[list[Any]] = [[b"b", NoScriptError("x")], [b"a"]]
    refusals = call.answered({("one", 1): [third, second], ("two", 2): [first]}, answers)
    assert [(type(refusal), address) for refusal, address in refusals] == [(NoScriptError, ("one", 1))]
    assert [each.place for each in call.pending] == [1]
    assert call.answered({("one", 1): call.pending}, [[b"done"]]) == []
    assert call.replies == [b"a", b"done", b"b"]
    assert call.pending == []
