"""Prefix hashes: the blocks of a request as a chain, one hash for each prefix.

Contains: the definition of a prefix hash. Must not depend on: wire formats, stores, plans.

Hash k covers the namespace, the model, the parameters that key an entry, and blocks 0..k. Equal hashes mean
equal prefixes of one tenant on one model; two tenants or models share none. The seed of the namespace keys
every hash, see `parser.ContentKeys`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from xxhash import xxh3_128_digest

from cachemw.core.hash_types import PrefixHash
from cachemw.core.request.canonical_json import canonical_json
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.rules.model_names import model_key

_hash = cast("Callable[[bytes, int], PrefixHash]", xxh3_128_digest)


def hash_prefixes(parsed: ParsedRequest, namespace: str) -> list[PrefixHash]:
    """Return the hash of each prefix of the request, 16 bytes each, shallow to deep."""
    blocks, tools, system = parsed.blocks, parsed.tools_end, parsed.system_end
    hashes: list[PrefixHash] = []
    hash_of, seed = _hash, parsed.seed
    last = hash_of(canonical_json((namespace, model_key(parsed.model), parsed.wire)) + parsed.root, seed)
    for section, params in (
        (blocks[:tools], b""),
        (blocks[tools:system], parsed.system_params),
        (blocks[system:], parsed.params),
    ):
        # The parameters of an empty section still key the sections after it.
        last = hash_of(last + b"section" + params, seed)
        hashes += [last := hash_of(last + block.digest, seed) for block in section]
    return hashes
