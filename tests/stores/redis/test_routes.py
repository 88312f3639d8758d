"""Where commands go in a cluster, and what a refusal makes of them."""

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
def test_a_command_has_its_first_keys_slot(command: Command, key: bytes | None) -> None:
    """Scripts name their keys after their number."""
    assert slot_of(command) == (None if key is None else key_slot(key))


def test_slots_have_owners_and_unnamed_hosts_are_the_one_asked() -> None:
    """A slot that nobody serves, and a command without a key, go to the node that told of the slots."""
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


def test_errands_go_where_a_server_sent_them() -> None:
    """Before what is known of the slots."""
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
def test_only_what_was_not_run_goes_on(error: Exception, expected: PendingCommand | None) -> None:
    """Elsewhere, or with the script's text; any other refusal is the answer."""
    assert PendingCommand(0, EVALSHA).after(error, ASKED) == expected


def test_a_text_that_is_not_known_either_is_an_answer() -> None:
    """No server is asked in circles."""
    assert PendingCommand(0, commands.with_text(EVALSHA)).after(NoScriptError("x"), ASKED) is None


def test_a_call_has_its_replies_in_order() -> None:
    """Whichever group they came in; a later answer replaces a refusal."""
    call = CommandBatch([("GET", b"a"), EVALSHA, ("GET", b"b")])
    first, second, third = call.errands
    answers: list[list[Any]] = [[b"b", NoScriptError("x")], [b"a"]]
    refusals = call.answered({("one", 1): [third, second], ("two", 2): [first]}, answers)
    assert [(type(refusal), address) for refusal, address in refusals] == [(NoScriptError, ("one", 1))]
    assert [errand.place for errand in call.errands] == [1]
    assert call.answered({("one", 1): call.errands}, [[b"done"]]) == []
    assert call.replies == [b"a", b"done", b"b"]
    assert call.errands == []
