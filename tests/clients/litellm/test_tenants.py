"""Whose call it is that LiteLLM's proxy has let in, by whatever it asked for; LiteLLM itself is not needed."""

from __future__ import annotations

from itertools import combinations

import pytest

from cachemw.integrations.litellm_request import namespace

KINDS = {"team": "team_id", "key": "hash", "user": "user_id", "email": "user_email", "org": "org_id"}


@pytest.mark.parametrize("kind", KINDS)
def test_each_has_a_namespace(kind: str) -> None:
    """Two that are only known by this are two tenants, and what is kept of each is a hash."""
    one, two = (namespace({"metadata": {f"user_api_key_{KINDS[kind]}": who}}) for who in ("alice", "bob"))
    assert one != two
    assert one is not None
    assert one.startswith(f"litellm-{kind}-")
    assert "alice" not in one


@pytest.mark.parametrize(("first", "later"), [*combinations(KINDS, 2)])
def test_the_narrower_word_does_not_split_a_tenant(first: str, later: str) -> None:
    """A team is one whatever keys and users it has, a key whoever uses it, a user in whatever organisation."""
    known = {f"user_api_key_{KINDS[first]}": "x"}
    assert namespace({"metadata": {**known, f"user_api_key_{KINDS[later]}": "y"}}) == namespace(
        {"metadata": known}
    )
