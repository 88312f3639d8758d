"""The landing places of the peers' markers. A policy adds markers and no other change."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import peers
from benchmarks.peers import PACKAGES, Peer, PeerError, peer_policies, time_litellm_hook
from benchmarks.peers.skeleton import Skeleton
from cachemw.core.request.equality import canonical
from cachemw.core.rules.types import Model
from cachemw.simulation.options import Options, Refused
from cachemw.simulation.provider import ProviderCache

Body = dict[str, Any]
MARKER: Body = {"cache_control": {"type": "ephemeral"}}
IMAGE = {
    "type": "image_url",
    "image_url": {"url": f"data:image/png;base64,{base64.b64encode(b'x').decode()}"},
}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm", "signature": "s"}]}
needs_packages = pytest.mark.skipif(
    not peers.PYTHON.exists(), reason="the packages' environment .venv-peers is absent"
)
every_policy = pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=needs_packages) for name in PACKAGES), "goose", "copilot"]
)


def text(words: str = "Some words.", **rest: Any) -> Body:
    """Return a text part."""
    return {"type": "text", "text": words, **rest}


def spoken(role: str, content: Any = "Some words.") -> Body:
    """Return a message."""
    return {"role": role, "content": content}


def turn(*identities: str, content: Any = "Found it.") -> list[Body]:
    """Return an assistant's calls and their results."""
    calls = [
        {"id": identity, "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
        for identity in identities
    ]
    results = [{"role": "tool", "tool_call_id": identity, "content": content} for identity in identities]
    return [{"role": "assistant", "content": "Looking.", "tool_calls": calls}, *results]


def chat(*messages: Body, tools: int = 0) -> Body:
    """Return a body of messages and so many tools."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    function = {"description": "Looks.", "parameters": schema}
    named = [{"type": "function", "function": {"name": f"look{n}", **function}} for n in range(tools)]
    return {"model": "databricks-claude-sonnet-4-5", "messages": list(messages)} | (
        {"tools": named} if tools else {}
    )


def places(node: Any, path: str = "") -> dict[str, str]:
    """Return the paths of all markers in a body, with their TTLs."""
    found: dict[str, str] = {}
    if isinstance(node, dict):
        if "cache_control" in node:
            found[path] = node["cache_control"].get("ttl", "5m")
        for key, value in node.items():
            found |= places(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            found |= places(value, f"{path}.{number}")
    return found


LOOP = chat(
    spoken("system"), spoken("user"), *turn("a"), *turn("b"), *turn("c"), *turn("d"), *turn("e"), tools=3
)
WIDE = chat(
    spoken("system"), spoken("user"), *turn("a"), *turn(*(f"b{n}" for n in range(24))), tools=1
)  # fmt: skip
TWO_SYSTEM = chat(spoken("system", [text(), text()]), spoken("system"), spoken("user"))
BLANK_TAIL = chat(spoken("user", [text(), text(" ")]))
BLANK_RESULT = chat(spoken("user"), *turn("a", content=""))
THINKING_TAIL = chat(spoken("user"), spoken("assistant", [text(), THOUGHT]))
IMAGE_RESULT = chat(spoken("user"), *turn("a", content=[IMAGE, text()]))
IMAGE_TAIL = chat(spoken("user", [text(), IMAGE]))
LATE_SYSTEM = chat(spoken("system"), spoken("user"), spoken("assistant"), spoken("user"), spoken("system"))
OWN = chat(
    spoken("system", [text(**MARKER)]), spoken("user", [text(**MARKER)]), spoken("assistant"), spoken("user")
)

T, S, C = "tools", "messages.0.content.0", "content.0"
LANDINGS: dict[str, list[tuple[Body, list[str]]]] = {
    "litellm": [
        (LOOP, [S, f"messages.11.{C}"]),
        (WIDE, [S, f"messages.28.{C}"]),
        (TWO_SYSTEM, ["messages.0.content.1", f"messages.1.{C}", f"messages.2.{C}"]),
        (BLANK_TAIL, []),  # its Databricks transform drops the text that its hook marked
        (BLANK_RESULT, []),
        (THINKING_TAIL, ["messages.1.content.1"]),
        (IMAGE_RESULT, ["messages.2.content.1"]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [S, f"messages.4.{C}"]),
        (OWN, [S, f"messages.1.{C}", f"messages.3.{C}"]),
    ],
    "pydantic_ai": [
        (LOOP, [f"{T}.2", S, f"messages.11.{C}"]),
        (WIDE, [f"{T}.0", S, f"messages.3.{C}", f"messages.28.{C}"]),
        (TWO_SYSTEM, [f"messages.1.{C}", f"messages.2.{C}"]),
        (BLANK_TAIL, ["messages.0.content.1"]),
        (BLANK_RESULT, [f"messages.2.{C}"]),
        (THINKING_TAIL, [f"messages.1.{C}"]),
        (IMAGE_RESULT, ["messages.2.content.1"]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [S, f"messages.4.{C}"]),
        (OWN, [S, f"messages.3.{C}"]),
    ],
    "langchain": [
        (LOOP, [f"{T}.2", S, f"messages.11.{C}"]),
        (WIDE, [f"{T}.0", S, f"messages.28.{C}"]),
        (TWO_SYSTEM, [f"messages.1.{C}", f"messages.2.{C}"]),
        (BLANK_TAIL, [S]),
        (BLANK_RESULT, ["messages.1.tool_calls.0"]),
        (THINKING_TAIL, [f"messages.1.{C}"]),
        (IMAGE_RESULT, ["messages.2.content.1"]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [S, f"messages.4.{C}"]),
        (OWN, [S, f"messages.1.{C}", f"messages.3.{C}"]),
    ],
    "strands": [
        (LOOP, [f"{T}.2", S, f"messages.11.{C}"]),
        (WIDE, [f"{T}.0", S, f"messages.28.{C}"]),
        (TWO_SYSTEM, [f"messages.1.{C}", f"messages.2.{C}"]),
        (BLANK_TAIL, ["messages.0.content.1"]),
        (BLANK_RESULT, ["messages.1.tool_calls.0"]),
        (THINKING_TAIL, [S]),
        (IMAGE_RESULT, ["messages.2.content.1"]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [S, f"messages.4.{C}"]),
        (OWN, [S, f"messages.3.{C}"]),
    ],
    "goose": [
        (LOOP, [f"{T}.2.function", S, f"messages.1.{C}"]),
        (WIDE, [f"{T}.0.function", S, f"messages.1.{C}"]),
        (TWO_SYSTEM, [f"messages.2.{C}"]),
        (BLANK_TAIL, ["messages.0.content.1"]),
        (BLANK_RESULT, [S]),
        (THINKING_TAIL, [S]),
        (IMAGE_RESULT, [S]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [S, f"messages.1.{C}", f"messages.3.{C}"]),
        (OWN, [f"messages.1.{C}", f"messages.3.{C}"]),
    ],
    "copilot": [
        (LOOP, [f"{T}.2", S, "messages.10.tool_calls.0", f"messages.11.{C}"]),
        (WIDE, [f"{T}.0", S, "messages.4.tool_calls.23", f"messages.28.{C}"]),
        (TWO_SYSTEM, [f"messages.1.{C}", f"messages.2.{C}"]),
        (BLANK_TAIL, [S]),
        (BLANK_RESULT, [S, "messages.1.tool_calls.0"]),
        (THINKING_TAIL, [S, f"messages.1.{C}"]),
        (IMAGE_RESULT, ["messages.1.tool_calls.0", "messages.2.content.1"]),
        (IMAGE_TAIL, ["messages.0.content.1"]),
        (LATE_SYSTEM, [f"messages.2.{C}", f"messages.3.{C}", f"messages.4.{C}"]),
        (OWN, [S, f"messages.2.{C}", f"messages.3.{C}"]),
    ],
}


@every_policy
def test_policy_marks_the_places_of_its_source(name: str) -> None:
    """Each rule marks the places that its source names, in requests that differ between the rules."""
    policy = peer_policies()[name]
    for body, expected in LANDINGS[name]:
        assert sorted(places(policy(body))) == sorted(expected), body


@every_policy
def test_policy_on_a_tool_loop_is_accepted_with_five_minute_markers(name: str) -> None:
    """The provider takes the tool loop as each peer marks it, and every marker has the TTL of five minutes."""
    marked = peer_policies()[name](LOOP)
    assert set(places(marked).values()) == {"5m"}
    ProviderCache(Model("claude-test", 0, None), Options()).begin(marked, 0, "chat")


WORDS = st.sampled_from(["Hello.", "It is raining. " * 200, "1", " ", "\n\t", ""])
TEXT = st.builds(text, WORDS)


def content(*parts: Body) -> st.SearchStrategy[Any]:
    """Draw a string or a list of texts and other parts."""
    return st.one_of(WORDS, st.lists(st.one_of(TEXT, *map(st.just, parts)), min_size=1, max_size=3))


@st.composite
def bodies(draw: st.DrawFn) -> Body:
    """Draw a chat with images, thinking, blank texts, wide turns, results out of order, and results without a call."""
    system = draw(
        st.lists(st.builds(spoken, st.sampled_from(["system", "developer"]), content()), max_size=2)
    )
    messages: list[Body] = []
    for number in range(draw(st.integers(1, 4))):
        messages.append(spoken("user", draw(content(IMAGE))))
        kind = draw(st.sampled_from(["reply", "calls", "unasked", "nothing"]))
        if kind == "reply":
            messages.append(spoken("assistant", draw(content(THOUGHT))))
        if kind == "unasked":
            messages.append({"role": "tool", "tool_call_id": "gone", "content": draw(content(IMAGE))})
        if kind == "calls":
            width = draw(st.sampled_from([1, 2, 3, 24]))
            first, *results = turn(*(f"{number}-{n}" for n in range(width)))
            first["content"] = draw(st.one_of(st.none(), content(THOUGHT)))
            results[0]["content"] = draw(content(IMAGE))
            messages += [first, *draw(st.permutations(results))]
    return chat(*system, *messages, tools=draw(st.integers(0, 3)))


def refusal_of(body: Body) -> str | None:
    """Return a strict provider's error for a body, or None if it accepts it."""
    try:
        ProviderCache(Model("claude-test", 0, None), Options()).begin(body, 0, "chat")
    except Refused as refused:
        return refused.message
    return None


examples = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@every_policy
@examples
@given(body=bodies())
def test_policy_on_any_body_adds_only_markers(name: str, body: Body) -> None:
    """The outgoing body equals the incoming one; the provider refuses only markers on blank texts or thinking."""
    before = repr(body)
    marked = peer_policies()[name](body)
    assert canonical(marked) == canonical(body)
    assert repr(body) == before
    refusal = refusal_of(marked)
    if refusal_of(body) is None and refusal is not None:
        assert "empty text blocks" in refusal or "thinking.cache_control" in refusal


@needs_packages
@pytest.mark.parametrize("name", PACKAGES)
@examples
@given(body=bodies())
def test_package_with_stand_ins_marks_the_same_blocks(name: str, body: Body) -> None:
    """A package that sees the texts themselves marks the same blocks as one that sees stand-ins."""
    peer = peer_policies()[name]
    assert isinstance(peer, Peer)
    assert peer.ask({"body": body, "with_texts": True}) == peer.ask({"body": Skeleton(body).body})


def test_skeleton_of_long_texts_is_short() -> None:
    """A skeleton doesn't grow with its texts, its tools' schemas or its calls' arguments."""
    long = chat(spoken("user", "word " * 100_000), *turn("a", content="word " * 100_000), tools=3)
    short = chat(spoken("user", "word"), *turn("a", content="word"), tools=3)
    assert Skeleton(long).body == Skeleton(short).body


@needs_packages
def test_peer_with_two_bodies_of_one_shape_asks_once() -> None:
    """Bodies of one shape are one question; another shape is another."""
    peer = peer_policies()["strands"]
    assert isinstance(peer, Peer)
    before = peer._answers.cache_info()
    shape = turn(*"abcdefg")
    one, other = (peer(chat(spoken("user", words), *shape)) for words in ("one", "another"))
    assert places(one) == places(other) == {"messages.8.content.0": "5m"}
    peer(chat(spoken("user", " "), *shape))
    after = peer._answers.cache_info()
    assert (after.hits - before.hits, after.misses - before.misses) == (1, 2)


@needs_packages
def test_peer_after_a_refusal_of_its_package_raises_and_goes_on() -> None:
    """An error of the package reaches the benchmark with the peer's name, and the next question is answered."""
    peer = peer_policies()["litellm"]
    assert isinstance(peer, Peer)
    with pytest.raises(PeerError, match="litellm: KeyError: 'messages'"):
        peer.ask({"body": {}})
    assert peer(LOOP) != LOOP


@needs_packages
def test_litellm_hook_on_a_long_body_takes_longer() -> None:
    """The hook is timed on the body itself, not on its skeleton."""
    short, long = (chat(*[spoken("user") for _ in range(count)]) for count in (1, 400))
    assert len(time_litellm_hook(short, 5)) == 5
    assert min(time_litellm_hook(long, 5)) > 4 * min(time_litellm_hook(short, 5))


def test_peer_without_its_environment_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the environment, the error of a package's policy names the command that builds it."""
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "python")
    with pytest.raises(PeerError, match=r"strands: \.venv-peers is absent; run make bench-peers-setup"):
        Peer("strands")(LOOP)


def test_peer_whose_process_ends_raises_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends at once, as with a missing package, is an error and no hang."""
    monkeypatch.setattr(peers, "PYTHON", Path(sys.executable))
    silent: Callable[..., Any] = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **pipes: silent([command[0], "-c", "raise SystemExit(3)"], **pipes),
    )
    with pytest.raises(PeerError, match="strands: its process ended with status 3"):
        Peer("strands")(LOOP)


def test_skeleton_of_an_unknown_part_raises() -> None:
    """A part that the drivers can't hand over is an error, not a silent change."""
    with pytest.raises(ValueError, match="'input_audio' is not driven; allowed: text, image_url, reasoning"):
        Skeleton(chat(spoken("user", [{"type": "input_audio"}])))
