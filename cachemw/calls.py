"""One call: what the caller holds, and what the engine knows of it beyond that.

Lives here: values. Must not know: what is decided about them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cachemw.core.blocks import Parsed
from cachemw.core.chances import Depth
from cachemw.core.plan import Plan, Reason
from cachemw.core.providers import Rules
from cachemw.core.receipt import Receipt
from cachemw.core.wire import Json
from cachemw.stores.base import Arrival, Entry

_NO_PLAN = Plan()


@dataclass(slots=True)
class State:
    """What the engine knows of one call beyond what the caller sees.

    `sent`: the body but for markers, as the opt-ins leave it. `entries`: what its answer writes; `held`: what others have been told of that, and not to write;
    `refreshed`: what it keeps alive. `key`: OpenAI's `prompt_cache_key`, where ours is sent.
    """

    body: Json
    start: float
    namespace: str
    labels: Mapping[str, str]
    model: str
    rules: Rules | None = None
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


@dataclass(frozen=True, slots=True)
class Call:
    """One request under way: send `body`, then tell the middleware how it ended.

    `body` is the caller's own object where nothing was added.
    """

    id: str
    body: Json = field(repr=False)
    plan: Plan
    labels: Mapping[str, str]
    _state: State = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Write:
    """One call of `Store.write` that is due. Many may wait, so none holds its request."""

    arrival: Arrival
    entries: tuple[Entry, ...]


def untracked(body: Json) -> Call:
    """Return a call that nothing is known of: its body goes as it came, and how it ends changes nothing."""
    plan = Plan(skipped=Reason.FAILED)
    return Call("", body, plan, {}, State(body, 0.0, "", {}, "", plan=plan, closed=True))
