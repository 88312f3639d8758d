"""The commands that leave the process: key names, packed records, and their slots."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import ResponseError

from cachemw.core.reuse.record import PrefixRecord, new_record
from cachemw.errors import StoreError
from cachemw.stores.protocol import Arrival, CacheEntry
from cachemw.stores.redis import commands as commands_module
from cachemw.stores.redis.commands import RECORD, Command, Commands, peeked, records, sums

KEYS = tuple(bytes([index]) * 16 for index in range(9))
ARRIVAL = Arrival("{acme}:p:", b"r" * 16, b"t" * 16, 3, KEYS)
ENTRIES = [CacheEntry(key, index < 3, 9.5, 300) for index, key in enumerate(KEYS)]
NAME = re.compile(rb"cachemw:\{[0-9a-f]{16}:[0-9a-f]{16}\}:(p:[0-9a-f]{32}|t|b)")


def keys(commands: list[Command]) -> list[list[Any]]:
    """Return the keys of each script call."""
    return [list(command[3 : 3 + int(command[2])]) for command in commands]


def test_packed_record_has_the_fields_of_a_prefix_record() -> None:
    """The packed record and the tuple have the same number of fields."""
    assert len(RECORD.unpack(bytes(RECORD.size))) == len(PrefixRecord._fields)


def test_key_names_are_hex_only() -> None:
    """A key reveals no namespace, table or prefix hash."""
    commands = Commands(b"secret")
    names = [
        *commands.names(ARRIVAL),
        *commands.entry_names("{acme}:p:", ARRIVAL.shared_shard_key, ARRIVAL.conversation_shard_key, ENTRIES)[
            0
        ],
        *keys([commands.add("{acme}:p:", "hour }:p:", {"tokens": 1}, 60, "sender", 1)])[0],
        commands.read("{acme}:p:", ["hour }:p:"])[0][1],
    ]
    assert len(names) == 21
    for name in names:
        assert NAME.fullmatch(name)
        for plain in KEYS:
            assert plain.hex().encode() not in name
            assert hashlib.blake2b(plain, digest_size=16).hexdigest().encode() not in name


def test_names_of_writes_equal_those_of_arrivals() -> None:
    """A key has one name in all calls, in any order of entries."""
    commands = Commands(b"secret")
    arrived = commands.names(ARRIVAL)
    named, sorted_entries = commands.entry_names(
        "{acme}:p:", ARRIVAL.shared_shard_key, ARRIVAL.conversation_shard_key, ENTRIES[::-1]
    )
    assert len(set(arrived)) == 9
    assert set(arrived) == set(named)
    assert [arrived[KEYS.index(entry.key)] for entry in sorted_entries] == named
    assert keys(commands.observe(arrived, 1.0)) == [arrived]
    assert commands.peek(arrived) == [("MGET", *arrived)]


def test_cache_of_names_when_full_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache keeps few names, and a name is the same when it is made again."""
    monkeypatch.setattr(commands_module, "_REMEMBERED", 4)
    commands = Commands(b"secret")
    made = [commands.names(ARRIVAL) for _ in range(3)]
    assert made[0] == made[1] == made[2]
    assert len(commands._names) <= 4


@pytest.mark.parametrize(("heads", "calls"), [(0, 1), (3, 2), (9, 1)])
def test_commands_of_a_cluster_name_one_slot_each(heads: int, calls: int) -> None:
    """A request takes two slots at most; without a cluster one command is enough."""
    arrival = Arrival("acme", b"r" * 16, b"t" * 16, heads, KEYS)
    entries = [CacheEntry(key, index < heads, 9.5, 300) for index, key in enumerate(KEYS)]
    for clustered in (False, True):
        commands = Commands(b"secret", clustered=clustered)
        names = commands.names(arrival)
        for made in (
            commands.observe(names, 1.0),
            commands.write(names, entries),
            [command for command, _ in commands.claims(names, entries, 1.0)],
            commands.restore(dict.fromkeys(names, new_record(0, 1.0))),
        ):
            assert len(made) == (calls if clustered else 1)
            slots = [{key_slot(name) for name in part} for part in keys(made)]
            assert sorted(map(len, slots)) == ([1] * calls if clustered else [calls])


def test_observe_in_a_cluster_keeps_counts_with_their_keys() -> None:
    """Only the last command of an arrival says that the request ended there."""
    commands = Commands(b"", clustered=True)
    names = commands.names(ARRIVAL)
    heads, others = commands.observe(names, None)
    assert (heads[-3:], others[-3:]) == (("", 0, b""), ("", 1, b""))
    heads, others = commands.observe(names, 1.5, [*range(1, 10)])
    assert heads[-3:] == ("1.5", 0, b"".join(count.to_bytes(4, "little") for count in range(1, 4)))
    assert others[-3:] == ("1.5", 0, b"".join(count.to_bytes(4, "little") for count in range(4, 10)))


@pytest.mark.parametrize("clustered", [False, True])
def test_commands_with_many_keys_are_cut(clustered: bool) -> None:
    """A command has 500 keys at most, and each key is in one command."""
    commands = Commands(b"", clustered=clustered)
    many = Arrival("acme", b"r", b"t", 700, tuple(index.to_bytes(16, "big") for index in range(1800)))
    names = commands.names(many)
    parts = keys(commands.observe(names, 1.0))
    assert max(map(len, parts)) == 500
    assert [name for part in parts for name in part] == names


def test_error_among_replies_becomes_a_store_error() -> None:
    """The message is the class of the error, without any text of the server."""
    for decode in (records, sums):
        with pytest.raises(StoreError) as failed:
            decode([ResponseError("OOM near cachemw:{...}")])
        assert str(failed.value) == "ResponseError"


def test_garbage_in_a_table_is_left_out() -> None:
    """Another type, a name that is no text and an amount that is no integer count as zero."""
    replies = [ResponseError("WRONGTYPE Operation"), [b"\xff", b"1", b"tokens", b"1.5"], [b"tokens", b"-2"]]
    assert sums(replies) == {"tokens": -2}


@pytest.mark.parametrize("reply", [None, 5, b"", b"short", b"x" * 60, [], [b"x"], "text", 1.5])
def test_reply_without_records_is_a_store_error(reply: object) -> None:
    """A server that replies with another type has failed, and the worker goes on alone."""
    with pytest.raises(StoreError):
        records([reply])


@pytest.mark.parametrize("reply", [None, 5, [5], [1.5], [object()]])
def test_lookup_reply_without_records_is_a_store_error(reply: object) -> None:
    """A server that replies to a look-up with another type has failed."""
    with pytest.raises(StoreError):
        peeked([reply], 0.0)


def test_sums_with_numbers_above_64_bits_leave_them_out() -> None:
    """A number of more than 64 bits, or of more digits than Python reads, counts as zero."""
    huge = [
        b"a",
        b"9" * 19,
        b"b",
        b"9" * 4_000,
        b"c",
        b"9" * 1_000_000,
        b"d",
        None,
        5,
        b"1",
        b"e",
        b"-7",
        b"odd",
    ]
    assert sums([huge]) == {"e": -7}
    for reply in (None, 5, b"text"):
        with pytest.raises(StoreError):
            sums([reply])


GOOD = PrefixRecord(5, 1e9, 7.0, 4.0, 3.0, 1.0, 0.0, 1, 1e9, 300, 0.0)


@pytest.mark.parametrize(
    "changed",
    [
        {"arrivals": 0}, {"reuses_5m": 5.0}, {"reuses_5m": -1.0}, {"trials_5m": float("nan")}, {"trials_5m": 1e300}, {"reuses_1h": 1.5},
        {"trials_1h": float("inf")}, {"last_gap": -1.0}, {"last_gap": float("nan")}, {"last_arrival": float("inf")}, {"last_arrival": float("nan")},
        {"expires": float("nan")}, {"expires": -float("inf")}, {"in_flight_until": 1e13},
    ],
)  # fmt: skip
def test_record_with_impossible_numbers_is_unknown(changed: dict[str, float]) -> None:
    """A record that another program wrote counts as unknown, so no probability is made of it."""
    packed, good = RECORD.pack(*GOOD._replace(**changed)), RECORD.pack(*GOOD)
    assert records([bytes(8) + good + packed]) == (0.0, [GOOD, None])
    assert peeked([[good, packed]], 1e9) == [GOOD, None]
