"""Limits on clients: long and slow requests, clients that disconnect, and clients that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import closing, suppress
from typing import Any

import httpx2
import pytest

from cachemw.apps.proxy import connection, serving
from cachemw.apps.proxy.reverse_proxy import Limits
from tests.apps.proxy.proxied import CHAT, OK, QUICK, chat, post, proxying, raw, rest, until
from tests.clients.recorder import conversation

ERROR_TYPE = {CHAT: ("error", "code"), "/v1/messages": ("error", "type")}
"""The path of an error's short name, by the path of the request."""


def recording(calls: list[Any], method: Any) -> Any:
    """Return an async method that records the arguments of its calls."""

    async def called(*arguments: Any) -> Any:
        calls.append(arguments)
        return await method(*arguments)

    return called


@pytest.mark.parametrize("path", ERROR_TYPE)
def test_body_over_the_limit_is_a_413(path: str, http: httpx2.Client) -> None:
    """With and without a length, no byte reaches the upstream, and the client gets the error."""
    with raw(OK) as upstream, proxying(upstream.url, max_body=1 << 20) as running:
        for body in (b"x" * (4 << 20), iter([b"x" * 65_536] * 40)):
            answer = http.post(running.url + path, content=body)
            assert answer.status_code == 413
            outer, inner = ERROR_TYPE[path]
            assert answer.json()[outer][inner] == "request_too_large"
    assert upstream.arrived == []


@pytest.mark.parametrize("limits", [Limits(idle=0.3), Limits(first_byte=0.3)], ids=["stalled", "too slow"])
def test_request_body_over_a_time_limit_is_a_408(limits: Limits) -> None:
    """A stalled body exceeds the idle limit, an endless one the limit of the whole request."""
    with (
        raw(OK) as upstream,
        proxying(upstream.url, limits=limits) as running,
        closing(running.connect()) as made,
    ):
        made.sendall(b"POST /x HTTP/1.1\r\nhost: proxy\r\ncontent-length: 100000\r\n\r\n{")
        made.settimeout(0.05)
        got = b""
        while not got:
            if limits.idle > limits.first_byte:
                made.sendall(b"x")
            with suppress(TimeoutError):
                got = made.recv(1000)
    assert got.startswith(b"HTTP/1.1 408")
    assert upstream.arrived == []


def test_client_that_disconnects_early_cancels_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request is dropped; a request without a waiting client is cancelled at the upstream."""
    with raw(lambda made, _: rest(made) and None) as upstream, proxying(upstream.url) as running:
        failed: list[Any] = []
        monkeypatch.setattr(running.mw, "fail", recording(failed, running.mw.fail))
        with closing(running.connect()) as made:
            made.sendall(post(b"x" * 100)[:-50])
        with closing(running.connect()) as made:
            made.sendall(post(json.dumps(conversation()).encode()))
            until(lambda: len(upstream.arrived) == 1, "the request is under way")
        until(lambda: upstream.left == 1, "the upstream sees the connection end")
        until(lambda: failed, "the call is given up")
    assert len(upstream.arrived) == 1


def test_client_that_disconnects_before_planning_ends_sends_no_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No request reaches the upstream, and the call fails."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        failed: list[Any] = []
        prepare = running.mw.prepare

        async def slow(*arguments: Any, **named: Any) -> Any:
            made.close()
            await asyncio.to_thread(until, lambda: not running.connections, "the connection is gone")
            return await prepare(*arguments, **named)

        monkeypatch.setattr(running.mw, "prepare", slow)
        monkeypatch.setattr(running.mw, "fail", recording(failed, running.mw.fail))
        made = running.connect()
        made.sendall(post(json.dumps(conversation()).encode()))
        until(lambda: failed, "the call is given up")
    assert upstream.arrived == []


def test_client_that_disconnects_during_a_stream_cancels_it(http: httpx2.Client) -> None:
    """The upstream notices while it still sends, and the received usage is settled."""

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            made.sendall(b"a\r\ndata: {}\n\n\r\n")
            time.sleep(0.01)

    with raw(answer) as upstream, proxying(upstream.url) as running:
        with http.stream(**chat(path=running.url + CHAT, stream=True)) as came:
            next(came.iter_raw())
        until(lambda: upstream.left == 1, "the upstream sees the connection end")
        until(lambda: running.mw.counts.get("settle.partial") == 1, "it is settled as partial")


def test_client_that_never_reads_is_disconnected() -> None:
    """The upstream is slowed down, little is buffered, and after the idle limit both connections end."""
    sent = [0]

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 30))
        while True:
            sent[0] += made.send(b"x" * 65_536)

    with (
        raw(answer) as upstream,
        proxying(upstream.url, limits=QUICK) as running,
        closing(running.connect(buffer=4096)) as made,
    ):
        made.sendall(post(json.dumps(conversation()).encode()))
        until(lambda: upstream.left == 1, "the upstream is let go")
        until(lambda: not running.connections, "the client is let go")
        assert sent[0] < 32 << 20


def test_idle_connection_and_endless_head_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits hold for the first head of a connection and for later ones."""
    monkeypatch.setattr("cachemw.apps.proxy.connection._HEAD_SECONDS", 0.2)
    monkeypatch.setattr("cachemw.apps.proxy.connection._HEAD_BYTES", 10_000)
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert running.ask(b"") == b""
        assert running.ask(b"GET / HT") == b""
        assert running.ask(b"GET / HTTP/1.1\r\nx-a: " + b"a" * 20_000) == b""
        whole = b"GET / HTTP/1.1\r\nhost: proxy\r\n\r\n"
        got = running.ask(whole, b"GET / HT")
        assert got.endswith(b"ok")


def test_closed_connection_with_unread_bytes_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The unread end of an answer is dropped after a while, with and without `connection: close`."""
    for module in (connection, serving):
        monkeypatch.setattr(module, "KEEP_ALIVE", 0.3)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (60 << 10)
    with raw(answer + b"x" * (60 << 10)) as upstream, proxying(upstream.url, send_buffer=4096) as running:
        small = [running.connect(buffer=2048) for _ in range(2)]
        for made, header in zip(small, ("connection: close", "connection: keep-alive"), strict=True):
            made.sendall(post(b"{}", header))
        until(lambda: len(upstream.arrived) == 2, "both have asked")
        until(lambda: not running.connections, "both are let go")
        for made in small:
            made.close()
