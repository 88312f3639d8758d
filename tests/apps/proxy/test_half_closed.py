"""Clients that have closed their side for writing, and clients that have disconnected."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from cachemw.apps.proxy import connection
from tests.apps.proxy.proxied import PATIENCE, proxying, raw, rest, until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


def post(size: int, version: str = "1.1") -> bytes:
    """Return a request with a body of `size` bytes."""
    head = f"POST /x HTTP/{version}\r\nhost: proxy\r\ncontent-length: {size}\r\n\r\n"
    return head.encode() + b"a" * size


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Return an event for which an upstream waits, at most until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("size", [0, 3, 3_000_000])
def test_half_closed_client_gets_its_answer(size: int, version: str) -> None:
    """A client may close its side once its request is whole; the connection ends with the answer."""
    with raw(OK) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(post(size, version))
        made.shutdown(socket.SHUT_WR)
        got = rest(made)
        until(lambda: not running.connections, "the connection ends with the answer")
    head, _, body = got.removeprefix(INTERIM).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close" in head
    assert body == b"ok"


def test_half_closed_client_with_several_requests_gets_all_answers() -> None:
    """Requests sent one after another are answered in their order."""
    numbers = iter(range(3))

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n%d" % next(numbers))

    with raw(answer) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(post(3) * 3)
        made.shutdown(socket.SHUT_WR)
        answers = rest(made).split(b"HTTP/1.1 200 OK\r\n")
    assert [one[-1:] for one in answers[1:]] == [b"0", b"1", b"2"]


def test_half_closed_client_gets_a_stream_to_its_end(released: threading.Event) -> None:
    """An answer that has begun before the client closes its side goes on."""

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n")
        assert released.wait(PATIENCE)
        made.sendall(b"3\r\nend\r\n0\r\n\r\n")

    with raw(answer) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(post(3))
        got = b""
        while not got.endswith(b"2\r\nok\r\n"):
            got += made.recv(1000)
        made.shutdown(socket.SHUT_WR)
        released.set()
        assert rest(made) == b"3\r\nend\r\n0\r\n\r\n"


def test_half_closed_client_that_waits_long_is_probed_with_interim_answers(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interim answers precede the final answer, which is whole."""
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 0.01)

    def answer(made: socket.socket, _: bytes) -> None:
        assert released.wait(PATIENCE)
        made.sendall(OK)

    with raw(answer) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(post(3))
        made.shutdown(socket.SHUT_WR)
        got = b""
        while got.count(INTERIM) < 3:
            got += made.recv(1000)
        released.set()
        got += rest(made)
    assert got.count(b"HTTP/1.1 200 OK") == 1
    assert got.replace(INTERIM, b"").startswith(b"HTTP/1.1 200 OK")
    assert got.endswith(b"ok")


@pytest.mark.parametrize("half_first", [False, True])
@pytest.mark.parametrize("size", [3, 200_000, 3_000_000])
def test_client_that_closes_cancels_its_upstream_request(
    size: int, half_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe detects a full close after any body, with or without an earlier half-close."""
    monkeypatch.setattr(connection, "_PROBE_SECONDS", 0.01)
    with raw(lambda made, _: rest(made) and None) as upstream, proxying(upstream.url) as running:
        with closing(running.connect()) as made:
            made.sendall(post(size))
            until(lambda: upstream.arrived, "the request is under way")
            if half_first:
                made.shutdown(socket.SHUT_WR)
                assert made.recv(100) == INTERIM
        until(lambda: upstream.left == 1, "the upstream sees the connection end")
        until(lambda: not running.connections, "the connection is gone")


@pytest.mark.parametrize("sent", [b"", b"POST /x HT", post(100)[:-50], post(3) + b"POST /x HTTP/1.1\r\n"])
def test_client_that_closes_without_a_whole_request_is_disconnected(sent: bytes) -> None:
    """A connection without a pending request ends with the client's side."""
    with raw(OK) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(sent)
        made.shutdown(socket.SHUT_WR)
        got = rest(made)
        until(lambda: not running.connections, "the connection is gone")
    assert got.count(b"HTTP/1.1 200 OK") == sent.startswith(post(3))
