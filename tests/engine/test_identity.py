"""Identity by hash: a collision, prepared or by chance, must never change a request.

The reasoning stands in SECURITY.md, "Identity by hash".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128_digest

import cachemw
from cachemw.core.request import canonical_json, message_blocks
from cachemw.core.request.equality import canonical
from tests.bodies import PARAGRAPH

MODEL = "claude-sonnet-4-6"
# A second preimage of the public xxh3-128 with the seed that the memo of 0.1.0 used.
PREIMAGE = Path(__file__).resolve().parents[2] / "../shared/attacks/xxh3_out.json"
MANY_PARTS = {
    "role": "user",
    "content": [{"type": "text", "text": f"part {number}"} for number in range(400)],
}
VICTIM = {"role": "user", "content": PARAGRAPH * 40}


def request(message: Any) -> dict[str, Any]:
    """Return a body of one message."""
    return {"model": MODEL, "messages": [message]}


def sent(mw: cachemw.Middleware, message: Any, namespace: str) -> cachemw.Call:
    """Send a request that the provider accepts."""
    call = mw.prepare(request(message), namespace=namespace)
    mw.begun(call)
    mw.settle(call, {"prompt_tokens": 5_000, "completion_tokens": 1})
    return call


def colliding(data: bytes, seed: int = 0) -> bytes:
    """Give all messages of one seed the same hash."""
    return xxh3_128_digest(b"", seed)


def collide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all values collide in the memo, and all blocks in their digests."""
    monkeypatch.setattr(canonical_json, "xxh3_128_digest", colliding)
    monkeypatch.setattr(message_blocks, "_digest", colliding)


def test_memo_in_which_all_messages_collide_changes_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a namespace a wrong memo entry costs the markers of the request, and no byte else."""
    collide(monkeypatch)
    mw = cachemw.Middleware(provider="databricks", min_tokens=0)
    sent(mw, MANY_PARTS, "one")
    for _ in range(3):
        call = sent(mw, VICTIM, "one")
        assert canonical(call.body) == canonical(request(VICTIM))
        assert call.plan.skipped == "unreadable"
    assert mw.counts == {"pass.bad_path": 3, "skip.unreadable": 3}


def test_memo_in_which_all_messages_collide_stays_within_its_namespace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even if every hash collides, the messages of one tenant are not read as another's."""
    collide(monkeypatch)
    alone, shared = (cachemw.Middleware(provider="databricks", min_tokens=0) for _ in range(2))
    sent(shared, MANY_PARTS, "evil")
    for _ in range(3):
        calls = [sent(mw, VICTIM, "victim") for mw in (alone, shared)]
        assert calls[0].body == calls[1].body
        assert calls[0].plan == calls[1].plan


def test_digest_collisions_of_blocks_change_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all blocks have one digest, plans are wrong and bodies are right."""
    collide(monkeypatch)
    mw = cachemw.Middleware(provider="databricks", min_tokens=0)
    for message in (MANY_PARTS, VICTIM, MANY_PARTS, VICTIM):
        assert canonical(sent(mw, message, "one").body) == canonical(request(message))


def test_prepared_second_preimage_changes_no_other_tenants_request() -> None:
    """The attack that broke 0.1.0: one request with a crafted message, then another tenant's prompt."""
    if not PREIMAGE.exists():
        pytest.skip("the crafted messages are recorded data that this clone does not have")
    crafted = json.loads(PREIMAGE.read_text())
    evil, victim = json.loads(crafted["evil"]), json.loads(crafted["victim"])
    assert xxh3_128_digest(crafted["evil"].encode(), 2) == xxh3_128_digest(crafted["victim"].encode(), 2)
    mw = cachemw.Middleware(provider="databricks", min_tokens=0)
    sent(mw, evil, "evil")
    for namespace in ("victim", "evil"):
        for _ in range(3):
            call = sent(mw, victim, namespace)
            assert canonical(call.body) == canonical(request(victim))
    assert not [name for name in mw.counts if name.startswith(("pass.", "error."))]


def test_hashes_of_two_middlewares_on_memory_stores_differ() -> None:
    """A process that shares no store keys its hashes with a random key of its own."""
    digests = [
        cachemw.Middleware(provider="databricks")
        .prepare(request(VICTIM))
        ._lifecycle.parsed.prompt.prefix_hashes
        for _ in range(2)
    ]
    assert not set(digests[0]) & set(digests[1])
