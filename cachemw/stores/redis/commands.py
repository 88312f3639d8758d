"""Store calls as Redis commands, and replies as values, for both Redis stores.

Contains: key names, the packed record, the scripts. Must not depend on: connections, sync or async.

Each part in <> is a digest in hex. The secret keys all of them but <space>, so a key reveals no text, and no
namespace reaches the keys of another. The braces put all keys of one script into one slot of a cluster::

    cachemw:{<namespace>:<shard key>}:p:<prefix>    string: one packed record
    cachemw:{<namespace>:<table>}:t                 hash: name -> sum
    cachemw:{<namespace>:<table>}:b                 hash: sender -> number of its last batch
    cachemw:{<space>}:s                             string: the fingerprint of the namespace's secret
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import groupby, islice
from typing import Any, TypeAlias

from cachemw.core.hash_types import PrefixHash, StoreKey
from cachemw.core.reuse.record import PrefixRecord, in_flight_record
from cachemw.errors import StoreError
from cachemw.stores.protocol import FORGET, Arrival, CacheEntry

Command: TypeAlias = tuple[str | bytes | int, ...]

# The fields of PrefixRecord in their order; record.lua has the format in Lua.
RECORD = struct.Struct("<I6dIdId")
_TIME = struct.Struct("<d")
_ENTRY = struct.Struct("<dId")
_PENDING = struct.Struct("<d")
# A digest takes a microsecond, and most prefixes return. The full table has about 6 MB.
_REMEMBERED = 32_768
# All names of prefixes have the same length up to the closing brace.
_TAG = len("cachemw:{}") + 16 + 1 + 16
_TENANT = slice(len("cachemw:{"), len("cachemw:{") + 16)
# The most keys of one command that serves several requests.
_MOST = 500
# Redis adds in 64 bits, so another program wrote a longer number.
_SUM = 1 << 63
_made = tuple.__new__  # does the same as the constructor of the class in two thirds of the time
# The limit of all times in seconds and of all counts.
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
    """Return the command that runs a script by its digest."""
    return ("EVALSHA", _SHAS[script], len(keys), *keys, *arguments)


def with_text(command: Command) -> Command:
    """Return the same command with the text of the script, for a server that does not know its digest."""
    return ("EVAL", _TEXTS[str(command[1])], *command[2:])


class Commands:
    """Turn the calls of a `Store` into commands under one secret.

    If `clustered`, each command names keys of one slot. Otherwise a call is one command.
    """

    def __init__(self, secret: bytes | None, *, clustered: bool = False) -> None:
        secret = secret or b""
        self._secret = (
            secret if len(secret) <= hashlib.blake2b.MAX_KEY_SIZE else hashlib.blake2b(secret).digest()
        )
        self._clustered = clustered
        self._names = _Names(self._secret)
        self._tenant = lru_cache(1024)(self._short)

    def names(self, arrival: Arrival) -> list[StoreKey]:
        """Return the keys of an arrival, in its order."""
        namespace, shared, hashes = arrival.namespace, arrival.shared_count, arrival.keys
        keys = self._prefixes(namespace, arrival.shared_shard_key, hashes[:shared])
        return keys + self._prefixes(namespace, arrival.conversation_shard_key, hashes[shared:])

    def entry_names(
        self,
        namespace: str,
        shared_shard_key: PrefixHash,
        conversation_shard_key: PrefixHash,
        entries: Sequence[CacheEntry],
    ) -> tuple[list[StoreKey], list[CacheEntry]]:
        """Return the keys of entries, and the entries in that order: shared prefixes first."""
        entries = sorted(entries, key=lambda entry: not entry.is_shared)
        hashes, shared = [entry.key for entry in entries], sum(entry.is_shared for entry in entries)
        keys = self._prefixes(namespace, shared_shard_key, hashes[:shared])
        return keys + self._prefixes(namespace, conversation_shard_key, hashes[shared:]), entries

    def observe(
        self, names: Sequence[bytes], now: float | None, counts: Sequence[int] | None = None
    ) -> list[Command]:
        """Return the commands that count arrivals.

        Args:
            names: The keys. Without `counts` one arrival of each is counted; the request ends with the last.
            now: The time of the arrivals. None is the server's own time, a value below 0 the age of the
                arrival by the server's clock.
            counts: So many arrivals of each key are counted, of requests that continued after it.
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
        """Return the commands that read records."""
        return [("MGET", *names[part]) for part in self._parts(names)]

    def write(self, names: Sequence[bytes], entries: Sequence[CacheEntry]) -> list[Command]:
        """Return the commands that note the provider's entries."""
        packed = [_ENTRY.pack(entry.expires, entry.ttl, entry.in_flight_until) for entry in entries]
        return [run(WRITE, names[part], *packed[part]) for part in self._parts(names)]

    def claims(
        self, names: Sequence[bytes], entries: Sequence[CacheEntry], now: float
    ) -> list[tuple[Command, slice]]:
        """Return the commands that claim entries, each to be sent once the one before it was granted."""
        packed = [_PENDING.pack(entry.in_flight_until) for entry in entries]
        return [(run(CLAIM, names[part], repr(now), *packed[part]), part) for part in self._parts(names)]

    def restore(self, records: Mapping[StoreKey, PrefixRecord]) -> list[Command]:
        """Return the commands that restore records."""
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
        """Return the commands that publish the fingerprint of the secret; see `fingerprint_matches`."""
        key = b"cachemw:{%b}:s" % _named(_utf8(namespace), b"")
        return [
            ("SET", key, self._fingerprint(namespace), "NX", "PX", _SECRET_KEEP),
            ("GET", key),
            ("PEXPIRE", key, _SECRET_KEEP),
        ]

    def fingerprint_matches(self, namespace: str, replies: Sequence[Any]) -> bool:
        """Return True if the replies say that the first worker of the namespace has this secret."""
        return bool(checked(replies)[1] == self._fingerprint(namespace))

    def _fingerprint(self, namespace: str) -> bytes:
        return _named(b"the secret of " + _utf8(namespace), self._secret)

    def _parts(self, names: Sequence[bytes]) -> list[slice]:
        """Return the slices of `names` that go into one command each. Names of one slot stand together."""
        count = len(names)
        if not self._clustered and count <= _MOST:
            return [slice(0, count)] if count else []
        parts, start = [], 0
        for _, group in groupby(names, key=lambda name: name[:_TAG] if self._clustered else b""):
            stop = start + len(list(group))
            parts += [slice(each, min(each + _MOST, stop)) for each in range(start, stop, _MOST)]
            start = stop
        return parts

    def _prefixes(
        self, namespace: str, shard_key: PrefixHash, hashes: Sequence[PrefixHash]
    ) -> list[StoreKey]:
        names = self._names
        front = b"cachemw:{%b:%b}:p:" % (self._tenant(namespace), names[shard_key][:16])
        return [StoreKey(front + names[each]) for each in hashes]

    def _table(self, namespace: str, table: str, kind: bytes) -> bytes:
        return b"cachemw:{%b:%b}:%b" % (self._tenant(namespace), self._short(table), kind)

    def _short(self, text: str) -> bytes:
        return _named(_utf8(text), self._secret)[:16]


class _Names(dict[bytes, bytes]):
    """A bounded cache of the names of hashes under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __missing__(self, digest: bytes) -> bytes:
        if len(self) >= _REMEMBERED:
            for oldest in list(islice(self, _REMEMBERED // 64 + 1)):
                self.pop(oldest, None)
        name = self[digest] = _named(digest, self._secret)
        return name


def proves_writing(commands: Sequence[Command]) -> bool:
    """Return True if an answer to these commands proves that the server accepts writes.

    A full server, or a replica, still answers reads and writes without an effect.
    """
    return bool(commands) and not any(commands[0][: len(begin)] == begin for begin in _MAY_WRITE_NOTHING)


def tenant(name: bytes) -> str:
    """Return the keyed namespace that the key of a prefix belongs to."""
    return name[_TENANT].decode()


def records(replies: Sequence[Any]) -> tuple[float, list[PrefixRecord | None]]:
    """Return the server's time and the records from `Commands.observe`, None for unknown prefixes."""
    found: list[PrefixRecord | None] = []
    try:
        for reply in checked(replies):
            found += map(_record, RECORD.iter_unpack(reply[8:]))
        return (_TIME.unpack_from(replies[0])[0] if replies else 0.0), found
    except (struct.error, TypeError) as error:
        raise StoreError("a reply that is no record") from error


def peeked(replies: Sequence[Any], now: float) -> list[PrefixRecord | None]:
    """Return the records from `Commands.peek`; see `Store.lookup` for records of 0 arrivals."""
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
    """Return a record, None if it has no arrivals or impossible numbers, which another program wrote.

    Each time in seconds and each count is a number below `_LATEST`.
    """
    arrivals, last, gap, trials_5m, reuses_5m, trials_1h, reuses_1h, _, expires, _, in_flight_until = fields
    if (
        arrivals
        and 0.0 <= reuses_5m <= trials_5m <= _LATEST
        and 0.0 <= reuses_1h <= trials_1h <= _LATEST
        and 0.0 <= gap <= _LATEST
        and -_LATEST <= last <= _LATEST
        and -_LATEST <= expires <= _LATEST
        and -_LATEST <= in_flight_until <= _LATEST
    ):
        return _made(PrefixRecord, fields)
    return None


def sums(replies: Sequence[Any]) -> dict[str, int]:
    """Return the sums from the replies to `Commands.read`. Other types and texts are left out."""
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
