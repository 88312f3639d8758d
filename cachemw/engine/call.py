"""Values of one call: the object that the caller holds, and the stages behind it.

Contains: data. Must not depend on: the decisions made about it.

A call passes through two frozen stages and has one mutable part:

================ =======================================================================
`ParsedCall`     the request as it came, its rules, and its prompt once that is read
`PlannedCall`    the breakpoints and the cache entries that they are expected to write
`CallLifecycle`  the current stages, and everything that changes until the call ends
================ =======================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cachemw.core.billing.receipt import Receipt
from cachemw.core.hash_types import PrefixHash
from cachemw.core.opt_ins.split_text import TextObservation
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.reuse.forecast import PrefixForecast
from cachemw.core.rules.types import Kind, Rules
from cachemw.engine.learned_facts import NamespaceFacts
from cachemw.stores.protocol import Arrival, CacheEntry


@dataclass(frozen=True, slots=True, repr=False)
class ParsedPrompt:
    """A prompt as blocks and hashes. Its `repr` shows no field, since some hold text.

    `outgoing_body` is the body without added markers, as the opt-ins leave it. `prefix_hashes` has one hash a block;
    `tracked_blocks` are the indexes whose prefixes have records, the same prefixes as in `arrival`. `estimated_size`
    is in the unit of `core.request.tokens`, before calibration.
    """

    outgoing_body: Json
    parsed: ParsedRequest
    rules: Rules
    prefix_hashes: list[PrefixHash]
    tracked_blocks: list[int]
    arrival: Arrival
    estimated_size: float


@dataclass(frozen=True, slots=True, repr=False)
class ParsedCall:
    """A request as it came. Its `repr` shows no field, since the body holds text.

    `started` is in seconds by the middleware's clock. `model` is the name under which the ledger counts the call.
    `rules` is None for an unknown model or provider. `prompt` is None if the request passes unread; the plan's `skipped` says why.
    """

    body: Json
    started: float
    namespace: str
    labels: Mapping[str, str]
    model: str
    facts: NamespaceFacts
    rules: Rules | None = None
    prompt: ParsedPrompt | None = None


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """The plan of a request and its expected effect.

    `entries_to_write` are cache entries that the provider creates with its answer, `entries_to_refresh` existing ones
    that it reads. `observed_plan` is the plan that mode "observe" did not carry out. `prompt_cache_key` is OpenAI's
    parameter, None unless cachemw adds it; `shared_prefix_arrivals` counts the earlier arrivals of the prefix that
    the key is made of, None if no key was considered.
    """

    plan: Plan
    forecasts: Sequence[PrefixForecast] = ()
    entries_to_write: tuple[CacheEntry, ...] = ()
    entries_to_refresh: tuple[CacheEntry, ...] = ()
    observed_plan: Plan | None = None
    prompt_cache_key: str | None = None
    shared_prefix_arrivals: int | None = None


@dataclass(slots=True, repr=False)
class CallLifecycle:
    """A call from its first step to its end.

    `texts` are those whose split is learned once the provider has accepted the request. `claimed_entries` are the
    entries that other workers were asked not to write meanwhile. `response_started` turns True with the first byte of
    a 2xx answer, `finished` with `settle` or `fail`. `refusal` is learned once the resent original has passed.
    """

    parsed: ParsedCall
    planned: PlannedCall = PlannedCall(Plan())
    texts: Sequence[TextObservation] = ()
    claimed_entries: tuple[CacheEntry, ...] = ()
    response_started: bool = False
    finished: bool = False
    receipt: Receipt | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """The parts of a changed request that a provider refused: markers on these kinds, the 1h TTL, the cache key."""

    kinds: frozenset[Kind]
    one_hour: bool
    prompt_cache_key: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A request on its way: send `body`, then report its end to the middleware.

    `body` is the caller's own object if nothing was added. The `repr` leaves it out, because a `repr` ends up in logs.
    """

    id: str
    body: Json = field(repr=False)
    plan: Plan
    labels: Mapping[str, str]
    _lifecycle: CallLifecycle | None = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class StoreWrite:
    """Store calls that are due: count the arrival of an accepted request, then write the entries.

    `accepted` is None if there is no arrival to count. Many writes may queue up, so each holds as little as possible
    of its request.
    """

    arrival: Arrival
    entries: tuple[CacheEntry, ...]
    accepted: AcceptedRequest | None = None


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """The part of an accepted request that the reuse statistics need."""

    namespace: str
    parsed: ParsedRequest
    prefix_hashes: list[PrefixHash]
    tracked_blocks: list[int]
    started: float


def pass_through_call(body: Json) -> Call:
    """Return a call without a lifecycle: its body goes as it came, and reports about it change nothing."""
    return Call("", body, Plan(skipped=Reason.FAILED), {}, None)
