"""Large requests through the proxy, and other clients meanwhile."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from benchmarks.large_bodies import bodies
from tests.apps.proxy.proxied import OK, PATIENCE, proxying, raw, rest

CPU_LIMIT = 1.0
"""Seconds of this process's CPU until /healthz answers. Without limits, most bodies take 2 to 12."""
SLOW = {name: (path, build) for name, path, build in bodies(30 << 20) if not name.startswith(("one", "read"))}


@pytest.mark.parametrize("name", SLOW)
def test_healthz_answers_while_a_slow_request_passes(name: str) -> None:
    """The request reaches the upstream byte for byte, and /healthz does not wait for it."""
    path, build = SLOW[name]
    body = build()
    head = f"POST {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with (
        raw(OK) as upstream,
        proxying(upstream.url) as running,
        closing(running.connect()) as asking,
        closing(running.connect()) as watching,
    ):
        asking.settimeout(2 * PATIENCE)
        asking.sendall(head.encode() + body)
        longest, answers = 0.0, 0
        while not (upstream.arrived and answers):
            begun = time.process_time()
            watching.sendall(b"GET /healthz HTTP/1.1\r\nhost: proxy\r\n\r\n")
            got = b""
            while not got.endswith(b"\r\n\r\nok"):
                got += watching.recv(1000)
            longest, answers = max(longest, time.process_time() - begun), answers + 1
        assert rest(asking).endswith(b"ok")
        counts = running.mw.counts
    assert upstream.arrived[0].endswith(body)
    assert longest < CPU_LIMIT
    assert counts.get("pass.too_many_values", 0) == (path != "/v1/other")
