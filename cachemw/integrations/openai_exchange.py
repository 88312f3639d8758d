"""One chat call through the `openai` SDK, without its I/O.

Contains: the translation of the SDK's options into a body and back, and of its answers into usage. Must not depend on:
sync or async clients; it must not send, read or wait. Nothing here raises: a failure is counted, and the call goes on
as it would without cachemw.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cachemw.engine.call import Call
from cachemw.integrations.guard import Engine, Guard
from cachemw.integrations.http.chat_routes import find_route, provider_at
from cachemw.integrations.http.sse_usage import UsageReader
from cachemw.integrations.reply import Reply


class OpenAIExchange:
    """One logical call of the SDK: its request, and the usage in its answer.

    `body` is the request as the SDK will merge it, `provider` the name that belongs to its address. The integration
    sets `call` once the middleware has prepared it, and `pulling` while it fetches bytes of the answer.
    """

    call: Call

    def __init__(self, mw: Engine, body: dict[str, Any], provider: str | None, model_in_url: bool) -> None:
        self.body = body
        self.provider = provider
        self.parsed: Any = None
        self.pulling = False
        self._reader = UsageReader()
        self._mw = mw
        self._model_in_url = model_in_url
        self._resent = False
        self._finished = False

    @classmethod
    def of(cls, mw: Engine, client: Any, options: Any) -> OpenAIExchange | None:
        """Read the request out of the SDK's options; None where it is no chat request."""
        with Guard(mw, "client.body"):
            route = find_route(options.method, options.url)
            if route is None or route.wire != "chat":
                return None
            body = _merged(options.json_data, options.extra_json)
            if body is None:
                return None
            model_in_url = route.model is not None and "model" not in body
            if model_in_url:
                body = {"model": route.model, **body}
            where = options.url if "://" in options.url else f"{client.base_url}{options.url}"
            return cls(mw, body, provider_at(where), model_in_url)
        return None

    def outgoing(self, options: Any) -> Any:
        """Return a copy of the caller's options, with the annotated body until that was refused."""
        with Guard(self._mw, "client.options"):
            changed: dict[str, Any] = {"post_parser": self._taking(options.post_parser)}
            if self.call.body is not self.body and not self._resent:
                body = {k: v for k, v in self.call.body.items() if not (self._model_in_url and k == "model")}
                changed |= {"json_data": body, "extra_json": None}
            return options.model_copy(update=changed)
        return options

    def _taking(self, parser: Any) -> Callable[[Any], Any]:
        """Keep what the SDK parsed before the caller's parser may refuse it: it was answered, and is billed."""

        def take(parsed: Any) -> Any:
            with Guard(self._mw, "client.answer"):
                if not self._finished and _http(parsed) is None:
                    self.parsed = parsed
            return parser(parsed) if callable(parser) else parsed

        return take

    def failed(self, error: BaseException) -> Reply:
        """Return the reply that an exception of the SDK stands for.

        The reply is accepted if the SDK parsed an answer that the caller's own parser then rejected: it is billed. The
        status and body of an HTTP error are a refusal to examine, once: one resend, no more.
        """
        refusal = None
        status, body = getattr(error, "status_code", None), getattr(error, "body", None)
        if isinstance(status, int) and not self._resent:
            self._resent = True
            refusal = status, str(error) if body is None else body
        return Reply(self.parsed is not None, refusal=refusal, error=error)

    def unread(self, result: Any) -> Any | None:
        """Return the HTTP response of an answer whose bytes are still to come, else None."""
        with Guard(self._mw, "client.answer"):
            response = _http(result)
            return response if response is not None and not response.is_stream_consumed else None
        return None

    def usage_of(self, result: Any) -> Any:
        """Return the usage of an answer that has come whole: from its bytes, or as the SDK parsed it."""
        self._finished = True
        with Guard(self._mw, "client.usage"):
            response = _http(result)
            answer = self.parsed if response is None and self.parsed is not None else result
            if response is not None:
                self._reader.feed(response.content)
            elif isinstance(answer, str | bytes):
                self._reader.feed(answer.encode() if isinstance(answer, str) else answer)
            else:
                return answer
        return self.usage()

    def feed(self, chunk: bytes) -> None:
        """Read the usage in a chunk on its way to the application."""
        with Guard(self._mw, "client.usage"):
            self._reader.feed(chunk)

    def usage(self) -> dict[str, Any] | None:
        """Return the usage in the bytes so far, None if there was none."""
        with Guard(self._mw, "client.usage"):
            self._reader.finish()
        if self._reader.answer is None and self._reader.too_large:
            self._mw.count("client.too_large")
        return self._reader.answer

    @property
    def announced_end(self) -> bool:
        """Return True if the stream announced its own end: bytes after it are no part of the answer."""
        return self._reader.done

    def ends(self, response: Any, *hooks: str) -> bool:
        """Return True once, when the answer is over, and take the hooks off the response.

        Fetching the last bytes closes a response before its decoder has given out the rest: the end comes after that.
        """
        if self._finished or self.pulling:
            return False
        self._finished = True
        for name in hooks:
            vars(response).pop(name, None)
        return True


def _merged(data: Any, extra: Any) -> dict[str, Any] | None:
    """Merge `extra_body` over the body as the SDK does; the body itself where there is nothing to merge."""
    if extra is None:
        return data if isinstance(data, dict) else None
    from openai import Omit

    if not isinstance({} if data is None else data, dict):
        return None
    return {key: value for key, value in {**(data or {}), **extra}.items() if not isinstance(value, Omit)}


def _http(result: Any) -> Any | None:
    """Find the HTTP response, of httpx or httpx2, that an answer of the SDK is or holds."""
    held = getattr(result, "__dict__", {})  # attribute lookup is slow on pydantic models
    for found in (result, held.get("http_response"), held.get("response")):
        if "is_stream_consumed" in getattr(found, "__dict__", ()):
            return found
    return None
