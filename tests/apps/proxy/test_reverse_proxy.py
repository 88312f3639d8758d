"""What the proxy makes of answers and requests that can't pass as they are, and of who waits for one."""

from __future__ import annotations

import json
import socket
import time
from contextlib import closing
from typing import Any

import pytest

from tests.apps.proxy.proxied import QUICK, proxying, raw, rest, until
from tests.clients.recorder import MODEL, conversation

CHAT = "/serving-endpoints/chat/completions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
GET = b"GET /x HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n"


def chat(*headers: str, **more: Any) -> bytes:
    """Return a raw chat request."""
    body = json.dumps({**conversation(), **more}).encode()
    lines = [f"POST {CHAT} HTTP/1.1", "host: proxy", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def code(got: bytes) -> tuple[int, str]:
    """Return status and code of an error of ours."""
    head, _, body = got.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def test_who_leaves_is_heard_behind_another_request() -> None:
    """The end of an answer does not make us deaf to the client of the next, which has begun already."""

    def answer(made: socket.socket, whole: bytes) -> None:
        if whole.startswith(b"POST"):
            made.sendall(OK)
            return
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        rest(made)

    with raw(answer) as upstream, proxying(upstream.url) as running:
        with closing(running.connect()) as made:
            made.sendall(chat(model=MODEL) + b"GET /stream HTTP/1.1\r\nhost: proxy\r\n\r\n")
            until(lambda: len(upstream.arrived) == 2, "the stream is asked for")
            time.sleep(0.2)
        until(lambda: upstream.left == 2, "the upstream hears of it", 2)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_an_answer_without_a_body_has_no_length(status: bytes) -> None:
    """What it says of one is not waited for; the connection serves on."""
    answer = b"HTTP/1.1 " + status + b"\r\ncontent-length: 20\r\netag: x\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        got = running.ask(GET.replace(b"connection: close\r\n", b"") + GET)
    head = b"HTTP/1.1 " + status + b"\r\netag: x\r\n"
    assert got == head + b"\r\n" + head + b"connection: close\r\n\r\n"


def test_a_head_is_told_the_length_of_a_body() -> None:
    """That is what it asks for."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        assert b"content-length: 20\r\n" in running.ask(GET.replace(b"GET", b"HEAD"))


def test_a_target_that_is_no_path_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """There is no URL for it that the upstream would understand."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(GET.replace(b"GET /x", b"OPTIONS *"))
    assert code(got) == (400, "bad_target")
    assert upstream.arrived == []
    assert not caplog.records


def test_a_transfer_coding_is_not_lost() -> None:
    """Where there is one besides chunked, which alone is undone, neither a request nor an answer passes."""
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
def test_a_head_that_can_not_be_passed_on_is_a_502(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The client hears of it, and the log has no traceback."""
    with raw(b"HTTP/1.1 " + answer) as upstream, proxying(upstream.url) as running:
        assert code(running.ask(GET)) == (502, "upstream_invalid")
    assert not caplog.records


@pytest.mark.parametrize("stalls", [False, True])
def test_half_a_refusal_is_an_error_of_ours(stalls: bool) -> None:
    """A 400 to a marked request is held until it is whole, so who waits for it has nothing yet and is told."""

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
