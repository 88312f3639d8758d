"""Blocks to a chain of prefix digests, and the bounded set of depths that are watched.

Lives here: what a digest covers and which prefixes of a request are worth a record. Must not know:
wire shapes, stores, plans.

Digest k covers the namespace, the model, the parameters that key an entry, and blocks 0..k. Equal
digests mean equal prefixes of one tenant on one model; two tenants or models share none. The seed of the
namespace keys every digest, see `blocks.Keys`.
"""

from __future__ import annotations

from xxhash import xxh3_128_digest

from cachemw.core.request.canonical_json import canonical_json
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.rules.model_names import model_key


def hash_prefixes(parsed: ParsedRequest, namespace: str) -> list[bytes]:
    """Return the digest of each prefix of the request, 16 bytes each, shallow to deep."""
    blocks, tools, system = parsed.blocks, parsed.tools_end, parsed.system_end
    digests: list[bytes] = []
    digest_of, seed = xxh3_128_digest, parsed.seed
    digest = digest_of(canonical_json((namespace, model_key(parsed.model), parsed.wire)) + parsed.root, seed)
    for section, params in (
        (blocks[:tools], b""),
        (blocks[tools:system], parsed.system_params),
        (blocks[system:], parsed.params),
    ):
        # A section that is empty passes on what it would have been keyed by.
        digest = digest_of(digest + b"section" + params, seed)
        digests += [digest := digest_of(digest + block.digest, seed) for block in section]
    return digests
