"""One chat request over HTTP and its answer, without the I/O.

Contains: the choice of requests, their bytes as a body and back, and the usage in their answers. Must not depend on: the
integration that sends and reads, sync or async, the placement of breakpoints. Nothing here raises or waits, and no byte
of an answer is held back: a failure is counted, and the exchange goes on as it would without cachemw.

An integration uses it in this order, with an exchange flow (`_sync_flow`, `_async_flow`) for its reports::

    chat = HttpExchange.of(mw, method=..., url=..., headers=..., body=...)   # None: pass the request as it came
    chat.call = flow.prepare(chat.body, **chat.prepare_arguments)
    send chat.outgoing()
    match chat.classify_response(status, headers):
        "started":   flow.start(); chat.feed(chunk) for each chunk; flow.finish(chat.usage(), complete=...)
        "refusable": read the error; if flow.is_refused(chat.refusal(...)), send chat.outgoing() again
        "failed":    flow.fail()

`of` and `outgoing` take up to 50 ms each for a body of 32 MiB. An integration on an event loop runs `reading` and
`sending`, the same work in slices, with `slices.run_in_loop`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar

import jiter
import orjson

from cachemw.core.request import json_budget
from cachemw.core.request.canonical_json import canonical_json
from cachemw.core.request.parser import WireFormat
from cachemw.engine.call import Call
from cachemw.errors import BodyError
from cachemw.integrations.guard import Engine, Guard
from cachemw.integrations.http.chat_routes import find_route, provider_at
from cachemw.integrations.http.content_decoding import BudgetError, Decoder
from cachemw.integrations.http.sse_usage import UsageReader
from cachemw.reporting.labelling import current
from cachemw.slices import Slices, run

LABEL = "x-cachemw-label-"
"""The start of the name of a header that labels its request."""
# One of these headers signs the bytes: the provider would refuse a changed body.
_SEALS = frozenset({"content-md5", "digest", "content-digest", "x-amz-content-sha256", "signature-input"})

# Bytes of an error that are read: errors of providers have some hundred.
_ERROR = 1 << 16

_PROMPT = frozenset({"messages", "tools", "system"})

_Text = TypeVar("_Text", str, bytes)
Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]] | Iterable[tuple[bytes, bytes]]
Verdict: TypeAlias = Literal["started", "refusable", "failed"]


class HttpExchange:
    """One request as it came, and the usage in its answer.

    `body` is the request as `prepare` takes it, `provider` the name that belongs to its address, `wire` its format,
    `labels` those of the context and of its headers, `verdict` the kind of its last answer. The integration sets `flow`,
    and `call` once the middleware has prepared it.
    """

    call: Call
    flow: Any

    def __init__(
        self,
        mw: Engine,
        original: bytes,
        body: dict[str, Any],
        wire: WireFormat,
        provider: str | None,
        labels: dict[str, str],
        named: bool,
    ) -> None:
        self.original = original
        self.body = body
        self.wire = wire
        self.provider = provider
        self.labels = labels
        self.verdict: Verdict | None = None
        self._mw = mw
        self._named = named
        self._refused = False
        self._given_up = False
        self._decoder: Decoder | None = None
        self._reader = UsageReader()

    @classmethod
    def of(cls, mw: Engine, **request: Any) -> HttpExchange | None:
        """Run `reading` straight through."""
        return run(cls.reading(mw, **request))

    @classmethod
    def reading(
        cls,
        mw: Engine,
        *,
        method: str,
        url: str,
        headers: Headers,
        body: bytes,
        provider: str | None = None,
    ) -> Slices[HttpExchange | None]:
        """Read a request in slices; the result is None for a request that must pass byte for byte.

        `url` may be a path only; `provider` then names its provider. Bodies of other requests pass, and so do bodies
        that would not be serialised to the same JSON values (a duplicate key, a lone surrogate), compressed or signed
        bodies, and bodies that take too long to parse (see `json_budget`).
        """
        with Guard(mw, "http.body"):
            route = find_route(method, url)
            if route is None:
                return None
            given = {name.lower(): value for name, value in texts(headers)}
            if _SEALS & given.keys() or given.get("content-encoding", "identity") != "identity":
                mw.count("pass.sealed")
                return None
            try:
                found = yield from _parsed(body)
            except BodyError as error:
                mw.count(f"pass.{error.reason}")
                return None
            if found is None:
                return None
            named = route.model is not None and "model" not in found
            if named:
                found = {"model": route.model, **found}
            labels = {
                name.removeprefix(LABEL): value for name, value in given.items() if name.startswith(LABEL)
            }
            where = provider or provider_at(url)
            return cls(mw, body, found, route.wire, where, {**current(), **labels}, named)
        return None

    @property
    def prepare_arguments(self) -> dict[str, Any]:
        """Return the arguments of `prepare` other than the body and the namespace."""
        return {"labels": self.labels, "provider": self.provider, "wire": self.wire}

    @property
    def changed(self) -> bool:
        """Return True if the bytes to send differ from the original ones."""
        return self.call.body is not self.body and not self._refused

    def outgoing(self) -> bytes:
        """Run `sending` straight through."""
        return run(self.sending())

    def sending(self) -> Slices[bytes]:
        """Return the bytes to send: the annotated body, or the original bytes if nothing was added."""
        if self.changed:
            with Guard(self._mw, "http.body"):
                body: Mapping[str, Any] = self.call.body
                if self._named:
                    body = {key: value for key, value in body.items() if key != "model"}
                yield from _pause(self.original)
                raw = orjson.dumps(body)
                yield from _pause(self.original)
                return raw
        return self.original

    def classify_response(self, status: int, headers: Headers) -> Verdict:
        """Return the kind of an answer by its status, and note how its body is encoded.

        "started": show its body to `feed`. "refusable": a 400 to a changed request; read it and call `refusal`.
        "failed": there will be no usage.
        """
        with Guard(self._mw, "http.answer"):
            given = {name.lower(): value for name, value in texts(headers)}
            try:
                self._decoder = Decoder(given.get("content-encoding", ""))
            except LookupError:
                self._mw.count("http.encoding")
        if 200 <= status < 300:
            self.verdict = "started"
        else:
            self.verdict = "refusable" if status == 400 and self.changed else "failed"
        return self.verdict

    def refusal(self, status: int, body: bytes) -> tuple[int, Any] | None:
        """Return the status and the text of an error, for `is_refused`; None the second time: one resend, no more.

        From now on `outgoing()` returns the original bytes.
        """
        if self._refused:
            return None
        self._refused = True
        with Guard(self._mw, "http.answer"):
            if self._decoder is not None:
                return status, _beginning(self._decoder.feed(body)).decode("utf-8", "replace")
        return None

    def feed(self, chunk: bytes) -> None:
        """Read the usage in bytes of the answer, as they are on the wire."""
        if self._decoder is None:
            return
        with Guard(self._mw, "http.usage"):
            try:
                for piece in self._decoder.feed(chunk):
                    self._reader.feed(piece)
                return
            except BudgetError:
                self._give_up()
        self._decoder = None  # a decoder that failed once fails again

    def usage(self) -> dict[str, Any] | None:
        """Return model and usage in the bytes so far, or None if there was no usage."""
        with Guard(self._mw, "http.usage"):
            self._reader.finish()
        if self._reader.answer is None and self._reader.too_large:
            self._give_up()
        return self._reader.answer

    def _give_up(self) -> None:
        """Count once that the usage of an answer was not read to its end."""
        if not self._given_up:
            self._given_up = True
            self._mw.count("http.too_large")

    @property
    def announced_end(self) -> bool:
        """Return True if the stream announced its own end: bytes after it are no part of the answer."""
        return self._reader.done


def _beginning(pieces: Iterable[bytes]) -> bytes:
    """Return the first bytes of an error, which give its reason."""
    found = b""
    for piece in pieces:
        found += piece[:_ERROR]
        if len(found) >= _ERROR:
            break
    return found[:_ERROR]


def _parsed(body: bytes) -> Slices[dict[str, Any] | None]:
    """Return a chat request, or None for any other JSON value.

    Raises `BodyError` if serialising the request would not give the same values. The engine examines the prompt itself.
    """
    yield from json_budget.check(body)
    try:
        found = jiter.from_json(body, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError:
        raise BodyError("not_json") from None
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        return None
    yield from _pause(body)
    canonical_json({key: value for key, value in found.items() if key not in _PROMPT})
    yield from _pause(body)
    return found


def _pause(body: bytes) -> Slices[None]:
    """Yield once if the next step on this body may take long."""
    if len(body) > json_budget.SMALL:
        yield


def texts(headers: Headers) -> Iterable[tuple[str, str]]:
    """Yield headers of any shape as pairs of text."""
    pairs: Iterable[tuple[Any, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    for name, value in pairs:
        if isinstance(name, bytes):
            yield name.decode("latin-1"), value.decode("latin-1")
        else:
            yield name, value


def take_labels(headers: Iterable[tuple[_Text, _Text]]) -> tuple[dict[str, str], list[tuple[_Text, _Text]]]:
    """Split headers into labels (`x-cachemw-label-team: north`) and those to send on, in their order."""
    labels: dict[str, str] = {}
    kept: list[tuple[_Text, _Text]] = []
    for pair in headers:
        ((name, value),) = texts([pair])
        if name.lower().startswith(LABEL):
            labels[name.lower().removeprefix(LABEL)] = value
        else:
            kept.append(pair)
    return labels, kept
