"""Facts that a process learns about models, and their exchange between workers."""

from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from cachemw.core.rules.types import Kind, Rules
from cachemw.engine import learned_facts as module
from cachemw.engine.learned_facts import LearnedFacts, NamespaceFacts
from cachemw.settings import Settings

MODEL = "databricks-claude-sonnet-4-6"


def new_facts(**settings: Any) -> LearnedFacts:
    """Return fresh facts."""
    return LearnedFacts(Settings(provider="databricks", **settings), b"secret")


def facts_of(knowledge: LearnedFacts, namespace: str = "me") -> NamespaceFacts:
    """Return the facts that a namespace has learned."""
    return knowledge.of(namespace)


def rules(facts: NamespaceFacts, model: str = MODEL) -> Rules:
    """Return the rules of a known model."""
    found = facts.rules("databricks", model)
    assert found is not None
    return found


def published(knowledge: LearnedFacts, *names: str, count: int = 1, namespace: str = "me") -> dict[str, int]:
    """Return sums of a shared table that another worker wrote for a namespace."""
    tag = knowledge.of(namespace)._tag
    return {f"{name}|{tag}": count for name in names}


def test_rules_are_overridden_by_settings() -> None:
    """Rules are looked up once, and every setting overrides the rows."""
    facts = facts_of(
        new_facts(ttl="1h", min_tokens=7, mark_kinds={"text": "off"}, models={"custom-*": "claude-opus-4-6"})
    )
    found = rules(facts, "custom-1")
    assert (found.model.name, found.ttl, found.minimum) == ("claude-opus-4-6", "1h", 7)
    assert facts.kinds(found)[Kind.TEXT] == "off"
    assert facts.rules("databricks", "custom-1") is found
    assert facts.rules("databricks", "llama") is None
    assert facts.rules("openrouter", "custom-1") is not found


def test_names_of_lookups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are looked up, few are kept."""
    monkeypatch.setattr(module, "_LIMIT", 5)
    monkeypatch.setattr(module, "_RULES", 5)
    knowledge = new_facts()
    facts = facts_of(knowledge)
    for number in range(50):
        assert facts.rules("databricks", f"model-{number}") is None
        facts.learn_model(f"model-{number}", {"model": "claude-opus-4-6"})
    assert knowledge.row.cache_info().currsize <= 5
    assert len(knowledge._facts) == 5


def test_calibrations_beyond_the_limit_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models answer, few calibrations are kept; a calibration in use stays."""
    monkeypatch.setattr(module, "_LIMIT", 5)
    knowledge = new_facts()
    facts = facts_of(knowledge)
    for number in range(23):
        found = rules(facts, f"claude-of-tomorrow-{number}")
        facts.count_tokens(found, 1000, 1500)
        assert facts.calibration(found).scale == 1.5
        assert len(knowledge._facts) <= 5
    for number in (20, 21, 22):
        facts.count_tokens(rules(facts, f"claude-of-tomorrow-{number}"), 1000, 1500)
    kept = [facts.calibration(rules(facts, f"claude-of-tomorrow-{number}")).scale for number in range(23)]
    assert kept[18:] == [1.5] * 5
    assert 1.5 not in kept[:18]


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        ({"model": "claude-sonnet-4-6"}, True), (SimpleNamespace(model="system.ai.claude-sonnet-4-6"), True), ({"model": "mystery"}, False),
        ({"model": "claude-of-tomorrow"}, False), ({"model": 5}, False), ({}, False), (None, False), ("claude-sonnet-4-6", False),
    ],
)  # fmt: skip
def test_unknown_model_is_resolved_by_its_answer(answer: Any, learned: bool) -> None:
    """An unknown name stands for the model of its answer, if that has a row; the setting wins over it."""
    facts = facts_of(new_facts())
    assert facts.rules("databricks", "main.ai.support") is None
    facts.learn_model("main.ai.support", answer)
    assert (facts.rules("databricks", "main.ai.support") is not None) is learned
    configured = facts_of(new_facts(models={"main.ai.support": "claude-opus-4-6"}))
    configured.learn_model("main.ai.support", answer)
    assert rules(configured, "main.ai.support").model.name == "claude-opus-4-6"


def test_empty_model_name_teaches_nothing() -> None:
    """An empty name stands for no model."""
    facts = facts_of(new_facts())
    facts.learn_model("", {"model": "claude-sonnet-4-6"})
    assert facts.rules("databricks", "") is None


def test_refused_kinds_are_off_and_published() -> None:
    """A refused kind is off for this provider and model, here and, once published, everywhere."""
    knowledge, elsewhere = new_facts(), new_facts()
    one, other = facts_of(knowledge), facts_of(elsewhere)
    one.refuse(rules(one), {Kind.TOOL_RESULT, Kind.IMAGE})
    assert {kind for kind, mark in one.kinds(rules(one)).items() if mark == "on"} == {
        Kind.TEXT,
        Kind.TOOL,
        Kind.TOOL_CALL,
    }
    assert one.kinds(rules(one, "claude-opus-4-6"))[Kind.IMAGE] == "on"
    news = knowledge.drain_updates()
    assert knowledge.drain_updates() == {}
    elsewhere.merge_updates(news)
    assert other.kinds(rules(other)) == one.kinds(rules(one))


def test_minimum_is_raised_at_the_third_unserved_prompt() -> None:
    """Three unserved prompts that are surely above the minimum raise it."""
    knowledge, elsewhere = new_facts(), new_facts()
    one, other = facts_of(knowledge), facts_of(elsewhere)
    before = rules(one).minimum
    for tokens, minimum in ((1200, before), (2000, before), (2000, before), (1300, before), (2000, 2001)):
        one.unserved(rules(one), tokens)
        assert rules(one).minimum == minimum
    elsewhere.merge_updates(knowledge.drain_updates())
    assert rules(other).minimum == 2001
    lower = published(elsewhere, "minimum|databricks|claude-sonnet-4-6|1500")
    elsewhere.merge_updates(lower)
    assert rules(other).minimum == 2001
    fixed = new_facts(min_tokens=10)
    fixed.merge_updates(lower)
    assert rules(facts_of(fixed)).minimum == 10


def test_minimum_is_never_raised_beyond_its_cap() -> None:
    """A provider that serves no prompt from its cache does not raise the minimum forever."""
    knowledge = new_facts()
    facts = facts_of(knowledge)
    for _ in range(9):
        facts.unserved(rules(facts), 1e9)
    assert rules(facts).minimum <= 8192
    knowledge.merge_updates(published(knowledge, "minimum|databricks|claude-sonnet-4-6|999999999", count=3))
    assert rules(facts).minimum <= 8192


@pytest.mark.parametrize(
    "facts",
    [
        {"": 1}, {"refused": 1}, {"refused|databricks|claude-sonnet-4-6|": 1}, {"refused|databricks|claude-sonnet-4-6|nonsense": 1},
        {"refused|databricks|claude-sonnet-4-6|text": 0}, {"minimum|databricks|claude-sonnet-4-6|many": 1},
        {"minimum|databricks|claude-sonnet-4-6|5000": -1}, {"rumour|databricks|claude-sonnet-4-6|text": 1}, {"a|b|c|d|e|f": 1},
    ],
)  # fmt: skip
def test_unknown_facts_in_the_shared_table_change_nothing(facts: dict[str, int]) -> None:
    """Entries of another version, or of an unknown program, change nothing."""
    for tagged in (False, True):
        knowledge, fresh = new_facts(), facts_of(new_facts())
        for name, count in facts.items():
            knowledge.merge_updates(published(knowledge, name, count=count) if tagged else {name: count})
        assert rules(facts_of(knowledge)) == rules(fresh)
        assert facts_of(knowledge).kinds(rules(fresh)) == fresh.kinds(rules(fresh))


def test_token_scale_of_one_model_leaves_others_alone() -> None:
    """The usage of one model changes no other model's scale."""
    facts = facts_of(new_facts())
    facts.count_tokens(rules(facts), 1000, 1500)
    assert facts.calibration(rules(facts)).scale == 1.5
    assert facts.calibration(rules(facts, "claude-sonnet-4-5")).scale == 1.0


def test_refused_hour_is_replaced_by_five_minutes_everywhere() -> None:
    """A provider that refuses the TTL is asked for five minutes, by every worker that learns of it."""
    one, other = new_facts(ttl="1h"), new_facts(ttl="1h")
    found = rules(facts_of(one), "claude-opus-4-6")
    assert found.ttl == "1h"
    facts_of(one).refuse_hour(found)
    other.merge_updates(one.drain_updates())
    for knowledge in (one, other):
        assert rules(facts_of(knowledge), "claude-opus-4-6").ttl == "5m"


def test_facts_of_many_models_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared table may name any number of models: few facts are kept, and known ones still grow."""
    monkeypatch.setattr(module, "_LIMIT", 40)
    knowledge = new_facts()
    names = [
        f"{fact}|databricks|claude-{number}|{value}"
        for number in range(100)
        for fact, value in (("refused", "text"), ("no_hour", "1h"), ("no_key", "key"), ("minimum", "2000"))
    ]
    knowledge.merge_updates(published(knowledge, *names))
    assert len(knowledge._facts) == 40
    more = ("refused|databricks|claude-99|tool_definition", "minimum|databricks|claude-99|3000")
    knowledge.merge_updates(published(knowledge, *more))
    facts = facts_of(knowledge)
    found = rules(facts, "claude-99")
    assert {kind for kind in (Kind.TEXT, Kind.TOOL, Kind.IMAGE) if facts.kinds(found)[kind] == "off"} == {
        Kind.TEXT,
        Kind.TOOL,
    }
    assert found.minimum == 3000
    assert not facts.takes_key(found)
    assert len(knowledge._facts) == 40


@pytest.mark.parametrize("value", ["9" * 10, "9" * 5_000, "٣٠٠٠", "²", "-5", "+5000", "5_000", " 5000"])
def test_minimum_that_is_no_plain_number_changes_nothing(value: str) -> None:
    """Another program may write anything in the place of a minimum."""
    knowledge = new_facts()
    knowledge.merge_updates(published(knowledge, f"minimum|databricks|claude-sonnet-4-6|{value}"))
    assert rules(facts_of(knowledge)) == rules(facts_of(new_facts()))


# -- namespaces ------------------------------------------------------------------------------------


def learn_everything(facts: NamespaceFacts) -> None:
    """Teach a namespace every kind of fact about a model, from odd answers."""
    found = rules(facts)
    facts.refuse(found, set(Kind))
    facts.refuse_hour(found)
    facts.refuse_key(found)
    facts.count_tokens(found, 1000, 1000)
    for _ in range(9):
        facts.unserved(found, 6000)
    facts.learn_model("main.ai.support", {"model": "claude-opus-4-6"})


def rules_and_facts(knowledge: LearnedFacts, namespace: str) -> tuple[Any, ...]:
    """Return all that a namespace's facts say of a model."""
    facts = facts_of(knowledge, namespace)
    found = rules(facts)
    return (
        found,
        facts.kinds(found),
        facts.takes_key(found),
        facts.calibration(found),
        facts.rules("databricks", "main.ai.support"),
    )


def test_facts_of_one_namespace_leave_the_rules_of_another_equal() -> None:
    """Refusals, minimums, tokens and names that one namespace learned change nothing for any other."""
    knowledge, fresh = new_facts(ttl="1h"), new_facts(ttl="1h")
    learn_everything(facts_of(knowledge, "one"))
    for namespace in ("other", "", "one ", "One"):
        assert rules_and_facts(knowledge, namespace) == rules_and_facts(fresh, namespace)
    for before, after in zip(rules_and_facts(fresh, "one"), rules_and_facts(knowledge, "one"), strict=True):
        assert before != after


def test_facts_in_the_shared_table_are_those_of_their_namespace() -> None:
    """Another worker takes over one namespace's facts for that namespace only."""
    knowledge, elsewhere, fresh = new_facts(ttl="1h"), new_facts(ttl="1h"), new_facts(ttl="1h")
    learn_everything(facts_of(knowledge, "one"))
    news = knowledge.drain_updates()
    elsewhere.merge_updates(news)
    assert rules_and_facts(elsewhere, "other") == rules_and_facts(fresh, "other")
    assert rules_and_facts(elsewhere, "one")[:3] == rules_and_facts(knowledge, "one")[:3]
    assert not any("one" in name.split("|") for name in news)


def test_facts_under_another_secret_are_those_of_no_namespace() -> None:
    """A table that workers with another secret wrote changes nothing."""
    knowledge, fresh = new_facts(), new_facts()
    stranger = LearnedFacts(Settings(provider="databricks"), b"another")
    learn_everything(facts_of(stranger, "one"))
    knowledge.merge_updates(stranger.drain_updates())
    assert rules_and_facts(knowledge, "one") == rules_and_facts(fresh, "one")


@pytest.mark.parametrize(
    "name", ["claude-opus-9|text|{tag}", "claude-opus-9|text|{tag}|", "claude-opus-9|text|{tag}|x|y"]
)
def test_facts_of_a_model_with_separators_in_its_name_are_those_of_no_other_namespace(name: str) -> None:
    """A client that calls a model as the shared table's names are made changes no other namespace's rules."""
    knowledge, elsewhere = new_facts(), new_facts()
    victim = facts_of(elsewhere, "victim")
    attacker = facts_of(knowledge, "attacker")
    attacker.refuse(rules(attacker, name.format(tag=victim._tag)), {Kind.IMAGE})
    elsewhere.merge_updates(knowledge.drain_updates())
    for model in ("claude-opus-9", MODEL):
        assert victim.kinds(rules(victim, model))[Kind.TEXT] == "on"
        assert victim.kinds(rules(victim, model))[Kind.IMAGE] == "on"


def test_facts_of_a_namespace_are_kept_however_many_another_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace within its fair share loses no fact to one that learns of new models without end."""
    monkeypatch.setattr(module, "_LIMIT", 50)
    knowledge = new_facts(ttl="1h")
    learn_everything(facts_of(knowledge, "me"))
    before, flood = rules_and_facts(knowledge, "me"), facts_of(knowledge, "flood")
    for number in range(200):
        flood.count_tokens(rules(flood, f"claude-of-tomorrow-{number}"), 1000, 1500)
        flood.refuse_key(rules(flood, f"claude-of-tomorrow-{number}"))
    knowledge.merge_updates(
        published(knowledge, *(f"no_key|databricks|claude-{n}|key" for n in range(200)), namespace="third")
    )
    assert len(knowledge._facts) <= 50
    assert rules_and_facts(knowledge, "me") == before


def test_facts_of_names_of_any_length_take_bounded_memory() -> None:
    """A name that no model has, and that nothing was learned of, is not kept if it is long."""
    facts, name = facts_of(new_facts()), "x" * 1_000_000
    tracemalloc.start()
    try:
        for number in range(20):
            assert facts.rules("databricks", f"{number}{name}") is None
        assert tracemalloc.get_traced_memory()[0] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def _impatient() -> Iterator[None]:
    """Let threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_impatient")
def test_facts_of_requests_at_the_same_time_are_all_learned() -> None:
    """Threads that learn of different refusals of one model at once lose none of them."""

    def refuse(facts: NamespaceFacts, kind: Kind, ready: threading.Barrier) -> None:
        ready.wait(30)
        facts.refuse(rules(facts), {kind})

    for _ in range(100):
        facts, ready = facts_of(new_facts()), threading.Barrier(len(Kind))
        threads = [threading.Thread(target=refuse, args=(facts, kind, ready)) for kind in Kind]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert set(facts.kinds(rules(facts)).values()) == {"off"}
