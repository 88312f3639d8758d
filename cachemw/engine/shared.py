"""Parts of one middleware that all its calls share: settings, statistics, facts, counters and their locks.

Contains: construction, counting, events, and the process's own sums. Must not depend on: stores, event loops, the
order of a call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from threading import RLock

from cachemw.core.opt_ins.openai_hints import PromptCacheKeys
from cachemw.core.opt_ins.split_text import Splitter
from cachemw.core.request.parser import ContentKeys, Parser
from cachemw.core.request.tokens import Counter
from cachemw.core.reuse.forecast import ReuseModel
from cachemw.core.reuse.record import FIVE_MINUTES, ONE_HOUR
from cachemw.engine.learned_facts import LearnedFacts
from cachemw.events import Counted, Counters, Event, Hook
from cachemw.fork_safety import after_fork_in_child
from cachemw.reporting import ledger
from cachemw.reporting.labelling import OTHER, LabelLimits
from cachemw.settings import Settings

_MODELS, _LONGEST_MODEL = 256, 256
# Namespaces, and with them label sets, may come and go for as long as a process lives.
_MOST_SUMS = 100_000
LedgerDelta = dict[str, int]


class Shared:
    """Hold everything that outlives a call. Any number of threads may use one.

    `process_key` is random; it keys hashes that never leave the process. Statistics of reuse and paces of
    `prompt_cache_keys` are used under `reuse_lock`, the `splitter` under `splitter_lock`, the sums under `lock`.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        hooks: tuple[Hook, ...],
        process_key: bytes = b"",
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.counters = Counters()
        self.hooks = hooks
        # A process with a memory store shares no hashes, so its own random key serves for all of them.
        alone, secret = settings.store.startswith("memory:"), hash_key(settings)
        private = alone and settings.secret is None
        self._content_keys = ContentKeys(memo=process_key, digests=process_key if private else secret)
        self.parser = Parser(keys=self._content_keys)
        one_hour = settings.ttl in ("1h", "auto")
        splitter = Splitter(ONE_HOUR if one_hour else FIVE_MINUTES, self._content_keys.digests)
        self.splitter = splitter if settings.split_text else None
        self.reuse = ReuseModel(hours=one_hour, secret=None if alone else secret)
        self.facts = LearnedFacts(settings, secret)
        self.cohort_owner = lru_cache(1024)(settings.cohort_group)
        self.label_limits = LabelLimits(settings.max_labels, settings.max_label_length)
        self.model_limits = LabelLimits(_MODELS, _LONGEST_MODEL)
        self.prompt_cache_keys = PromptCacheKeys(secret)
        self.sums: dict[str, int] = {}
        self._new_locks()
        after_fork_in_child(self._reset_after_fork)

    def _new_locks(self) -> None:
        self.lock, self.reuse_lock, self.splitter_lock = RLock(), RLock(), RLock()

    def _reset_after_fork(self) -> None:
        """Start with no counts: the parent publishes its own."""
        self._new_locks()
        self.sums = {}
        self.reuse.cohorts.discard_unpublished()

    def count_exactly(self, counter: Counter) -> None:
        """Count tokens with `counter` from now on, and read every content again."""
        self.parser = Parser(counter, self._content_keys)

    def add_to_ledger(
        self, labels: Mapping[str, str], model: str, sums: Mapping[str, int | Decimal]
    ) -> LedgerDelta:
        """Add to the process's own sums, and return the amounts to add to the store's.

        Once the process has very many sums, new label sets and models count under the label and model "other".
        """
        added = ledger.amounts(labels, model, sums)
        with self.lock:
            full = len(self.sums) >= _MOST_SUMS and not self.sums.keys() >= added.keys()
            own = ledger.amounts(dict.fromkeys(labels, OTHER), OTHER, sums) if full else added
            for name, amount in own.items():
                self.sums[name] = self.sums.get(name, 0) + amount
        return added

    def count(self, name: str) -> None:
        """Count one thing by its dotted name."""
        self.counters.add(name)
        if self.hooks:
            self.emit(Counted(name))

    def failed(self, where: str, error: Exception) -> None:
        """Count a failure by place and class, without an event: a hook may be its cause."""
        self.counters.add(f"error.{where}.{type(error).__name__}")

    def emit(self, event: Event) -> None:
        """Call each hook with the event; count an exception that a hook raises."""
        for hook in self.hooks:
            try:
                hook(event)
            except Exception as error:
                self.failed("hook", error)


def hash_key(settings: Settings) -> bytes:
    """Return the key of hashes that leave the process; without a `secret` it follows from the namespace."""
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    return hashlib.blake2b(b"cachemw\x00" + settings.namespace.encode(), digest_size=32).digest()
