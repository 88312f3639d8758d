"""Store calls as Redis commands, and their replies as values: what both Redis stores share.

Lives here: key names, the packed record, the scripts. Must not know: connections, sync or async.

Every part in <> is a digest in hex, keyed by the secret, so no text can be read from a key and no
namespace reach another's. The braces put what one script touches into one slot of a cluster::

    cachemw:{<namespace>:<root or trunk>}:p:<prefix>    string: one packed record
    cachemw:{<namespace>:<table>}:t                     hash: name -> sum
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from typing import Any, TypeAlias

from cachemw.core.reuse import Prefix
from cachemw.errors import StoreError
from cachemw.stores.base import FORGET, Arrival, Entry

Command: TypeAlias = tuple[str | bytes | int, ...]

# The fields of Prefix in their order; Lua's half of the format is in record.lua.
RECORD = struct.Struct("<I6dI2dId")
_ENTRY = struct.Struct("<dId")
_PENDING = struct.Struct("<d")
# A digest takes a microsecond, and most prefixes come back; this is some 6 MB when full.
_REMEMBERED = 32_768


def _lua(*names: str) -> str:
    return "".join(files(__package__).joinpath(name).read_text("utf-8") for name in names)


OBSERVE = _lua("record.lua", "observe.lua")
WRITE = _lua("record.lua", "write.lua")
CLAIM = _lua("record.lua", "claim.lua")
ADD = _lua("add.lua")

_TEXTS = {
    hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): text
    for text in (OBSERVE, WRITE, CLAIM, ADD)
}
_SHAS = {text: sha for sha, text in _TEXTS.items()}


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

    def observe(self, arrival: Arrival, now: float | None) -> list[Command]:
        """Return the commands that count an arrival."""
        stamp = "" if now is None else repr(float(now))
        keys = self._watched(arrival)
        return [
            run(OBSERVE, keys[part], struct.pack(f"<{len(keys[part])}I", *arrival.children[part]), stamp)
            for part in self._parts(arrival.heads, len(keys))
        ]

    def peek(self, arrival: Arrival) -> list[Command]:
        """Return the commands that look at an arrival's records."""
        keys = self._watched(arrival)
        return [("MGET", *keys[part]) for part in self._parts(arrival.heads, len(keys))]

    def write(self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry]) -> list[Command]:
        """Return the commands that set what the provider holds."""
        heads = [entry for entry in entries if entry.head]
        others = [entry for entry in entries if not entry.head]
        keys = self._prefixes(namespace, root, [entry.key for entry in heads])
        keys += self._prefixes(namespace, trunk, [entry.key for entry in others])
        packed = [_ENTRY.pack(entry.expires, entry.ttl, entry.pending) for entry in heads + others]
        return [run(WRITE, keys[part], *packed[part]) for part in self._parts(len(heads), len(keys))]

    def claims(
        self, namespace: str, root: bytes, trunk: bytes, entries: Sequence[Entry], now: float
    ) -> list[tuple[Command, list[Entry]]]:
        """Return the commands that claim entries, each to be sent once those before it got theirs."""
        entries = sorted(entries, key=lambda entry: not entry.head)
        heads = sum(entry.head for entry in entries)
        keys = self._prefixes(namespace, root, [entry.key for entry in entries[:heads]])
        keys += self._prefixes(namespace, trunk, [entry.key for entry in entries[heads:]])
        packed = [_PENDING.pack(entry.pending) for entry in entries]
        return [
            (run(CLAIM, keys[part], repr(float(now)), *packed[part]), entries[part])
            for part in self._parts(heads, len(keys))
        ]

    def add(self, namespace: str, table: str, amounts: Mapping[str, int], keep: float) -> list[Command]:
        """Return the command that adds to a table, if there is anything to add."""
        if not amounts:
            return []
        pairs = [part for name, amount in amounts.items() for part in (_utf8(name), amount)]
        return [run(ADD, [self._table(namespace, table)], int(keep * 1000), *pairs)]

    def read(self, namespace: str, tables: Sequence[str]) -> list[Command]:
        """Return the commands that read tables."""
        return [("HGETALL", self._table(namespace, table)) for table in tables]

    def _parts(self, heads: int, count: int) -> list[slice]:
        """Return which keys go in one command: the first `heads` share a slot, and so do the others."""
        borders = (0, heads, count) if self._clustered else (0, count)
        return [slice(start, stop) for start, stop in pairwise(borders) if start < stop]

    def _watched(self, arrival: Arrival) -> list[bytes]:
        namespace, heads, digests = arrival.namespace, arrival.heads, arrival.keys
        keys = self._prefixes(namespace, arrival.root, digests[:heads])
        return keys + self._prefixes(namespace, arrival.trunk, digests[heads:])

    def _prefixes(self, namespace: str, slot: bytes, digests: Sequence[bytes]) -> list[bytes]:
        names = self._names
        front = b"cachemw:{%b:%b}:p:" % (self._tenant(namespace), names[slot][:16])
        return [front + names[digest] for digest in digests]

    def _table(self, namespace: str, table: str) -> bytes:
        return b"cachemw:{%b:%b}:t" % (self._tenant(namespace), self._short(table))

    def _short(self, text: str) -> bytes:
        return _named(_utf8(text), self._secret)[:16]


class _Names(dict[bytes, bytes]):
    """A bounded memory of what digests are called under one secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def __missing__(self, digest: bytes) -> bytes:
        if len(self) >= _REMEMBERED:
            self.clear()
        name = self[digest] = _named(digest, self._secret)
        return name


def records(replies: Sequence[Any]) -> list[Prefix | None]:
    """Return the records from the replies to `Commands.observe`, None for each that was unknown."""
    packed = b"".join(checked(replies))
    return [Prefix._make(fields) if fields[0] else None for fields in RECORD.iter_unpack(packed)]


def peeked(replies: Sequence[Any], now: float) -> list[Prefix | None]:
    """Return the records from the replies to `Commands.peek`, as `records` would have them."""
    found: list[Prefix | None] = []
    for packed in [packed for reply in checked(replies) for packed in reply]:
        record = Prefix._make(RECORD.unpack(packed)) if packed and len(packed) == RECORD.size else None
        found.append(record if record is not None and now - record.last <= FORGET else None)
    return found


def sums(replies: Sequence[Any]) -> dict[str, int]:
    """Return the sums from the replies to `Commands.read`; what is neither table nor number is left out."""
    total: dict[str, int] = {}
    for reply in replies:
        if isinstance(reply, Exception) and str(reply).startswith("WRONGTYPE"):
            continue
        for name, amount in checked([reply])[0].items():
            try:
                text, number = name.decode("utf-8", "surrogatepass"), int(amount)
            except ValueError:
                continue
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
