"""What one process has come to know of models: rules, tokens, refused kinds, minimums.

Lives here: rows with settings and experience laid over them, and how experience is shared: as sums of named
facts, which a store can add up. Must not know: requests, prefixes, money.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

from cachemw.core import providers
from cachemw.core.providers import Kind, Mark, Rules
from cachemw.core.tokens import Calibration
from cachemw.forks import in_child
from cachemw.settings import Settings

TABLE = "facts"
KEEP = 7 * 24 * 3600.0
_LIMIT = 4_096
# A prefix that surely reaches the minimum must go unserved this often before another one is believed.
_STRIKES = 3
_HIGHEST_MINIMUM = 8_192
_DIGITS = re.compile("[0-9]{1,9}")
_KINDS = frozenset(Kind)

Model = tuple[str, str]  # provider, model


class Knowledge:
    """Rules by provider and model, as far as settings, rows and experience tell. Any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rules: dict[Model, Rules | None] = {}
        self._models: dict[str, str] = {}
        self._calibrations: dict[Model, Calibration] = {}
        self._refused: dict[Model, set[Kind]] = {}
        self._no_hour: set[Model] = set()
        self._no_key: set[Model] = set()
        self._strikes: dict[Model, int] = {}
        self._minimums: dict[Model, int] = {}
        self._forked()
        in_child(self._forked)

    def _forked(self) -> None:
        self._lock = Lock()
        self._news: dict[str, int] = {}  # the parent tells its own

    def rules(self, provider: str, model: str) -> Rules | None:
        """Return the rules of a model at a provider; None where nothing says what the model is."""
        key = (provider, model)
        try:
            return self._rules[key]
        except KeyError:
            settings = self._settings
            found = providers.resolve(
                provider,
                model,
                models={**self._models, **settings.models},
                mark_kinds=settings.mark_kinds,
                ttl=settings.ttl,
                minimum=settings.min_tokens,
                prices=settings.prices,
            )
            if found is not None:
                name = (provider, found.model.name)
                if settings.min_tokens is None and name in self._minimums:
                    found = replace(found, minimum=self._minimums[name])
                if name in self._no_hour:
                    found = replace(found, ttl="5m")
            with self._lock:
                if len(self._rules) >= _LIMIT:
                    self._rules.clear()
                self._rules[key] = found
            return found

    def calibration(self, rules: Rules) -> Calibration:
        """Return how sizes become this model's tokens, as far as usage has shown."""
        return self._calibrations.get(_name(rules)) or Calibration.start(rules.model.tokenizer)

    def kinds(self, rules: Rules) -> dict[Kind, Mark]:
        """Return which kinds may carry a marker now; what was refused may not."""
        refused = self._refused.get(_name(rules), ())
        return {kind: "off" if kind in refused else rules.kinds.get(kind, "off") for kind in Kind}

    def count_tokens(self, rules: Rules, size: float, tokens: int) -> None:
        """Learn that a request of this size was counted as this many tokens."""
        name = _name(rules)
        with self._lock:
            learned = self.calibration(rules).learn(size, tokens)
            if name not in self._calibrations and len(self._calibrations) >= _LIMIT:
                self._calibrations.clear()
            self._calibrations[name] = learned

    def learn_model(self, name: str, response: Any) -> None:
        """Note which model an unknown name turned out to be, for the next request."""
        answered = (
            response.get("model") if isinstance(response, Mapping) else getattr(response, "model", None)
        )
        model = providers.find_model(answered) if isinstance(answered, str) else None
        if name and model is not None and model.name in providers.MODELS and len(self._models) < _LIMIT:
            with self._lock:
                self._models[name] = model.name
                self._rules.clear()

    def refuse(self, rules: Rules, kinds: Collection[Kind]) -> None:
        """Note that a provider refused markers on these kinds of block."""
        with self._lock:
            self._refused.setdefault(_name(rules), set()).update(kinds)
            for kind in kinds:
                self._tell("refused", *_name(rules), kind)

    def refuse_hour(self, rules: Rules) -> None:
        """Note that a provider takes no TTL of an hour."""
        with self._lock:
            self._forget_hour(_name(rules))
            self._tell("no_hour", *_name(rules), "1h")

    def refuse_key(self, rules: Rules) -> None:
        """Note that a provider takes no `prompt_cache_key`."""
        with self._lock:
            self._no_key.add(_name(rules))
            self._tell("no_key", *_name(rules), "key")

    def takes_key(self, rules: Rules) -> bool:
        """Say whether a provider has not refused a `prompt_cache_key` yet."""
        return _name(rules) not in self._no_key

    def unserved(self, rules: Rules, tokens: float) -> None:
        """Note that a marked prefix of about this many tokens was neither read nor written.

        Its tokens have just been counted anew, so it may be shorter than the minimum after all. Only one
        that surely is not, three times, says that the minimum is another.
        """
        name = _name(rules)
        if tokens * (1 - self.calibration(rules).spread) < rules.minimum:
            return
        with self._lock:
            self._strikes[name] = self._strikes.get(name, 0) + 1
            if self._strikes[name] >= _STRIKES:
                self._strikes[name] = 0
                self._set_minimum(name, min(int(tokens) + 1, _HIGHEST_MINIMUM))
                self._tell("minimum", *name, str(self._minimums[name]))

    def news(self) -> dict[str, int]:
        """Return what was learned since the last time, as sums to add to the shared table."""
        with self._lock:
            news, self._news = self._news, {}
        return news

    def absorb(self, facts: Mapping[str, int]) -> None:
        """Take over what all workers have learned: the sums of the shared table."""
        with self._lock:
            for fact, count in facts.items():
                what, provider, model, value, *_ = [*fact.split("|", 4), "", "", "", ""]
                name = (provider, model)
                if count <= 0:
                    continue
                if what == "refused" and value in _KINDS and _room(self._refused, name):
                    self._refused.setdefault(name, set()).add(Kind(value))
                elif what == "no_hour" and name not in self._no_hour and _room(self._no_hour, name):
                    self._forget_hour(name)
                elif what == "no_key" and _room(self._no_key, name):
                    self._no_key.add(name)
                elif what == "minimum" and _DIGITS.fullmatch(value) and _room(self._minimums, name):
                    minimum = min(int(value), _HIGHEST_MINIMUM)
                    if minimum > self._minimums.get(name, 0):
                        self._set_minimum(name, minimum)

    def _forget_hour(self, name: Model) -> None:
        self._no_hour.add(name)
        self._rules.clear()

    def _set_minimum(self, name: Model, tokens: int) -> None:
        self._minimums[name] = tokens
        self._rules.clear()

    def _tell(self, what: str, provider: str, model: str, value: str) -> None:
        self._news[f"{what}|{provider}|{model}|{value}"] = 1


def _room(known: Collection[Model], name: Model) -> bool:
    """Say whether a fact about a model may be kept: any worker, or another program, writes the shared table."""
    return name in known or len(known) < _LIMIT


def _name(rules: Rules) -> Model:
    return rules.provider.name, rules.model.name
