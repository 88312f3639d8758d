"""Long texts cut where others like them go on differently: the opt-in `split_text`.

Lives here: pieces, where texts part, and which texts are cut. Must not know: blocks, plans, stores. What
is learned is kept in the object, as hashes and offsets; it is bounded, and one process's own.

A text is read in pieces that end with a line, each named by the hash of all up to its end. Where the pieces
of a new text stop being known, it parts from another one: there it is cut, and so is each later text that
goes through. Texts of a sort that part near their ends are cut in advance, so that the first that comes
back can read. A text that has been seen stays as it was sent.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from xxhash import xxh3_64_intdigest, xxh3_128, xxh3_128_digest

from cachemw.core.blocks import Wire
from cachemw.core.wire import Json

_LEAST = 1_024  # bytes of a text that is looked at
_PIECE = 256  # bytes of a piece, up to the next end of a line
_LINE = 1_024  # no end of a line within so many: the piece ends with a word
_CUTS = 7
_TEXTS, _PIECES, _SORTS = 16_384, 131_072, 1_024
_SEEN = 32  # texts of a sort that are remembered
_OFTEN = 0.2  # share of them that must part near the end

Cuts = tuple[int, ...]
Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Recent(OrderedDict[Key, Value], Generic[Key, Value]):
    """A dictionary that forgets what was put or touched longest ago."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def touch(self, key: Key, value: Value) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._limit:
            self.popitem(last=False)


class Splitter:
    """Cut the texts of bodies. Not thread-safe."""

    def __init__(self) -> None:
        self._texts: _Recent[bytes, Cuts] = _Recent(_TEXTS)
        self._pieces: _Recent[bytes, None] = _Recent(_PIECES)
        self._cuts: _Recent[bytes, Cuts] = _Recent(_TEXTS)
        self._tails: _Recent[tuple[int, bool], deque[int | None]] = _Recent(_SORTS)

    def split(self, body: Json, wire: Wire, owner: str) -> Json:
        """Return the body with its long system and user texts cut; the body itself where none is.

        `owner`: texts of different ones have nothing to do with each other.
        """
        messages = body.get("messages")
        if not isinstance(messages, (list, tuple)):
            return body
        users, systems = (xxh3_64_intdigest(f"{owner}\0{role}") for role in ("user", "system"))
        fresh: dict[str, Any] = {}
        if wire == "messages" and (content := self._content(body.get("system"), systems, False)) is not None:
            fresh["system"] = content
        changed: dict[int, Any] = {}
        later = False
        for index, message in enumerate(messages):
            if not isinstance(message, Mapping):
                return body
            role = message.get("role")
            if role == "assistant":
                later = True
            elif role == "user" or role == "system" or role == "developer":
                seed = users if role == "user" else systems
                if (content := self._content(message.get("content"), seed, later)) is not None:
                    changed[index] = {**message, "content": content}
        if changed:
            fresh["messages"] = [changed.get(index, message) for index, message in enumerate(messages)]
        return {**body, **fresh} if fresh else body

    def _content(self, content: Any, seed: int, later: bool) -> list[Any] | None:
        """Return a content with its texts cut, None where nothing is."""
        if isinstance(content, str):
            parts = self._parts(content, seed, later)
            return [{"type": "text", "text": part} for part in parts] if len(parts) > 1 else None
        if not isinstance(content, (list, tuple)):
            return None
        found: list[Any] = []
        for part in content:
            text = part.get("text") if isinstance(part, Mapping) else None
            if isinstance(text, str) and part.get("type") == "text" and part.keys() <= _PLAIN:
                *heads, last = self._parts(text, seed, later)
                found += [{"type": "text", "text": head} for head in heads]
                found.append({**part, "text": last} if heads else part)
            else:
                found.append(part)
        return found if len(found) > len(content) else None

    def _parts(self, text: str, seed: int, later: bool) -> list[str]:
        if len(text) < _LEAST:
            return [text]
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return [text]
        name = xxh3_128_digest(raw, seed)
        cuts = self._texts.get(name)
        if cuts is None:
            cuts = self._find(raw, seed, later)
        self._texts.touch(name, cuts)
        if not cuts:
            return [text]
        parts = [raw[start:end].decode() for start, end in zip((0, *cuts), (*cuts, None))]
        return parts

    def _find(self, raw: bytes, seed: int, later: bool) -> Cuts:
        """Return where a text that was never seen is cut."""
        borders = list(_borders(raw, seed))
        known = next((i for i in range(len(borders) - 1, -1, -1) if borders[i][1] in self._pieces), -1)
        shared = borders[known][0] if known >= 0 else 0
        cuts: Cuts = next((self._cuts[d] for _, d in reversed(borders[: known + 1]) if d in self._cuts), ())
        if shared - max(cuts, default=0) >= _PIECE and len(cuts) < _CUTS:
            cuts = (*cuts, shared)
        tails = self._tails.get((seed, later)) or deque(maxlen=_SEEN)
        if (ahead := self._ahead(borders, shared, len(raw), tails)) and len(cuts) < _CUTS:
            cuts = (*cuts, ahead)
        tails.append(len(raw) - shared if shared else None)
        self._tails.touch((seed, later), tails)
        for offset, digest in borders:
            self._pieces.touch(digest, None)
            if offset in cuts and cuts[: cuts.index(offset) + 1]:
                self._cuts.touch(digest, cuts[: cuts.index(offset) + 1])
        return cuts

    def _ahead(self, borders: list[tuple[int, bytes]], shared: int, length: int, tails: deque[int | None]) -> int:
        """Return where to cut in advance, 0 for nowhere: what then lies ahead of it is likely to come again."""
        parted = sorted(tail for tail in tails if tail is not None)
        best, tail = max(((count * (length - shared - tail), tail) for count, tail in enumerate(parted, 1)), default=(0, 0))
        if best <= 0: return 0
        count = sum(t <= tail for t in parted)
        if count < 2 or count < _OFTEN * len(tails):
            return 0
        at = next((offset for offset, _ in reversed(borders) if offset <= length - tail), 0)
        return at if at - shared >= max(tail, _PIECE) else 0


_PLAIN = {"type", "text", "cache_control"}


def _borders(raw: bytes, seed: int) -> Iterator[tuple[int, bytes]]:
    """Yield where each piece ends and the hash of all up to there; the last piece, which ends the text, has none."""
    hasher, view = xxh3_128(seed=seed), memoryview(raw)
    start, length = 0, len(raw)
    while True:
        least = start + _PIECE
        end = raw.find(b"\n", least - 1, start + _LINE) + 1 or raw.rfind(b" ", least, start + _LINE) + 1
        if not end:
            end = start + _LINE
            while end < length and raw[end] & 0xC0 == 0x80:
                end += 1
        if end >= length:
            return
        hasher.update(view[start:end])
        yield end, hasher.digest()
        start = end
