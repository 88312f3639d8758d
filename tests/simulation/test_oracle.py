"""The clairvoyant bound, compared with every way to mark tiny streams."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachemw.core.rules.types import Ttl
from cachemw.simulation.options import Options
from cachemw.simulation.oracle import PIECE, Grain, bound, cheapest, least, pieces, sorted_tools
from cachemw.simulation.provider import ProviderCache, Request, Ticket
from cachemw.simulation.replay import Sent, Weights
from tests.simulation.prompts import MODEL, TAIL, cache, prompt

WEIGHTS = Weights(0.1, 1.25, 2.0)
Timed = tuple[float, float, Request]  # sent, answer begins, prompt


def marked(request: Request, markers: Mapping[int, Ttl]) -> Request:
    """Return a prompt with these markers, by the index of their position."""
    return Request(
        [position._replace(marker=markers.get(index)) for index, position in enumerate(request.positions)],
        request.total,
    )


def ways(request: Request, ttls: Sequence[Ttl]) -> Iterator[dict[int, Ttl]]:
    """Yield all ways to mark a prompt, 1h before 5m, with any number of markers."""
    places = range(len(request.positions))
    for count in range(len(places) + 1):
        for chosen in combinations(places, count):
            for hours in range(count + 1) if "1h" in ttls else (0,):
                yield {place: "1h" if number < hours else "5m" for number, place in enumerate(chosen)}


def paid(
    provider: ProviderCache, stream: Sequence[Timed], marks: Sequence[Mapping[int, Ttl]]
) -> float | None:
    """Return the cost of a stream with these markers; None if it stretches a cached 5m prefix to 1h."""
    open_: list[tuple[float, Ticket]] = []
    cost = 0.0
    for (at, begins, request), markers in zip(stream, marks, strict=True):
        for entry in sorted([entry for entry in open_ if entry[0] <= at], key=lambda entry: entry[0]):
            provider.answer_began(entry[1], entry[0])
            open_.remove(entry)
        ticket = provider.begin(marked(request, markers), at)
        if ticket.cache_write_1h and ticket.hit >= 0:
            source = provider._entries[request.positions[ticket.hit].digest]
            if source.ttl == "5m":
                return None
        open_.append((begins, ticket))
        cost += WEIGHTS.cost(ticket)
    return cost


def optimum(stream: Sequence[Timed], ttls: Sequence[Ttl], minimum: int = 0) -> float:
    """Return the least cost over all ways to mark a stream, computed by the simulated provider."""
    best = float("inf")
    for marks in product(*(list(ways(request, ttls)) for _, _, request in stream)):
        cost = paid(cache(minimum=minimum, lookback=99, max_markers=99), stream, marks)
        if cost is not None:
            best = min(best, cost)
    return best


def lower(stream: Sequence[Timed], *, hour: bool, minimum: int = 0) -> float:
    """Return the bound of a stream."""
    paths = [
        (at, begins, [(position.digest, float(position.tokens)) for position in request.positions])
        for at, begins, request in stream
    ]
    tails = sum(
        request.total - sum(position.tokens for position in request.positions) for _, _, request in stream
    )
    return tails + least(paths, minimum, WEIGHTS, hour=hour)


def requests(*sent: tuple[float, float, str]) -> list[Timed]:
    """Return a stream of (sent, latency, path): each letter of a path is a block of its own size."""
    found = []
    for at, latency, path in sent:
        blocks = prompt(len(path), {}).positions
        prefix, positions = 0, []
        for index, (position, letter) in enumerate(zip(blocks, path, strict=True)):
            tokens = 100 * (ord(letter) - 96)
            prefix += tokens
            digest = path[: index + 1].encode().ljust(32)
            positions.append(position._replace(digest=digest, tokens=tokens, prefix=prefix))
        found.append((at, at + latency, Request(positions, prefix + TAIL)))
    return found


EXACT = {
    "one request": requests((0, 1, "ab")),
    "read once": requests((0, 1, "ab"), (60, 1, "abc")),
    "too late": requests((0, 1, "ab"), (301, 1, "ab")),
    "not yet begun": requests((0, 30, "ab"), (20, 1, "ab"), (40, 1, "ab")),
    "branches": requests((0, 1, "ab"), (10, 1, "ac"), (20, 1, "ab")),
    "kept alive by another": requests((0, 1, "ab"), (200, 1, "ac"), (400, 1, "ab")),
    "an hour": requests((0, 1, "a"), (600, 1, "a"), (1200, 1, "a")),
    "an hour for the head": requests((0, 1, "ab"), (10, 1, "ab"), (900, 1, "ac"), (1800, 1, "a")),
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("ttls", [("5m",), ("5m", "1h")], ids=["5m", "1h"])
def test_bound_of_simple_streams_equals_the_optimum(name: str, ttls: Sequence[Ttl]) -> None:
    """On these streams the best of all ways reaches the bound."""
    stream = EXACT[name]
    assert lower(stream, hour="1h" in ttls) == pytest.approx(optimum(stream, ttls))


def test_tokens_under_the_minimum_count_for_the_first_longer_prefix() -> None:
    """Prefixes that part before the minimum share no token; a prefix that stays below it is uncached."""
    apart = requests((0, 1, "ab"), (10, 1, "ac"), (20, 1, "a"))
    assert lower(apart, hour=False, minimum=200) == pytest.approx(optimum(apart, ("5m",), 200))
    assert lower(apart, hour=False, minimum=200) == sum(request.total for _, _, request in apart)
    together = requests((0, 1, "abc"), (10, 1, "abd"))
    assert lower(together, hour=False, minimum=200) == pytest.approx(optimum(together, ("5m",), 200))
    assert lower(together, hour=False, minimum=200) == pytest.approx(300 * 1.35 + 300 + 400 + 2 * TAIL)


@st.composite
def streams(draw: st.DrawFn) -> list[Timed]:
    """Draw up to four requests of up to three blocks, minutes or seconds apart, some of them concurrent."""
    at, sent = 0.0, []
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.sampled_from((0.0, 5.0, 50.0, 290.0, 310.0, 1000.0, 3700.0)))
        latency = draw(st.sampled_from((1.0, 5.0, 20.0, 60.0)))
        sent.append((at, latency, draw(st.sampled_from(("a", "ab", "abc", "abd", "ac", "b")))))
    return requests(*sent)


@settings(max_examples=40, deadline=None)
@given(streams(), st.sampled_from((0, 250)))
def test_bound_with_five_minutes_is_never_beaten(stream: list[Timed], minimum: int) -> None:
    """Every way to mark a stream costs at least the bound."""
    assert lower(stream, hour=False, minimum=minimum) <= optimum(stream, ("5m",), minimum) + 1e-6


@settings(max_examples=12, deadline=None)
@given(streams().filter(lambda stream: len(stream) < 4))
def test_bound_with_an_hour_is_never_beaten(stream: list[Timed]) -> None:
    """The bound holds with 1h too, except for stretching a cached 5m prefix; and 1h never raises it."""
    assert lower(stream, hour=True) <= optimum(stream, ("5m", "1h")) + 1e-6
    assert lower(stream, hour=True) <= lower(stream, hour=False) + 1e-6


TIMES = (
    ([0], False, 1.0),
    ([0, 60], False, 1.35),
    ([0, 299, 598], False, 1.45),
    ([0, 300], False, 2.0),  # an entry expires at the end of its TTL
    ([0, 300, 600], True, 2.2),
    ([0, 400], True, 2.0),
    ([0, 10, 400], True, 2.2),
    ([0, 3600], True, 2.0),
)


@pytest.mark.parametrize(("times", "hour", "cost"), TIMES)
def test_cheapest_token_is_written_read_or_uncached(times: list[float], hour: bool, cost: float) -> None:
    """A token at these times takes the cheapest of write, read and uncached."""
    assert cheapest([(at, at + 1) for at in times], WEIGHTS, hour=hour) == pytest.approx(cost)


def test_cheapest_write_is_readable_once_its_answer_has_begun() -> None:
    """Of three concurrent requests one writes and two are uncached; the fourth reads."""
    assert cheapest([(0, 5), (1, 5), (2, 5), (10, 11)], WEIGHTS, hour=False) == pytest.approx(1.25 + 2 + 0.1)


CHEAP = replace(MODEL, name="cheap")


def body(*texts: str, tools: Sequence[str] = ()) -> dict[str, Any]:
    """Return a chat body of user messages with these texts, and tools with these names."""
    defined = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in tools]
    messages = [{"role": "user", "content": text} for text in texts]
    return {"model": "cheap", "messages": messages, **({"tools": defined} if tools else {})}


def whole(*bodies: Mapping[str, Any], grain: Grain = "block", sort: bool = False) -> float:
    """Return the bound of bodies a minute apart, relative to the cost without caching."""
    provider = ProviderCache(CHEAP, Options(minimum=0))
    sent = [Sent(60.0 * index, body, 1.0) for index, body in enumerate(bodies)]
    plain = sum(provider.convert(body).total for body in bodies)
    return bound(sent, provider, grain=grain, sort_tools=sort) / plain


LONG = "\n".join(f"Line {number} of a document that is read again and again." for number in range(200))


def test_pieces_share_the_head_of_two_texts() -> None:
    """Two texts with the same head share no block, but most of their pieces."""
    one, two = body(LONG + "\nWhich line is first?"), body(LONG + "\nWhich line is last?")
    assert whole(one, two) == pytest.approx(1.0)
    assert 0.67 < whole(one, two, grain="piece") < 0.72
    assert whole(one, one, grain="piece") == pytest.approx(whole(one, one))


@given(st.text(st.characters(codec="utf-8"), max_size=200), st.integers(1, 80))
def test_pieces_join_to_the_text(text: str, times: int) -> None:
    """Pieces join to the text and end with a line; a longer text begins with the same pieces."""
    text = "\n".join([text] * times)
    cut = pieces(text)
    assert "".join(cut) == text
    assert all(len(piece) >= PIECE and piece.endswith("\n") for piece in cut[:-1])
    assert pieces(text + "\nmore")[: len(cut) - 1] == cut[:-1]


def test_sorted_tools_share_a_prefix() -> None:
    """Tools in another order share a prefix only if they are sorted; the body stays unchanged."""
    names = [f"tool_{number}" for number in range(30)]
    one, two = body("Hello", tools=names), body("Hello", tools=names[::-1])
    assert whole(one, two) == pytest.approx(1.0)
    assert whole(one, two, sort=True) < 0.7
    assert [tool["function"]["name"] for tool in sorted_tools(two)["tools"]] == sorted(names)
    assert two["tools"][0]["function"]["name"] == "tool_29"


def test_bound_of_a_longer_stream_is_never_beaten() -> None:
    """Random markers on random traffic never cost less."""
    rng = random.Random(7)
    at, stream, marks = 0.0, [], []
    for _ in range(200):
        at += rng.choice((2.0, 20.0, 100.0, 400.0))
        path = "".join(rng.choice("ab") for _ in range(rng.randint(2, 6)))
        stream += requests((at, rng.uniform(1, 30), path))
        places = sorted(rng.sample(range(len(path)), rng.randint(0, 2)))
        marks.append(dict.fromkeys(places, "5m"))
    cost = paid(cache(minimum=200), stream, marks)  # type: ignore[arg-type]
    assert cost is not None
    assert lower(stream, hour=False, minimum=200) < cost
