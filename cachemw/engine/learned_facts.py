"""Facts that one process has learned about models: token scales, refused kinds, minimums.

Contains: the rules of a model with settings and learned facts applied, and the exchange of facts as sums that a store
can add up. Must not depend on: requests, prefixes, money.

Each namespace learns its facts from its own answers. No tenant's answers change how another's requests are marked.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from threading import RLock
from typing import Any

from cachemw.core.fair_table import FairTable
from cachemw.core.request.tokens import Calibration
from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Kind, MarkPolicy, Rules
from cachemw.fork_safety import after_fork_in_child
from cachemw.settings import Settings

TABLE = "facts"
KEEP = 7 * 24 * 3600.0
_LIMIT = 16_384
_RULES, _LONGEST = 1_024, 256
# So many prefixes above the minimum must be neither read nor written before a higher minimum is learned.
_STRIKES = 3
_HIGHEST_MINIMUM = 8_192
_DIGITS = re.compile("[0-9]{1,9}")
_KINDS = frozenset(Kind)

ModelKey = tuple[str, str]  # provider, model
_Fact = tuple[str, str, str]  # the kind of fact, the provider and the model


class LearnedFacts:
    """The facts of all namespaces. Any number of threads may use one.

    `secret` keys the names under which namespaces stand in a shared store.
    """

    def __init__(self, settings: Settings, secret: bytes = b"") -> None:
        self._secret = blake2b(secret, digest_size=32).digest()
        self._settings = settings
        self._facts: FairTable[_Fact, Any] = FairTable(_LIMIT)
        self.row = lru_cache(_RULES)(self.resolve)
        self.of = lru_cache(_RULES)(self._of)
        self._reset_after_fork()
        after_fork_in_child(self._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self.lock = RLock()
        self._news: dict[str, int] = {}  # the parent publishes its own

    def _of(self, namespace: str) -> NamespaceFacts:
        """Return the facts of a namespace."""
        name = namespace.encode("utf-8", "surrogatepass")
        return NamespaceFacts(self, blake2b(name, key=self._secret, digest_size=8).hexdigest())

    def resolve(self, provider: str, model: str, learned: str | None) -> Rules | None:
        """Return the rules of a model at a provider by rows and settings; `learned` is the model it is known to be."""
        settings = self._settings
        return resolve(
            provider,
            model,
            models={**({} if learned is None else {model: learned}), **settings.models},
            mark_kinds=settings.mark_kinds,
            ttl=settings.ttl,
            minimum=settings.min_tokens,
            prices=settings.prices,
        )

    @property
    def minimum_is_set(self) -> bool:
        """Return True if the settings name the minimum, so that none is learned."""
        return self._settings.min_tokens is not None

    def get(self, tag: str, fact: str, model: ModelKey) -> Any:
        """Return a fact about a model under a namespace's tag, or None."""
        return self._facts.read(tag).get((fact, *model))

    def set(self, tag: str, fact: str, model: ModelKey, value: Any, *, news: str | None = None) -> None:
        """Learn a fact, and publish it to the other workers as `news` if that is given."""
        with self.lock:
            self._facts.put(tag, [((fact, *model), value)])
            if news is not None:
                self._news["|".join((fact, *model, news, tag))] = 1

    def drain_updates(self) -> dict[str, int]:
        """Return the facts learned since the last call, as sums to add to the shared table."""
        with self.lock:
            news, self._news = self._news, {}
        return news

    def merge_updates(self, facts: Mapping[str, int]) -> None:
        """Learn the facts of all workers: the sums of the shared table."""
        with self.lock:
            self._merge(facts)

    def _merge(self, facts: Mapping[str, int]) -> None:
        for name, count in facts.items():
            parts = name.split("|", 5)
            if count <= 0 or len(parts) != 5:
                continue
            fact, provider, model, value, tag = parts
            where = (provider, model)
            if fact == "refused" and value in _KINDS:
                known = self.get(tag, fact, where) or frozenset()
                self.set(tag, fact, where, known | {Kind(value)})
            elif fact in ("no_hour", "no_key"):
                self.set(tag, fact, where, True)
            elif fact == "minimum" and _DIGITS.fullmatch(value):
                known = self.get(tag, fact, where) or 0
                if int(value) > known:
                    self.set(tag, fact, where, min(int(value), _HIGHEST_MINIMUM))


class NamespaceFacts:
    """The facts of one namespace, under its tag."""

    def __init__(self, facts: LearnedFacts, tag: str) -> None:
        self._facts, self._tag = facts, tag

    def rules(self, provider: str, model: str) -> Rules | None:
        """Return the rules of a model at a provider, or None for an unknown model."""
        look = self._facts.row if len(model) <= _LONGEST else self._facts.resolve
        found = look(provider, model, self._get("model", ("", model)))
        if found is None:
            return None
        name = _name(found)
        minimum = None if self._facts.minimum_is_set else self._get("minimum", name)
        if minimum is not None:
            found = replace(found, minimum=minimum)
        if self._get("no_hour", name):
            found = replace(found, ttl="5m")
        return found

    def calibration(self, rules: Rules) -> Calibration:
        """Return the token scale of a model, as far as usage has shown it."""
        return self._get("tokens", _name(rules)) or Calibration.start(rules.model.tokenizer)

    def kinds(self, rules: Rules) -> dict[Kind, MarkPolicy]:
        """Return which kinds of block may carry a marker; refused kinds may not."""
        refused = self._get("refused", _name(rules)) or ()
        return {kind: "off" if kind in refused else rules.kinds.get(kind, "off") for kind in Kind}

    def takes_key(self, rules: Rules) -> bool:
        """Return True unless the provider has refused a `prompt_cache_key`."""
        return not self._get("no_key", _name(rules))

    def count_tokens(self, rules: Rules, size: float, tokens: int) -> None:
        """Learn that a request of this size was counted as this many tokens."""
        with self._facts.lock:
            self._set("tokens", _name(rules), self.calibration(rules).learn(size, tokens))

    def learn_model(self, name: str, response: Any) -> None:
        """Learn which model an unknown name stands for, from the model in a response."""
        answered = (
            response.get("model") if isinstance(response, Mapping) else getattr(response, "model", None)
        )
        model = find_model(answered) if isinstance(answered, str) else None
        if name and model is not None and model.name in MODELS:
            self._set("model", ("", name), model.name)

    def refuse(self, rules: Rules, kinds: Collection[Kind]) -> None:
        """Learn that a provider refuses markers on these kinds of block."""
        with self._facts.lock:
            for kind in kinds:
                known = self._get("refused", _name(rules)) or frozenset()
                self._set("refused", _name(rules), known | {kind}, news=kind)

    def refuse_hour(self, rules: Rules) -> None:
        """Learn that a provider takes no 1h TTL."""
        self._set("no_hour", _name(rules), True, news="1h")

    def refuse_key(self, rules: Rules) -> None:
        """Learn that a provider takes no `prompt_cache_key`."""
        self._set("no_key", _name(rules), True, news="key")

    def unserved(self, rules: Rules, tokens: float) -> None:
        """Count a marked prefix of about this many tokens that was neither read nor written.

        The estimate may be wrong, and the prefix shorter than the minimum. Only the third prefix that is above the
        minimum in spite of the estimate's error raises the minimum.
        """
        name = _name(rules)
        if tokens * (1 - self.calibration(rules).spread) < rules.minimum:
            return
        with self._facts.lock:
            strikes = (self._get("strikes", name) or 0) + 1
            if strikes >= _STRIKES:
                strikes, minimum = 0, min(int(tokens) + 1, _HIGHEST_MINIMUM)
                self._set("minimum", name, minimum, news=str(minimum))
            self._set("strikes", name, strikes)

    def _get(self, fact: str, model: ModelKey) -> Any:
        return self._facts.get(self._tag, fact, model)

    def _set(self, fact: str, model: ModelKey, value: Any, *, news: str | None = None) -> None:
        self._facts.set(self._tag, fact, model, value, news=news)


def _name(rules: Rules) -> ModelKey:
    return rules.provider.name, rules.model.name
