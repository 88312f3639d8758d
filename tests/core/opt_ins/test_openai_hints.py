"""OpenAI's hints: the number of keys, breakpoints of OpenAI and of clients, and the equality."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.opt_ins import openai_hints
from cachemw.core.opt_ins.openai_hints import KEY, PromptCacheKeys, canonical, with_automatic_breakpoint
from cachemw.core.request.parser import ParsedRequest, Parser
from cachemw.core.rules.models import MODELS

HEAD = b"h" * 16
TRUNKS = [(n * 2_654_435_761 % 2**32).to_bytes(4) + bytes(12) for n in range(1000)]


def come(
    keys: PromptCacheKeys,
    seen: int,
    now: float,
    *,
    head: bytes = HEAD,
    trunk: bytes = TRUNKS[0],
    namespace: str = "n",
) -> str | None:
    """Return the key of a request that the provider accepts."""
    key = keys.key(namespace, head, trunk, seen, now)
    keys.learn(namespace, head, seen, now)
    return key


def familiar(
    keys: PromptCacheKeys,
    rate: float,
    *,
    minutes: int = 12,
    seen: int = 100,
    start: float = 0.0,
    namespace: str = "n",
) -> float:
    """Let a head come at a rate a minute, and return the time at the end."""
    for minute in range(minutes + 1):
        come(keys, seen + int(rate * minute), start + 60.0 * minute, namespace=namespace)
    return start + 60.0 * minutes


def spread(keys: PromptCacheKeys, seen: int, now: float, namespace: str = "n") -> set[str | None]:
    """Return the keys that many conversations get."""
    return {come(keys, seen, now, trunk=trunk, namespace=namespace) for trunk in TRUNKS}


def test_calm_shared_prefix_has_one_key() -> None:
    """All conversations under one shared prefix have one key of 40 characters, by secret and prefix."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, 10)
    (key,) = spread(keys, 220, now)
    assert key is not None
    assert key.startswith("cachemw-")
    assert len(key) == 40
    other, stranger = PromptCacheKeys(b"another"), PromptCacheKeys(b"secret")
    familiar(other, 10)
    familiar(stranger, 10)
    assert spread(other, 220, now) != {key}
    assert spread(stranger, 220, now) == {key}
    assert come(stranger, 5000, now, head=b"g" * 16) != key


@pytest.mark.parametrize(("rate", "ways"), [(4, 1), (12, 1), (13, 2), (24, 2), (25, 4), (90, 8), (5000, 64)])
def test_busy_shared_prefix_has_several_keys(rate: int, ways: int) -> None:
    """Each key takes at most twelve requests a minute, and at least half as many, up to 64 keys."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, rate)
    assert len(spread(keys, 100 + 12 * rate, now)) == ways


def test_conversation_keeps_its_key() -> None:
    """A conversation has one key from turn to turn; if keys double, half of the keys stay."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, 20)
    before = {trunk: come(keys, 340, now, trunk=trunk) for trunk in TRUNKS}
    assert before == {trunk: come(keys, 341, now + 1, trunk=trunk) for trunk in TRUNKS}
    now = familiar(keys, 40, minutes=2, seen=340, start=now)
    after = {trunk: come(keys, 420, now, trunk=trunk) for trunk in TRUNKS}
    kept = sum(before[trunk] == after[trunk] for trunk in TRUNKS)
    assert 400 < kept < 600


def test_keys_of_a_calming_prefix_are_merged_slowly() -> None:
    """A prefix that is half as busy keeps its keys; a calm one returns to one key."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, 90)
    now = familiar(keys, 45, minutes=3, seen=1180, start=now)
    assert len(spread(keys, 1315, now)) == 8
    now = familiar(keys, 2, minutes=3, seen=1315, start=now)
    assert len(spread(keys, 1321, now)) == 1


def test_arrivals_that_start_anew_are_no_negative_rate() -> None:
    """A forgotten record starts to count anew, which is no negative rate."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, 90)
    assert come(keys, 20, now + 60) is not None
    assert len(spread(keys, 20, now + 60)) <= 8


@pytest.mark.parametrize(
    ("seen", "after", "given"),
    [(0, 0, False), (15, 3600, False), (16, 599, False), (16, 600, True), (999, 1, False), (1000, 0, True)],
)
def test_new_shared_prefix_gets_no_key(seen: int, after: float, given: bool) -> None:
    """A shared prefix must arrive for ten minutes, or very often; one with the time in it never does."""
    keys = PromptCacheKeys(b"secret")
    come(keys, 0, 0.0)
    assert (come(keys, seen, after) is not None) == given


def test_shared_prefixes_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of remembered prefixes is bounded."""
    monkeypatch.setattr(openai_hints, "_REMEMBERED", 100)
    keys = PromptCacheKeys(b"secret")
    for number in range(1050):
        come(keys, 0, 0.0, head=number.to_bytes(16))
    assert len(keys._paces) == 100
    assert come(keys, 16, 600.0, head=(1049).to_bytes(16)) is not None
    assert come(keys, 16, 600.0, head=(0).to_bytes(16)) is None


def test_keys_of_a_small_namespace_survive_a_flood_of_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A namespace within its fair share loses no prefix to one that sends new ones without end."""
    monkeypatch.setattr(openai_hints, "_REMEMBERED", 100)
    keys = PromptCacheKeys(b"secret")
    mine = [number.to_bytes(16) for number in range(40)]
    for head in mine:
        come(keys, 0, 0.0, head=head)
    for number in range(1000):
        come(keys, 0, 1.0, head=number.to_bytes(16), namespace="flood")
    assert len(keys._paces) <= 100
    assert None not in {come(keys, 16, 600.0, head=head) for head in mine}


@pytest.mark.parametrize("count", [100, 101, 500])
def test_keys_of_too_many_namespaces_are_those_of_the_latest(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The table stays full: only as much is forgotten as is needed for the newest."""
    monkeypatch.setattr(openai_hints, "_REMEMBERED", 100)
    keys = PromptCacheKeys(b"secret")
    for number in range(count):
        come(keys, 0, 0.0, namespace=str(number))
    assert len(keys._paces) == 100
    assert come(keys, 16, 600.0, namespace=str(count - 1)) is not None


def test_keys_of_a_namespace_follow_its_own_prefixes() -> None:
    """One namespace's busy prefix is new in another, and spreads no key there."""
    keys = PromptCacheKeys(b"secret")
    now = familiar(keys, 90, namespace="busy")
    assert come(keys, 99, now, namespace="new") is None
    start = now
    now = familiar(keys, 4, start=start, namespace="calm")
    assert len(spread(keys, 148, now, "calm")) == 1
    assert len(spread(keys, 1180, start, "busy")) == 8


def test_keys_learn_nothing_from_a_request_that_was_not_accepted() -> None:
    """A request without an accepted response leaves a prefix as new and as calm as before."""
    keys = PromptCacheKeys(b"secret")
    for minute in range(60):
        assert keys.key("n", HEAD, TRUNKS[0], 900, 60.0 * minute) is None
    assert len(keys._paces) == 0
    now = familiar(keys, 10)
    for second in range(60, 600):
        keys.key("n", HEAD, TRUNKS[0], 50 * second, now + second)
    assert len(spread(keys, 230, now + 60)) == 1


def test_key_takes_a_secret_of_any_length() -> None:
    """The hash takes secrets of any length."""
    for secret in (b"", b"x" * 1000):
        assert come(PromptCacheKeys(secret), 5000, 0.0)


def parsed(body: dict[str, Any]) -> ParsedRequest:
    """Return a parsed body with the breakpoint that OpenAI adds."""
    found = Parser().parse({"model": "gpt-5.6", **body}, MODELS["gpt-5.6"])
    return with_automatic_breakpoint(found, body, 4)


def said(role: str, *parts: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": list(parts) if parts else "Hello there."}


PLAIN = {"type": "text", "text": "Hello."}
MARKED = {**PLAIN, "prompt_cache_breakpoint": {"mode": "explicit"}}


def test_automatic_breakpoint_takes_one_slot() -> None:
    """OpenAI's breakpoint takes one of four slots; assistant messages and calls take no breakpoint."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = {
        "messages": [
            said("developer"),
            said("user"),
            {**said("assistant"), "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "9"},
        ]
    }
    found = parsed(body)
    assert (found.automatic_marker, found.client_marker_count) == ("5m", 1)
    assert [block.markable for block in found.blocks] == [True, True, False, False, True]


def test_cache_control_is_no_marker_for_openai() -> None:
    """`cache_control` means nothing to OpenAI."""
    found = parsed({"messages": [said("user", {**PLAIN, "cache_control": {"type": "ephemeral"}})]})
    assert [block.marker for block in found.blocks] == [None]
    assert found.client_marker_count == 1


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [said("system", MARKED), said("user")]},
        {"messages": [said("system"), said("user", PLAIN, MARKED)]},
        {"messages": [said("user")], "prompt_cache_options": {"mode": "explicit"}},
    ],
)
def test_client_with_own_breakpoints_leaves_no_slot(body: dict[str, Any]) -> None:
    """Breakpoints of the client, or its explicit mode, leave no slot for added ones."""
    assert (parsed(body).client_marker_count, parsed(body).automatic_marker) == (4, None)


@pytest.mark.parametrize("options", [{"mode": "implicit"}, {"ttl": "30m"}, {}, "odd", None])
def test_options_without_a_decision_leave_slots(options: Any) -> None:
    """A TTL or the default mode is no decision."""
    assert parsed({"messages": [said("user")], "prompt_cache_options": options}).client_marker_count == 1


def test_canonical_ignores_hints_only() -> None:
    """Keys and breakpoints are dropped, a string is its one part, and everything else counts."""
    one = {"model": "m", "messages": [said("user", {**PLAIN, "text": "Hello there."})]}
    hinted = {**one, KEY: "k", "messages": [said("user", {**MARKED, "text": "Hello there."})]}
    assert canonical(one) == canonical(hinted) == canonical({**one, "messages": [said("user")]})
    for other in (
        {**one, "prompt_cache_options": {"mode": "explicit"}},
        {**one, "messages": [said("user", {**PLAIN, "text": "Hello you."})]},
        {**one, "messages": [said("user", {**PLAIN, "text": "Hello there.", "cache_control": {}})]},
        {**one, "user": "u"},
    ):
        assert canonical(one) != canonical(other)


@given(st.binary(max_size=80), st.lists(st.tuples(st.integers(0, 3000), st.floats(0, 900)), max_size=20))
def test_any_series_of_arrivals_gives_valid_keys(secret: bytes, steps: list[tuple[int, float]]) -> None:
    """For any arrivals, a key is None or one of the 64 of its prefix."""
    keys, now = PromptCacheKeys(secret), 0.0
    found = set()
    for seen, pause in steps:
        now += pause
        found.add(come(keys, seen, now, trunk=TRUNKS[seen % 1000]))
    assert all(key is None or key.startswith("cachemw-") for key in found)
    assert all(pace.keys in (1, 2, 4, 8, 16, 32, 64) for pace in keys._paces.values())
