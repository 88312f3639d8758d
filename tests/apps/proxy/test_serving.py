"""Connections of raw clients to the proxy: upgrades, trailers, pipelines, HTTP/1.0."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing, suppress

import pytest

from tests.apps.proxy.proxied import CHAT, OK, QUICK, Proxied, proxying, raw, rest, until
from tests.clients.recorder import conversation

STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n"
SIZED = b"content-length: 7\r\n\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n"


def bodies(arrived: list[bytes]) -> list[bytes]:
    """Return the bodies of requests."""
    return [whole.partition(b"\r\n\r\n")[2] for whole in arrived]


def slowly(running: Proxied, *parts: bytes) -> bytes:
    """Send parts one by one, with pauses, and return the answers."""
    with closing(running.connect()) as made:
        for part in parts:
            made.sendall(part)
            time.sleep(0.05)
        return rest(made)


def taken(made: socket.socket, part: bytes) -> int:
    """Return the bytes that an endless sender sends until the connection ends, at most 256 MB."""
    sent = 0
    with suppress(OSError):
        while sent < 256 << 20:
            sent += made.send(part)
    return sent


@pytest.mark.parametrize(
    "asked", [b"Upgrade, HTTP2-Settings\r\nUpgrade: h2c", b"upgrade\r\nupgrade: websocket"]
)
@pytest.mark.parametrize(
    "parts",
    [
        [SIZED + b'{"a":1}' + LAST],
        [SIZED, b'{"a":1}', LAST],
        [SIZED + b'{"a"', b":1}" + LAST],
        [CHUNKED + b'7\r\n{"a":1}\r\n0\r\n\r\n', LAST],
        [CHUNKED, b'7\r\n{"a":1}\r\n0\r\n\r\n' + LAST],
        [SIZED[:9], SIZED[9:], b'{"a":1}' + LAST],
    ],
)
def test_request_with_upgrade_is_served_without_it(
    asked: bytes, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """The body arrives in any cut, the next request is separate, and no line is logged."""
    head = (
        b"POST /x?y HTTP/1.1\r\nhost: proxy\r\nx-kept: 1\r\nHTTP2-Settings: AA\r\nconnection: %s\r\n" % asked
    )
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = slowly(running, head + parts[0], *parts[1:])
    assert got.count(b"HTTP/1.1 200") == 2
    assert bodies(upstream.arrived) == [b'{"a":1}', b""]
    first = upstream.arrived[0].lower()
    assert first.startswith(b"post /x?y http/1.1\r\n")
    assert b"x-kept: 1" in first
    assert b"upgrade" not in first
    assert not caplog.records


def test_pipelined_requests_with_upgrade_are_all_served() -> None:
    """Twenty requests in one part are served, and the last one closes the connection."""
    one = b"GET /x HTTP/1.1\r\nhost: proxy\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(one * 20 + one.replace(b"upgrade\r\n", b"upgrade, close\r\n") + b"\r\nmore")
    assert got.count(b"HTTP/1.1 200") == got.count(b"HTTP/1.1") == 21


@pytest.mark.parametrize("target", [b"a.com:443", b"/x"])
def test_connect_is_refused(target: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """CONNECT gets the same answer for any target, and no line is logged."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(b"CONNECT " + target + b" HTTP/1.1\r\nhost: proxy\r\n\r\nmore")
    assert got.startswith(b"HTTP/1.1 400")
    assert got.endswith(b"\r\n\r\nCONNECT is not supported.")
    assert upstream.arrived == []
    assert not caplog.records


def test_bytes_that_are_not_http_are_a_400() -> None:
    """The connection ends, and no byte reaches the upstream."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(b"GET /x HTTP/1.1\r\nno header\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")
    assert got.endswith(b"\r\n\r\nThe request is not valid HTTP.")
    assert upstream.arrived == []


def test_trailers_are_no_headers() -> None:
    """Trailers neither name a tenant nor reach the upstream, and the next request is unaffected."""
    body = json.dumps(conversation()).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: proxy\r\nauthorization: Bearer %s\r\n".encode()
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}"
    with raw(answer) as upstream, proxying(upstream.url, namespace_header="x-tenant") as running:
        tenant = b"x-tenant: one\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        for _ in range(2):
            known = running.ask(head % b"a" + tenant + body)
        chunk = CHUNKED + b"%x\r\n%s\r\n0\r\n" % (len(body), body)
        got = running.ask(head % b"b" + chunk + b"x-tenant: one\r\nx-api-key: c\r\n\r\n" + LAST)
    assert b"x-cachemw-predicted-read: 0" not in known
    assert b"x-cachemw-predicted-read: 0" in got
    assert got.count(b"HTTP/1.1 200") == 2
    assert not any(b"x-tenant" in whole or b"x-api-key" in whole for whole in upstream.arrived)


@pytest.mark.parametrize("endless", [b"x\r\nx-a: " + b"v" * 1000, b"v" * 1000])
def test_endless_trailers_break_the_connection_off(endless: bytes) -> None:
    """The limit holds for many trailers and for a long one."""
    with raw(OK) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(b"POST /x HTTP/1.1\r\nhost: proxy\r\n" + CHUNKED + b"2\r\nab\r\n0\r\nx-a: ")
        assert taken(made, endless * 100) < 16 << 20
        until(lambda: not running.connections, "the connection is gone")
    assert upstream.arrived == []


def test_long_body_does_not_count_for_the_next_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that ends a body and begins a head breaks no connection off."""
    monkeypatch.setattr("cachemw.apps.proxy.connection._HEAD_BYTES", 1000)
    long = b"z" * 10_000
    first = b"POST /x HTTP/1.1\r\nhost: proxy\r\ncontent-length: %d\r\n\r\n" % len(long)
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = slowly(running, first + long + LAST[:20], LAST[20:])
    assert got.count(b"HTTP/1.1 200") == 2
    assert bodies(upstream.arrived) == [long, b""]


def test_body_in_many_small_chunks_is_no_endless_head() -> None:
    """The sizes of chunks do not add up to the limit of a head."""
    with raw(OK) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sendall(b"POST /x HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n" + CHUNKED)
        size = b"1;" + b"e" * 4000 + b"\r\n"
        for _ in range(40):
            made.sendall(size)
            time.sleep(0.002)
            made.sendall(b"a\r\n")
            time.sleep(0.002)
        made.sendall(b"0\r\n\r\n")
        assert rest(made).endswith(b"ok")
    assert bodies(upstream.arrived) == [b"a" * 40]


def test_answer_over_http_1_0_has_no_chunks() -> None:
    """An answer of unknown length ends with the connection; a known length is sent."""
    asked = b"GET /x HTTP/1.0\r\nhost: proxy\r\n\r\n"
    with raw(STREAM + b"3\r\nend\r\n0\r\n\r\n") as upstream, proxying(upstream.url) as running:
        assert running.ask(asked) == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nokend"
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert running.ask(asked) == OK
    with raw(b"HTTP/1.1 200 OK\r\nx-a: b\r\n\r\n") as upstream, proxying(upstream.url) as running:
        got = running.ask(asked.replace(b"GET", b"HEAD"))
        assert got == b"HTTP/1.1 200 OK\r\nx-a: b\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize("stalls", [False, True])
def test_incomplete_answer_over_http_1_0_resets_the_connection(stalls: bool) -> None:
    """A regular end of the connection would mark the answer as whole."""

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(STREAM)
        if stalls:
            rest(made)

    with (
        raw(answer) as upstream,
        proxying(upstream.url, limits=QUICK) as running,
        closing(running.connect()) as made,
    ):
        made.sendall(b"GET /x HTTP/1.0\r\nhost: proxy\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            list(iter(lambda: made.recv(1000), b""))


def test_own_paths_have_the_limits_of_a_request() -> None:
    """Their request bodies are read first, and an endless one ends."""
    with raw(OK) as upstream, proxying(upstream.url, max_body=1 << 20) as running:
        head = b"GET /healthz HTTP/1.1\r\nhost: proxy\r\n"
        assert slowly(running, head + SIZED, b'{"a":1}' + LAST).count(b"HTTP/1.1 200") == 2
        with closing(running.connect()) as made:
            made.sendall(head + CHUNKED)
            assert taken(made, b"10000\r\n" + b"x" * 65_536 + b"\r\n") < 32 << 20
    assert len(upstream.arrived) == 1
