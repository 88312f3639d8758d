"""The demo over real HTTP: figures of the gateway, the same by seed, and what it refuses to start with."""

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
    """Run the demo; return the comparison and what it printed."""
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
    """Return the comparison of a few generated conversations, what was printed, and the page."""
    path = tmp_path_factory.mktemp("few")
    comparison, printed = compared(path, limit=12, seed=4)
    return comparison, printed, (path / "report.html").read_text()


def test_three_policies_see_the_same_requests(few: tuple[Comparison, str, str]) -> None:
    """Every row has the same number of requests and tokens; only the kinds differ."""
    outcomes = few[0].outcomes
    assert [outcome.policy for outcome in outcomes] == ["no caching", "positional", "cachemw"]
    assert len({len(outcome.points) for outcome in outcomes}) == 1
    assert len({sum(outcome.tokens) for outcome in outcomes}) == 1
    assert outcomes[0].tokens[:2] == (0, 0)
    assert all(outcome.tokens[0] > 0 for outcome in outcomes[1:])
    assert all(outcome.refused == 0 for outcome in outcomes)


def test_cachemw_is_cheaper_than_the_positional_default(few: tuple[Comparison, str, str]) -> None:
    """On the generated mix both save, and cachemw saves more."""
    plain, positional, ours = (outcome.cost for outcome in few[0].outcomes)
    assert ours < positional < plain


def test_what_is_printed_says_how_it_came_about(few: tuple[Comparison, str, str]) -> None:
    """The table says simulated, the token counter and the date of the prices; the page's path follows."""
    comparison, printed, _ = few
    said = " ".join(printed.split())
    for words in (
        "Simulated: ",
        "requests of 12 generated conversations",
        "simulated provider's own counter",
        "2026-08-21",
        "report.html",
    ):
        assert words in said
    assert f"{comparison.outcomes[2].tokens[0]:,}" in printed
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_the_page_holds_the_same_figures(few: tuple[Comparison, str, str]) -> None:
    """The page shows the tokens, the families and the facts of the comparison."""
    comparison, _, html = few
    for outcome in comparison.outcomes:
        assert f"<td>{outcome.tokens[2]:,}</td>" in html
    for words in (*comparison.families, "seed 4", "bias seed 0", "2026-08-21"):
        assert words in html


def test_the_same_seed_pays_the_same(few: tuple[Comparison, str, str], tmp_path: Path) -> None:
    """A second run bills the same to the token, and another seed something else."""
    again, _ = compared(tmp_path, limit=12, seed=4)
    assert [outcome.tokens for outcome in again.outcomes] == [outcome.tokens for outcome in few[0].outcomes]
    other, _ = compared(tmp_path, limit=12, seed=5)
    assert other.outcomes[0].tokens != again.outcomes[0].tokens


def test_refused_requests_are_counted_and_the_rest_goes_on() -> None:
    """A request that the provider does not take counts as refused in every row and stops nothing."""
    traffic = arrivals(body("one"), body([{"type": "text", "text": ""}]), body("two"))
    for policy in POLICIES:
        outcome = run(policy, traffic, priced({MODEL}), lambda: None)
        assert (len(outcome.points), outcome.refused) == (2, 1)


def test_all_requests_refused(tmp_path: Path) -> None:
    """A page is written even where nothing was answered."""
    path = tmp_path / "refused.jsonl"
    path.write_bytes(orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": ""}]}))
    comparison, _ = compared(tmp_path, data=path)
    assert [(outcome.cost, outcome.refused) for outcome in comparison.outcomes] == [(Decimal(0), 1)] * 3


def test_streams_and_unknown_keys_are_sent_as_they_are() -> None:
    """Recorded bodies may ask for a stream, or have keys that the client does not know."""
    odd = body(
        "one", stream=True, stream_options={"include_usage": True}, timeout=3, thinking={"type": "off"}
    )
    _, _, ours = POLICIES
    outcome = run(ours, arrivals(odd, {**odd, "stream": "yes"}, odd), priced({MODEL}), lambda: None)
    assert len(outcome.points) == 3
    assert outcome.tokens[0] > 2_000


def test_bodies_of_several_models_are_priced_apart() -> None:
    """Each request is billed at its own model's price, whatever spelling names it."""
    names = ("system.ai.claude-opus-4-8", "databricks-claude-sonnet-4-6")
    traffic = arrivals(*[{**body("one"), "model": name} for name in names])
    plain, _, _ = POLICIES
    opus, sonnet = run(plain, traffic, priced(set(names)), lambda: None).points
    assert opus.costs[2] == opus.usage.uncached * Decimal("5e-6")
    assert sonnet.costs[2] == sonnet.usage.uncached * Decimal("3e-6")


def test_done_is_told_of_each_request() -> None:
    """The progress moves once a request, refused ones included."""
    moves: list[int] = []
    run(POLICIES[0], arrivals(body("a"), body(""), body("b")), priced({MODEL}), lambda: moves.append(1))
    assert len(moves) == 3


@pytest.mark.parametrize("name", ["gpt-4o", "claude-2", "claude-unheard-of", "llama", ""])
def test_models_without_a_price_are_refused(name: str) -> None:
    """What can't be priced is bad input, and the sentence says what helps."""
    with pytest.raises(ConfigError, match=r"needed: a Claude model whose prices are known.*--model"):
        priced({name})


def test_prices_and_names_of_the_settings_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model service named in the settings is known, at the price that they give."""
    monkeypatch.setenv("CACHEMW_MODELS", '{"main.agents.support": "claude-sonnet-4-6"}')
    price = {"input": 30, "write_5m": 40, "write_1h": 60, "read": 3, "output": 90}
    monkeypatch.setenv("CACHEMW_PRICES", orjson.dumps({"main.agents.support": price}).decode())
    traffic = arrivals({**body("one"), "model": "main.agents.support"})
    outcome = run(POLICIES[0], traffic, priced({"main.agents.support"}), lambda: None)
    assert outcome.cost == outcome.tokens[2] * Decimal("3e-5")


def test_a_bill_that_differs_fails_the_check() -> None:
    """The middleware's report is held against the ledger, kind by kind."""
    middleware = cachemw.Middleware(cachemw.Settings(provider="databricks", mode="off"))
    _check(POLICIES[0], middleware, [], Counter())
    with pytest.raises(
        CheckFailed, match="the gateway billed 1,000 tokens as cache_read, the middleware reports 0"
    ):
        _check(POLICIES[0], middleware, [], Counter(cache_read=1_000))
    with pytest.raises(CheckFailed, match="don't add up"):
        _check(POLICIES[0], middleware, [], Counter(requests=1))
    middleware.count("error.prepare.KeyError")
    with pytest.raises(CheckFailed, match=r"error\.prepare\.KeyError"):
        _check(POLICIES[0], middleware, [], Counter())


def test_requests_that_pass_unmarked_fail_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware fails open; the demo says so and shows no figures."""

    def broken(*_: Any, **__: Any) -> None:
        raise KeyError

    monkeypatch.setattr("cachemw.core.planner.planner.plan", broken)
    with pytest.raises(CheckFailed, match=r"passed because something failed: error\.prepare\.KeyError"):
        run(POLICIES[2], schedule(mixed(1, 2), 1), priced({MODEL}), lambda: None)


def test_a_body_nested_too_deeply_is_bad_input() -> None:
    """What the client can't write as JSON is said to be so."""
    deep = orjson.loads(b"[" * 1_000 + b"]" * 1_000)
    with pytest.raises(ConfigError, match="nested too deeply"):
        run(POLICIES[0], arrivals(body("one", metadata=deep)), priced({MODEL}), lambda: None)


def test_a_page_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    """The path is tried before anything is sent, and an older page stays until the new one is ready."""
    with pytest.raises(ConfigError, match=r"html: .* can't be written: No such file"):
        demo(Console(file=io.StringIO()), tmp_path / "none" / "report.html")
    old = tmp_path / "report.html"
    old.write_text("old")
    with pytest.raises(ConfigError, match="can't be read"):
        demo(Console(file=io.StringIO()), old, data=tmp_path / "none.jsonl")
    assert old.read_text() == "old"


@pytest.mark.skipif(not AIRLINE.exists(), reason=f"the recorded conversations {AIRLINE.name} are not here")
def test_recorded_conversations_cost_no_more_than_by_position(tmp_path: Path) -> None:
    """Customer service with tools, recorded: at or below the positional default."""
    comparison, printed = compared(tmp_path, data=AIRLINE, limit=6)
    plain, positional, ours = comparison.outcomes
    assert ours.cost <= positional.cost < plain.cost / 2
    assert "conversations in A1_tau_airline_gpt4o" in " ".join(printed.split())
