"""The parts of a cohort's name: the position of a prefix in its request, the gap, and the path of parents.

Contains: pure functions. Must not depend on: counts, probabilities. Names are hashed for the store, so a change of them
starts all statistics anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cachemw.core.hash_types import PrefixHash
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.reuse.cohorts import CohortName
from cachemw.core.reuse.record import FIVE_MINUTES, ONE_HOUR, PrefixRecord
from cachemw.core.tuning import FORECAST


def known_shared_prefixes(
    parsed: ParsedRequest,
    prefix_hashes: Sequence[PrefixHash],
    known: Mapping[int, PrefixRecord | None],
) -> list[bytes]:
    """Return the hashes of tools and system for which a cohort may be kept: those that arrived before.

    Tools or a system prompt that change with every request would fill the table with cohorts of one request.
    """
    tools, system = parsed.tools_end, parsed.system_end
    if tools and known.get(tools - 1) is None:
        return []
    shared: list[bytes] = [prefix_hashes[tools - 1] if tools else b""]
    if system > tools and known.get(system - 1) is not None:
        shared.append(prefix_hashes[system - 1])
    return shared


def cohort_path(shared: Sequence[bytes], turns: int) -> list[CohortName]:
    """Return the levels of a cohort: all traffic, its stage, tools, system and exact turn."""
    stage = min(turns, FORECAST.distinct_stages)
    path: list[CohortName] = [(), (stage,)]
    if shared:
        path.append((stage, shared[0]))
    if len(shared) > 1:
        path += [(stage, *shared), (stage, *shared, min(turns, FORECAST.distinct_turns))]
    return path


def bucket_of_gap(seconds: float) -> int:
    """Return the class of a gap between two arrivals: up to 5 minutes, 17 minutes, an hour, and longer."""
    if seconds <= FIVE_MINUTES:
        return 0
    if seconds <= FORECAST.middle_gap:
        return 1
    return 2 if seconds <= ONE_HOUR else 3


def position(parsed: ParsedRequest, index: int) -> CohortName:
    """Return the position of a prefix's end: its section, its place among the first blocks, its role."""
    block, most = parsed.blocks[index], FORECAST.distinct_positions
    if index < parsed.tools_end:
        return ("tools",)
    if index < parsed.system_end:
        return ("system", min(index - parsed.tools_end, most), index + 1 == parsed.system_end)
    return ("messages", min(index - parsed.system_end, most), block.role, block.kind)
