"""Put cachemw's LiteLLM hook on the benchmark's virtual clock. The LiteLLM proxy loads it in place of the real one.

Contains: the time of a request, from its header, and a message to the benchmark once the call is settled.
Must not depend on: request bodies. The settings come from the environment, like the real hook's.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio

from benchmarks.litellm_proxy import SETTLED
from cachemw import AsyncMiddleware, Settings
from cachemw.apps.simulated_gateway import CLOCK_HEADER
from cachemw.integrations.litellm import CacheHook


class ClockedHook(CacheHook):
    """Set the middleware's clock to the time in each request. Requests come one after another."""

    def __init__(self) -> None:
        self._now = 0.0
        settings = Settings()
        super().__init__(AsyncMiddleware(settings, clock=lambda: self._now))
        self._client = redis.asyncio.Redis.from_url(settings.store)

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Set the clock, then prepare."""
        self._now = float(kwargs["proxy_server_request"]["headers"][CLOCK_HEADER])
        return await super().async_pre_call_deployment_hook(kwargs, call_type)

    async def async_log_success_event(
        self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any
    ) -> None:
        """Settle, then report it."""
        await super().async_log_success_event(kwargs, response_obj, start_time, end_time)
        await self.middleware.flush()
        failed = [name for name in self.middleware.counts if name.startswith(("error.", "litellm."))]
        await self._client.rpush(SETTLED, ", ".join(failed))


hook = ClockedHook()
