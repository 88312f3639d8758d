"""Answers and requests that the proxy cannot pass unchanged, and the clients that wait for them."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from typing import Any

import pytest

from tests.apps.proxy.proxied import CHAT, OK, QUICK, proxying, raw, rest, until
from tests.clients.recorder import MODEL, conversation

GET = b"GET /x HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n"


def chat(*headers: str, **more: Any) -> bytes:
    """Return a raw chat request."""
    body = json.dumps({**conversation(), **more}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "host: proxy", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def code(got: bytes) -> tuple[int, str]:
    """Return the status and the code of an error of the proxy."""
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_client_that_disconnects_after_another_answer_cancels_its_stream() -> None:
    """The end of one answer does not stop the watch on the client of the next."""

    def answer(made: socket.socket, whole: bytes) -> None:
        if whole.startswith(b"POST"):
            made.sendall(OK)
            return
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        rest(made)

    with raw(answer) as upstream, proxying(upstream.url) as running:
        with closing(running.connect()) as made:
            made.sendall(chat(model=MODEL) + b"GET /stream HTTP/1.1\r\nhost: proxy\r\n\r\n")
            got = b""
            while not got.endswith(b"2\r\nok\r\n"):
                got = made.recv(65_536, socket.MSG_PEEK)  # unread bytes make the close a reset
        until(lambda: upstream.left == 2, "the upstream sees the connection end")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answer_without_a_body_has_no_length(status: bytes) -> None:
    """The client does not wait for a body, and the connection stays usable."""
    answer = b"HTTP/1.1 " + status + b"\r\ncontent-length: 20\r\netag: x\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        got = running.ask(GET.replace(b"connection: close\r\n", b"") + GET)
    head = b"HTTP/1.1 " + status + b"\r\netag: x\r\n"
    assert got == head + b"\r\n" + head + b"connection: close\r\n\r\n"


def test_head_answer_keeps_the_length() -> None:
    """The length of the body is the purpose of HEAD."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        assert b"content-length: 20\r\n" in running.ask(GET.replace(b"GET", b"HEAD"))


def test_target_that_is_no_path_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """No URL of the upstream corresponds to such a target."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(GET.replace(b"GET /x", b"OPTIONS *"))
    assert code(got) == (400, "bad_target")
    assert upstream.arrived == []
    assert not caplog.records


def test_transfer_coding_other_than_chunked_is_refused() -> None:
    """Only chunked is decoded, so requests and answers with other codings do not pass."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        coded = b"transfer-encoding: %s\r\nconnection: close\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        head = b"POST /x HTTP/1.1\r\nhost: proxy\r\n"
        assert code(running.ask(head + coded % b"gzip, chunked")) == (501, "transfer_coding")
        assert upstream.arrived == []
        assert running.ask(head + coded % b"Chunked").endswith(b"ok")
    for coding in (b"gzip, chunked", b"gzip"):
        answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: " + coding + b"\r\n\r\n2\r\nab\r\n0\r\n\r\n"
        with raw(answer) as upstream, proxying(upstream.url) as running:
            assert code(running.ask(GET)) == (502, "upstream_invalid")


@pytest.mark.parametrize(
    "answer",
    [
        b"200 OK\r\nx-a: a\x01b\r\ncontent-length: 2\r\n\r\nok",
        b"200 OK\r\nx-a: a\x7fb\r\ncontent-length: 2\r\n\r\nok",
        b"200 OK\r\nx(a): b\r\ncontent-length: 2\r\n\r\nok",
        b"600 No\r\ncontent-length: 2\r\n\r\nok",
        b"101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    ],
)
def test_invalid_answer_head_is_a_502(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an error, and the log has no traceback."""
    with raw(b"HTTP/1.1 " + answer) as upstream, proxying(upstream.url) as running:
        assert code(running.ask(GET)) == (502, "upstream_invalid")
    assert not caplog.records


@pytest.mark.parametrize("stalls", [False, True])
def test_incomplete_refusal_is_an_error_of_the_proxy(stalls: bool) -> None:
    """A 400 to a marked request is held until it is whole, so its client still gets an error."""

    def answer(made: socket.socket, _: bytes) -> None:
        if len(upstream.arrived) == 1:
            made.sendall(OK)
            return
        made.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 100\r\n\r\n{")
        if stalls:
            rest(made)

    with raw(answer) as upstream, proxying(upstream.url, limits=QUICK) as running:
        for _ in range(2):
            got = running.ask(chat("connection: close"))
    assert b"cache_control" in upstream.arrived[-1]
    assert code(got) == ((504, "upstream_timeout") if stalls else (502, "upstream_closed"))
