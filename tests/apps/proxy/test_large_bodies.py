"""Large requests through the proxy: what passes, and who else is served meanwhile."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from benchmarks.large_bodies import bodies
from tests.apps.proxy.proxied import proxying, raw, rest

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
PATIENCE = 1.0
"""Seconds until /healthz answers. Without a limit on what is read, most of the bodies take 2 to 12."""
SLOW = {name: (path, build) for name, path, build in bodies(30 << 20) if not name.startswith(("one", "read"))}


@pytest.mark.parametrize("name", SLOW)
def test_healthz_answers_while_a_request_that_is_slow_to_read_passes(name: str) -> None:
    """The request reaches the upstream byte for byte, and no answer of /healthz waits for it."""
    path, build = SLOW[name]
    body = build()
    head = f"POST {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    with (
        raw(OK) as upstream,
        proxying(upstream.url) as running,
        closing(running.connect()) as asking,
        closing(running.connect()) as watching,
    ):
        asking.settimeout(60)
        asking.sendall(head.encode() + body)
        longest, answers = 0.0, 0
        while not (upstream.arrived and answers):
            begun = time.monotonic()
            watching.sendall(b"GET /healthz HTTP/1.1\r\nhost: proxy\r\n\r\n")
            got = b""
            while not got.endswith(b"\r\n\r\nok"):
                got += watching.recv(1000)
            longest, answers = max(longest, time.monotonic() - begun), answers + 1
        assert rest(asking).endswith(b"ok")
        counts = running.mw.counts
    assert upstream.arrived[0].endswith(body)
    assert longest < PATIENCE
    assert counts.get("pass.too_many_values", 0) == (path != "/v1/other")
