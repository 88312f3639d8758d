"""The clairvoyant bound: what a stream costs at least, the future being known.

Lives here: the least cost of a stream over all ways to mark it, with no cap on breakpoints and no
lookback limit. Must not know: any policy.

Why it is a bound. The requests' prefixes form a tree; an edge is the tokens between two neighbouring
prefixes, and a request passes those of its own. A bill splits a prompt in up to four runs: read, written
for an hour, written for five minutes, plain; each run ends at an end of an edge, so a request does one of
the four to each of its edges, and its cost is the sum over them. An edge can only be read at time t if an
entry at or below it is alive and available. The request that wrote that entry, and each one that
refreshed it, read or wrote the edge itself: so had the edge an entry of its own, refreshed by all of
them, that would be alive and available too. The cheapest way through an edge's own arrivals, each edge
looked at alone, is therefore no dearer than what any policy pays for it.

An entry under the provider's minimum is never stored: those tokens go with the first prefix on the way
that reaches it, since nothing but an entry from there on can hold them; where no prefix reaches it they
are plain. One trick is left out: marking a small tail for an hour behind a living five-minute entry,
which in this billing gives the whole prefix an hour for the price of the tail. Whether real providers
do that is not known; a policy that does may fall below the bound.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import orjson

from cachemw.core.rules.types import TTL_SECONDS
from cachemw.simulation.anthropic_form import Content, form
from cachemw.simulation.counting import FRAME, text_tokens
from cachemw.simulation.provider import ProviderCache, Request
from cachemw.simulation.replay import Body, Sent, Weights

Grain = Literal["block", "piece"]
Step = tuple[bytes, float]  # digest of the prefix up to here, tokens from the step before

PIECE = 1024  # characters; a piece ends at the first end of a line from there on


def bound(
    stream: Sequence[Sent],
    cache: ProviderCache,
    *,
    hour: bool = False,
    grain: Grain = "block",
    sort_tools: bool = False,
) -> float:
    """Return the least cost of a stream in plain tokens.

    `cache` gives the rules and counts tokens; its entries are not looked at. `hour` allows 1h besides 5m.
    At grain "piece" a prefix may also end inside a text, at an end of line about each KB.
    """
    paths: list[tuple[float, float, Sequence[Step]]] = []
    plain = 0.0
    for request in stream:
        body = sorted_tools(request.body) if sort_tools else request.body
        seen = cache.convert(body)
        steps = list(_pieces(cache, body, seen) if grain == "piece" else _blocks(seen))
        paths.append((request.at, request.at + request.latency, steps))
        plain += seen.total - sum(tokens for _, tokens in steps)
    return plain + least(paths, cache.minimum, Weights.of(cache.model), hour=hour)


def least(
    paths: Iterable[tuple[float, float, Sequence[Step]]], minimum: float, weights: Weights, *, hour: bool
) -> float:
    """Return the least cost of requests, each (sent, answer begins, steps), sorted by time."""
    edges: dict[bytes, float] = {}
    arrivals: defaultdict[bytes, list[tuple[float, float]]] = defaultdict(list)
    cost = 0.0
    for at, begins, steps in paths:
        prefix = pending = 0.0
        for digest, tokens in steps:
            prefix += tokens
            pending += tokens
            if prefix >= minimum:
                edges[digest] = pending
                arrivals[digest].append((at, begins))
                pending = 0.0
        cost += pending
    rates: dict[tuple[tuple[float, float], ...], float] = {}
    for digest, times in arrivals.items():
        if len(times) == 1:
            cost += edges[digest]
            continue
        key = tuple(times)
        rate = rates.get(key)
        if rate is None:
            rate = rates[key] = cheapest(times, weights, hour=hour)
        cost += rate * edges[digest]
    return cost


class _State(NamedTuple):
    """An edge's entry: until when it lives, from when it can be read, its TTL; and the cost so far."""

    cost: float
    expiry: float
    available: float
    ttl: int


_NONE = _State(0.0, float("-inf"), float("inf"), 0)


def cheapest(times: Sequence[tuple[float, float]], weights: Weights, *, hour: bool) -> float:
    """Return the least cost of one token that these requests (sent, answer begins) all hold, by time."""
    writes = [(TTL_SECONDS["5m"], weights.cache_write_5m)]
    if hour:
        writes.append((TTL_SECONDS["1h"], weights.cache_write_1h))
    states = [_NONE]
    for at, begins in times:
        after: list[_State] = []
        for state in states:
            cost, expiry, available, ttl = state
            alive = at < expiry
            readable = alive and available <= at
            if readable:
                after.append(_State(cost + weights.cache_read, max(expiry, at + ttl), available, ttl))
            else:
                after.append(_State(cost + 1.0, *(state[1:] if alive else _NONE[1:])))
            for longer, price in writes:
                if not alive:
                    after.append(_State(cost + price, at + longer, begins, longer))
                elif not readable or longer > ttl:
                    until, since = max(expiry, at + longer), min(available, begins)
                    after.append(_State(cost + price, until, since, max(ttl, longer)))
        states = _undominated(after)
    return min(state.cost for state in states)


def _undominated(states: list[_State]) -> list[_State]:
    """Return the states that no other one is at least as good as in all respects."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (state.cost, -state.expiry)):
        if not any(
            other.expiry >= state.expiry and other.available <= state.available and other.ttl >= state.ttl
            for other in kept
        ):
            kept.append(state)
    return kept


def _blocks(seen: Request) -> Iterator[Step]:
    for position in seen.positions:
        yield position.digest, float(position.tokens)


def _pieces(cache: ProviderCache, body: Body, seen: Request) -> Iterator[Step]:
    """Yield a body's steps with long texts cut; the pieces of a block have its tokens between them."""
    read = form(body, "chat", cache.model, cache.options)
    chain = b""
    positions = iter(seen.positions)
    for section, contents in read.contents.items():
        chain = hashlib.sha256(chain + read.keys[section]).digest()
        for content in contents:
            tokens = next(positions).tokens
            text = _text(content)
            if text is None:
                chain = hashlib.sha256(chain + content.digest).digest()
                yield chain, float(tokens)
                continue
            cut = pieces(text)
            sizes = [text_tokens(piece) for piece in cut]
            whole = FRAME + sum(sizes)
            for number, (piece, size) in enumerate(zip(cut, sizes, strict=True)):
                chain = hashlib.sha256(chain + content.role.encode() + b"\0" + piece.encode()).digest()
                yield chain, tokens * (size + (0 if number else FRAME)) / whole


def _text(content: Content) -> str | None:
    """Return the text of a block that is nothing but a text."""
    block = content.block
    text = block.get("text")
    return text if block.keys() == {"type", "text"} and isinstance(text, str) else None


def pieces(text: str) -> list[str]:
    """Return a text in pieces of `PIECE` characters or a little more, each ending with a line but the last."""
    found, start = [], 0
    while len(text) - start > PIECE:
        end = text.find("\n", start + PIECE - 1) + 1
        if not end:
            break
        found.append(text[start:end])
        start = end
    return [*found, text[start:]] if start < len(text) or not found else found


def sorted_tools(body: Body) -> Body:
    """Return a body with its tools, and the keys inside them, in one order."""
    tools = body.get("tools")
    if not tools:
        return body
    ordered = sorted(orjson.dumps(tool, option=orjson.OPT_SORT_KEYS) for tool in tools)
    return {**body, "tools": [orjson.loads(tool) for tool in ordered]}
