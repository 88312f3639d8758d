"""Requests and answers that pass through the proxy unchanged."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import closing

import httpx2
import pytest

from cachemw.core.request.equality import canonical
from tests.apps.proxy.proxied import CHAT, OK, Proxied, post, proxying, raw, rest
from tests.clients.endpoint import Endpoint
from tests.clients.recorder import MODEL


def test_request_and_answer_pass_byte_for_byte() -> None:
    """Any method, path, query, headers and body pass unchanged, and so does the answer."""
    body = b"\x00\x01" + os.urandom(2000)
    answer = (
        b"HTTP/1.1 418 I'm a teapot\r\nX-One: 1\r\nx-one: caf\xe9\r\nset-cookie: a=b\r\nset-cookie: c=d\r\n"
        b"content-encoding: x-own\r\nserver: upstream\r\ncontent-length: 5\r\n\r\n\xff\x00abc"
    )
    sent = (
        b"PURGE /a/../b//c;x%%2Fy?q=%%20a+b&&= HTTP/1.1\r\nhost: proxy.example\r\nX-A: 1\r\nx-a: 2\r\nx-utf: \xc3\xa9\r\n"
        b"cookie: k=v\r\naccept-encoding: x-own\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        % len(body)
    ) + body
    with raw(answer) as upstream, proxying(f"{upstream.url}/base/") as running:
        got = running.ask(sent)
    host = upstream.url.removeprefix("http://").encode()
    head, _, arrived = upstream.arrived[0].partition(b"\r\n\r\n")
    assert arrived == body
    lines = head.split(b"\r\n")
    assert lines[0] == b"PURGE /base/a/../b//c;x%2Fy?q=%20a+b&&= HTTP/1.1"
    assert sorted(line.lower() for line in lines[1:]) == sorted([
        b"host: " + host, b"x-a: 1", b"x-a: 2", b"x-utf: \xc3\xa9", b"cookie: k=v", b"accept-encoding: x-own",
        b"content-length: %d" % len(body),
    ])  # fmt: skip
    head, _, came = got.partition(b"\r\n\r\n")
    assert came == b"\xff\x00abc"
    assert head.split(b"\r\n")[1:] == [
        b"x-one: 1", b"x-one: caf\xe9", b"set-cookie: a=b", b"set-cookie: c=d", b"content-encoding: x-own",
        b"server: upstream", b"content-length: 5", b"connection: close",
    ]  # fmt: skip


def test_hop_by_hop_headers_are_not_passed_on() -> None:
    """Headers that HTTP or `Connection` names end at the proxy, in both directions."""
    answer = (
        b"HTTP/1.1 200 OK\r\nconnection: x-mine, keep-alive\r\nx-mine: 1\r\nkeep-alive: timeout=5\r\ntrailer: x-t\r\n"
        b"proxy-authenticate: Basic\r\ntransfer-encoding: chunked\r\nx-kept: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    )
    sent = (
        b"GET / HTTP/1.1\r\nhost: proxy\r\nconnection: close, X-Hop\r\nx-hop: 1\r\nte: trailers\r\ntrailer: a\r\n"
        b"proxy-authorization: Basic eA==\r\nupgrade: h2c\r\nkeep-alive: 3\r\nx-kept: 1\r\n\r\n"
    )
    with raw(answer) as upstream, proxying(upstream.url) as running:
        got = running.ask(sent)
    assert [line.split(b":")[0].lower() for line in upstream.arrived[0].split(b"\r\n")[1:-2]] == [
        b"host",
        b"x-kept",
    ]
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.split(b"\r\n")[1:] == [b"x-kept: 1", b"connection: close", b"transfer-encoding: chunked"]
    assert body == b"2\r\nok\r\n0\r\n\r\n"


def test_redirect_is_not_followed_and_cookie_not_kept() -> None:
    """A redirect goes to the client; the next request has no cookie of an earlier answer."""
    answer = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        for _ in range(2):
            got = running.ask(b"GET /x HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 302")
    assert [b"cookie" in arrived for arrived in upstream.arrived] == [False, False]


@pytest.mark.parametrize("method", ["HEAD", "GET", "DELETE", "POST"])
def test_request_without_a_body_keeps_its_length(method: str) -> None:
    """A length of 0 is passed on; without one, the method decides."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        for given in (b"", b"content-length: 0\r\n"):
            running.ask(
                b"%s / HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n%s\r\n" % (method.encode(), given)
            )
    announced = [b"content-length: 0" in arrived.lower() for arrived in upstream.arrived]
    assert announced == [method in ("POST", "DELETE"), True]


def test_chunked_body_is_sent_with_its_length() -> None:
    """The proxy asks the client to continue, and sends the whole body with its length."""
    with raw(OK) as upstream, proxying(upstream.url) as running, closing(running.connect()) as made:
        made.sendall(
            b"POST /files HTTP/1.1\r\nhost: proxy\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n"
            b"connection: close\r\n\r\n"
        )
        assert made.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        made.sendall(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        assert rest(made).endswith(b"ok")
    head, _, body = upstream.arrived[0].partition(b"\r\n\r\n")
    assert body == b"abcdefg"
    assert b"content-length: 7" in head.lower()
    assert b"expect" not in head.lower()


def test_header_that_is_not_utf8_is_refused() -> None:
    """Aiohttp would change the header, so the proxy answers 400."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(b"GET / HTTP/1.1\r\nhost: proxy\r\nx-a: caf\xe9\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")
    assert upstream.arrived == []


def test_large_chat_body_passes(http: httpx2.Client, proxied: Proxied, endpoint: Endpoint) -> None:
    """A chat request of 20 MB passes and is parsed."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * (4 << 20)}]}
    answer = http.post(proxied.url + CHAT, json=body)
    assert answer.status_code == 200
    assert "x-cachemw-decision" in answer.headers
    assert canonical(endpoint.arrived[0].body) == canonical(body)


def test_early_answer_to_a_large_body_passes() -> None:
    """The answer of an upstream that refuses without reading reaches the client."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        made, _ = listener.accept()
        with closing(made):
            made.recv(1000)
            made.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!")
            rest(made)

    refusing = threading.Thread(target=refuse)
    refusing.start()
    with closing(listener), proxying(f"http://127.0.0.1:{listener.getsockname()[1]}") as running:
        got = running.ask(post(b"x" * (20 << 20), "connection: close", path="/files"))
        refusing.join()
    assert got.startswith(b"HTTP/1.1 413")
    assert got.endswith(b"no!")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": 3}', b'"text"', b'{"a": 1, "a": 2, "messages": []}']
)
def test_body_that_is_no_chat_request_passes_unchanged(body: bytes) -> None:
    """The upstream judges such bodies."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert running.ask(post(body, "connection: close")).endswith(b"\r\n\r\nok")
    assert upstream.arrived[0].partition(b"\r\n\r\n")[2] == body


def test_own_paths_are_healthz_and_readyz_only(http: httpx2.Client) -> None:
    """Other paths, queries and methods go to the upstream."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert http.get(f"{running.url}/healthz").text == "ok"
        assert http.head(f"{running.url}/readyz").status_code == 200
        assert upstream.arrived == []
        for path in ("/healthz/", "/v1/healthz", "//healthz", "/healthz?x", "/readyz?x=1"):
            assert http.get(running.url + path).text == "ok"
        for method in ("POST", "OPTIONS", "DELETE", "PURGE"):
            http.request(method, f"{running.url}/healthz")
        assert running.ask(b"FOO /healthz HTTP/1.1\r\nhost: proxy\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert len(upstream.arrived) == 9
