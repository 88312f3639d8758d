"""What a process learns of models, and how workers tell each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cachemw import knowledge as module
from cachemw.core.providers import Kind, Rules
from cachemw.knowledge import Knowledge
from cachemw.settings import Settings

MODEL = "databricks-claude-sonnet-4-6"


def known(**settings: Any) -> Knowledge:
    """Return a fresh knowledge."""
    return Knowledge(Settings(provider="databricks", **settings))


def rules(knowledge: Knowledge, model: str = MODEL) -> Rules:
    """Return the rules of a model that is known."""
    found = knowledge.rules("databricks", model)
    assert found is not None
    return found


def test_rules_with_settings_over_them() -> None:
    """Rules are looked up once, with every setting laid over the rows."""
    knowledge = known(
        ttl="1h", min_tokens=7, mark_kinds={"text": "off"}, models={"ours-*": "claude-opus-4-6"}
    )
    found = rules(knowledge, "ours-1")
    assert (found.model.name, found.ttl, found.minimum) == ("claude-opus-4-6", "1h", 7)
    assert knowledge.kinds(found)[Kind.TEXT] == "off"
    assert knowledge.rules("databricks", "ours-1") is found
    assert knowledge.rules("databricks", "llama") is None
    assert knowledge.rules("openrouter", "ours-1") is not found


def test_lookups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names are asked for, few are kept."""
    monkeypatch.setattr(module, "_LIMIT", 5)
    knowledge = known()
    for number in range(50):
        assert knowledge.rules("databricks", f"model-{number}") is None
        knowledge.learn_model(f"model-{number}", {"model": "claude-opus-4-6"})
    assert len(knowledge._rules) <= 5
    assert len(knowledge._models) == 5


def test_calibrations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many models answer, few calibrations are kept; one that is there stays there."""
    monkeypatch.setattr(module, "_LIMIT", 5)
    knowledge = known()
    for number in range(23):
        found = rules(knowledge, f"claude-of-tomorrow-{number}")
        knowledge.count_tokens(found, 1000, 1500)
        assert knowledge.calibration(found).scale == 1.5
        assert len(knowledge._calibrations) <= 5
    for number in (20, 21, 22):
        knowledge.count_tokens(rules(knowledge, f"claude-of-tomorrow-{number}"), 1000, 1500)
    assert len(knowledge._calibrations) == 3


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        ({"model": "claude-sonnet-4-6"}, True), (SimpleNamespace(model="system.ai.claude-sonnet-4-6"), True), ({"model": "mystery"}, False),
        ({"model": "claude-of-tomorrow"}, False), ({"model": 5}, False), ({}, False), (None, False), ("claude-sonnet-4-6", False),
    ],
)  # fmt: skip
def test_models_by_their_answers(answer: Any, learned: bool) -> None:
    """An unknown name is what its answer says, if that has a row; the user's word wins over it."""
    knowledge = known()
    assert knowledge.rules("databricks", "main.ai.support") is None
    knowledge.learn_model("main.ai.support", answer)
    assert (knowledge.rules("databricks", "main.ai.support") is not None) is learned
    told = known(models={"main.ai.support": "claude-opus-4-6"})
    told.learn_model("main.ai.support", answer)
    assert rules(told, "main.ai.support").model.name == "claude-opus-4-6"


def test_a_name_that_is_none_teaches_nothing() -> None:
    """An empty name is no model's."""
    knowledge = known()
    knowledge.learn_model("", {"model": "claude-sonnet-4-6"})
    assert knowledge.rules("databricks", "") is None


def test_refused_kinds_are_off_and_told() -> None:
    """A refused kind is off for this provider and model, here and, once told, everywhere."""
    one, other = known(), known()
    one.refuse(rules(one), {Kind.TOOL_RESULT, Kind.IMAGE})
    assert {kind for kind, mark in one.kinds(rules(one)).items() if mark == "on"} == {
        Kind.TEXT,
        Kind.TOOL,
        Kind.TOOL_CALL,
    }
    assert one.kinds(rules(one, "claude-opus-4-6"))[Kind.IMAGE] == "on"
    news = one.news()
    assert one.news() == {}
    other.absorb(news)
    assert other.kinds(rules(other)) == one.kinds(rules(one))


def test_a_minimum_is_believed_at_the_third_time() -> None:
    """Prompts surely above the minimum that are not served three times say that it is another."""
    one, other = known(), known()
    before = rules(one).minimum
    for tokens, minimum in ((1200, before), (2000, before), (2000, before), (1300, before), (2000, 2001)):
        one.unserved(rules(one), tokens)
        assert rules(one).minimum == minimum
    other.absorb(one.news())
    assert rules(other).minimum == 2001
    other.absorb({"minimum|databricks|claude-sonnet-4-6|1500": 1})
    assert rules(other).minimum == 2001
    fixed = known(min_tokens=10)
    fixed.absorb({"minimum|databricks|claude-sonnet-4-6|1500": 1})
    assert rules(fixed).minimum == 10


def test_no_minimum_is_absurd() -> None:
    """A provider that serves nothing at all does not raise it for ever."""
    knowledge = known()
    for _ in range(9):
        knowledge.unserved(rules(knowledge), 1e9)
    assert rules(knowledge).minimum <= 8192
    knowledge.absorb({"minimum|databricks|claude-sonnet-4-6|999999999": 3})
    assert rules(knowledge).minimum <= 8192


@pytest.mark.parametrize(
    "facts",
    [
        {"": 1}, {"refused": 1}, {"refused|databricks|claude-sonnet-4-6|": 1}, {"refused|databricks|claude-sonnet-4-6|nonsense": 1},
        {"refused|databricks|claude-sonnet-4-6|text": 0}, {"minimum|databricks|claude-sonnet-4-6|many": 1},
        {"minimum|databricks|claude-sonnet-4-6|5000": -1}, {"rumour|databricks|claude-sonnet-4-6|text": 1}, {"a|b|c|d|e|f": 1},
    ],
)  # fmt: skip
def test_facts_that_are_none(facts: dict[str, int]) -> None:
    """What another version, or nobody, wrote into the shared table changes nothing."""
    knowledge, fresh = known(), known()
    knowledge.absorb(facts)
    assert rules(knowledge) == rules(fresh)
    assert knowledge.kinds(rules(knowledge)) == fresh.kinds(rules(fresh))


def test_tokens_are_learned_by_model() -> None:
    """What one model's usage teaches says nothing of another's."""
    knowledge = known()
    knowledge.count_tokens(rules(knowledge), 1000, 1500)
    assert knowledge.calibration(rules(knowledge)).scale == 1.5
    assert knowledge.calibration(rules(knowledge, "claude-sonnet-4-5")).scale == 1.0


def test_an_hour_that_is_refused() -> None:
    """A provider that takes no TTL is asked for five minutes from then on, by every worker that hears of it."""
    settings = Settings(provider="databricks", ttl="1h")
    one, other = Knowledge(settings), Knowledge(settings)
    rules = one.rules("databricks", "claude-opus-4-6")
    assert rules is not None
    assert rules.ttl == "1h"
    one.refuse_hour(rules)
    other.absorb(one.news())
    for knowledge in (one, other):
        after = knowledge.rules("databricks", "claude-opus-4-6")
        assert after is not None
        assert after.ttl == "5m"


def test_facts_of_models_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shared table may name any number of models: each kind of fact is kept for so many, also for known ones."""
    monkeypatch.setattr(module, "_LIMIT", 10)
    knowledge = known()
    facts = {
        f"{fact}|databricks|model-{number}|{value}": 1
        for number in range(100)
        for fact, value in (("refused", "text"), ("no_hour", "1h"), ("no_key", "key"), ("minimum", "2000"))
    }
    knowledge.absorb(facts)
    kept = knowledge._refused, knowledge._no_hour, knowledge._no_key, knowledge._minimums
    assert [len(table) for table in kept] == [10] * 4
    knowledge.absorb({"refused|databricks|model-0|tool_definition": 1, "minimum|databricks|model-0|3000": 1})
    assert knowledge._refused["databricks", "model-0"] == {Kind.TEXT, Kind.TOOL}
    assert knowledge._minimums["databricks", "model-0"] == 3000


@pytest.mark.parametrize("value", ["9" * 10, "9" * 5_000, "٣٠٠٠", "²", "-5", "+5000", "5_000", " 5000"])
def test_minimum_that_is_no_plain_number_changes_nothing(value: str) -> None:
    """Another program may write anything in the place of a minimum."""
    knowledge = known()
    knowledge.absorb({f"minimum|databricks|claude-sonnet-4-6|{value}": 1})
    assert rules(knowledge) == rules(known())
