"""Store calls as Redis commands, and their replies as values: what both Redis stores share.

Lives here: key names, the packed record, the scripts. Must not know: connections, sync or async.

Every part in <> is a digest in hex, keyed by the secret but for <space>, so no text can be read from a key
and no namespace reach another's. The braces put what one script touches into one slot of a cluster::

    cachemw:{<namespace>:<root or trunk>}:p:<prefix>    string: one packed record
    cachemw:{<namespace>:<table>}:t                     hash: name -> sum
    cachemw:{<namespace>:<table>}:b                     hash: sender -> number of its last batch
    cachemw:{<space>}:s                                 string: what tells apart the secrets of a namespace
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import groupby, islice
from typing import Any, TypeAlias

from cachemw.core.reuse.record import PrefixRecord, in_flight_record
from cachemw.errors import StoreError
from cachemw.stores.protocol import FORGET, Arrival, CacheEntry

Command: TypeAlias = tuple[str | bytes | int, ...]

# The fields of Prefix in their order; Lua's half of the format is in record.lua.
RECORD = struct.Struct("<I6dIdId")
_TIME = struct.Struct("<d")
_ENTRY = struct.Struct("<dId")
_PENDING = struct.Struct("<d")
# A digest takes a microsecond, and most prefixes come back; this is some 6 MB when full.
_REMEMBERED = 32_768
# Up to the closing brace all names of prefixes are equally long.
_TAG = len("cachemw:{}") + 16 + 1 + 16
_TENANT = slice(len("cachemw:{"), len("cachemw:{") + 16)
# Keys of one command at most, where there are more than one request's.
_MOST = 500
# Redis adds in 64 bits: a longer number was written by another program.
_SUM = 1 << 63
_made = tuple.__new__  # what the class's own constructor does, a third faster
# No time in seconds and no count is above this.
_LATEST = 1e12
_SECRET_KEEP = 7 * 24 * 3600 * 1000


def _lua(*names: str) -> str:
    return "".join(files(__package__).joinpath("lua", name).read_text("utf-8") for name in names)


OBSERVE = _lua("record.lua", "observe.lua")
WRITE = _lua("record.lua", "write.lua")
CLAIM = _lua("record.lua", "claim.lua")
RESTORE = _lua("record.lua", "restore.lua")
ADD = _lua("add.lua")

_TEXTS = {
    hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): text
    for text in (OBSERVE, WRITE, CLAIM, RESTORE, ADD)
}
_SHAS = {text: sha for sha, text in _TEXTS.items()}
_MAY_WRITE_NOTHING = (("MGET",), ("EVALSHA", _SHAS[WRITE]))


def run(script: str, keys: Sequence[bytes], *arguments: bytes | str | int) -> Command:
    """Return the command that runs a script which the server should know by its digest."""
    return ("EVALSHA", _SHAS[script], len(keys), *keys, *arguments)


def with_text(command: Command) -> Command:
    """Return the same for a server that doesn't know the script: it learns it by this."""
    return ("EVAL", _TEXTS[str(command[1])], *command[2:])


class Commands:
    """Turn the calls of a `Store` into commands under one secret.

    `clustered`: no command may name keys of two slots; otherwise a call is one command.
    """

    def __init__(self, secret: bytes | None, *, clustered: bool = False) -> None:
        secret = secret or b""
        self._secret = (
            secret if len(secret) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(secret).digest()
        )
        self._clustered = clustered
        self._names = _Names(self._secret)
        self._tenant = lru_cache(1024)(self._short)

    def names(self, arrival: Arrival) -> list[bytes]:
        """Return the keys of an arrival, in its order."""
        namespace, heads, digests = arrival.namespace, arrival.shared_count, arrival.keys
        keys = self._prefixes(namespace, arrival.shared_shard_key, digests[:heads])
        return keys + self._prefixes(namespace, arrival.conversation_shard_key, digests[heads:])

    def entry_names(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[CacheEntry]
    ) -> tuple[list[bytes], list[CacheEntry]]:
        """Return the keys of entries, and the entries in that order: heads first."""
        entries = sorted(entries, key=lambda entry: not entry.is_shared)
        digests, heads = [entry.key for entry in entries], sum(entry.is_shared for entry in entries)
        keys = self._prefixes(namespace, root, digests[:heads])
        return keys + self._prefixes(namespace, trunk, digests[heads:]), entries

    def observe(
        self, names: Sequence[bytes], now: float | None, counts: Sequence[int] | None = None
    ) -> list[Command]:
        """Return the commands that count arrivals: one of each, of a request that ends with the last key.

        With `counts` so many of each, of requests that went on. A `now` of None is the server's own time, one below
        0 the age of the arrival by the server's clock.
        """
        stamp = "" if now is None else repr(now)
        return [
            run(
                OBSERVE,
                names[part],
                stamp,
                int(counts is None and part.stop == len(names)),
                b"" if counts is None else struct.pack(f"<{part.stop - part.start}I", *counts[part]),
            )
            for part in self._parts(names)
        ]

    def peek(self, names: Sequence[bytes]) -> list[Command]:
        """Return the commands that look at records."""
        return [("MGET", *names[part]) for part in self._parts(names)]

    def write(self, names: Sequence[bytes], entries: Sequence[CacheEntry]) -> list[Command]:
        """Return the commands that set what the provider holds."""
        packed = [_ENTRY.pack(entry.expires, entry.ttl, entry.in_flight_until) for entry in entries]
        return [run(WRITE, names[part], *packed[part]) for part in self._parts(names)]

    def claims(
        self, names: Sequence[bytes], entries: Sequence[CacheEntry], now: float
    ) -> list[tuple[Command, slice]]:
        """Return the commands that claim entries, each to be sent once those before it got theirs."""
        packed = [_PENDING.pack(entry.in_flight_until) for entry in entries]
        return [(run(CLAIM, names[part], repr(now), *packed[part]), part) for part in self._parts(names)]

    def restore(self, records: Mapping[bytes, PrefixRecord]) -> list[Command]:
        """Return the commands that give records back."""
        names = sorted(records)
        packed = [RECORD.pack(*records[name]) for name in names]
        return [run(RESTORE, names[part], *packed[part]) for part in self._parts(names)]

    def add(
        self, namespace: str, table: str, amounts: Mapping[str, int], keep: float, sender: str, batch: int
    ) -> Command:
        """Return the command that adds a sender's batch of amounts to a table."""
        pairs = [part for name, amount in amounts.items() for part in (_utf8(name), amount)]
        keys = [self._table(namespace, table, b"t"), self._table(namespace, table, b"b")]
        return run(ADD, keys, int(keep * 1000), sender, batch, *pairs)

    def read(self, namespace: str, tables: Sequence[str]) -> list[Command]:
        """Return the commands that read tables."""
        return [("HGETALL", self._table(namespace, table, b"t")) for table in tables]

    def publish_key_fingerprint(self, namespace: str) -> list[Command]:
        """Return the commands that say whose secret a namespace's keys are made with: see `met`."""
        key = b"cachemw:{%b}:s" % _named(_utf8(namespace), b"")
        return [
            ("SET", key, self._fingerprint(namespace), "NX", "PX", _SECRET_KEEP),
            ("GET", key),
            ("PEXPIRE", key, _SECRET_KEEP),
        ]

    def fingerprint_matches(self, namespace: str, replies: Sequence[Any]) -> bool:
        """Say from the replies to `meet` whether the first worker of the namespace had this secret."""
        return bool(checked(replies)[1] == self._fingerprint(namespace))

    def _fingerprint(self, namespace: str) -> bytes:
        return _named(b"the secret of " + _utf8(namespace), self._secret)

    def _parts(self, names: Sequence[bytes]) -> list[slice]:
        """Return which names, of a sequence in which a slot's stand together, go in one command."""
        count = len(names)
        if not self._clustered and count <= _MOST:
            return [slice(0, count)] if count else []
        parts, start = [], 0
        for _, group in groupby(names, key=lambda name: name[:_TAG] if self._clustered else b""):
            stop = start + len(list(group))
            parts += [slice(each, min(each + _MOST, stop)) for each in range(start, stop, _MOST)]
            start = stop
        return parts

    def _prefixes(self, namespace: str, slot: bytes, digests: Sequence[bytes]) -> list[bytes]:
        names = self._names
        front = b"cachemw:{%b:%b}:p:" % (self._tenant(namespace), names[slot][:16])
        return [front + names[digest] for digest in digests]

    def _table(self, namespace: str, table: str, kind: bytes) -> bytes:
        return b"cachemw:{%b:%b}:%b" % (self._tenant(namespace), self._short(table), kind)

    def _short(self, text: str) -> bytes:
        return _named(_utf8(text), self._secret)[:16]


class _Names(dict[bytes, bytes]):
    """A bounded memory of what digests are called under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __missing__(self, digest: bytes) -> bytes:
        if len(self) >= _REMEMBERED:
            for oldest in list(islice(self, _REMEMBERED // 64 + 1)):
                self.pop(oldest, None)
        name = self[digest] = _named(digest, self._secret)
        return name


def proves_writing(commands: Sequence[Command]) -> bool:
    """Return True if an answer to these commands proves that the server takes writes.

    A server that is full, or only a replica, answers reads, and writes that change nothing.
    """
    return bool(commands) and not any(commands[0][: len(begin)] == begin for begin in _MAY_WRITE_NOTHING)


def tenant(name: bytes) -> str:
    """Return the keyed namespace that the key of a prefix belongs to."""
    return name[_TENANT].decode()


def records(replies: Sequence[Any]) -> tuple[float, list[PrefixRecord | None]]:
    """Return time and records from the replies to `Commands.observe`, None for each that was unknown."""
    found: list[PrefixRecord | None] = []
    try:
        for reply in checked(replies):
            found += map(_record, RECORD.iter_unpack(reply[8:]))
        return (_TIME.unpack_from(replies[0])[0] if replies else 0.0), found
    except (struct.error, TypeError) as error:
        raise StoreError("a reply that is no record") from error


def peeked(replies: Sequence[Any], now: float) -> list[PrefixRecord | None]:
    """Return the records from the replies to `Commands.peek`; see `Store.lookup` for those of 0 arrivals."""
    found: list[PrefixRecord | None] = []
    try:
        for packed in [packed for reply in checked(replies) for packed in reply]:
            fields = RECORD.unpack(packed) if packed and len(packed) == RECORD.size else None
            record = None if fields is None else _record(fields)
            if fields is not None and (record is None or now - record.last_arrival > FORGET):
                record = in_flight_record(fields[-1]) if now < fields[-1] <= _LATEST else None
            found.append(record)
    except (struct.error, TypeError) as error:
        raise StoreError("a reply that is no list of records") from error
    return found


def _record(fields: tuple[Any, ...]) -> PrefixRecord | None:
    """Return a record, None where it has no arrivals, or numbers that no arrivals give: another program's.

    Every time, in seconds, and every count is below `_LATEST`, and is a number.
    """
    seen, last, gap, trials, hits, late_trials, late_hits, _, expires, _, pending = fields
    if (
        seen
        and 0.0 <= hits <= trials <= _LATEST
        and 0.0 <= late_hits <= late_trials <= _LATEST
        and 0.0 <= gap <= _LATEST
        and -_LATEST <= last <= _LATEST
        and -_LATEST <= expires <= _LATEST
        and -_LATEST <= pending <= _LATEST
    ):
        return _made(PrefixRecord, fields)
    return None


def sums(replies: Sequence[Any]) -> dict[str, int]:
    """Return the sums from the replies to `Commands.read`; what is neither table nor number is left out."""
    total: dict[str, int] = {}
    for reply in replies:
        if isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE"):
            continue
        (pairs,) = checked([reply])
        if not isinstance(pairs, (list, tuple)):
            raise StoreError("a reply that is no table")
        for name, amount in zip(pairs[::2], pairs[1::2], strict=False):
            try:
                text, number = name.decode("utf-8", "surrogatepass"), int(amount)
            except (ValueError, TypeError, AttributeError):
                continue
            if abs(number) < _SUM:
                total[text] = total.get(text, 0) + number
    return total


def checked(replies: Sequence[Any]) -> Sequence[Any]:
    """Return the replies, or raise `StoreError` for the first that is an error."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise StoreError(type(reply).__name__)
    return replies


def _named(digest: bytes, secret: bytes) -> bytes:
    return hashlib.blake2b(digest, key=secret, digest_size=16).hexdigest().encode()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
