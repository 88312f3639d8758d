"""The parsers of untrusted input, each with the rules that hold for any bytes.

Contains: `TARGETS`, by name a function of bytes that raises if a rule is broken. `tests.fuzz.run` calls it with
bytes of a fuzzer, `test_corpus` with the kept inputs. Must not depend on: any fuzzer, any clock.
"""

from __future__ import annotations

import base64
import gzip
import re
import zlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import brotli
import orjson

from cachemw.core.billing.usage import merge_chunk, read_usage
from cachemw.core.opt_ins.sort_tools import sort_tools, unordered
from cachemw.core.opt_ins.split_text import Splitter, joined
from cachemw.core.request.equality import canonical, same_structure
from cachemw.core.request.image_headers import pixels, read_pixels
from cachemw.core.request.markers import insert
from cachemw.core.request.parser import ParsedRequest, Parser, WireFormat
from cachemw.core.request.tokens import image_size
from cachemw.core.reuse.cohort_sharing import CohortExchange
from cachemw.core.reuse.cohorts import CohortTable
from cachemw.core.reuse.forecast import ArrivedRequest, ReuseModel
from cachemw.core.rules import refusals
from cachemw.core.rules.model_names import find_model, model_key
from cachemw.core.rules.resolve import resolve
from cachemw.core.rules.types import Kind
from cachemw.engine.learned_facts import LearnedFacts
from cachemw.errors import BodyError, StoreError
from cachemw.integrations.http.chat_routes import find_route, provider_at
from cachemw.integrations.http.content_decoding import CHUNK, RATIO, BudgetError, Decoder
from cachemw.integrations.http.sse_usage import UsageReader
from cachemw.integrations.http.tenants import tenants
from cachemw.reporting.ledger import report
from cachemw.settings import Settings
from cachemw.stores.record_lru import RecordLru
from cachemw.stores.redis.commands import Commands, peeked, records, sums
from tests.fuzz.source import Source

NOW = 1_800_000_000.0
_MODELS = tuple(
    model
    for name in ("claude-sonnet-4-6", "claude-opus-4-8", "claude-haiku-4-5")
    if (model := find_model(name))
)
_PARSED = Parser().parse(
    {
        "model": "m",
        "messages": [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")],
    },
    _MODELS[0],
)
_DIGESTS = [bytes([index]) * 16 for index in range(len(_PARSED.blocks))]
_WIRES: tuple[WireFormat, ...] = ("chat", "messages")


def request(data: bytes) -> None:
    """A body raises a `BodyError`, or is marked so that only markers differ."""
    source = Source(data)
    body, wire, model = source.body(), source.pick(_WIRES), source.pick(_MODELS)
    before = _flat(body)
    parser = Parser()
    try:
        parsed = parser.parse(body, model, wire)
    except BodyError:
        return
    places = [i for i, block in enumerate(parsed.blocks) if block.markable and block.marker is None]
    chosen = sorted({source.pick(places) for _ in range(4)}) if places else []
    marked = insert(body, [(parsed.path(index), source.pick(("5m", "1h"))) for index in chosen])
    assert _flat(body) == before, "the caller's body was changed"
    _same(canonical(marked), canonical(body))
    assert same_structure(body, marked), "the last check refuses markers"
    parser.learn("", parsed)
    again = Parser().parse(marked, model, wire)
    assert _read(parser.parse(body, model, wire)) == _read(parsed), "the memo reads otherwise"
    assert _read(again) == _read(parsed), "a marker changes what is read"
    assert all(again.blocks[index].marker is not None for index in chosen), "a marker is lost"


def _same(one: Any, other: Any) -> None:
    """Compare the texts of the values, since NaN beside the prompt does not equal itself."""
    assert _flat(one) == _flat(other), "the bodies differ"


def _flat(value: Any) -> list[str]:
    """Return all values inside one, however deep, as a list of texts."""
    found, stack = [], [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            found.append(f"{{{list(node)}")
            stack.extend(node.values())
        elif isinstance(node, (list, tuple)):
            found.append(f"[{len(node)}")
            stack.extend(node)
        else:
            found.append(repr(node))
    return found


def _read(parsed: ParsedRequest) -> list[Any]:
    """Return the parsed values of a body, without the markers."""
    blocks = [(block.role, block.kind, block.digest, block.size) for block in parsed.blocks]
    items = [max(item, 0) for item in parsed.items]  # -1 is a text that fills the field
    return [
        blocks,
        items,
        parsed.tools_end,
        parsed.system_end,
        parsed.root,
        parsed.system_params,
        parsed.params,
    ]


def usage(data: bytes) -> None:
    """Any answer gives counts of zero or more, or no usage."""
    source = Source(data)
    answers, seen = [], None
    while not source.ended and len(answers) < 8:
        value = source.value()
        if isinstance(value, dict) and all(isinstance(key, str) for key in value) and source.rarely():
            value = SimpleNamespace(**value)
        answers.append(value)
    for answer in answers:
        seen = merge_chunk(seen, answer)
        found = read_usage(
            answer, ttl=source.pick((None, "5m", "1h")), inclusive=source.pick((None, True, False))
        )
        if found is not None:
            counts = (
                found.cache_read,
                found.cache_write_5m,
                found.cache_write_1h,
                found.uncached,
                found.output,
            )
            assert all(type(count) is int and 0 <= count <= 2 * 10**12 for count in counts), found
            assert found.total == found.cache_read + found.cache_write + found.uncached
    read_usage(seen)


def stream(data: bytes) -> None:
    """Usage is the same for each way to cut an answer, and equals that of a line-by-line reader."""
    source = Source(data)
    sizes = [1 + source.byte() % 64 for _ in range(1 + source.byte() % 4)]
    answer = source.rest()
    whole, cut = UsageReader(), UsageReader()
    whole.feed(answer)
    at = turn = 0
    while at < len(answer):
        cut.feed(answer[at : at + sizes[turn % len(sizes)]])
        at += sizes[turn % len(sizes)]
        turn += 1
    whole.finish()
    cut.finish()
    assert (whole.answer, whole.done) == (cut.answer, cut.done), "a cut changes what is read"
    if not whole.too_large:
        assert (whole.answer, whole.done) == _line_by_line(answer), "another reading of the format differs"


def _line_by_line(answer: bytes) -> tuple[Any, bool]:
    """Read an answer line by line, as the format's specification has it."""
    answer = answer.lstrip()
    if answer.startswith(b"{"):
        events = [answer]
    else:
        events, data = [], []
        for line in [*re.split(b"\r\n|\n|\r", answer), b""]:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line:
                events.append(b"\n".join(data))
                data = []
    seen: Any = None
    model, done = None, False
    for event in events:
        if event.startswith(b"[DONE]") and not answer.startswith(b"{"):
            done = True
        try:
            found = orjson.loads(event) if b'"usage"' in event or b'"message_stop"' in event else None
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and found.get("type") == "message_stop":
            done = True
        elif isinstance(found, dict):
            seen = merge_chunk(seen, found)
            inner = found.get("message")
            named = found.get("model") or (inner.get("model") if isinstance(inner, dict) else None)
            model = named if isinstance(named, str) else model
    return (None if seen is None else {"model": model, "usage": seen}), done


_PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda text: gzip.compress(text, mtime=0),
    "deflate": zlib.compress,
    "br": lambda text: brotli.compress(text, quality=1),
    "gzip, br": lambda text: brotli.compress(gzip.compress(text, mtime=0), quality=1),
    # a frame, and the bytes after it
    "zstd": lambda text: b"\x28\xb5\x2f\xfd\x20\x04\x21\x00\x00test" + text,
}


def decoding(data: bytes) -> None:
    """A compressed text decodes to itself; any bytes decode equally for each way to cut them, within the budget."""
    source = Source(data)
    encoding, size = source.pick(tuple(_PACK)), 1 + source.byte()
    packed = source.rest()
    if source.pick((False, True)) or encoding != "zstd":
        text = _decoded(encoding, _PACK[encoding](packed), size)
        assert encoding == "zstd" or text == packed, "a packed text comes out otherwise"
    whole, cut = _decoded(encoding, packed, len(packed) or 1), _decoded(encoding, packed, size)
    if whole is not None and cut is not None:
        assert whole == cut, "a cut changes what comes out"


def _decoded(encoding: str, packed: bytes, size: int) -> bytes | None:
    """Return the decoded bytes, or None if a library or the budget ends the decoding."""
    decoder, out = Decoder(encoding), b""
    for start in range(0, len(packed), size):
        chunk, before = packed[start : start + size], len(out)
        try:
            for piece in decoder.feed(chunk):
                out += piece
                assert not encoding or len(out) - before <= CHUNK + RATIO * len(chunk), "over the budget"
        except (BudgetError, EOFError, zlib.error, brotli.error):
            return None
        except Exception as error:  # the class of Zstandard's error depends on the library
            if (encoding, type(error).__name__) == ("zstd", "ZstdError"):
                return None
            raise
    return out


def image(data: bytes) -> None:
    """Any bytes are an image of positive size, or no image."""
    found = read_pixels(data)
    assert found is None or (min(found) > 0 and max(found) < 1 << 32)
    text = base64.b64encode(data).decode()
    assert pixels(text) == read_pixels(data[:36_001]) == (found if len(data) <= 36_000 else pixels(text))
    for odd in (text, data.decode("latin-1"), text[1:], text.replace("A", "\n")):
        assert 0 < image_size(odd) <= 1600


def replies(data: bytes) -> None:
    """Replies of a store are records, sums or a `StoreError`, and merged sums stay within bounds."""
    source = Source(data)
    answers = [_reply(source) for _ in range(1 + source.byte() % 3)]
    found: list[Any] = []
    for read in (records, lambda given: peeked(given, NOW)):
        try:
            result = read(answers)
        except StoreError:
            continue
        found = result[1] if isinstance(result, tuple) else result
    _use(found)
    try:
        table = sums(answers)
    except StoreError:
        return
    assert all(isinstance(name, str) and abs(total) < 2**66 for name, total in table.items())
    report(table)
    _absorb(table)
    Commands(b"s").fingerprint_matches("n", [None, *answers])


def _reply(source: Source) -> Any:
    kind = source.byte() % 8
    if kind == 0:
        return source.pick((None, 5, True, "OK", StoreError("x"), [], b"", object()))
    if kind < 3:
        return source.take(8 + 76 * (source.byte() % 4))
    if kind == 3:
        return [source.take(source.pick((76, 0, 1, 80))) or None for _ in range(source.byte() % 5)]
    return [_field(source) for _ in range(source.byte() % 24)]


def _field(source: Source) -> Any:
    kind = source.byte() % 8
    if kind < 3:
        return str(source.number()).encode()[: source.byte() + 1]
    if kind < 5:
        return source.take(12).hex().encode() + source.pick((b"b", b"s", b"l", b"o", b"w", b"x", b""))
    if kind == 5:
        fact = source.pick((b"refused", b"no_hour", b"no_key", b"minimum", b"calls", b"paid"))
        return (
            fact
            + source.pick((b"|a|m|text|tag", b"|a|m|2000|tag", b"|", b' ["m",[]]', b' ["m",[["a","b"]]]'))
            + source.take(source.byte() % 4)
        )
    return source.pick((None, 7, b"", "text")) if kind == 6 else source.take(source.byte())


def _use(found: list[Any]) -> None:
    """Use records like a worker whose store is unavailable."""
    held, keys = RecordLru(16), [bytes([index]) * 16 for index in range(len(found))]
    if keys:
        held.store_reply("a", keys, found, NOW)
        held.observe("a", keys, NOW + 5)
        held.peek("a", keys, NOW + 10)
    for hours in (False, True):
        watched = [*range(len(_PARSED.blocks))]
        given = [*found, *[None] * len(watched)][: len(watched)]
        reuse = ReuseModel(hours=hours)
        request = ArrivedRequest(_PARSED, _DIGESTS, watched, given, NOW)
        depths = reuse.forecast(request)
        reuse.observe(request)
        for depth in depths:
            assert 0.0 <= depth.p_reuse_5m <= 1.0, depth
            assert 0.0 <= depth.p_reuse_1h <= 1.0, depth


def _absorb(table: dict[str, int]) -> None:
    settings = Settings(provider="databricks")
    known, merge, classes = LearnedFacts(settings), CohortExchange(b"s"), CohortTable(hours=True, secret=b"s")
    known.merge_updates(table)
    for _ in range(2):
        for _, told in merge.merge_updates(merge.tables(NOW)[-1], table, NOW):
            assert min(told[1:]) >= 0
        classes.merge_updates(classes.tables(NOW)[-1], table, NOW)
    rules = known.of("").rules("databricks", "claude-sonnet-4-6")
    assert rules is not None
    assert rules.minimum <= 8_192


def tools(data: bytes) -> None:
    """Sorted tools are the same tools, and sorting them again makes no change."""
    body = Source(data).body()
    if not isinstance(body, dict):
        return
    before = _flat(body)
    found = sort_tools(body)
    assert _flat(body) == before, "the caller's body was changed"
    if found is not body:
        assert unordered(found) == unordered(body), "other tools came out"
        assert sort_tools(found) is found, "sorted tools are sorted again"


def split(data: bytes) -> None:
    """Split texts join to the original texts, body after body."""
    source, splitter = Source(data), Splitter(300.0)
    wire, now = source.pick(_WIRES), NOW
    for _ in range(1 + source.byte() % 4):
        body = source.body()
        if not isinstance(body, dict):
            continue
        before = _flat(body)
        namespace = source.pick(("a", "b", "\ud800"))
        found, texts = splitter.split(body, wire, namespace, now)
        splitter.learn(namespace, texts, now)
        assert _flat(body) == before, "the caller's body was changed"
        if found is not body:
            _same(joined(found), joined(body))
        now += source.byte()


def http(data: bytes) -> None:
    """Addresses, headers, names of models and error texts of any form are read without an error."""
    source = Source(data)
    url, headers = source.text(), []
    while not source.ended and len(headers) < 8:
        name = source.pick(
            (b"authorization", b"cookie", b"connection", b"x-api-key", b"x-auth-token")
        ) or source.take(9)
        front = source.pick(
            (b"", b"Bearer ", b"Bearer eyJhbGciOiJub25lIn0.", b"AWSALB=", b"a=b; ", b"authorization, ")
        )
        value = front + source.take(source.byte())
        headers.append((name, base64.urlsafe_b64encode(value) if source.rarely() else value))
    text = source.text() + url + "".join(value.decode("latin-1") for _, value in headers)
    for address in (
        url,
        text,
        f"/{url}/chat/completions",
        f"https://{url}/v1/messages?{url}",
        f"//{url}/invocations",
    ):
        find_route("POST", address)
        provider_at(address)
    assert re.fullmatch(
        "principal:[0-9a-f]{32}", tenants("a.com", b"s")(headers, text.encode("utf-8", "replace"))
    )
    find_model(text)
    model_key(text)
    resolve("databricks", text)
    assert refusals.refused_kinds(text, set(Kind)) <= set(Kind)
    refusals.about_markers(text)
    refusals.refuses_hour(text)


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (request, usage, stream, decoding, image, replies, tools, split, http)
}
