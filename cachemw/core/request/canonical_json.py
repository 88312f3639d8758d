"""JSON bytes of values, and their hashes.

Contains: the serialisation of content, and the refusal of values that JSON cannot carry. Must not depend on:
wire formats, stores, prices, plans.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any, TypeAlias

import orjson
from xxhash import xxh3_128_digest

from cachemw.errors import BodyError

Json: TypeAlias = Mapping[str, Any]

_FEW = 24
_NO_JSON = (TypeError, ValueError, RecursionError)


def canonical_json(value: Any, *, ordered: bool = True) -> bytes:
    """Return JSON bytes of a value, keys in their own order, or sorted if their order is no content.

    Raises `BodyError("not_json")` for values that JSON cannot carry: lone surrogates, NaN and infinities,
    integers over 64 bits, nesting deeper than about 250, foreign objects.
    """
    try:
        raw = orjson.dumps(value, option=0 if ordered else orjson.OPT_SORT_KEYS)
    except _NO_JSON:
        raise BodyError("not_json") from None
    if not _finite(value, raw):
        raise BodyError("not_json")
    return raw


def hash_values(values: Sequence[Any], seed: int) -> tuple[list[bytes], int]:
    """Return a hash of each value's JSON (16 bytes), keyed by a seed, and the bytes of JSON in total.

    A NaN counts as null. Raises `BodyError("not_json")` for values that JSON cannot carry.
    """
    dumps, digest, size = orjson.dumps, xxh3_128_digest, 0
    try:
        # Each JSON is hashed before the next one is made, in the same memory; none is empty.
        found = [digest(raw, seed) for value in values if (size := size + len(raw := dumps(value)))]
    except _NO_JSON:
        raise BodyError("not_json") from None
    return found, size


def _finite(value: Any, raw: bytes) -> bool:
    """Return True if every float is finite; the serialiser writes other floats as null.

    A message has few values and long texts, a schema many values and short texts. So the first few values are
    checked, and the JSON is searched for a null only if there are more.
    """
    looked = 0
    if value.__class__ is dict:
        stack = [node for node in value.values() if node.__class__ is not str]
    else:
        stack = [value]
    while stack:
        node = stack.pop()
        kind = node.__class__
        if kind is str:
            continue
        if kind is float and not isfinite(node):
            return False
        looked += 1
        if looked == _FEW and b"null" not in raw:
            return True
        if kind is dict or isinstance(node, Mapping):
            stack.extend(node.values())
        elif kind is list or kind is tuple:
            stack.extend(node)
    return True
