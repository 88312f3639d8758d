"""Take apart the loss of the default policy against the clairvoyant bound.

    python benchmarks/losses.py --seeds 1,2,3 --workloads slow,truncated,fan-out

For each stream the table has the loss against the bound, as a share of the cost without caching, and the part of
it that paid for writes which expired unread. When a request leaves, no policy knows whether its conversation goes on
within five minutes. A write pays if at least one in four is read, so a good policy wastes some writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.policies import CachemwPolicy
from benchmarks.workloads import WORKLOADS
from cachemw.core.rules.model_names import find_model
from cachemw.simulation.oracle import bound
from cachemw.simulation.provider import ProviderCache, Ticket
from cachemw.simulation.replay import Weights, no_caching, replay


class _UnreadWrites(ProviderCache):
    """A provider that records, for each token of a cache write, whether a request read it before it expired."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.written = self.wasted = 0
        self._unread: dict[bytes, tuple[int, float]] = {}

    def begin(self, *arguments: Any, **named: Any) -> Ticket:
        """Bill a request and record its cache read and cache write."""
        ticket = super().begin(*arguments, **named)
        end = ticket.cache_read + ticket.cache_write_5m + ticket.cache_write_1h
        for index, position in enumerate(ticket.request.positions):
            if position.prefix > end:
                break
            tokens, expiry = self._unread.pop(position.digest, (0, 0.0))
            if index > ticket.hit or expiry <= ticket.started:
                self.wasted += tokens
            if index > ticket.hit:
                self.written += position.tokens
                self._unread[position.digest] = (position.tokens, ticket.started + 300.0)
        return ticket

    def close(self) -> None:
        """Count the writes that no request has read."""
        self.wasted += sum(tokens for tokens, _ in self._unread.values())
        self._unread.clear()


def losses(workload: str, seed: int) -> tuple[float, float, float]:
    """Return the loss, its part for wasted writes (both of the uncached cost), and the share of writes wasted."""
    stream = WORKLOADS[workload](seed)
    model = find_model(stream.model)
    assert model is not None, stream.model
    uncached = replay(stream.requests, no_caching, ProviderCache(model)).total
    least = bound(stream.requests, ProviderCache(model), hour=False, grain="block", sort_tools=False)
    cache = _UnreadWrites(model)
    outcome = replay(stream.requests, CachemwPolicy(), cache)
    cache.close()
    premium = (Weights.of(model).cache_write_5m - 1) * cache.wasted
    return (outcome.cost - least) / uncached, premium / uncached, cache.wasted / max(cache.written, 1)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[1])
    parser.add_argument("--workloads", default="", help="parts of names, comma-separated; all without it")
    chosen = parser.parse_args()
    parts = [part.strip() for part in chosen.workloads.split(",")]
    table = Table("workload", "seed", "loss", "of it wasted writes", "writes wasted", box=None)
    for name in (name for name in WORKLOADS if any(part in name for part in parts)):
        for seed in chosen.seeds:
            loss, wasted, share = losses(name, seed)
            table.add_row(name, str(seed), f"{loss:.2%}", f"{wasted:.2%}", f"{share:.1%}")
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
