"""Split long texts into a stable and a changing part: the opt-in `split_text`.

Contains: pieces, branch points, the choice of cuts, and the equality that then holds. Must not depend on:
plans, stores. Knowledge is kept in the object as hashes and offsets, and is bounded. Time is an argument.

A text is read in pieces, each named by the hash of everything up to its end. A new text *branches* from a
recent one at the end of the last piece that both share. It is cut there, and so is each later text that
shares that piece. If most recent texts branch near their ends, new texts are cut in advance, so that the
second one can already read. A known text keeps its cuts, since entries of it may be cached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, TypeAlias, TypeGuard, cast

from xxhash import xxh3_128, xxh3_128_digest

from cachemw.core.fair_table import FairTable
from cachemw.core.hash_types import TextPieceHash
from cachemw.core.request.canonical_json import Json
from cachemw.core.request.equality import canonical
from cachemw.core.request.parser import WireFormat
from cachemw.core.tuning import SPLIT_TEXT

_TEXTS, _PIECES, _OWNERS = 16_384, 65_536, 1_024  # entries in memory, over all namespaces

Boundary: TypeAlias = tuple[
    int, TextPieceHash
]  # the offset of a piece's end in bytes, and the hash up to there
Cuts: TypeAlias = tuple[int, ...]
_hash = cast("Callable[[bytes, int], TextPieceHash]", xxh3_128_digest)


@dataclass(slots=True)
class _Text:
    """One text: its cuts, and the time of its last arrival."""

    cuts: Cuts
    seen: float


class TextObservation(NamedTuple):
    """One long text of a request, to be learned once the provider has accepted the request.

    `name` is the hash of the text and `cuts` are its offsets in bytes. `boundaries` and `tail` (bytes after
    the part that an earlier text shares, 0 if none does) are empty for a known text.
    """

    seed: int
    name: TextPieceHash
    cuts: Cuts
    boundaries: tuple[Boundary, ...] = ()
    tail: int = 0


_Sent: TypeAlias = tuple[TextObservation, float]  # a text of a request in flight, and the time it left


class Splitter:
    """Cut the long texts of bodies, and learn the cuts from each body. Not thread-safe.

    `recent_seconds` is the longest time between two texts of which one could read the entry of the other.
    `key` keys the hashes of texts and pieces. Every namespace learns for itself, and none can evict another's
    texts.
    """

    def __init__(self, recent_seconds: float, key: bytes = b"") -> None:
        self._recent_seconds = recent_seconds
        self._key = blake2b(key).digest()
        self._texts: FairTable[TextPieceHash, _Text] = FairTable(_TEXTS)
        self._pieces: FairTable[TextPieceHash, _Text] = FairTable(
            _PIECES
        )  # the latest text that contains each
        self._cuts: FairTable[TextPieceHash, Cuts] = FairTable(_TEXTS)  # by the piece before the cut
        self._tails: FairTable[int, deque[int]] = FairTable(_OWNERS)
        # Texts of requests in flight, by their names and pieces: the next request may come before the
        # response.
        self._in_flight: FairTable[TextPieceHash, _Sent] = FairTable(_PIECES // 4)

    def split(
        self, body: Json, wire: WireFormat, namespace: str, now: float, model: str = ""
    ) -> tuple[Json, list[TextObservation]]:
        """Return the body with its long system and user texts in parts, and the texts to learn from.

        The body itself is returned if no text is cut. Texts of different namespaces or models are
        independent. A part that is no text, or has other fields beside its text, stays as it is. A marker of
        the client stays at the end of its text.
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
        """Let requests of the next minute branch from these texts, unless they are released."""
        known = self._in_flight.open(namespace)
        for text in found:
            for key in _keys(text):
                if not _is_in_flight(known.get(key), now):
                    known[key] = (text, now)
        self._in_flight.close(namespace)

    def release(self, namespace: str, found: Iterable[TextObservation]) -> None:
        """Forget that the texts of a request are in flight: it was learned from, or got no response."""
        known = self._in_flight.open(namespace)
        for text in found:
            for key in _keys(text):
                if key in known and known[key][0] is text:
                    del known[key]
        self._in_flight.close(namespace)

    def learn(self, namespace: str, found: Sequence[TextObservation], now: float) -> None:
        """Learn from the texts of a request that the provider has accepted."""
        self.release(namespace, found)
        for seed, name, cuts, boundaries, tail in found:
            text = self._texts.read(namespace).get(name)
            if text is not None:
                text.seen = now
                self._texts.put(namespace, [(name, text)])
                continue
            text = _Text(cuts, now)
            self._texts.put(namespace, [(name, text)])
            tails = self._tails.read(namespace).get(seed) or deque(maxlen=SPLIT_TEXT.window)
            tails.append(tail)
            self._tails.put(namespace, [(seed, tails)])
            self._pieces.put(namespace, [(piece, text) for _, piece in boundaries])
            self._cuts.put(
                namespace,
                [(piece, cuts[: cuts.index(offset) + 1]) for offset, piece in boundaries if offset in cuts],
            )

    def read(
        self, raw: bytes, seed: int, namespace: str, now: float, here: Mapping[TextPieceHash, TextObservation]
    ) -> TextObservation:
        """Find the cuts of a text, and learn nothing yet. `here` are earlier texts of the same body."""
        name = _hash(raw, seed)
        if (known := self._texts.read(namespace).get(name)) is not None:
            return TextObservation(seed, name, known.cuts)
        pieces, known_cuts = self._pieces.read(namespace), self._cuts.read(namespace)
        in_flight = self._in_flight.read(namespace)
        boundaries, length = tuple(_boundaries(raw, seed)), len(raw)
        count = len(boundaries)
        if name in here:
            return here[name]
        if _is_in_flight(sent := in_flight.get(name), now):
            return TextObservation(seed, name, sent[0].cuts, boundaries)
        while count:
            piece = boundaries[count - 1][1]
            text = pieces.get(piece)
            if (
                piece in here
                or (text is not None and now - text.seen <= self._recent_seconds)
                or _is_in_flight(in_flight.get(piece), now)
            ):
                break
            count -= 1
        shared = boundaries[count - 1][0] if count else 0
        cuts = next((known_cuts[piece] for _, piece in reversed(boundaries) if piece in known_cuts), ())
        tails = self._tails.read(namespace).get(seed, ())
        for cut in (shared, _cut_in_advance(boundaries, shared, length, tails)):
            if cut > max(cuts, default=SPLIT_TEXT.least_bytes - 1) and len(cuts) < SPLIT_TEXT.max_cuts:
                cuts = (*cuts, cut)
        cuts = tuple([cut for cut in cuts if cut < length])
        while cuts and any(part.isspace() for part in divided(raw, cuts)):
            cuts = cuts[:-1]
        return TextObservation(seed, name, cuts, boundaries, length - shared if shared else 0)

    def _seed(self, namespace: str, model: str, role: str) -> int:
        owner = f"{namespace}\0{model}\0{role}".encode("utf-8", "surrogatepass")
        return int.from_bytes(blake2b(owner, key=self._key, digest_size=8).digest())


def _is_in_flight(sent: _Sent | None, now: float) -> TypeGuard[_Sent]:
    """Return True for a text whose request may still wait for its response to start."""
    return sent is not None and now - sent[1] <= SPLIT_TEXT.in_flight


def _keys(text: TextObservation) -> list[TextPieceHash]:
    """Return the hashes under which a new text is known: its own, and those of its pieces."""
    return [text.name, *(piece for _, piece in text.boundaries)] if text.boundaries else []


class _Reader:
    """Cut the texts of one body, and note them."""

    def __init__(self, splitter: Splitter, namespace: str, now: float) -> None:
        self._splitter, self._namespace, self._now = splitter, namespace, now
        self.found: list[TextObservation] = []
        self._here: dict[TextPieceHash, TextObservation] = {}  # texts of this body, by their names and pieces

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
        if len(text) < SPLIT_TEXT.least_bytes:
            return [text]
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            return [text]
        found = self._splitter.read(raw, seed, self._namespace, self._now, self._here)
        self.found.append(found)
        self._here.update(dict.fromkeys(_keys(found), found))
        return divided(raw, found.cuts) if found.cuts else [text]


def _cut_in_advance(boundaries: Sequence[Boundary], shared: int, length: int, tails: Sequence[int]) -> int:
    """Return the offset at which to cut a text before its branch point is known; 0 for no cut.

    `tails` are the bytes between the branch points of the latest texts and their ends, 0 for texts without
    one. The chosen tail is the one that shares the most text in expectation.
    """
    branched = sorted(tail for tail in tails if tail)
    gains = [(count * (length - shared - tail), count, tail) for count, tail in enumerate(branched, 1)]
    _, count, tail = max(gains, default=(0, 0, 0))
    if count < max(SPLIT_TEXT.least_branched, SPLIT_TEXT.least_branched_share * len(tails)):
        return 0
    cut = max((offset for offset, _ in boundaries if offset <= length - tail), default=0)
    # A rest that is not much longer than a tail is a tail itself.
    return cut if cut - shared >= tail else 0


def _boundaries(raw: bytes, seed: int) -> Iterator[Boundary]:
    """Yield the end of each piece of a text; the rest after the last piece is left out.

    If the text itself ends with a piece, a longer text may begin with it.
    """
    hasher, view, start = xxh3_128(seed=seed), memoryview(raw), 0
    while True:
        least = start + max(SPLIT_TEXT.piece_bytes, start // SPLIT_TEXT.piece_share)
        most = least + SPLIT_TEXT.line_bytes
        end = raw.find(b"\n", least - 1, most) + 1 or raw.find(b" ", least - 1, most) + 1 or least
        while end < len(raw) and raw[end] & 0xC0 == 0x80:  # inside a character
            end += 1
        if end > len(raw):
            return
        hasher.update(view[start:end])
        yield end, TextPieceHash(hasher.digest())
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
    """Return the canonical form of a body, in which bodies that differ only in their cuts are equal."""
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
