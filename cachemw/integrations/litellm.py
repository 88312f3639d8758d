"""LiteLLM's hooks: `callbacks: cachemw.integrations.litellm.hook` in the proxy's config.

Lives here: which of LiteLLM's hooks stands for which call of the middleware. Must not know: what
keywords mean (`litellm_request`), where breakpoints go. Needs litellm; `import cachemw` does not.

================================================ ==========================================================
hook                                             what it is used for
================================================ ==========================================================
async_pre_call_deployment_hook                   prepare: each attempt at a deployment is a call of its own
async_post_call_success_deployment_hook          begun, where an answer comes whole
async_post_call_streaming_iterator_hook          begun, where it streams through the proxy; partial, where
                                                 the client goes away
async_log_success_event                          settle, streamed or not: usage is whole there
async_post_call_failure_deployment_hook          refused and fail, once for each attempt
async_log_failure_event                          a stream that broke on its way
================================================ ==========================================================

All of them are given the same `litellm_call_id`. Within the proxy the retries and fallbacks of a request share
it, one after the other. The call hangs on LiteLLM's logging object, and is found by that id as long as that
object lives: where no event comes, nothing is kept.

Events are logged on the loop that made the request, later, by LiteLLM's own worker; those left over when the
interpreter ends, on a loop of their own. Sync calls (`litellm.completion`) have no hook that may rewrite: a
transport (`cachemw.CacheTransport`) serves them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, ref

from cachemw.engine import AsyncMiddleware
from cachemw.errors import ConfigError, missing_package
from cachemw.integrations._async_flow import AsyncExchangeFlow
from cachemw.integrations.guard import Guard
from cachemw.integrations.litellm_request import Request, labels, namespace, read, rewritten
from cachemw.integrations.resolve_middleware import resolve_middleware
from cachemw.settings import Settings

try:
    import litellm
    from litellm.integrations.custom_logger import CustomLogger
except ImportError:
    raise missing_package("litellm", "litellm", "litellm") from None

if TYPE_CHECKING:
    hook: CacheHook


class _Attempt:
    """One call under way; it lives as long as LiteLLM's logging object of it."""

    def __init__(self, flow: AsyncExchangeFlow, logging: Any) -> None:
        self.flow = flow
        self._logging = ref(logging)
        self._earlier = getattr(logging, "completion_start_time", None)  # of an attempt before

    @property
    def answers(self) -> bool:
        """Whether a stream's first chunk has come: LiteLLM notes when, and has no hook for it in the SDK."""
        return getattr(self._logging(), "completion_start_time", None) is not self._earlier


class CacheHook(CustomLogger):  # type: ignore[misc]  # litellm is not where types are checked
    """A LiteLLM callback that places breakpoints and accounts for what came of them.

    Give either an `AsyncMiddleware`, or `settings`, or the fields of `Settings` as keywords. The provider is
    told by LiteLLM's route; the setting `provider` says whose rules hold where an `openai/` deployment has a
    host that is not known, and on other routes. Raises `ConfigError` at construction only.
    """

    def __init__(
        self, middleware: AsyncMiddleware | None = None, settings: Settings | None = None, **fields: Any
    ) -> None:
        super().__init__()
        if middleware is None and settings is None:
            settings, fields = Settings(**fields), {}
        self._named: str | None = None
        if settings is not None:
            self._named = None if settings.provider == "auto" else settings.provider
            settings = settings.model_copy(update={"provider": "auto"})
        self.middleware = resolve_middleware("CacheHook", AsyncMiddleware, middleware, settings, None, fields)
        if self.middleware.settings.provider != "auto":
            raise ConfigError(
                f"CacheHook: the middleware's provider is {self.middleware.settings.provider!r}; 'auto' is"
                " needed, since LiteLLM's routes tell it"
            )
        self._one_tenant = "namespace" in self.middleware.settings.model_fields_set
        self._attempts: WeakValueDictionary[str, _Attempt] = WeakValueDictionary()

    async def async_pre_call_deployment_hook(
        self, kwargs: dict[str, Any], call_type: Any
    ) -> dict[str, Any] | None:
        """Prepare an attempt at a deployment; return its keywords with breakpoints, None where there are none."""
        mw = self.middleware
        with Guard(mw, "litellm.request"):
            request = self._read(kwargs, call_type)
            if request is None:
                return None
            name, logging = str(kwargs["litellm_call_id"]), kwargs["litellm_logging_obj"]
            for other in list(self._attempts.values()):
                if not other.flow.started and other.answers:
                    await other.flow.start()
            await self._end(kwargs)
            space = None if self._one_tenant else namespace(kwargs)
            flow = AsyncExchangeFlow(mw)
            call = await flow.prepare(
                request.body,
                namespace=space,
                labels=labels(kwargs),
                provider=request.provider,
                wire=request.wire,
            )
            self._attempts[name] = logging.cachemw_attempt = _Attempt(flow, logging)
            changed = rewritten(kwargs, request, call.body)
            # LiteLLM's own response store must know the request by what it says, wherever markers are.
            if changed is not None and litellm.cache is not None and "cache_key" not in changed:
                changed["cache_key"] = litellm.cache.get_cache_key(**kwargs)
            return changed
        return None

    async def async_post_call_success_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        response: Any,  # noqa: ARG002
        call_type: Any,  # noqa: ARG002
    ) -> None:
        """Note that an answer has come whole."""
        await self._begun(request_data)

    async def async_post_call_streaming_iterator_hook(
        self,
        user_api_key_dict: Any,  # noqa: ARG002
        response: AsyncIterator[Any],
        request_data: Mapping[str, Any],
    ) -> AsyncIterator[Any]:
        """Pass a stream of the proxy on, and note where it begins and that its client has gone away."""
        begun = False
        try:
            async for chunk in response:
                if not begun:
                    begun = True
                    await self._begun(request_data)
                yield chunk
        except (GeneratorExit, asyncio.CancelledError):
            await self._end(request_data)
            raise

    async def async_log_success_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: Any,
        start_time: Any,  # noqa: ARG002
        end_time: Any,  # noqa: ARG002
    ) -> None:
        """Account for an answer; one that LiteLLM had kept was never asked for."""
        with Guard(self.middleware, "litellm.answer"):
            if attempt := self._over(kwargs):
                if kwargs.get("cache_hit") is True:
                    await attempt.flow.fail()
                else:
                    attempt.flow.started = True
                    await attempt.flow.finish(response_obj, complete=True)
                # At the interpreter's end this loop is gone right after.
                await self.middleware.flush(1.0)

    async def async_post_call_failure_deployment_hook(
        self,
        request_data: Mapping[str, Any],
        exception: Exception,
        call_type: Any,  # noqa: ARG002
        fallback_depth: int | None = None,  # noqa: ARG002
    ) -> None:
        """Note that an attempt failed, and whether it was for a marker of ours."""
        with Guard(self.middleware, "litellm.answer"):
            if attempt := self._over(request_data):
                if getattr(exception, "status_code", None) == 400:
                    await attempt.flow.is_refused((400, str(exception)), resent=False)
                await attempt.flow.fail()

    async def async_log_failure_event(
        self,
        kwargs: Mapping[str, Any],
        response_obj: Any,  # noqa: ARG002
        start_time: Any,  # noqa: ARG002
        end_time: Any,  # noqa: ARG002
    ) -> None:
        """Note that a stream broke, or that something failed around an attempt."""
        await self._end(kwargs)

    async def _begun(self, data: Mapping[str, Any]) -> None:
        with Guard(self.middleware, "litellm.answer"):
            attempt = self._attempts.get(str(data.get("litellm_call_id")))
            if attempt is not None and not attempt.flow.started:
                await attempt.flow.start()

    async def _end(self, data: Mapping[str, Any]) -> None:
        """End a call whose usage is not told: what had begun is billed, the rest never was answered."""
        with Guard(self.middleware, "litellm.answer"):
            if attempt := self._over(data):
                attempt.flow.started = attempt.flow.started or attempt.answers
                await attempt.flow.finish(None, complete=False)

    def _over(self, data: Mapping[str, Any]) -> _Attempt | None:
        return self._attempts.pop(str(data.get("litellm_call_id")), None)

    def _read(self, kwargs: Mapping[str, Any], call_type: Any) -> Request | None:
        name = kwargs.get("model") or kwargs["litellm_logging_obj"].model  # it may be given by position
        base = kwargs.get("api_base") or kwargs.get("base_url")
        model, route, _, found = litellm.get_llm_provider(name, kwargs.get("custom_llm_provider"), base)
        kind = getattr(call_type, "value", call_type)
        return read(kwargs, str(kind), route, model, base or found, self._named)


def __getattr__(name: str) -> Any:
    if name != "hook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()["hook"] = CacheHook()
    return made
