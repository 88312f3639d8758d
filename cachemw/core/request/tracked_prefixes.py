"""The prefixes of a request that have records: a bounded set of depths.

Contains: the choice of the tracked blocks. Must not depend on: wire formats, hashes, stores, plans.
"""

from __future__ import annotations

from itertools import pairwise

from cachemw.core.request.parser import ParsedRequest

# How many of each are watched. A request's own end and the ends of earlier turns are where
# conversations go on; tools, system and the first messages are where they part.
_SYSTEM = 6
_OPENING = 8
_ENDS = 24
_LAST_RUN = 8
_SPREAD = 16


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
