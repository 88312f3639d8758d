"""The demo: send conversations through a real client to a simulated provider, and compare policies.

Contains: the run of one policy, the check of its figures, the table. Must not depend on: the choice of
breakpoints, the billing of a request, the style of the page. Time is virtual: each request carries its
arrival time in a header, and the middleware's clock shows the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import cachemw
from cachemw.apps import simulated_gateway
from cachemw.apps.demo import conversations
from cachemw.apps.demo.outcome import KINDS, Comparison, Point, PolicyOutcome, percent, point, usd
from cachemw.apps.demo.page import page
from cachemw.apps.demo.policies import POLICIES, Policy
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Model
from cachemw.errors import ConfigError, missing_package
from cachemw.events import Event, Settled
from cachemw.printable import printable
from cachemw.simulation import conversation_families
from cachemw.simulation.options import Options
from cachemw.simulation.traffic import SPACING, Conversation, TimedRequest, schedule

CONVERSATIONS = 120
COUNTER = (
    "by the simulated provider's own counter: weights of character classes, fitted to Claude's tokenizer"
)


class CheckFailed(Exception):  # noqa: N818 - the result of a check, not an error of cachemw
    """Two figures of the demo differ; the message names them."""


def demo(
    console: Console,
    html: Path,
    *,
    data: Path | None = None,
    seed: int = 1,
    limit: int | None = None,
    model: str | None = None,
) -> Comparison:
    """Run all policies on the same requests, print the table, write the page, and return the comparison.

    Args:
        console: Where the table is printed.
        html: Where the page is written.
        data: A file of recorded conversations that replace the generated ones.
        seed: The seed of conversations and arrival times.
        limit: The number of conversations.
        model: The model of every request.

    Raises:
        ConfigError: A file cannot be read or written, or a model has no known price.
        CheckFailed: The middleware's figures differ from the gateway's ledger.
    """
    found = _conversations(data, seed, limit, model)
    arrivals = schedule(found, seed)
    models = priced({str(arrival.body["model"]) for arrival in arrivals})
    _write(html)
    outcomes = _run_all(console, arrivals, models)
    where = f"conversations in {data.name}" if data else "generated conversations"
    source = f"{len(arrivals):,} requests of {len(found):,} {where}"
    comparison = Comparison(outcomes, source, _facts(arrivals, models, seed))
    _show(console, comparison)
    _write(html, page(comparison))
    console.print(_text(f"Report: {html.resolve()}"), soft_wrap=True)
    return comparison


def run(
    policy: Policy, arrivals: Sequence[TimedRequest], models: Mapping[str, Model], done: Callable[[], Any]
) -> PolicyOutcome:
    """Send all requests in their order by one policy, with a fresh middleware, to a fresh gateway.

    `done` is called after each request. Raises `CheckFailed`, see `demo`.
    """
    try:
        from openai import BadRequestError, DefaultHttpxClient, OpenAI
    except ImportError:
        raise missing_package("demo", "openai", "openai") from None
    arrival = arrivals[0]
    points: list[Point] = []

    def record(event: Event) -> None:
        if isinstance(event, Settled) and event.receipt.usage is not None:
            row = models[arrival.body["model"]]
            points.append(point(arrival.at, arrival.family, event.receipt.usage, row))

    settings = cachemw.Settings(provider="databricks", store="memory://", mode=policy.mode)
    middleware = cachemw.Middleware(settings, clock=lambda: arrival.at, hooks=[record])
    app = simulated_gateway.build(virtual_clock=True, models=models.get)
    with (
        simulated_gateway.running(app) as url,
        # The environment's proxies cannot reach a port of this machine.
        DefaultHttpxClient(trust_env=False) as http_client,
        OpenAI(
            base_url=f"{url}/serving-endpoints", api_key="simulated", max_retries=0, http_client=http_client
        ) as client,
    ):
        cachemw.wrap(client, middleware=middleware)
        for arrival in arrivals:
            try:
                _send(client, policy.prepare(arrival.body), arrival.at)
            except BadRequestError:
                pass  # counted by the gateway
            except RecursionError:
                raise ConfigError(
                    "demo: a request is nested too deeply to be sent as JSON; remove it from the file"
                ) from None
            done()
    _check(policy, middleware, points, app.state.ledger.totals)
    return PolicyOutcome(policy.name, points, app.state.ledger.totals["refused"])


def _send(client: Any, body: Mapping[str, Any], at: float) -> None:
    """Send one request like an application, and read its answer to the end."""
    named = {key: body[key] for key in ("model", "messages", "tools") if body.get(key)}
    rest = {key: value for key, value in body.items() if key not in (*named, "stream")}
    streamed = body.get("stream") is True
    headers = {simulated_gateway.CLOCK_HEADER: repr(at)}
    answer = client.chat.completions.create(**named, stream=streamed, extra_body=rest, extra_headers=headers)
    if streamed:
        for _ in answer:
            pass


def _check(
    policy: Policy, middleware: cachemw.Middleware, points: Sequence[Point], billed: Counter[str]
) -> None:
    """Compare the middleware's figures with the gateway's ledger, and check that no request failed open."""
    totals = middleware.report("process").totals
    for name in ("cache_read", "cache_write_5m", "cache_write_1h", "uncached"):
        if getattr(totals, name) != billed[name]:
            raise CheckFailed(
                f"{policy.name}: the gateway billed {billed[name]:,} tokens as {name}, "
                f"the middleware reports {getattr(totals, name):,}"
            )
    if (
        sum(sum(p.costs) for p in points) != totals.paid
        or len(points) != billed["requests"] - billed["refused"]
    ):
        raise CheckFailed(f"{policy.name}: the middleware's receipts do not add up to its report")
    if failed := [name for name in middleware.counts if name.startswith(("error.", "client."))]:
        raise CheckFailed(
            f"{policy.name}: requests passed unchanged because of failures: {', '.join(failed)}"
        )


def priced(names: set[str]) -> dict[str, Model]:
    """Return the rows of models. Raises `ConfigError` if a model takes no breakpoints or has no price."""
    settings, rows = cachemw.Settings(), {}
    for name in sorted(names):
        rules = resolve("databricks", name, models=settings.models, prices=settings.prices)
        if rules is None or rules.prices is None or rules.model.caching != "explicit":
            raise ConfigError(
                f"model: {name!r} is not a Claude model with known prices. Send every request to one that is:"
                f" --model {conversation_families.MODEL}"
            )
        rows[name] = rules.model
    return rows


def _conversations(data: Path | None, seed: int, limit: int | None, model: str | None) -> list[Conversation]:
    if data is None:
        return conversation_families.mixed(
            seed, CONVERSATIONS if limit is None else limit, model or conversation_families.MODEL
        )
    return conversations.read(data, model, conversation_families.MODEL)[:limit]


def _run_all(
    console: Console, arrivals: Sequence[TimedRequest], models: Mapping[str, Model]
) -> list[PolicyOutcome]:
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks = [progress.add_task(p.name, total=len(arrivals), start=False) for p in POLICIES]
        outcomes = []
        for policy, task in zip(POLICIES, tasks, strict=True):
            progress.start_task(task)
            outcomes.append(run(policy, arrivals, models, partial(progress.advance, task)))
        return outcomes


def _facts(
    arrivals: Sequence[TimedRequest], models: Mapping[str, Model], seed: int
) -> Sequence[tuple[str, str]]:
    """Return how the figures were made: pairs of subject and words."""
    prices = [(name, row.prices) for name, row in models.items() if row.prices is not None]
    length = (arrivals[-1].at - arrivals[0].at) / 60
    listed = (
        f"{printable(name, 100)}: USD per million tokens {p.input} uncached, {p.write_5m} write, {p.read} "
        f"cached ({p.source}{f', {p.date}' if p.date else ''})"
        for name, p in prices
    )
    return (
        ("Provider", "simulated: a gateway with Databricks' paths and Claude's billing"),
        ("Tokens", f"counted {COUNTER}; bias seed {Options().bias_seed}"),
        ("Prices", "; ".join(listed)),
        (
            "Time",
            f"virtual, {length:,.0f} minutes; a conversation begins every {SPACING:g} s on average; people "
            f"answer after half a minute or more, tools after seconds; seed {seed}",
        ),
        ("No caching", "the requests without breakpoints"),
        (
            "Positional",
            "the default of many gateways: breakpoints at the end of system section and last message",
        ),
        ("cachemw", "cachemw.wrap(client) with an empty memory store at the start"),
        ("Checked", "in every row, the middleware's report has the same tokens as the gateway's ledger"),
    )


def _show(console: Console, comparison: Comparison) -> None:
    facts = dict(comparison.facts)
    table = Table(
        title=_text(f"Simulated: {comparison.source}", "table.title"),
        caption=_text(
            f"Input tokens, {facts['Tokens']}. {facts['Prices']}. {comparison.refusals}".rstrip(),
            "table.caption",
        ),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 0, 0, 1),
    )
    table.add_column("policy")
    for name in (*KINDS, "cost", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for outcome in comparison.outcomes:
        table.add_row(
            outcome.policy,
            *[f"{tokens:,}" for tokens in outcome.tokens],
            usd(outcome.cost),
            percent(comparison.saved(outcome)),
            style="bold" if outcome is comparison.outcomes[-1] else "",
        )
    console.print(table)


def _text(words: str, style: str = "") -> Text:
    """Return words as plain text: names of files and models in them are not read as markup."""
    return Text(printable(words), style)


def _write(path: Path, text: str | None = None) -> None:
    """Write the page; without a text only check that it can be written later."""
    try:
        with path.open("a" if text is None else "w", encoding="utf-8") as file:
            file.write(text or "")
    except OSError as error:
        raise ConfigError(f"html: {str(path)!r} cannot be written: {error.strerror}") from None
