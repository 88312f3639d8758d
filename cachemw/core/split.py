"""Long texts in parts, cut where texts like them go on differently: the opt-in `split_text`.

Lives here: pieces, where texts part, which texts are cut, and the equality that then holds. Must not know:
plans, stores. What is learned is kept in the object, as hashes and offsets; it is bounded. Time is an argument.

A text is read in pieces, each named by the hash of all up to its end. Where the pieces of a new text are no
longer those of another one that came lately, it parts from that: there it is cut, and so is each later text
that comes through. Where such texts mostly part near their ends, new ones are cut in advance, so that the
first that comes back can read already. A text that was seen stays in the parts that it was in: entries of it
may live.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from cachemw.core.blocks import Wire
from cachemw.core.markers import canonical
from cachemw.core.wire import Json

_LEAST = 1_024  # bytes of a text that is looked at, and of its first part
# A piece is so many bytes, or this share of what stands before it: what a cut misses is a share of the text.
_PIECE, _SHARE = 256, 128
_LINE = 1_024  # where no line ends within so many bytes, a piece ends with a word
_CUTS = 15  # of one text
_TEXTS, _PIECES, _OWNERS = 16_384, 65_536, 1_024
# Of the latest texts so many are looked back at; so many must have parted near their ends, and such a share.
_WINDOW, _FEW, _OFTEN = 32, 2, 0.2

Border: TypeAlias = tuple[int, bytes]  # where a piece ends, in bytes, and the hash of all up to there
Cuts: TypeAlias = tuple[int, ...]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(slots=True)
class _Text:
    """What is known of a text: where it is cut, and when it was seen last."""

    cuts: Cuts
    seen: float


class Splitter:
    """Cut the long texts of bodies, and learn where from each. Not thread-safe.

    `lately`: how many seconds may lie between two texts of which one could read what the other wrote.
    """

    def __init__(self, lately: float) -> None:
        self._lately = lately
        self._texts: OrderedDict[bytes, _Text] = OrderedDict()
        self._pieces: OrderedDict[bytes, _Text] = OrderedDict()  # the latest text through each
        self._cuts: OrderedDict[bytes, Cuts] = OrderedDict()  # by the piece after which is cut
        self._tails: OrderedDict[int, deque[int]] = OrderedDict()

    def split(self, body: Json, wire: Wire, owner: str, now: float) -> Json:
        """Return the body with its long system and user texts in parts; the body itself where none is cut.

        Texts of different owners have nothing to do with each other. What is no text, or has fields of its
        own beside it, is left alone; a marker of the client's stays at the end of its text.
        """
        messages = body.get("messages")
        if not isinstance(messages, (list, tuple)):
            return body
        system, user = _seed(owner, "system"), _seed(owner, "user")
        fresh: dict[str, Any] = {}
        if wire == "messages" and (content := self._content(body.get("system"), system, now)):
            fresh["system"] = content
        changed: dict[int, Json] = {}
        for index, message in enumerate(messages):
            role = message.get("role") if isinstance(message, Mapping) else None
            if role == "user" or role == "system" or role == "developer":
                content = self._content(message.get("content"), user if role == "user" else system, now)
                if content:
                    changed[index] = {**message, "content": content}
        if changed:
            fresh["messages"] = [changed.get(index, message) for index, message in enumerate(messages)]
        return {**body, **fresh} if fresh else body

    def _content(self, content: Any, seed: int, now: float) -> list[Any]:
        """Return a content with its texts in parts, nothing where none is cut."""
        if isinstance(content, str):
            parts = self._parts(content, seed, now)
            return [{"type": "text", "text": part} for part in parts] if len(parts) > 1 else []
        if not isinstance(content, (list, tuple)):
            return []
        found: list[Any] = []
        for part in content:
            *heads, last = self._parts(part["text"], seed, now) if _is_text(part) else [""]
            found += [{"type": "text", "text": head} for head in heads]
            found.append({**part, "text": last} if heads else part)
        return found if len(found) > len(content) else []

    def _parts(self, text: str, seed: int, now: float) -> list[str]:
        if len(text) < _LEAST:
            return [text]
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return [text]
        name = xxh3_128_digest(raw, seed)
        known = self._texts.get(name) or self._learn(raw, seed, now)
        known.seen = now
        _keep(self._texts, name, known, _TEXTS)
        return _divided(raw, known.cuts) if known.cuts else [text]

    def _learn(self, raw: bytes, seed: int, now: float) -> _Text:
        """Find where a text that was never seen is cut, and learn from it."""
        borders, length = list(_borders(raw, seed)), len(raw)
        known = len(borders)
        while known and not self._came_lately(borders[known - 1][1], now):
            known -= 1
        shared = borders[known - 1][0] if known else 0
        cuts = next((self._cuts[piece] for _, piece in reversed(borders) if piece in self._cuts), ())
        tails = self._tails.get(seed) or deque(maxlen=_WINDOW)
        for at in (shared, _ahead(borders, shared, length, tails)):
            if at > max(cuts, default=_LEAST - 1) and len(cuts) < _CUTS:
                cuts = (*cuts, at)
        cuts = tuple([cut for cut in cuts if cut < length])
        while cuts and any(part.isspace() for part in _divided(raw, cuts)):
            cuts = cuts[:-1]
        tails.append(length - shared if shared else 0)
        _keep(self._tails, seed, tails, _OWNERS)
        text = _Text(cuts, now)
        for offset, piece in borders:
            _keep(self._pieces, piece, text, _PIECES)
            if offset in cuts:
                _keep(self._cuts, piece, cuts[: cuts.index(offset) + 1], _TEXTS)
        return text

    def _came_lately(self, piece: bytes, now: float) -> bool:
        text = self._pieces.get(piece)
        return text is not None and now - text.seen <= self._lately


def _ahead(borders: Sequence[Border], shared: int, length: int, tails: Sequence[int]) -> int:
    """Return where to cut a text before it is known where it parts from others; 0 for nowhere.

    `tails`: how far from their ends the latest texts parted from others, 0 for those that did not. The
    tail to leave is the one for which the most can be expected to be shared.
    """
    parted = sorted(tail for tail in tails if tail)
    gains = [(count * (length - shared - tail), count, tail) for count, tail in enumerate(parted, 1)]
    _, count, tail = max(gains, default=(0, 0, 0))
    if count < max(_FEW, _OFTEN * len(tails)):
        return 0
    at = max((offset for offset, _ in borders if offset <= length - tail), default=0)
    # What is not much longer than a tail is one.
    return at if at - shared >= tail else 0


def _borders(raw: bytes, seed: int) -> Iterator[Border]:
    """Yield where each piece of a text ends; the rest at its end, which makes none, is left out.

    Where the text itself ends with a piece, it may be the head of a longer one.
    """
    hasher, view, start = xxh3_128(seed=seed), memoryview(raw), 0
    while True:
        least = start + max(_PIECE, start // _SHARE)
        most = least + _LINE
        end = raw.find(b"\n", least - 1, most) + 1 or raw.find(b" ", least - 1, most) + 1 or least
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        if end > len(raw):
            return
        hasher.update(view[start:end])
        yield end, hasher.digest()
        start = end


def _divided(raw: bytes, cuts: Cuts) -> list[str]:
    return [raw[start:end].decode() for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True)]


def _seed(owner: str, role: str) -> int:
    return xxh3_64_intdigest(f"{owner}\0{role}".encode("utf-8", "surrogatepass"))


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and part.keys() <= {"type", "text", "cache_control"}
    )


def _keep(table: OrderedDict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Put a value in a table, and drop what was put there longest ago if that is too much."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > most:
        table.popitem(last=False)


def joined(body: Json) -> Json:
    """Return the canonical form in which two bodies are equal that differ in how their texts are cut alone."""
    bare = dict(canonical(body))
    if isinstance(bare.get("system"), list):
        bare["system"] = _joined(bare["system"])
    bare["messages"] = [
        {**message, "content": _joined(message["content"])}
        if isinstance(message, Mapping) and isinstance(message.get("content"), list)
        else message
        for message in bare.get("messages") or ()
    ]
    return bare


def _joined(parts: Sequence[Any]) -> list[Any]:
    found: list[Any] = []
    for part in parts:
        if found and _is_text(part) and _is_text(found[-1]):
            found[-1] = {"type": "text", "text": found[-1]["text"] + part["text"]}
        else:
            found.append(part)
    return found
