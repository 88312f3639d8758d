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

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from xxhash import xxh3_128, xxh3_128_digest

from cachemw.core.fair_table import FairTable
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.equality import canonical
from cachemw.core.request.parser import WireFormat

_LEAST = 1_024  # bytes of a text that is looked at, and of its first part
# A piece is so many bytes, or this share of what stands before it: what a cut misses is a share of the text.
_PIECE, _SHARE = 256, 128
_IN_FLIGHT = 60.0  # seconds in which an answer should have begun
_LINE = 1_024  # where no line ends within so many bytes, a piece ends with a word
_CUTS = 15  # of one text
_TEXTS, _PIECES, _OWNERS = 16_384, 65_536, 1_024
# Of the latest texts so many are looked back at; so many must have parted near their ends, and such a share.
_WINDOW, _FEW, _OFTEN = 32, 2, 0.2

Boundary: TypeAlias = tuple[int, bytes]  # where a piece ends, in bytes, and the hash of all up to there
Cuts: TypeAlias = tuple[int, ...]


@dataclass(slots=True)
class _Text:
    """One text: where it is cut, and when it was seen last."""

    cuts: Cuts
    seen: float


class TextObservation(NamedTuple):
    """One long text of a request, to be learned once the provider has accepted the request.

    `name` is the hash of the text and `cuts` are its offsets in bytes. `borders` and `tail` (bytes after the part
    that an earlier text shares, 0 if none does) are empty for a text that was known already.
    """

    seed: int
    name: bytes
    cuts: Cuts
    borders: tuple[Boundary, ...] = ()
    tail: int = 0


_Sent: TypeAlias = tuple[TextObservation, float]  # a text of a request under way, and when that left


class Splitter:
    """Cut the long texts of bodies, and learn where from each. Not thread-safe.

    `lately`: how many seconds may lie between two texts of which one could read what the other wrote. `key` keys
    the hashes of texts and pieces. Every namespace learns for itself, and none can evict another's texts.
    """

    def __init__(self, lately: float, key: bytes = b"") -> None:
        self._lately = lately
        self._key = blake2b(key).digest()
        self._texts: FairTable[bytes, _Text] = FairTable(_TEXTS)
        self._pieces: FairTable[bytes, _Text] = FairTable(_PIECES)  # the latest text through each
        self._cuts: FairTable[bytes, Cuts] = FairTable(_TEXTS)  # by the piece after which is cut
        self._tails: FairTable[int, deque[int]] = FairTable(_OWNERS)
        # Texts of requests under way, by their names and pieces: the next request may come before the answer.
        self._in_flight: FairTable[bytes, _Sent] = FairTable(_PIECES // 4)

    def split(
        self, body: Json, wire: WireFormat, namespace: str, now: float, model: str = ""
    ) -> tuple[Json, list[TextObservation]]:
        """Return the body with its long system and user texts in parts, and the texts to learn from.

        The body itself is returned if no text is cut. Texts of different namespaces or models have nothing to do
        with each other. A part that is no text, or has fields of its own beside it, is left alone; a marker of the
        client's stays at the end of its text.
        """
        messages = body.get("messages")
        if not isinstance(messages, (list, tuple)):
            return body, []
        reader = _Reader(self, namespace, now)
        system, user = self._seed(namespace, model, "system"), self._seed(namespace, model, "user")
        fresh: dict[str, Any] = {}
        if wire == "messages" and (content := reader.content(body.get("system"), system)):
            fresh["system"] = content
        changed: dict[int, Json] = {}
        for index, message in enumerate(messages):
            role = message.get("role") if isinstance(message, Mapping) else None
            if role == "user" or role == "system" or role == "developer":
                content = reader.content(message.get("content"), user if role == "user" else system)
                if content:
                    changed[index] = {**message, "content": content}
        if changed:
            fresh["messages"] = [changed.get(index, message) for index, message in enumerate(messages)]
        return ({**body, **fresh} if fresh else body), reader.found

    def mark_in_flight(self, namespace: str, found: Iterable[TextObservation], now: float) -> None:
        """Let requests of the next minute part from these texts, unless they are released."""
        known = self._in_flight.open(namespace)
        for text in found:
            for key in _keys(text):
                if not _lately(known.get(key), now):
                    known[key] = (text, now)
        self._in_flight.close(namespace)

    def release(self, namespace: str, found: Iterable[TextObservation]) -> None:
        """Forget that the texts of a request are under way, when it is learned from or got no answer."""
        known = self._in_flight.open(namespace)
        for text in found:
            for key in _keys(text):
                if key in known and known[key][0] is text:
                    del known[key]
        self._in_flight.close(namespace)

    def learn(self, namespace: str, found: Sequence[TextObservation], now: float) -> None:
        """Learn from the texts of a request that the provider has accepted."""
        self.release(namespace, found)
        for seed, name, cuts, borders, tail in found:
            text = self._texts.read(namespace).get(name)
            if text is not None:
                text.seen = now
                self._texts.put(namespace, [(name, text)])
                continue
            text = _Text(cuts, now)
            self._texts.put(namespace, [(name, text)])
            tails = self._tails.read(namespace).get(seed) or deque(maxlen=_WINDOW)
            tails.append(tail)
            self._tails.put(namespace, [(seed, tails)])
            self._pieces.put(namespace, [(piece, text) for _, piece in borders])
            self._cuts.put(
                namespace,
                [(piece, cuts[: cuts.index(offset) + 1]) for offset, piece in borders if offset in cuts],
            )

    def read(
        self, raw: bytes, seed: int, namespace: str, now: float, here: Mapping[bytes, TextObservation]
    ) -> TextObservation:
        """Find where a text is cut; nothing is learned from it yet. `here` are earlier texts of the same body."""
        name = xxh3_128_digest(raw, seed)
        if (known := self._texts.read(namespace).get(name)) is not None:
            return TextObservation(seed, name, known.cuts)
        pieces, known_cuts = self._pieces.read(namespace), self._cuts.read(namespace)
        in_flight = self._in_flight.read(namespace)
        borders, length = tuple(_borders(raw, seed)), len(raw)
        count = len(borders)
        if name in here:
            return here[name]
        if _lately(sent := in_flight.get(name), now):
            return TextObservation(seed, name, sent[0].cuts, borders)
        while count:
            piece = borders[count - 1][1]
            text = pieces.get(piece)
            if (
                piece in here
                or (text is not None and now - text.seen <= self._lately)
                or _lately(in_flight.get(piece), now)
            ):
                break
            count -= 1
        shared = borders[count - 1][0] if count else 0
        cuts = next((known_cuts[piece] for _, piece in reversed(borders) if piece in known_cuts), ())
        tails = self._tails.read(namespace).get(seed, ())
        for at in (shared, _ahead(borders, shared, length, tails)):
            if at > max(cuts, default=_LEAST - 1) and len(cuts) < _CUTS:
                cuts = (*cuts, at)
        cuts = tuple([cut for cut in cuts if cut < length])
        while cuts and any(part.isspace() for part in divided(raw, cuts)):
            cuts = cuts[:-1]
        return TextObservation(seed, name, cuts, borders, length - shared if shared else 0)

    def _seed(self, namespace: str, model: str, role: str) -> int:
        owner = f"{namespace}\0{model}\0{role}".encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(owner, key=self._key, digest_size=8).digest())


def _lately(sent: _Sent | None, now: float) -> TypeGuard[_Sent]:
    """Return True for a text whose request may still be waiting for its answer to begin."""
    return sent is not None and now - sent[1] <= _IN_FLIGHT


def _keys(text: TextObservation) -> list[bytes]:
    """Return the hashes under which a new text is known: its own, and those of its pieces."""
    return [text.name, *(piece for _, piece in text.borders)] if text.borders else []


class _Reader:
    """Cut the texts of one body, and note them."""

    def __init__(self, splitter: Splitter, namespace: str, now: float) -> None:
        self._splitter, self._namespace, self._now = splitter, namespace, now
        self.found: list[TextObservation] = []
        self._here: dict[bytes, TextObservation] = {}  # texts of this very body, by their names and pieces

    def content(self, content: Any, seed: int) -> list[Any]:
        """Return a content with its texts in parts; an empty list if none is cut."""
        if isinstance(content, str):
            parts = self._parts(content, seed)
            return [{"type": "text", "text": part} for part in parts] if len(parts) > 1 else []
        if not isinstance(content, (list, tuple)):
            return []
        fresh: list[Any] = []
        for part in content:
            *heads, last = self._parts(part["text"], seed) if _is_text(part) else [""]
            fresh += [{"type": "text", "text": head} for head in heads]
            fresh.append({**part, "text": last} if heads else part)
        return fresh if len(fresh) > len(content) else []

    def _parts(self, text: str, seed: int) -> list[str]:
        if len(text) < _LEAST:
            return [text]
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return [text]
        found = self._splitter.read(raw, seed, self._namespace, self._now, self._here)
        self.found.append(found)
        self._here.update(dict.fromkeys(_keys(found), found))
        return divided(raw, found.cuts) if found.cuts else [text]


def _ahead(borders: Sequence[Boundary], shared: int, length: int, tails: Sequence[int]) -> int:
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


def _borders(raw: bytes, seed: int) -> Iterator[Boundary]:
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


def divided(raw: bytes, cuts: Cuts) -> list[str]:
    """Return a text cut at these offsets."""
    return [raw[start:end].decode() for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True)]


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        and part.keys() <= {"type", "text", "cache_control"}
    )


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
