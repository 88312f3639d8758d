"""One call: what the caller holds, and what the engine knows of it beyond that.

Lives here: values. Must not know: what is decided about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cachemw.core.billing.receipt import Receipt
from cachemw.core.opt_ins.split_text import Found
from cachemw.core.planner.plan import Plan, Reason
from cachemw.core.request.message_blocks import Json
from cachemw.core.request.parser import Parsed
from cachemw.core.reuse.forecast import Depth
from cachemw.core.rules.providers import Kind, Rules
from cachemw.engine.learned_facts import Facts
from cachemw.stores.protocol import Arrival, Entry

_NO_PLAN = Plan()


@dataclass(slots=True, repr=False)
class State:
    """What the engine knows of one call beyond what the caller sees. Its `repr` shows no field: many hold prompts.

    `sent`: the body but for markers, as the opt-ins leave it. `entries`: what its answer writes; `held`: what others have been told of that, and not to write;
    `refreshed`: what it keeps alive. `key`: OpenAI's `prompt_cache_key`, where ours is sent.

    `texts`, `head_seen` and `refusal` are what the request may teach: it is learned once an answer
    has begun. `head_seen` counts the earlier arrivals of the head; `refusal` is what the provider refused of it.
    """

    body: Json
    start: float
    namespace: str
    labels: Mapping[str, str]
    model: str
    rules: Rules | None = None
    facts: Facts | None = None
    sent: Json = field(default_factory=dict)
    parsed: Parsed | None = None
    chain: list[bytes] = field(default_factory=list)
    watched: list[int] = field(default_factory=list)
    arrival: Arrival | None = None
    depths: list[Depth] = field(default_factory=list)
    entries: tuple[Entry, ...] = ()
    held: tuple[Entry, ...] = ()
    refreshed: tuple[Entry, ...] = ()
    plan: Plan = _NO_PLAN
    hypothetical: Plan | None = None
    key: str | None = None
    size: float = 0.0
    begun: bool = False
    closed: bool = False
    receipt: Receipt | None = None
    texts: Sequence[Found] = ()
    head_seen: int | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider refused of a changed request: markers on these kinds, the TTL of an hour, the cache key."""

    kinds: frozenset[Kind]
    hour: bool
    key: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One request under way: send `body`, then tell the middleware how it ended.

    `body` is the caller's own object where nothing was added. It is no part of the `repr`, which ends up in logs.
    """

    id: str
    body: Json = field(repr=False)
    plan: Plan
    labels: Mapping[str, str]
    _state: State = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Write:
    """Calls of a store that are due: count the arrival of an accepted request, then write the entries.

    `accepted` is that request, None where there is no arrival to count. Many may wait, so none holds more of its
    request than is needed.
    """

    arrival: Arrival
    entries: tuple[Entry, ...]
    accepted: Accepted | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request whose answer has begun, as far as its reuse statistics need it."""

    namespace: str
    parsed: Parsed
    chain: list[bytes]
    watched: list[int]
    start: float


def untracked(body: Json) -> Call:
    """Return a call that nothing is known of: its body goes as it came, and how it ends changes nothing."""
    plan = Plan(skipped=Reason.FAILED)
    return Call("", body, plan, {}, State(body, 0.0, "", {}, "", plan=plan, closed=True))
