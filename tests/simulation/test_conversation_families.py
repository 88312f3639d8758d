"""Generated traffic: equal by seed, long enough to be cached, with the stated shared parts."""

from __future__ import annotations

import re
from itertools import islice, pairwise

import orjson
import pytest

from cachemw.core.rules.model_names import find_model
from cachemw.simulation.conversation_families import FAMILIES, MODEL, mixed
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.traffic import NOW, Conversation, schedule

STREAMS = {name: stream for name, (stream, _) in FAMILIES.items()}


def provider() -> ProviderCache:
    """Return a fresh provider of the traffic's model."""
    model = find_model(MODEL)
    assert model is not None
    return ProviderCache(model)


def first(name: str, number: int, seed: int = 1) -> list[Conversation]:
    """Return the first conversations of a family."""
    return list(islice(STREAMS[name](seed, MODEL), number))


def shared(name: str) -> str:
    """Return the shared start of the first two conversations of a family, as text without the time."""
    one, other = (conversation.requests[0] for conversation in first(name, 2))
    assert one.get("tools") == other.get("tools")
    system = one["messages"][0]["content"]
    return system if system == other["messages"][0]["content"] else ""


@pytest.mark.parametrize("name", STREAMS)
def test_family_with_the_same_seed_is_equal(name: str) -> None:
    """A family is equal for one seed and differs for another."""
    assert first(name, 3) == first(name, 3)
    assert first(name, 3) != first(name, 3, seed=2)


def test_longer_stream_begins_with_the_shorter_one() -> None:
    """Further conversations change neither the conversations nor the times before them."""
    assert mixed(7, 40)[:15] == mixed(7, 15)
    few = {(a.at, orjson.dumps(a.body)) for a in schedule(mixed(7, 15), 7)}
    assert few <= {(a.at, orjson.dumps(a.body)) for a in schedule(mixed(7, 40), 7)}


@pytest.mark.parametrize("name", STREAMS)
def test_generated_requests_are_accepted_and_pass_the_minimum(name: str) -> None:
    """No request is refused, and each is long enough to be cached."""
    cache = provider()
    for conversation in first(name, 12):
        for body in conversation.requests:
            assert cache.convert(body).total > cache.minimum


@pytest.mark.parametrize(("name", "size"), [("support", 5_500), ("classifier", 8_000), ("documents", 50)])
def test_conversations_of_a_family_share_the_system_prompt(name: str, size: int) -> None:
    """Conversations share system prompt and tools word for word."""
    assert len(shared(name)) > size


def test_support_conversation_grows_and_calls_tools() -> None:
    """Each request begins with the one before; there are definitions, calls and results."""
    conversations = first("support", 10)
    for conversation in conversations:
        for before, after in pairwise(conversation.requests):
            assert after["messages"][: len(before["messages"])] == before["messages"]
    assert 8 <= len(conversations[0].requests[0]["tools"]) <= 15
    last = [conversation.requests[-1]["messages"] for conversation in conversations]
    assert any(message["role"] == "tool" for messages in last for message in messages)
    assert any(len(message.get("tool_calls") or ()) > 1 for messages in last for message in messages)


def test_questions_of_a_reader_share_the_document_block() -> None:
    """Questions come alone after the same document; some documents get one question only."""
    readers = first("documents", 20)
    for reader in readers:
        documents = {body["messages"][1]["content"][0]["text"] for body in reader.requests}
        questions = {body["messages"][1]["content"][1]["text"] for body in reader.requests}
        assert len(documents) == 1
        assert len(questions) > len(reader.requests) // 2
    assert {len(reader.requests) for reader in readers} > {1, 2}


def test_dated_prompt_holds_the_minute_of_arrival() -> None:
    """The time stands at the start or midway, and equals the arrival."""
    arrivals = schedule(first("dated", 6), seed=1)
    places = set()
    for arrival in arrivals:
        system = arrival.body["messages"][0]["content"]
        assert NOW not in system
        (found,) = re.finditer(r"The time is 2026-11-02 (\d\d):(\d\d) UTC", system)
        assert int(found[1]) * 60 + int(found[2]) == arrival.at // 60 % (24 * 60)
        places.add("first" if found.start() == 0 else "midway" if found.start() > 2_000 else "else")
    assert places == {"first", "midway"}


def test_arrivals_are_sorted_and_interleave() -> None:
    """Requests are sorted by time and keep the order of their conversation; people are slower than tools."""
    conversations = first("support", 20)
    arrivals = schedule(conversations, seed=3)
    assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
    assert len(arrivals) == sum(len(conversation.requests) for conversation in conversations)
    positions = {id(arrival.body): index for index, arrival in enumerate(arrivals)}
    spans = [[positions[id(body)] for body in conversation.requests] for conversation in conversations]
    assert all(span == sorted(span) for span in spans)
    assert any(span[-1] - span[0] > len(span) for span in spans)
    at = {id(arrival.body): arrival.at for arrival in arrivals}
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for conversation in conversations:
        for before, after in pairwise(conversation.requests):
            gaps[after["messages"][-1]["role"] == "tool"].append(at[id(after)] - at[id(before)])
    assert sorted(gaps[True])[len(gaps[True]) // 2] < 10 < 20 < sorted(gaps[False])[len(gaps[False]) // 2]


def test_gaps_of_people_have_a_tail_past_five_minutes() -> None:
    """Some gaps are longer than the shorter TTL."""
    talk = Conversation("talk", tuple({"model": MODEL, "messages": [{"role": "user"}]} for _ in range(2_000)))
    times = [arrival.at for arrival in schedule([talk], seed=1)]
    late = sum(after - before > 300 for before, after in pairwise(times)) / len(times)
    assert 0.01 < late < 0.06


def test_mixed_traffic_has_all_families() -> None:
    """A hundred conversations hold every family, single requests most often."""
    names = [conversation.family for conversation in mixed(1, 100)]
    assert len(set(names)) == len(FAMILIES)
    assert max(set(names), key=names.count) == "few-shot classifier"
