"""Failures of the upstream: unreachable, silent, not HTTP, and answers that end too early."""

from __future__ import annotations

import json
import socket
from typing import Any

import aiohttp
import httpx2
import pytest

from cachemw.apps.proxy.reverse_proxy import Limits
from tests.apps.proxy.proxied import CHAT, QUICK, chat, post, proxying, raw, rest, until
from tests.clients.recorder import conversation

SHAPES = {
    CHAT: lambda body: (body["error"]["type"], body["error"]["code"], body["error"]["param"]),
    "/v1/messages": lambda body: (body["type"], body["error"]["type"]),
}


@pytest.mark.parametrize("path", SHAPES)
def test_refused_connection_is_a_502(path: str, http: httpx2.Client) -> None:
    """The error has the provider's format."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with proxying(f"http://127.0.0.1:{port}") as running:
        answer = http.request(**chat(path=running.url + path))
    assert answer.status_code == 502
    shape = ("api_error", "upstream_unreachable", None) if path == CHAT else ("error", "api_error")
    assert SHAPES[path](answer.json()) == shape
    assert str(port) not in answer.text


def test_wrong_upstream_is_a_502(http: httpx2.Client) -> None:
    """An unknown host name, bytes that are not HTTP, and a connection that ends without an answer."""
    with proxying("http://nowhere.invalid", limits=Limits(connect=5)) as running:
        assert http.request(**chat(path=running.url + CHAT)).status_code == 502
    for sent in (b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 999 x\r\ncontent-length: 0\r\n\r\n"):
        with raw(sent) as upstream, proxying(upstream.url) as running:
            answer = http.request(**chat(path=running.url + CHAT))
        assert answer.status_code == 502
        assert answer.headers["connection"] == "close"


def test_silent_upstream_is_a_504(http: httpx2.Client) -> None:
    """The connection to the upstream is closed."""
    with (
        raw(lambda made, _: rest(made) and None) as upstream,
        proxying(upstream.url, limits=Limits(first_byte=1.0)) as running,
    ):
        answer = http.request(**chat(path=running.url + "/v1/messages"))
        assert answer.status_code == 504
        assert SHAPES["/v1/messages"](answer.json()) == ("error", "timeout_error")
        until(lambda: upstream.left == 1, "the upstream sees the connection end")


def test_upstream_without_connection_is_a_504(http: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit holds for the connection as well."""

    async def never(*_: Any, **__: Any) -> None:
        raise aiohttp.ConnectionTimeoutError

    monkeypatch.setattr(aiohttp.TCPConnector, "connect", never)
    with proxying("http://127.0.0.1:9") as running:
        answer = http.request(**chat(path=running.url + CHAT))
    assert answer.status_code == 504
    assert "within 10 s" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "head", [b"content-length: 1000", b"transfer-encoding: chunked"], ids=["length", "chunked"]
)
@pytest.mark.parametrize("stalls", [False, True])
def test_incomplete_answer_never_looks_whole(head: bytes, stalls: bool) -> None:
    """If the upstream breaks off or stalls, the client's connection breaks off after the same part."""
    part = b"data: {}\n\n"
    framed = b"%x\r\n%s\r\n" % (len(part), part) if head.startswith(b"transfer") else part

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + framed)
        if stalls:
            rest(made)

    with raw(answer) as upstream, proxying(upstream.url, limits=QUICK) as running:
        with httpx2.Client(trust_env=False) as http, pytest.raises(httpx2.RemoteProtocolError):
            http.request(**chat(path=running.url + CHAT))
        got = running.ask(post(json.dumps(conversation()).encode()))
        assert framed in got
        assert not got.endswith(b"0\r\n\r\n")
        until(lambda: running.mw.counts.get("settle.partial") == 2, "both are settled as partial")
