"""One chat call through the `openai` SDK, without its I/O.

Here lives `Exchange`: which requests are ours, how the SDK's options become a body and back, and what of the
answer `settle` takes. It must not send, read or wait, and must not know whether the client is sync or async.
Nothing here raises: whatever fails is counted and the call goes on as it would have without us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cachemw.engine.call import Call
from cachemw.integrations.guard import Engine, Guard
from cachemw.integrations.http.chat_routes import find_route, provider_at
from cachemw.integrations.http.sse_usage import UsageReader


class OpenAIExchange:
    """Hold what one logical call asks, and learn from its answer.

    `body` is the request as the SDK will merge it, `provider` the name that its address tells. Set `call`
    once the middleware has prepared it. While the bytes of an answer are being fetched `pulling` is true.
    """

    call: Call

    def __init__(self, mw: Engine, body: dict[str, Any], provider: str | None, model_in_url: bool) -> None:
        self.body = body
        self.provider = provider
        self.parsed: Any = None
        self.pulling = False
        self.reader = UsageReader()
        self._mw = mw
        self._model_in_url = model_in_url
        self._refused = False
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
            if self.call.body is not self.body and not self._refused:
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

    def refusal(self, error: BaseException) -> tuple[int, Any] | None:
        """Return status and body of an error that was answered; None the second time: one resend, no more."""
        status, body = getattr(error, "status_code", None), getattr(error, "body", None)
        if self._refused or not isinstance(status, int):
            return None
        self._refused = True
        return status, str(error) if body is None else body

    def unread(self, result: Any) -> Any | None:
        """Return the HTTP response of an answer whose bytes are still to come, else None."""
        with Guard(self._mw, "client.answer"):
            response = _http(result)
            return response if response is not None and not response.is_stream_consumed else None
        return None

    def usage(self, result: Any = None) -> Any:
        """Return what `settle` takes of an answer that is here: from its bytes, or as the SDK parsed it."""
        self._finished = True
        with Guard(self._mw, "client.usage"):
            response = _http(result)
            answer = self.parsed if response is None and self.parsed is not None else result
            if response is not None:
                self.reader.feed(response.content)
            elif isinstance(answer, str | bytes):
                self.reader.feed(answer.encode() if isinstance(answer, str) else answer)
            else:
                return answer
        return self.seen()

    def feed(self, chunk: bytes) -> None:
        """Look at a chunk that passes."""
        with Guard(self._mw, "client.usage"):
            self.reader.feed(chunk)

    def seen(self) -> dict[str, Any] | None:
        """Return the usage in the bytes seen so far."""
        with Guard(self._mw, "client.usage"):
            self.reader.finish()
        if self.reader.answer is None and self.reader.too_large:
            self._mw.count("client.too_large")
        return self.reader.answer

    def ends(self, response: Any, *hooks: str) -> bool:
        """Say once that the answer is over, and take our hooks off the response.

        Fetching the last bytes closes a response before a decoder has given out its rest: not the end yet.
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
