"""Two tenants with records on one server; see tests/engine/test_two_tenants.py."""

from __future__ import annotations

from tests.engine.test_two_tenants import EXAMPLES, run


def test_tenant_beside_a_hostile_one_gets_the_same_bytes_from_a_server(valkey: str) -> None:
    """Tenant B's bodies, plans, labels and receipts are equal with and without tenant A's traffic."""
    run(lambda: valkey, max(EXAMPLES // 4, 1))
