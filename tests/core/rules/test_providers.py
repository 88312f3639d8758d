"""Rows of providers and models, how names find them, and how settings lie over them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.rules.model_names import find_model, model_key
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.providers import PROVIDERS, find_provider
from cachemw.core.rules.resolve import check, relative_prices, resolve, takes_breakpoints
from cachemw.core.rules.types import Kind, Prices
from cachemw.errors import ConfigError

MINIMUMS = {
    512: "opus-5-5 opus-5 sonnet-5-5 haiku-5-5 fable-5 fable-5-1 fable-5-2 mythos-5 mythos-5-1 mythos-5-2",
    1024: "opus-4-8 sonnet-5 sonnet-4-6 sonnet-4-5 sonnet-4 opus-4-1 opus-4 sonnet-3-7",
    2048: "opus-4-7 mythos-preview haiku-3-5 haiku-3",
    4096: "opus-4-6 opus-4-5 haiku-4-5",
}
STRIPPED = "opus-4-1 opus-4 sonnet-4-5 sonnet-4 sonnet-3-7 haiku-4-5 haiku-3-5 haiku-3"
OLD_TOKENIZER = f"{STRIPPED} opus-4-6 opus-4-5 sonnet-4-6"


def claude(names: str) -> set[str]:
    """Return full names."""
    return {f"claude-{name}" for name in names.split()}


def test_minimum_of_each_claude_is_the_published_one() -> None:
    """Every Claude has the minimum of the published table, and none is missing from it."""
    rows = {
        name: row.minimum for name, row in MODELS.items() if row.caching == "explicit" and name != "claude"
    }
    assert rows == {name: least for least, names in MINIMUMS.items() for name in claude(names)}


def test_thinking_and_tokenizer_follow_the_documents() -> None:
    """Old thinking is stripped, and the older tokenizer used, exactly for the documented models."""
    rows = [row for row in MODELS.values() if row.caching == "explicit"]
    assert {row.name for row in rows if row.thinking == "stripped"} == claude(STRIPPED)
    assert {row.name for row in rows if row.tokenizer == "old"} == claude(OLD_TOKENIZER)


def test_price_has_a_source_and_fits_a_ledger() -> None:
    """Prices have a source and a date, and are whole pico-dollars a token."""
    for row in MODELS.values():
        for prices in (row.prices, row.long_prices):
            if prices is not None:
                assert prices.source
                assert datetime.fromisoformat(prices.date) <= datetime(2026, 11, 24)  # noqa: DTZ001
                for amount in (prices.input, prices.write_5m, prices.write_1h, prices.read, prices.output):
                    assert amount.scaleb(6) % 1 == 0
        assert (row.long is None) == (row.long_prices is None)


# Names in genai-prices that differ from those of the rows.
SPELLED = {
    "claude-haiku-3": "claude-3-haiku",
    "claude-haiku-3-5": "claude-3-5-haiku",
    "gpt-5.6": "gpt-5.6-sol",
}
ABSENT = {"claude-mythos-5", "claude-mythos-5-1"}  # Anthropic's tables price them as Fable of that version
SELLERS = {"claude": "anthropic", "gemini": "google", "deepseek": "deepseek"}
# Models whose long prompts cost more there, with the reason why the row is right.
DEARER_THERE = {"claude-sonnet-4-5": "its window is 200K tokens since its 1M preview ended: out of reach"}


def _independent_prices(name: str, tokens: int) -> tuple[Decimal, ...]:
    """Return input, write 5m, write 1h, read and output per million tokens for a prompt this long."""
    kinds: list[dict[str, int]] = [
        {},
        {"cache_write_tokens": tokens, "cache_write_5m_tokens": tokens},
        {"cache_write_tokens": tokens, "cache_write_1h_tokens": tokens},
        {"cache_read_tokens": tokens},
    ]
    found = []
    for kind in (*kinds, {"output_tokens": tokens}):
        price = genai_prices.calc_price(
            genai_prices.Usage(input_tokens=tokens, **kind),
            SPELLED.get(name, name),
            provider_id=SELLERS.get(name.partition("-")[0], "openai"),
            genai_request_timestamp=datetime(2026, 11, 24, tzinfo=UTC),
        )
        found.append(price.output_price if "output_tokens" in kind else price.input_price)
    return tuple(amount * 1_000_000 / tokens for amount in found)


def _ours(prices: Prices | None) -> tuple[Decimal, ...]:
    assert prices is not None
    return (prices.input, prices.write_5m, prices.write_1h, prices.read, prices.output)


PRICED = [name for name, row in MODELS.items() if row.prices is not None and name not in ABSENT]


@pytest.mark.parametrize("name", PRICED)
def test_prices_agree_with_an_independent_table(name: str) -> None:
    """Short and long prompts cost as much as in an independent table, except for the listed differences."""
    row = MODELS[name]
    border = row.long or 200_000
    assert _ours(row.prices) == _independent_prices(name, 1_000)
    assert _ours(row.prices) == _independent_prices(name, border)
    above = _independent_prices(name, border + 1)
    if name in DEARER_THERE:
        assert above > _ours(row.prices)
    else:
        assert _ours(row.long_prices or row.prices) == above


@pytest.mark.parametrize("name", sorted(ABSENT))
def test_models_left_out_of_the_comparison_are_absent_there(name: str) -> None:
    """A model left out of the comparison is unknown there, and priced as its sibling is."""
    with pytest.raises(LookupError):
        _independent_prices(name, 1_000)
    assert MODELS[name].prices == MODELS[name.replace("mythos", "fable")].prices


NAMES = [
    ("databricks-claude-opus-4-6", "claude-opus-4-6"),
    ("system.ai.claude-opus-4-6", "claude-opus-4-6"),
    ("databricks/databricks-claude-sonnet-4", "claude-sonnet-4"),
    ("databricks/system.ai.claude-sonnet-4", "claude-sonnet-4"),
    ("anthropic/claude-opus-4.6", "claude-opus-4-6"),
    ("openrouter/anthropic/claude-opus-4.6", "claude-opus-4-6"),
    ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
    ("claude-sonnet-4-20250514", "claude-sonnet-4"),
    ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
    ("vertex_ai/claude-opus-4-5@default", "claude-opus-4-5"),
    ("us.anthropic.claude-sonnet-4-5-v1:0", "claude-sonnet-4-5"),
    ("us-gov.anthropic.claude-sonnet-4-5-20250929-v1:0", "claude-sonnet-4-5"),
    ("arn:aws:bedrock:eu-west-1:1:inference-profile/eu.anthropic.claude-opus-4-6-v1", "claude-opus-4-6"),
    ("claude-3-5-haiku-20241022", "claude-haiku-3-5"),
    ("claude-3-5-haiku-latest", "claude-haiku-3-5"),
    ("anthropic/claude-3.5-haiku", "claude-haiku-3-5"),
    ("claude-3-haiku-20240307", "claude-haiku-3"),
    ("claude-3-7-sonnet-20250219", "claude-sonnet-3-7"),
    ("claude-opus-4-0", "claude-opus-4"),
    ("claude-mythos-preview", "claude-mythos-preview"),
    (" Claude-Haiku-4-5 ", "claude-haiku-4-5"),
    ("gpt-5.6-sol", "gpt-5.6"),
    ("databricks-gpt-5-6", "gpt-5.6"),
    ("gpt-5.6-luna-2026-07-30", "gpt-5.6-luna"),
    ("gpt-5-2025-08-07", "gpt-5"),
    ("gpt-4-1-mini", "gpt-4.1-mini"),
    ("openai/gpt-6-sol", "gpt-6-sol"),
    ("google/gemini-2.5-flash-lite", "gemini-2.5-flash-lite"),
    ("models/gemini-2.5-pro", "gemini-2.5-pro"),
    ("databricks-gemini-2-5-pro", "gemini-2.5-pro"),
    ("deepseek/deepseek-v4-flash", "deepseek-v4-flash"),
]


@pytest.mark.parametrize(("spelled", "row"), NAMES)
def test_spelling_of_a_model_finds_its_row(spelled: str, row: str) -> None:
    """Each way to write a known model's name finds its row and hashes under the row's name."""
    assert find_model(spelled) is MODELS[row]
    assert model_key(spelled) == row


@given(
    st.sampled_from([name for name in MODELS if name.startswith("claude-")]),
    st.sampled_from(
        ["", "databricks-", "system.ai.", "anthropic/", "global.anthropic.", "bedrock/anthropic."]
    ),
    st.sampled_from(["", "-20270101", "-latest", "@20270101", "-v1:0", "-20270101-v2:0"]),
    st.booleans(),
)
def test_route_date_and_case_of_a_name_are_ignored(name: str, before: str, after: str, upper: bool) -> None:
    """A model is the same for any route, date, revision and case of its name."""
    spelled = before + name + after
    assert model_key(spelled.upper() if upper else spelled) == name
    assert find_model(spelled) is MODELS[name]


@pytest.mark.parametrize(
    ("spelled", "key"),
    [
        ("claude-opus-9", "claude-opus-9"),
        ("databricks-claude-opus-9", "claude-opus-9"),
        ("main.team.claude_support", "main.team.claude_support"),
        ("claude-opus-4-6-fast", "claude-opus-4-6-fast"),
        ("claude-3-opus-20240229", "claude-3-opus-20240229"),
    ],
)
def test_unknown_claude_gets_the_safe_row(spelled: str, key: str) -> None:
    """A Claude without a row is marked from 4096 tokens on, has no price, and keeps its own name."""
    found = find_model(spelled)
    assert found is not None
    assert (found.name, found.minimum, found.prices, found.caching) == (key, 4096, None, "explicit")
    assert model_key(spelled) == key


def test_variants_share_a_row_but_not_a_key() -> None:
    """A router's variant has its model's rules, but prefixes of its own."""
    assert find_model("anthropic/claude-3.7-sonnet:thinking") is MODELS["claude-sonnet-3-7"]
    assert model_key("anthropic/claude-3.7-sonnet:thinking") == "claude-sonnet-3-7:thinking"


@pytest.mark.parametrize("name", ["claude-2", "claude-2.1", "claude-instant-1.2", "anthropic.claude-v2:1"])
def test_first_claudes_have_no_provider_cache(name: str) -> None:
    """Models from before prompt caching are known to have none."""
    found = find_model(name)
    assert found is not None
    assert found.caching == "none"


OTHERS = [
    ("gpt-5.2-codex", 1024, False),
    ("databricks-gpt-5-1-codex", 1024, False),
    ("o1-mini", 1024, False),
    ("openai/gpt-6-vega", 1024, True),
    ("gpt-5.7", 1024, True),
    ("gemini-3.8-flash", 4096, False),
    ("gemini-2.5-flash-image", 2048, False),
    ("deepseek/deepseek-chat", 64, False),
]


@pytest.mark.parametrize(("name", "minimum", "hints"), OTHERS)
def test_other_models_cache_automatically(name: str, minimum: int, hints: bool) -> None:
    """A model of OpenAI, Gemini or DeepSeek without a row needs no breakpoint and has no price."""
    found = find_model(name)
    assert found is not None
    assert (found.caching, found.prices, found.name) == ("automatic", None, model_key(name))
    assert (found.minimum, found.hints) == (minimum, hints)


def test_only_automatic_models_take_hints() -> None:
    """Breakpoints in OpenAI's form are for its models from GPT-5.6 on only."""
    hinted = {row.name for row in MODELS.values() if row.hints}
    assert hinted == {name for name in MODELS if name.startswith(("gpt-5.6", "gpt-6"))}
    assert all(MODELS[name].caching == "automatic" for name in hinted)


def test_writes_of_automatic_models_are_free_or_a_quarter_more() -> None:
    """Automatic models bill written tokens as uncached ones or, from GPT-5.6 on, a quarter more."""
    for row in MODELS.values():
        for prices in (row.prices, row.long_prices) if row.caching == "automatic" else ():
            if prices is not None:
                assert (
                    prices.write_5m == prices.write_1h == prices.input * (Decimal("1.25") if row.hints else 1)
                )


@pytest.mark.parametrize(
    "name",
    [
        "",
        "gpt-oss-120b",
        "gpt-4",
        "gpt-4-0613",
        "gemini-1.5-pro",
        "databricks-llama-4-maverick",
        "main.ai.support",
    ],
)
def test_unknown_name_has_no_row(name: str) -> None:
    """An unknown name has no row; its key is only lower-cased and freed of its alias."""
    assert find_model(name) is None
    assert model_key(name.upper()) == name.removeprefix("databricks-")


@given(st.text())
def test_any_text_as_a_name_raises_nothing(text: str) -> None:
    """No name raises, and a found row has the key as its name unless it is a known one."""
    key, found = model_key(text), find_model(text)
    assert found is None or found.name in MODELS or found.name == key


URLS = [
    ("https://dbc-1.cloud.databricks.com/serving-endpoints", "databricks"),
    ("https://ADB-1.2.azuredatabricks.net/ai-gateway/mlflow/v1", "databricks"),
    ("https://1.2.gcp.databricks.com/", "databricks"),
    ("https://llm.example.com/serving-endpoints", "databricks"),
    ("http://127.0.0.1:8080/ai-gateway/mlflow/v1", "databricks"),
    ("127.0.0.1:8080/ai-gateway/openai/v1/", "databricks"),
    ("https://api.anthropic.com/v1", "anthropic"),
    ("https://api.anthropic.com/v1/messages", "anthropic"),
    ("https://api.anthropic.com/v1/chat/completions", "anthropic-openai"),
    ("https://api.anthropic.com/v1//chat/completions?x=1", "anthropic-openai"),
    ("https://llm.example.com/v1/chat/completions", None),
    ("https://openrouter.ai/api/v1/chat/completions", "openrouter"),
    ("https://openrouter.ai/api/v1", "openrouter"),
    ("https://openrouter.ai/ai-gateway/v1", "openrouter"),
    ("https://api.openai.com/v1", "openai"),
    ("https://eu.api.openai.com/v1", "openai"),
    ("https://my.openai.azure.com/openai/v1", "openai"),
    ("https://generativelanguage.googleapis.com/v1beta/openai/", "gemini"),
    ("https://api.deepseek.com", "deepseek"),
    ("https://evil-databricks.com/v1", None),
    ("https://databricks.com.example.org/v1", None),
    ("https://llm.example.com/v1/serving-endpoints-of-ours", None),
    ("http://localhost:4000", None),
    ("http://[broken", None),
    ("", None),
]


@pytest.mark.parametrize(("url", "name"), URLS)
def test_provider_of_a_base_url_is_found_by_host_then_path(url: str, name: str | None) -> None:
    """A base URL belongs to a provider by its host, then by its path, never by likeness."""
    found = find_provider(url)
    assert (found and found.name) == name


@pytest.mark.parametrize("provider", PROVIDERS.values(), ids=lambda row: row.name)
def test_unknown_parts_and_thinking_are_never_marked(provider: Any) -> None:
    """Every kind has its policy; unknown parts and thinking never carry a marker."""
    assert set(provider.kinds) == set(Kind)
    assert provider.kinds[Kind.OPAQUE] == "off"
    assert provider.kinds[Kind.REASONING] == ("learn" if provider.name == "databricks" else "off")
    assert ("on" in provider.kinds.values()) == (provider.max_markers > 0)


@pytest.mark.parametrize("hints", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_only_claude_and_hinted_models_take_breakpoints(provider: str, name: str, hints: bool) -> None:
    """Only Claude is marked, and with the opt-in OpenAI's own models at OpenAI."""
    rules = resolve(provider, name)
    assert rules is not None
    if provider == "openai":
        assert takes_breakpoints(rules, hints) == (hints and not name.startswith("claude"))
    else:
        assert takes_breakpoints(rules, hints) == (
            name.startswith("claude") and PROVIDERS[provider].max_markers > 0
        )


def test_litellm_databricks_row_differs_in_dropped_kinds_only() -> None:
    """The route drops markers on tool definitions and cannot try a kind; all else equals Databricks."""
    route, databricks = PROVIDERS["litellm-databricks"], PROVIDERS["databricks"]
    differ = {kind for kind in Kind if route.kinds[kind] != databricks.kinds[kind]}
    assert differ == {Kind.TOOL, Kind.REASONING}
    assert {route.kinds[kind] for kind in differ} == {"off"}
    assert (route.ttls, route.max_markers, route.lookback) == (
        databricks.ttls, databricks.max_markers, databricks.lookback,
    )  # fmt: skip


def test_openai_has_one_ttl() -> None:
    """Entries are cached for half an hour at any TTL setting; one of four breakpoints is OpenAI's own."""
    rules = resolve("openai", "gpt-5.6", ttl="1h")
    assert rules is not None
    assert (rules.ttl, rules.provider.ttl_seconds["5m"], rules.provider.max_markers) == ("5m", 1800, 4)
    assert relative_prices(rules.prices)[:2] == (1.25, 1.25)


OWN = {"input": 3, "write_5m": 3.75, "write_1h": 6, "read": 0.3, "output": 15}


def test_rules_without_settings_are_the_rows() -> None:
    """The rows hold if nothing is set; the TTL is 5 minutes."""
    rules = resolve("databricks", "databricks-claude-opus-4-6")
    assert rules is not None
    assert rules.provider is PROVIDERS["databricks"]
    assert rules.model is MODELS["claude-opus-4-6"]
    assert (rules.ttl, rules.minimum, rules.prices) == ("5m", 4096, rules.model.prices)
    assert rules.kinds == rules.provider.kinds
    assert resolve("databricks", "databricks-llama-4-maverick") is None


def test_settings_override_the_rows() -> None:
    """Kinds, TTL, minimum and prices that are set win, and the rows stay unchanged."""
    rules = resolve(
        "databricks",
        "claude-haiku-5-5",
        mark_kinds={"reasoning": "off", "document": "on"},
        ttl="auto",
        minimum=2000,
        prices={"system.ai.claude-haiku-5-5": OWN},
    )
    assert rules is not None
    changed = {Kind.REASONING: "off", Kind.DOCUMENT: "on"}
    assert rules.kinds == {**PROVIDERS["databricks"].kinds, **changed}
    assert (rules.ttl, rules.minimum) == ("auto", 2000)
    assert rules.prices is rules.model.prices
    assert _ours(rules.prices) == tuple(Decimal(str(OWN[key])) for key in OWN)
    assert rules.model.long is None
    assert PROVIDERS["databricks"].kinds[Kind.REASONING] == "learn"
    assert MODELS["claude-haiku-5-5"].long == 100_000


def test_custom_name_is_mapped_by_exact_match_then_pattern() -> None:
    """`models` is asked first: the exact name, then the first pattern that matches, ignoring case."""
    models = {
        "main.*": "claude-haiku-4-5",
        "main.ai.Support": "databricks-claude-opus-4.6",
        "gpt*": "gpt-5.2",
    }

    def name(model: str) -> str | None:
        rules = resolve("databricks", model, models=models)
        return rules.model.name if rules else None

    assert name("MAIN.ai.support") == "claude-opus-4-6"
    assert name("main.ai.other") == "claude-haiku-4-5"
    assert name("gpt-oss-120b") == "gpt-5.2"
    assert name("claude-opus-5") == "claude-opus-5"
    assert name("other.ai.support") is None


def test_prices_of_a_custom_name_win_over_those_of_its_model() -> None:
    """A price may be given for the service's own name or for its model; the nearer one holds."""
    models = {"main.ai.support": "claude-opus-4-6"}
    other = {**OWN, "input": 4}
    prices = {"main.ai.support": OWN, "claude-opus-4-6": other}
    named = resolve("databricks", "main.ai.support", models=models, prices=prices)
    behind = resolve("databricks", "main.ai.support", models=models, prices={"claude-opus-4-6": other})
    assert named is not None
    assert behind is not None
    assert named.prices is not None
    assert behind.prices is not None
    assert (named.prices.input, behind.prices.input) == (Decimal(3), Decimal(4))


WRONG = [
    ({"provider": "databrick"}, ["provider", "'databrick'", "openrouter", "did you mean 'databricks'"]),
    ({"provider": "xyzzy"}, ["provider", "'xyzzy'", "allowed: "]),
    ({"models": {"a": "claude-opus-46"}}, ["models['a']", "did you mean 'claude-opus-4-6'"]),
    ({"models": {"a": "llama"}}, ["models['a']", "'llama'", "claude-haiku-4-5"]),
    ({"mark_kinds": {"texts": "on"}}, ["mark_kinds", "'texts'", "did you mean 'text'"]),
    ({"mark_kinds": {"opaque": "on"}}, ["mark_kinds", "'opaque'", "tool_result"]),
    ({"mark_kinds": {"text": "yes"}}, ["mark_kinds['text']", "'yes'", "learn, off, on"]),
    ({"ttl": "2h"}, ["ttl", "'2h'", "1h, 5m, auto"]),
    ({"minimum": -1}, ["min_tokens", "-1"]),
    ({"prices": {"m": {**OWN, "inputs": 1}}}, ["prices['m']", "'inputs'", "did you mean 'input'"]),
    ({"prices": {"m": {"input": 1}}}, ["prices['m']", "lacks write_5m, write_1h, read, output"]),
    ({"prices": {"m": {}}}, ["prices['m']", "lacks input"]),
    *(
        ({"prices": {"m": {**OWN, "read": value}}}, ["prices['m']['read']", repr(value), "from 0"])
        for value in (-0.1, float("nan"), float("inf"), True, "0.3", None, Decimal("sNaN"))
    ),
]


@pytest.mark.parametrize(("settings", "said"), WRONG)
def test_wrong_setting_names_the_allowed_values(settings: dict[str, Any], said: list[str]) -> None:
    """A wrong setting is named with its value and the allowed ones, by `check` and `resolve` alike."""
    settings = {"provider": "databricks", **settings}
    for call in (check, lambda **given: resolve(model="claude-opus-5", **given)):
        with pytest.raises(ConfigError) as caught:
            call(**settings)
        assert all(part in str(caught.value) for part in said), str(caught.value)


def test_auto_is_a_setting_but_no_provider() -> None:
    """`auto` passes the check of settings; rules need a provider."""
    check("auto", models={"x": "claude", "y": "system.ai.claude-opus-4-6"}, prices={"x": OWN})
    with pytest.raises(ConfigError):
        resolve("auto", "claude-opus-5")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("claude-opus-4-6", (1.25, 2.0, 0.1)),
        ("claude-opus-5-5", (1.25, 2.0, 0.05)),
        ("claude-fable-5-2", (1.25, 2.0, 0.025)),
        ("claude-haiku-3", (1.2, 2.0, 0.12)),
    ],
)
def test_relative_prices_are_in_uncached_tokens(name: str, expected: tuple[float, float, float]) -> None:
    """Writes and reads are priced in uncached tokens, by the model's own price."""
    assert relative_prices(MODELS[name].prices) == pytest.approx(expected)


def test_relative_prices_without_a_price_are_the_usual_ones() -> None:
    """Without a price the usual ratios hold; with free input there is no saving."""
    zero = Decimal(0)
    free = Prices(zero, zero, zero, zero, zero, source="settings", date="")
    assert relative_prices(None) == (1.25, 2.0, 0.1)
    assert relative_prices(free) == (1.25, 2.0, 1.0)
