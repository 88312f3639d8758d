"""The clairvoyant bound: the least cost of a stream for a policy that knows the future.

Contains: the least cost of a stream over all ways to mark it, without limits on breakpoints and lookback.
Must not depend on: any policy.

Proof that it is a bound:

1. The requests' prefixes form a tree. An edge is the tokens between two adjacent prefixes; a request passes
   the edges of its own prefix.
2. A bill splits a prompt in up to four runs: cache read, 1h write, 5m write, uncached. Each run ends at the
   end of an edge. A request therefore does one of the four to each of its edges, and its cost is the sum.
3. An edge can be read at time t only if an entry at or below it is cached and available. The request that
   wrote this entry, and each request that refreshed it, read or wrote the edge as well. If the edge had an
   entry of its own, refreshed by all of them, this entry would be cached and available too.
4. The cheapest choice for the arrivals of one edge alone therefore costs at most as much as any policy pays
   for this edge.

Prefixes below the provider's minimum are never stored. Their tokens count for the first longer prefix that
reaches the minimum, because only entries from there on can hold them; if no prefix reaches it, they are
uncached. One trick is left out: a 1h marker on a small tail behind a cached 5m entry, which in this billing
keeps the whole prefix for an hour at the price of the tail. Real providers may differ; a policy that uses the
trick may fall below the bound.
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
PrefixStep = tuple[bytes, float]  # digest of the prefix up to here, tokens from the step before

PIECE = 1024  # characters; a piece ends at the next end of a line


def bound(
    stream: Sequence[Sent],
    cache: ProviderCache,
    *,
    hour: bool = False,
    grain: Grain = "block",
    sort_tools: bool = False,
) -> float:
    """Return the least cost of a stream, in uncached tokens.

    `cache` gives the rules and counts tokens; its entries are not used. `hour` allows 1h besides 5m. With
    grain "piece", a prefix may also end inside a text, at about one end of line each KB.
    """
    paths: list[tuple[float, float, Sequence[PrefixStep]]] = []
    uncached = 0.0
    for request in stream:
        body = sorted_tools(request.body) if sort_tools else request.body
        seen = cache.convert(body)
        steps = list(_pieces(cache, body, seen) if grain == "piece" else _blocks(seen))
        paths.append((request.at, request.at + request.latency, steps))
        uncached += seen.total - sum(tokens for _, tokens in steps)
    return uncached + least(paths, cache.minimum, Weights.of(cache.model), hour=hour)


def least(
    paths: Iterable[tuple[float, float, Sequence[PrefixStep]]],
    minimum: float,
    weights: Weights,
    *,
    hour: bool,
) -> float:
    """Return the least cost of requests, each (sent, answer begins, steps), in order of time."""
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


class _EdgeState(NamedTuple):
    """The cost so far, and the edge's entry: its expiry, the time from which it can be read, its TTL."""

    cost: float
    expiry: float
    available: float
    ttl: int


_NONE = _EdgeState(0.0, float("-inf"), float("inf"), 0)


def cheapest(times: Sequence[tuple[float, float]], weights: Weights, *, hour: bool) -> float:
    """Return the least cost of one token that all these requests (sent, answer begins) hold."""
    writes = [(TTL_SECONDS["5m"], weights.cache_write_5m)]
    if hour:
        writes.append((TTL_SECONDS["1h"], weights.cache_write_1h))
    states = [_NONE]
    for at, begins in times:
        after: list[_EdgeState] = []
        for state in states:
            cost, expiry, available, ttl = state
            cached = at < expiry
            readable = cached and available <= at
            if readable:
                after.append(_EdgeState(cost + weights.cache_read, max(expiry, at + ttl), available, ttl))
            else:
                after.append(_EdgeState(cost + 1.0, *(state[1:] if cached else _NONE[1:])))
            for longer, price in writes:
                if not cached:
                    after.append(_EdgeState(cost + price, at + longer, begins, longer))
                elif not readable or longer > ttl:
                    until, since = max(expiry, at + longer), min(available, begins)
                    after.append(_EdgeState(cost + price, until, since, max(ttl, longer)))
        states = _pareto_states(after)
    return min(state.cost for state in states)


def _pareto_states(states: list[_EdgeState]) -> list[_EdgeState]:
    """Return the Pareto-optimal states: no other state is at least as good in all respects."""
    kept: list[_EdgeState] = []
    for state in sorted(states, key=lambda state: (state.cost, -state.expiry)):
        if not any(
            other.expiry >= state.expiry and other.available <= state.available and other.ttl >= state.ttl
            for other in kept
        ):
            kept.append(state)
    return kept


def _blocks(seen: Request) -> Iterator[PrefixStep]:
    for position in seen.positions:
        yield position.digest, float(position.tokens)


def _pieces(cache: ProviderCache, body: Body, seen: Request) -> Iterator[PrefixStep]:
    """Yield a body's steps with long texts cut into pieces, which share the tokens of their block."""
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
    """Return the text of a block that holds only a text."""
    block = content.block
    text = block.get("text")
    return text if block.keys() == {"type", "text"} and isinstance(text, str) else None


def pieces(text: str) -> list[str]:
    """Return a text in pieces of `PIECE` characters or slightly more that end with a line."""
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
