"""Blocks to a chain of prefix digests, and the bounded set of depths that are watched.

Lives here: what a digest covers and which prefixes of a request are worth a record. Must not know:
wire shapes, stores, plans.

Digest k covers the namespace, the model, the parameters that key an entry, and blocks 0..k. Equal
digests mean equal prefixes of one tenant on one model; two tenants or models share none. The seed of the
namespace keys every digest, see `blocks.Keys`.
"""

from __future__ import annotations

from itertools import pairwise

from xxhash import xxh3_128_digest

from cachemw.core.request.message_blocks import canonical_json
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.rules.providers import model_key

# How many of each are watched. A request's own end and the ends of earlier turns are where
# conversations go on; tools, system and the first messages are where they part.
_SYSTEM = 6
_OPENING = 8
_ENDS = 24
_LAST_RUN = 8
_SPREAD = 16


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


def track_prefixes(parsed: ParsedRequest) -> list[int]:
    """Return the indexes of the blocks whose prefixes are recorded, in order; the last is always one.

    The number is bounded however long the request is (under 90), and a depth that was watched in one
    request is, for the next turns, watched again.
    """
    blocks, tools, system = parsed.blocks, parsed.tools_end, parsed.system_end
    count = len(blocks)
    chosen = set()
    if parsed.client_marker_count:
        chosen.update([index for index, block in enumerate(blocks) if block.marker][:4])
    if count <= 2 * _OPENING:
        chosen.update(range(max(tools - 1, 0), count))
        return sorted(chosen)
    if tools:
        chosen.add(tools - 1)
    sections = range(tools, system)
    chosen.update(sections if len(sections) <= _SYSTEM else (*sections[:3], *sections[-3:]))
    chosen.update(range(system, min(system + _OPENING, count)))

    roles = [block.role for block in blocks[system:]]
    ends = [index for index, (role, after) in enumerate(pairwise(roles), system) if role != after]
    run = ends[-1] + 1 if ends else system
    chosen.update(range(run, min(run + _LAST_RUN, count)))
    chosen.update(range(max(run, count - _LAST_RUN), count))
    chosen.update(ends[-_ENDS:])
    # Older ends at a stride that doubles: those of a longer conversation are among those of a shorter.
    older = len(ends) - _ENDS
    if older > 0:
        stride = 4
        while older > stride * _SPREAD:
            stride *= 2
        chosen.update(ends[stride - 1 : older : stride])
    return sorted(chosen)
