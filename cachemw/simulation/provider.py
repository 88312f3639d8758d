"""A provider cache of one organisation and one model, with Claude's billing.

Contains: the entry that a request reads, the entries that it writes, when these can be read, and the bill.
Rules: Anthropic, prompt caching, August 2026, and recorded requests. Must not depend on: how the planner
reads bodies, counts tokens or decides; prices.

Assumptions where the documents are silent: an entry expires exactly at the end of its TTL; every cached entry
under a marker is refreshed, not only the one that is read; a marker at or before the hit costs nothing, so
its entry gets at most the TTL of the entry that was read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cachemw.core.rules.types import TTL_SECONDS, Model, Ttl
from cachemw.simulation import marker_rules
from cachemw.simulation.anthropic_form import Content, Wire, form
from cachemw.simulation.counting import TAIL, block_tokens, rate
from cachemw.simulation.options import Options

_RUNS = ("tool_use", "tool_result")
_MEMO_LIMIT = 1_000_000
_unbiased_tokens: dict[
    bytes, float
] = {}  # by digest of a block: results of a pure function, shared by all caches


class Position(NamedTuple):
    """One block of the prompt. `digest` (32 bytes) and `prefix` (tokens) cover the prompt up to its end."""

    place: marker_rules.Place
    role: str
    type: str
    digest: bytes
    tokens: int
    prefix: int
    marker: Ttl | None


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt's positions in the provider's order; `total` tokens include those after the last."""

    positions: Sequence[Position]
    total: int


@dataclass(slots=True)
class ProviderEntry:
    """A stored prefix; times are seconds on the caller's clock."""

    ttl: Ttl
    expiry: float
    available: float


@dataclass(frozen=True, slots=True)
class Ticket:
    """The bill of a request in tokens, and the entries that it writes once its answer has begun.

    `hit` is the index of the last position that was read, -1 for none. `writes` holds the digest and TTL of
    each entry; entries at or before the hit are free.
    """

    request: Request
    started: float
    hit: int
    cache_read: int
    cache_write_5m: int
    cache_write_1h: int
    uncached: int
    writes: tuple[tuple[bytes, Ttl], ...]


class ProviderCache:
    """Simulate the provider cache of one organisation for one model. Not thread-safe."""

    def __init__(self, model: Model, options: Options | None = None) -> None:
        self.model = model
        self.options = options = options or Options()
        self.minimum = model.minimum if options.minimum is None else options.minimum
        self._rate = rate(model.name, model.tokenizer, options.bias_seed)
        self._entries: dict[bytes, ProviderEntry] = {}
        self._sweep_at = 4096

    def positions(self, body: Mapping[str, Any], wire: Wire = "chat") -> Sequence[Position]:
        """Return a body's positions. Raises `Refused`."""
        return self.convert(body, wire).positions

    def convert(self, body: Mapping[str, Any], wire: Wire = "chat") -> Request:
        """Return a body in the provider's form. Raises `Refused` if the provider refuses it."""
        read = form(body, wire, self.model, self.options)
        chain, prefix = b"", 0
        positions: list[Position] = []
        for section, contents in read.contents.items():
            chain = hashlib.sha256(chain + read.keys[section]).digest()
            for content in contents:
                chain = hashlib.sha256(chain + content.digest).digest()
                tokens = max(1, round(self._rate * _block_tokens(content)))
                prefix += tokens
                kind = str(content.block.get("type", "custom"))
                positions.append(
                    Position(content.place, content.role, kind, chain, tokens, prefix, content.marker)
                )
        return Request(positions, prefix + TAIL)

    def begin(self, body: Mapping[str, Any] | Request, now: float, wire: Wire = "chat") -> Ticket:
        """Take a request at `now` and return its bill; entries that it reads are refreshed from `now` on.

        Entries are written by `answer_began` only. Raises `Refused` with the provider's 400.
        """
        request = body if isinstance(body, Request) else self.convert(body, wire)
        positions = request.positions
        marked = [(index, p.marker) for index, p in enumerate(positions) if p.marker is not None]
        marker_rules.check([(positions[i].place, positions[i].type, ttl) for i, ttl in marked], self.options)
        self._sweep(now)
        hit = self._hit(positions, [index for index, _ in marked], now)
        source = self._entries[positions[hit].digest] if hit >= 0 else None
        read = positions[hit].prefix if hit >= 0 else 0
        if source is not None:
            _refresh(source, now)
        writes: list[tuple[bytes, Ttl]] = []
        end = end_1h = read
        for index, ttl in marked:
            position = positions[index]
            if position.prefix < self.minimum:
                continue
            if index > hit:
                writes.append((position.digest, ttl))
                end = position.prefix
                end_1h = end if ttl == "1h" else end_1h
                continue
            entry = self._entries.get(position.digest)
            if entry is None or entry.expiry <= now:
                free: Ttl = "1h" if ttl == "1h" and source is not None and source.ttl == "1h" else "5m"
                writes.append((position.digest, free))
            elif entry.available <= now:
                _refresh(entry, now)
        return Ticket(
            request,
            started=now,
            hit=hit,
            cache_read=read,
            cache_write_5m=end - end_1h,
            cache_write_1h=end_1h - read,
            uncached=request.total - end,
            writes=tuple(writes),
        )

    def answer_began(self, ticket: Ticket, at: float) -> None:
        """Make the entries of a request readable from `at` on; their TTL runs from the request's start."""
        for digest, ttl in ticket.writes:
            entry = ProviderEntry(ttl, ticket.started + TTL_SECONDS[ttl], at)
            other = self._entries.get(digest)
            if other is not None and other.expiry > ticket.started:
                # Two requests have written the same prefix: both copies can be read.
                longer = entry if TTL_SECONDS[ttl] > TTL_SECONDS[other.ttl] else other
                entry = ProviderEntry(longer.ttl, max(entry.expiry, other.expiry), min(at, other.available))
            self._entries[digest] = entry

    def _hit(self, positions: Sequence[Position], marked: Sequence[int], now: float) -> int:
        """Return the last readable position that a marker's window holds, -1 for none."""
        for marker in reversed(marked):
            for index in self._window(positions, marker):
                entry = self._entries.get(positions[index].digest)
                if entry is not None and entry.available <= now < entry.expiry:
                    return index
        return -1

    def _window(self, positions: Sequence[Position], marker: int) -> Iterator[int]:
        """Yield the indices that a marker examines, backwards from its own; a collapsed run counts once."""
        examined = 0
        for index in range(marker, -1, -1):
            kind = positions[index].type
            in_run = self.options.run_collapse and index < marker and kind in _RUNS
            if not (in_run and kind == positions[index + 1].type):
                examined += 1
            if examined > self.options.lookback:
                return
            yield index

    def _sweep(self, now: float) -> None:
        """Drop expired entries, at most once for each doubling of the number of entries."""
        if len(self._entries) >= self._sweep_at:
            self._entries = {digest: entry for digest, entry in self._entries.items() if entry.expiry > now}
            self._sweep_at = max(4096, 2 * len(self._entries))


def _refresh(entry: ProviderEntry, now: float) -> None:
    entry.expiry = max(entry.expiry, now + TTL_SECONDS[entry.ttl])


def _block_tokens(content: Content) -> float:
    """Return a block's unbiased token count, computed once for each content."""
    tokens = _unbiased_tokens.get(content.digest)
    if tokens is None:
        if len(_unbiased_tokens) >= _MEMO_LIMIT:
            _unbiased_tokens.clear()
        tokens = _unbiased_tokens[content.digest] = block_tokens(content.block)
    return tokens
