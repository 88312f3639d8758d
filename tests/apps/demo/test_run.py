"""The demo over real HTTP: the gateway's figures, equal results by seed, and bad input."""

from __future__ import annotations

import io
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

import cachemw
from cachemw.apps.demo.outcome import Comparison
from cachemw.apps.demo.policies import POLICIES
from cachemw.apps.demo.run import CheckFailed, _check, demo, priced, run
from cachemw.errors import ConfigError
from cachemw.simulation.conversation_families import MODEL, mixed
from cachemw.simulation.traffic import TimedRequest, schedule

ROOT = Path(__file__).parents[3]
AIRLINE = ROOT.parent / "shared" / "data" / "A1_tau_airline_gpt4o.jsonl.gz"


def compared(tmp_path: Path, **options: Any) -> tuple[Comparison, str]:
    """Run the demo; return the comparison and the output."""
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    return demo(console, tmp_path / "report.html", **options), printed.getvalue()


def arrivals(*bodies: dict[str, Any]) -> list[TimedRequest]:
    """Return requests ten seconds apart."""
    return [TimedRequest(1e9 + 10 * number, "talk", body) for number, body in enumerate(bodies)]


def body(content: Any, **more: Any) -> dict[str, Any]:
    """Return a request with a long system prompt."""
    system = {"role": "system", "content": "Answer shortly. " * 600}
    return {"model": MODEL, "messages": [system, {"role": "user", "content": content}], **more}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, str, str]:
    """Return the comparison of a few generated conversations, the output, and the page."""
    path = tmp_path_factory.mktemp("few")
    comparison, printed = compared(path, limit=12, seed=4)
    return comparison, printed, (path / "report.html").read_text()


def test_policies_get_the_same_requests(few: tuple[Comparison, str, str]) -> None:
    """Every row has the same number of requests and tokens; only the kinds differ."""
    outcomes = few[0].outcomes
    assert [outcome.policy for outcome in outcomes] == ["no caching", "positional", "cachemw"]
    assert len({len(outcome.points) for outcome in outcomes}) == 1
    assert len({sum(outcome.tokens) for outcome in outcomes}) == 1
    assert outcomes[0].tokens[:2] == (0, 0)
    assert all(outcome.tokens[0] > 0 for outcome in outcomes[1:])
    assert all(outcome.refused == 0 for outcome in outcomes)


def test_cachemw_costs_less_than_the_positional_default(few: tuple[Comparison, str, str]) -> None:
    """On the generated mix both save, and cachemw saves more."""
    no_caching, positional, cachemw_cost = (outcome.cost for outcome in few[0].outcomes)
    assert cachemw_cost < positional < no_caching


def test_table_names_counter_prices_and_page(few: tuple[Comparison, str, str]) -> None:
    """The output names the simulation, the token counter and the date of prices, and ends with the path."""
    comparison, printed, _ = few
    words_printed = " ".join(printed.split())
    for words in (
        "Simulated: ",
        "requests of 12 generated conversations",
        "simulated provider's own counter",
        "2026-08-21",
        "report.html",
    ):
        assert words in words_printed
    assert f"{comparison.outcomes[2].tokens[0]:,}" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_page_has_the_figures_of_the_comparison(few: tuple[Comparison, str, str]) -> None:
    """The page shows the tokens, the families and the facts of the comparison."""
    comparison, _, html = few
    for outcome in comparison.outcomes:
        assert f"<td>{outcome.tokens[2]:,}</td>" in html
    for words in (*comparison.families, "seed 4", "bias seed 0", "2026-08-21"):
        assert words in html


def test_same_seed_bills_the_same_tokens(few: tuple[Comparison, str, str], tmp_path: Path) -> None:
    """A second run is equal to the token; another seed differs."""
    again, _ = compared(tmp_path, limit=12, seed=4)
    assert [outcome.tokens for outcome in again.outcomes] == [outcome.tokens for outcome in few[0].outcomes]
    other, _ = compared(tmp_path, limit=12, seed=5)
    assert other.outcomes[0].tokens != again.outcomes[0].tokens


def test_refused_request_is_counted_and_stops_nothing() -> None:
    """A request that the provider refuses counts as refused in every row."""
    traffic = arrivals(body("one"), body([{"type": "text", "text": ""}]), body("two"))
    for policy in POLICIES:
        outcome = run(policy, traffic, priced({MODEL}), lambda: None)
        assert (len(outcome.points), outcome.refused) == (2, 1)


def test_page_is_written_if_all_requests_are_refused(tmp_path: Path) -> None:
    """The costs are zero, and the table counts the refusals."""
    path = tmp_path / "refused.jsonl"
    path.write_bytes(orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": ""}]}))
    comparison, printed = compared(tmp_path, data=path)
    refusals = "Requests that the provider refused: no caching 1, positional 1, cachemw 1."
    assert refusals in " ".join(printed.split())
    assert refusals in (tmp_path / "report.html").read_text()
    assert [(outcome.cost, outcome.refused) for outcome in comparison.outcomes] == [(Decimal(0), 1)] * 3


def test_streams_and_unknown_keys_are_sent_unchanged() -> None:
    """Recorded bodies may ask for a stream, or have keys that the client does not know."""
    odd = body(
        "one", stream=True, stream_options={"include_usage": True}, timeout=3, thinking={"type": "off"}
    )
    outcome = run(POLICIES[2], arrivals(odd, {**odd, "stream": "yes"}, odd), priced({MODEL}), lambda: None)
    assert len(outcome.points) == 3
    assert outcome.tokens[0] > 2_000


def test_bodies_of_several_models_have_their_own_prices() -> None:
    """Each request is billed at its model's price, with any spelling of the name."""
    names = ("system.ai.claude-opus-4-8", "databricks-claude-sonnet-4-6")
    traffic = arrivals(*[{**body("one"), "model": name} for name in names])
    opus, sonnet = run(POLICIES[0], traffic, priced(set(names)), lambda: None).points
    assert opus.costs[2] == opus.usage.uncached * Decimal("5e-6")
    assert sonnet.costs[2] == sonnet.usage.uncached * Decimal("3e-6")


def test_done_is_called_for_each_request() -> None:
    """Refused requests move the progress too."""
    moves: list[int] = []
    run(POLICIES[0], arrivals(body("a"), body(""), body("b")), priced({MODEL}), lambda: moves.append(1))
    assert len(moves) == 3


@pytest.mark.parametrize("name", ["gpt-4o", "claude-2", "claude-unheard-of", "llama", ""])
def test_model_without_a_price_is_a_config_error(name: str) -> None:
    """The error names an option that helps."""
    with pytest.raises(ConfigError, match=r"not a Claude model with known prices.*--model"):
        priced({name})


def test_prices_and_names_of_the_settings_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model service named in the settings has the price of the settings."""
    monkeypatch.setenv("CACHEMW_MODELS", '{"main.agents.support": "claude-sonnet-4-6"}')
    price = {"input": 30, "write_5m": 40, "write_1h": 60, "read": 3, "output": 90}
    monkeypatch.setenv("CACHEMW_PRICES", orjson.dumps({"main.agents.support": price}).decode())
    traffic = arrivals({**body("one"), "model": "main.agents.support"})
    outcome = run(POLICIES[0], traffic, priced({"main.agents.support"}), lambda: None)
    assert outcome.cost == outcome.tokens[2] * Decimal("3e-5")


def test_different_bill_fails_the_check() -> None:
    """The middleware's report is compared with the ledger by kind of token."""
    middleware = cachemw.Middleware(cachemw.Settings(provider="databricks", mode="off"))
    _check(POLICIES[0], middleware, [], Counter())
    with pytest.raises(
        CheckFailed, match="the gateway billed 1,000 tokens as cache_read, the middleware reports 0"
    ):
        _check(POLICIES[0], middleware, [], Counter(cache_read=1_000))
    with pytest.raises(CheckFailed, match="do not add up"):
        _check(POLICIES[0], middleware, [], Counter(requests=1))
    middleware.count("error.prepare.KeyError")
    with pytest.raises(CheckFailed, match=r"error\.prepare\.KeyError"):
        _check(POLICIES[0], middleware, [], Counter())


def test_request_that_fails_open_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo reports the failure and shows no figures."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError

    monkeypatch.setattr("cachemw.core.planner.planner.plan", broken)
    with pytest.raises(CheckFailed, match=r"passed unchanged because of failures: error\.prepare\.KeyError"):
        run(POLICIES[2], schedule(mixed(1, 2), 1), priced({MODEL}), lambda: None)


def test_body_nested_too_deeply_is_a_config_error() -> None:
    """The client cannot write such a body as JSON."""
    deep = orjson.loads(b"[" * 1_000 + b"]" * 1_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        run(POLICIES[0], arrivals(body("one", metadata=deep)), priced({MODEL}), lambda: None)


def test_page_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    """The path is checked before the first request, and an older page stays until the new one is ready."""
    with pytest.raises(ConfigError, match=r"html: .* cannot be written: No such file"):
        demo(Console(file=io.StringIO()), tmp_path / "none" / "report.html")
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises(ConfigError, match="cannot be read"):
        demo(Console(file=io.StringIO()), old, data=tmp_path / "none.jsonl")
    assert old.read_text() == "old"


@pytest.mark.skipif(not AIRLINE.exists(), reason=f"the recorded conversations {AIRLINE.name} are not here")
def test_recorded_conversations_cost_at_most_the_positional_default(tmp_path: Path) -> None:
    """Recorded customer service with tools costs no more with cachemw."""
    comparison, printed = compared(tmp_path, data=AIRLINE, limit=6)
    no_caching, positional, by_cachemw = comparison.outcomes
    assert by_cachemw.cost <= positional.cost < no_caching.cost / 2
    assert "conversations in A1_tau_airline_gpt4o" in " ".join(printed.split())
