"""The tenant of a call that LiteLLM's proxy has authenticated; these tests need no LiteLLM."""

from __future__ import annotations

from itertools import combinations

import pytest

from cachemw.integrations.litellm_request import namespace

KINDS = {"team": "team_id", "key": "hash", "user": "user_id", "email": "user_email", "org": "org_id"}


@pytest.mark.parametrize("kind", KINDS)
def test_namespace_of_each_kind_of_tenant_is_its_own(kind: str) -> None:
    """Two values of the only known field are two tenants, and each namespace holds a hash."""
    one, two = (namespace({"metadata": {f"user_api_key_{KINDS[kind]}": name}}) for name in ("alice", "bob"))
    assert one != two
    assert one is not None
    assert one.startswith(f"litellm-{kind}-")
    assert "alice" not in one


@pytest.mark.parametrize(("first", "later"), [*combinations(KINDS, 2)])
def test_namespace_with_a_narrower_field_stays_the_same(first: str, later: str) -> None:
    """A team is one tenant with all its keys and users, a key with all its users, a user in all organisations."""
    known = {f"user_api_key_{KINDS[first]}": "x"}
    assert namespace({"metadata": {**known, f"user_api_key_{KINDS[later]}": "y"}}) == namespace(
        {"metadata": known}
    )
