"""The construction that both middlewares share.

Contains: settings, counters and the arguments of a store. Must not depend on: stores, threads, event loops.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cachemw.core.request.tokens import load_counter
from cachemw.engine.shared import Shared, hash_key
from cachemw.errors import ConfigError
from cachemw.events import Hook
from cachemw.settings import Settings
from cachemw.threads import start

_log = logging.getLogger("cachemw")


class EngineBase:
    """Settings and counters of a middleware."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Callable[[], float] | None = None,
        hooks: Sequence[Hook] = (),
        **settings_fields: Any,
    ) -> None:
        if settings is not None and settings_fields:
            raise ConfigError("settings: give a Settings object or single fields, not both")
        self.settings = settings or Settings(**settings_fields)
        self._real_time = clock is None
        self._shared = Shared(self.settings, clock or time.time, tuple(hooks), os.urandom(32))
        if self.settings.tokens == "tiktoken":
            start(self._count_exactly)

    @property
    def counts(self) -> dict[str, int]:
        """Return how often each thing was counted in this process, by dotted name."""
        return self._shared.counters.all()

    def count(self, name: str) -> None:
        """Count one thing by its dotted name."""
        self._shared.count(name)

    def _count_exactly(self) -> None:
        """Load tiktoken's encoding, which may take a download; until then tokens are estimated."""
        try:
            self._shared.count_exactly(load_counter())
        except Exception as error:
            with suppress(Exception):
                self._shared.failed("tokens", error)

    def _store_arguments(self) -> dict[str, Any]:
        if self.settings.secret is None and not self.settings.store.startswith("memory:"):
            _log.warning(
                "No secret is set, so the namespace alone keys the hashes in the shared store. Anyone who knows the"
                " namespace can test guesses of prompts. Set `secret` to the same value for all workers."
            )
        return {
            "secret": hash_key(self.settings),
            "timeout_ms": self.settings.store_timeout_ms,
            "namespace": self.settings.namespace,
            "server_time": self._real_time,
            "count": self._shared.count,
        }
