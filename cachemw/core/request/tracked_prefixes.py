"""Tracked prefixes: the bounded set of prefixes of a request that have records.

Contains: the choice of the tracked blocks. Must not depend on: wire formats, hashes, stores, plans.

Conversations continue at the end of a request and at the ends of earlier turns. They branch after the tools,
after the system section, and at the first messages. A prefix that was tracked in one request is tracked again
in the next turns.
"""

from __future__ import annotations

from itertools import pairwise

from cachemw.core.request.parser import ParsedRequest
from cachemw.core.tuning import TRACKING


def track_prefixes(parsed: ParsedRequest) -> list[int]:
    """Return the indexes of the blocks whose prefixes have records, in order; the last block is always one.

    The number is under 90 for a request of any length.
    """
    blocks, tools, system = parsed.blocks, parsed.tools_end, parsed.system_end
    count, opening, latest, run_blocks = (
        len(blocks),
        TRACKING.opening_blocks,
        TRACKING.latest_ends,
        TRACKING.run_blocks,
    )
    chosen = set()
    if parsed.client_marker_count:
        chosen.update([index for index, block in enumerate(blocks) if block.marker][:4])
    if count <= 2 * opening:
        chosen.update(range(max(tools - 1, 0), count))
        return sorted(chosen)
    if tools:
        chosen.add(tools - 1)
    section, side = range(tools, system), TRACKING.system_ends // 2
    chosen.update(section if len(section) <= TRACKING.system_ends else (*section[:side], *section[-side:]))
    chosen.update(range(system, min(system + opening, count)))

    roles = [block.role for block in blocks[system:]]
    ends = [index for index, (role, after) in enumerate(pairwise(roles), system) if role != after]
    run = ends[-1] + 1 if ends else system
    chosen.update(range(run, min(run + run_blocks, count)))
    chosen.update(range(max(run, count - run_blocks), count))
    chosen.update(ends[-latest:])
    # Older ends at a stride that doubles: those of a longer conversation are among those of a shorter one.
    older = len(ends) - latest
    if older > 0:
        stride = TRACKING.first_stride
        while older > stride * TRACKING.older_ends:
            stride *= 2
        chosen.update(ends[stride - 1 : older : stride])
    return sorted(chosen)
