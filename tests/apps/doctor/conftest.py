"""Fixtures of the doctor's tests: an empty folder, and a server without faults."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import redis_servers
from benchmarks.redis_servers import Server
from tests.apps.doctor.doctor import ACL


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder without a settings file, and with a time limit that a busy machine keeps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CACHEMW_STORE_TIMEOUT_MS", "5000")


@pytest.fixture(scope="session")
def _roomy_server() -> Iterator[Server]:
    """Run a server with memory, an eviction policy and the ACL users."""
    options = ["--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru", *ACL]
    with redis_servers.standalone("valkey", *options) as server:
        yield server


@pytest.fixture
def roomy(_roomy_server: Server) -> Server:
    """Return that server without the keys of other tests."""
    with _roomy_server.client() as client:
        client.flushall()
    return _roomy_server
