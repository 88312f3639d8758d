"""The proxy as raw clients see it: what passes, what is marked, what goes wrong, how it stops."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import aiohttp
import httpx2
import openai
import pytest
from anthropic import Anthropic

from cachemw.apps import cli, simulated_gateway
from cachemw.apps.proxy.reverse_proxy import Limits
from cachemw.apps.proxy.server import Options
from cachemw.apps.proxy.serving import listen
from cachemw.core.request.equality import canonical
from cachemw.errors import ConfigError
from tests.apps.proxy.proxied import QUICK, Proxied, proxying, raw, rest, until
from tests.clients.endpoint import Endpoint, completion, error, events
from tests.clients.recorder import MODEL, conversation, marks

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"
CHAT = "/serving-endpoints/chat/completions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
LONG = "A support agent reads the policy, looks at the order and answers in two sentences. " * 120


@pytest.fixture
def proxied(endpoint: Endpoint) -> Iterator[Proxied]:
    """Run the proxy before the endpoint."""
    with proxying(endpoint.url) as running:
        yield running


@pytest.fixture
def http() -> Iterator[httpx2.Client]:
    """Give a client without an environment."""
    with httpx2.Client(trust_env=False, timeout=10) as client:
        yield client


def jwt(subject: str, *, issuer: str = "https://accounts.example.com", **claims: Any) -> str:
    """Return a token whose signature nobody checks."""
    parts = [{"alg": "RS256"}, {"iss": issuer, "sub": subject, **claims}]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, base64.urlsafe_b64encode(os.urandom(24)).decode()])


def chat(headers: dict[str, str] | None = None, path: str = CHAT, **more: Any) -> dict[str, Any]:
    """Return how httpx2 is told to send the conversation."""
    return {"method": "POST", "url": path, "json": {**conversation(), **more}, "headers": headers or {}}


def post(body: bytes, *headers: str, path: str = CHAT) -> bytes:
    """Return a raw POST."""
    lines = [f"POST {path} HTTP/1.1", "host: proxy", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# What passes


def test_everything_passes_byte_for_byte() -> None:
    """Any method, path, query, headers and body reach the upstream as they came; the answer comes back as it is."""
    body = b"\x00\x01" + os.urandom(2000)
    answer = (
        b"HTTP/1.1 418 I'm a teapot\r\nX-One: 1\r\nx-one: caf\xe9\r\nset-cookie: a=b\r\nset-cookie: c=d\r\n"
        b"content-encoding: x-own\r\nserver: theirs\r\ncontent-length: 5\r\n\r\n\xff\x00abc"
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
        b"server: theirs", b"content-length: 5", b"connection: close",
    ]  # fmt: skip


def test_headers_of_one_hop_end_there() -> None:
    """Neither those that HTTP names nor those that `Connection` names go on, in either direction."""
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


def test_no_redirect_is_followed_and_no_cookie_kept() -> None:
    """A redirect goes to the client; the next request brings no cookie that an answer set."""
    answer = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        for _ in range(2):
            got = running.ask(b"GET /x HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 302")
    assert [b"cookie" in arrived for arrived in upstream.arrived] == [False, False]


@pytest.mark.parametrize("method", ["HEAD", "GET", "DELETE", "POST"])
def test_a_request_without_a_body_has_none(method: str) -> None:
    """Where the client says that its length is 0, so do we, and where that is what its method means."""
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\n"
    with raw(answer) as upstream, proxying(upstream.url) as running:
        for given in (b"", b"content-length: 0\r\n"):
            running.ask(
                b"%s / HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n%s\r\n" % (method.encode(), given)
            )
    saying = [b"content-length: 0" in arrived.lower() for arrived in upstream.arrived]
    assert saying == [method in ("POST", "DELETE"), True]


def test_a_chunked_body_arrives_whole() -> None:
    """It is sent on with its length, once the client says to go on and has sent it."""
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


def test_a_header_that_is_no_utf8_is_refused() -> None:
    """The HTTP library would change it on its way, so we say so."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        got = running.ask(b"GET / HTTP/1.1\r\nhost: proxy\r\nx-a: caf\xe9\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")
    assert upstream.arrived == []


def test_a_large_body_passes(http: httpx2.Client, proxied: Proxied, endpoint: Endpoint) -> None:
    """20 MB of a chat request come through, and are read."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "word " * (4 << 20)}]}
    answer = http.post(proxied.url + CHAT, json=body)
    assert answer.status_code == 200
    assert "x-cachemw-decision" in answer.headers
    assert canonical(endpoint.arrived[0].body) == canonical(body)


def test_an_early_answer_to_a_large_body_passes() -> None:
    """An upstream that refuses without reading is heard."""
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        made, _ = listener.accept()
        with closing(made):
            made.recv(1000)
            made.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nno!")
            time.sleep(0.2)

    refusing = threading.Thread(target=refuse)
    refusing.start()
    with closing(listener), proxying(f"http://127.0.0.1:{listener.getsockname()[1]}") as running:
        got = running.ask(post(b"x" * (20 << 20), "connection: close", path="/files"))
        refusing.join()
        time.sleep(0.1)  # the connection that the upload was given up on ends
    assert got.startswith(b"HTTP/1.1 413")
    assert got.endswith(b"no!")


# What is marked


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/ai-gateway/mlflow/v1/chat/completions",
        "/v1/chat/completions",
        f"/serving-endpoints/{MODEL}/invocations",
    ],
)
def test_chat_requests_leave_with_markers(
    path: str, http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """Nothing but markers is added, the answer is untouched, and usage is accounted for."""
    asked = chat({"x-cachemw-label-team": "north", "authorization": "Bearer key"}, proxied.url + path)
    for _ in range(2):
        answer = http.request(**asked)
    assert answer.json() == completion()
    assert answer.headers["x-cachemw-decision"] == "marked"
    assert int(answer.headers["x-cachemw-predicted-read"]) > 0
    sent = endpoint.arrived[-1]
    assert marks(sent.body)
    assert canonical(sent.body) == canonical(asked["json"])
    assert sent.path == path
    assert sent.headers["authorization"] == "Bearer key"
    assert not any(name.startswith("x-cachemw") for name in sent.headers)
    until(lambda: sum(proxied.mw._shared.sums.values()), "the calls are accounted for")
    assert any("north" in str(key) for key in proxied.mw._shared.sums)


def test_a_stream_goes_out_as_it_comes(http: httpx2.Client) -> None:
    """Each part is there before the upstream sends the next."""
    go = threading.Event()

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            made.sendall(b"a\r\ndata: {}\n\n\r\n")
            assert go.wait(5)
            go.clear()
        made.sendall(b"0\r\n\r\n")

    with raw(answer) as upstream, proxying(upstream.url) as running:
        asked = chat(path=running.url + CHAT, stream=True)
        with http.stream(**asked) as came:
            parts = []
            for part in came.iter_raw():
                parts.append(part)
                go.set()
    assert parts == [b"data: {}\n\n"] * 3


def test_real_clients_work_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ones of OpenAI and Anthropic, whole and streamed, against the simulated provider: the second call reads."""
    monkeypatch.setenv("NO_PROXY", "*")
    with (
        simulated_gateway.running(simulated_gateway.build()) as url,
        proxying(url, fields={"provider": "auto"}) as running,
    ):
        chats = openai.OpenAI(base_url=f"{running.url}/serving-endpoints", api_key="key")
        system: Any = {"role": "system", "content": LONG}
        for question in ("Where is it?", "When?"):
            messages: Any = [system, {"role": "user", "content": question}]
            told = chats.chat.completions.with_raw_response.create(model=MODEL, messages=messages)
        read = told.parse().usage
        assert read is not None
        assert read.model_extra is not None
        assert read.model_extra["cache_read_input_tokens"] > 0
        assert told.headers["x-cachemw-decision"] == "marked"
        assert list(chats.chat.completions.create(model=MODEL, messages=messages, stream=True))
        native = Anthropic(base_url=f"{running.url}/serving-endpoints/anthropic", api_key="key")
        for question in ("Where is it?", "When?"):
            message = native.messages.create(
                model=MODEL, max_tokens=9, system=LONG, messages=[{"role": "user", "content": question}]
            )
        assert message.usage.cache_read_input_tokens
        with native.messages.stream(
            model=MODEL, max_tokens=9, system=LONG, messages=[{"role": "user", "content": "Who?"}]
        ) as stream:
            final = stream.get_final_message()
        assert final.usage.cache_read_input_tokens


def test_a_refused_marker_is_sent_again_as_it_came(
    http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """A 400 that names our marker is answered by one more request with the original bytes."""
    asked = chat(path=proxied.url + CHAT)
    http.request(**asked)
    endpoint.answers.append(error(400, REFUSAL))
    answer = http.request(**asked)
    assert (answer.status_code, answer.json()) == (200, completion())
    assert answer.headers["x-cachemw-decision"] == "refused"
    assert [bool(marks(arrival.body)) for arrival in endpoint.arrived[-2:]] == [True, False]
    assert proxied.mw.counts["refused"] == 1


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_errors_of_the_upstream_pass(
    status: int, http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """Status, headers and body are as they were, and nothing is told of what we know."""
    http.request(**chat(path=proxied.url + CHAT))
    endpoint.answers.append(error(status, "no such thing", {"retry-after": "3"}))
    answer = http.request(**chat(path=proxied.url + CHAT))
    assert answer.status_code == status
    assert answer.json() == {"error_code": "BAD_REQUEST", "message": "no such thing"}
    assert answer.headers["retry-after"] == "3"
    assert not any(name.startswith("x-cachemw") for name in answer.headers)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"messages": 3}', b'"text"', b'{"a": 1, "a": 2, "messages": []}']
)
def test_what_is_no_chat_body_passes_as_it_is(body: bytes) -> None:
    """The upstream says what is wrong with it."""
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert running.ask(post(body, "connection: close")).endswith(b"\r\n\r\nok")
    assert upstream.arrived[0].partition(b"\r\n\r\n")[2] == body


# Whose it is


PRINCIPALS = {
    "a": {"authorization": "Bearer key-a"},
    "b": {"authorization": "Bearer key-b"},
    "c": {"x-api-key": "key-a"},
    "d": {"api-key": "key-a"},
    "e": {"authorization": "Basic a2V5LWE="},
    "jwt": {"authorization": f"Bearer {jwt('app-1')}"},
    "other subject": {"authorization": f"Bearer {jwt('app-2')}"},
    "other issuer": {"authorization": f"Bearer {jwt('app-1', issuer='https://elsewhere.example.com')}"},
    "both": {"authorization": "Bearer key-a", "x-api-key": "key-b"},
    "cookie": {"cookie": "session=1"},
    "other cookie": {"cookie": "session=2"},
    "nobody": {},
}


def test_two_principals_never_share(http: httpx2.Client, proxied: Proxied) -> None:
    """Whatever one has taught, the next starts from nothing; the same one again does not."""
    for name, headers in PRINCIPALS.items():
        first, again = (
            http.request(**chat(headers, proxied.url + CHAT)).headers["x-cachemw-predicted-read"]
            for _ in range(2)
        )
        assert (name, first) == (name, "0")
        assert int(again) > 0, name


def test_hourly_tokens_of_one_service_are_one(http: httpx2.Client, proxied: Proxied) -> None:
    """Two JWTs of the same issuer and subject share what was learned; one in another header is another's."""
    reads = [
        http.request(**chat(headers, proxied.url + CHAT)).headers["x-cachemw-predicted-read"]
        for headers in (
            {"authorization": f"Bearer {jwt('app', exp=1)}"},
            {"authorization": f"bearer {jwt('app', exp=2)}"},
            {"x-api-key": jwt("app", exp=3)},
        )
    ]
    assert (reads[0], reads[2]) == ("0", "0")
    assert int(reads[1]) > 0


def test_a_forged_token_learns_nothing(http: httpx2.Client, proxied: Proxied, endpoint: Endpoint) -> None:
    """Whoever names another's subject is refused by the provider, and hears nothing of what is known."""
    mine = {"authorization": f"Bearer {jwt('victim')}"}
    http.request(**chat(mine, proxied.url + CHAT))
    endpoint.answers.append(error(401, "bad token"))
    answer = http.request(**chat({"authorization": f"Bearer {jwt('victim')}"}, proxied.url + CHAT))
    assert answer.status_code == 401
    assert not any(name.startswith("x-cachemw") for name in answer.headers)


def test_a_set_namespace_is_everybodys(http: httpx2.Client, endpoint: Endpoint) -> None:
    """Where the settings name one, keys do not tell apart."""
    with proxying(endpoint.url, fields={"namespace": "team"}) as running:
        reads = [
            int(
                http.request(**chat(PRINCIPALS[name], running.url + CHAT)).headers["x-cachemw-predicted-read"]
            )
            for name in ("a", "b")
        ]
    assert reads[0] == 0 < reads[1]


def test_a_trusted_header_names_the_tenant(http: httpx2.Client, endpoint: Endpoint) -> None:
    """It goes before keys, does not leave, and without it keys tell apart again."""
    with proxying(endpoint.url, namespace_header="X-Tenant") as running:

        def read(*headers: tuple[str, str]) -> int:
            asked = {**chat(path=running.url + CHAT), "headers": headers}
            return int(http.request(**asked).headers["x-cachemw-predicted-read"])

        assert read(("x-tenant", "one"), ("x-api-key", "a")) == 0
        assert read(("x-tenant", "one"), ("x-api-key", "b")) > 0
        assert read(("x-tenant", "two"), ("x-api-key", "a")) == 0
        assert read(("x-tenant", "one"), ("x-tenant", "two")) == 0
        assert read(("x-api-key", "a")) == 0
    assert not any("x-tenant" in arrival.headers for arrival in endpoint.arrived)


# What goes wrong


SHAPES = {
    CHAT: lambda told: (told["error"]["type"], told["error"]["code"], told["error"]["param"]),
    "/v1/messages": lambda told: (told["type"], told["error"]["type"]),
}


@pytest.mark.parametrize("path", SHAPES)
def test_a_refused_connection_is_a_502(path: str, http: httpx2.Client) -> None:
    """It is said in the shape of the provider's errors."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with proxying(f"http://127.0.0.1:{port}") as running:
        answer = http.request(**chat(path=running.url + path))
    assert answer.status_code == 502
    shape = ("api_error", "upstream_unreachable", None) if path == CHAT else ("error", "api_error")
    assert SHAPES[path](answer.json()) == shape
    assert str(port) not in answer.text


def test_a_wrong_upstream_is_a_502(http: httpx2.Client) -> None:
    """A name that nothing has, bytes that are no HTTP, and a connection that ends without a word."""
    with proxying("http://nowhere.invalid", limits=Limits(connect=5)) as running:
        assert http.request(**chat(path=running.url + CHAT)).status_code == 502
    for said in (b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 999 x\r\ncontent-length: 0\r\n\r\n"):
        with raw(said) as upstream, proxying(upstream.url) as running:
            answer = http.request(**chat(path=running.url + CHAT))
        assert answer.status_code == 502
        assert answer.headers["connection"] == "close"


def test_an_upstream_that_does_not_answer_is_a_504(http: httpx2.Client) -> None:
    """The connection to it is given up, and the call is forgotten."""
    with (
        raw(lambda made, _: rest(made) and None) as upstream,
        proxying(upstream.url, limits=QUICK) as running,
    ):
        answer = http.request(**chat(path=running.url + "/v1/messages"))
        assert answer.status_code == 504
        assert SHAPES["/v1/messages"](answer.json()) == ("error", "timeout_error")
        until(lambda: upstream.left == 1, "the upstream sees the connection end")


def test_an_upstream_that_takes_no_connection_is_a_504(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is one that is never connected to."""

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
def test_half_an_answer_is_never_a_whole_one(head: bytes, stalls: bool) -> None:
    """Where the upstream breaks off or stalls, so does the client's connection, after what there was."""
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


@pytest.mark.parametrize("path", SHAPES)
def test_a_body_over_the_limit_is_a_413(path: str, http: httpx2.Client) -> None:
    """Whether its length is announced or not; nothing of it reaches the upstream, and the sender hears of it."""
    with raw(OK) as upstream, proxying(upstream.url, max_body=1 << 20) as running:
        for body in (b"x" * (4 << 20), iter([b"x" * 65_536] * 40)):
            answer = http.post(running.url + path, content=body)
            assert answer.status_code == 413
            assert SHAPES[path](answer.json())[1] == "request_too_large"
    assert upstream.arrived == []


def test_a_slow_body_is_a_408() -> None:
    """One that stops, and one that comes a byte at a time for too long."""
    with raw(OK) as upstream, proxying(upstream.url, limits=QUICK) as running:
        assert running.ask(post(b"")[:-4].replace(b"length: 0", b"length: 10") + b"\r\n\r\n{").startswith(
            b"HTTP/1.1 408"
        )
        with closing(running.connect()) as made:
            made.sendall(b"POST /x HTTP/1.1\r\nhost: proxy\r\ncontent-length: 1000\r\n\r\n")
            begun = time.monotonic()
            made.settimeout(0.1)
            while time.monotonic() - begun < 5:
                made.sendall(b"x")
                try:
                    if made.recv(12):
                        break
                except TimeoutError:
                    continue
            assert 0.4 < time.monotonic() - begun < 4
    assert upstream.arrived == []


def recording(calls: list[Any], method: Any) -> Any:
    """Return an async method that also writes down what it is called with."""

    async def called(*arguments: Any) -> Any:
        calls.append(arguments)
        return await method(*arguments)

    return called


def test_a_client_that_leaves_early_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a request is dropped; a request whose answer nobody waits for is cancelled at the upstream."""
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


def test_a_client_that_leaves_while_we_decide_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to the upstream for nobody, and the call is given up."""
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


def test_a_client_that_leaves_a_stream_cancels_it(http: httpx2.Client) -> None:
    """The upstream hears of it while it is still sending, and what was seen is settled."""

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


def test_a_client_that_never_reads_is_let_go() -> None:
    """The upstream is held back, little is kept, and after the idle limit both connections end."""
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


def test_an_idle_connection_and_an_endless_head_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that does not come, or does not end, is not waited for; nor is one that comes later."""
    monkeypatch.setattr("cachemw.apps.proxy.serving._HEAD_SECONDS", 0.2)
    monkeypatch.setattr("cachemw.apps.proxy.serving._HEAD_BYTES", 10_000)
    with raw(OK) as upstream, proxying(upstream.url) as running:
        assert running.ask(b"") == b""
        assert running.ask(b"GET / HT") == b""
        assert running.ask(b"GET / HTTP/1.1\r\nx-a: " + b"a" * 20_000) == b""
        whole = b"GET / HTTP/1.1\r\nhost: proxy\r\n\r\n"
        got = running.ask(whole, b"GET / HT")
        assert got.endswith(b"ok")


def test_a_closed_connection_is_not_kept_for_a_client_that_does_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of an answer that nobody fetches is dropped after a while, `connection: close` or not."""
    monkeypatch.setattr("cachemw.apps.proxy.serving.KEEP_ALIVE", 0.3)
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (60 << 10)
    with raw(answer + b"x" * (60 << 10)) as upstream, proxying(upstream.url, send_buffer=4096) as running:
        small = [running.connect(buffer=2048) for _ in range(2)]
        for made, header in zip(small, ("connection: close", "connection: keep-alive"), strict=True):
            made.sendall(post(b"{}", header))
        until(lambda: len(upstream.arrived) == 2, "both have asked")
        until(lambda: not running.connections, "both are let go")
        for made in small:
            made.close()


# How it is started and stopped


def test_its_own_paths_are_these_two(http: httpx2.Client) -> None:
    """All others, and other methods of these, are the upstream's."""
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


@pytest.mark.parametrize(
    "url",
    [
        "",
        "provider.com",
        "ftp://provider.com",
        "https://",
        "https://a.com/x?y=1",
        "http://a.com:99999",
        "https://user:secret@a.com",
    ],
)
def test_a_wrong_upstream_url_is_said(url: str) -> None:
    """In one sentence, without a password that may be in it."""
    with pytest.raises(ConfigError, match="base URL of the provider") as told:
        Options(url)
    assert "secret" not in str(told.value)


def test_a_wrong_header_name_is_said() -> None:
    """A name of something else than a header."""
    with pytest.raises(ConfigError, match="header's name"):
        Options("https://a.com", namespace_header="x tenant")


def test_the_environments_proxy_is_used_only_if_asked(
    monkeypatch: pytest.MonkeyPatch, http: httpx2.Client
) -> None:
    """With `env_proxy` the request goes to it as to a proxy."""
    with raw(OK) as forward:
        monkeypatch.setenv("http_proxy", forward.url)
        monkeypatch.setenv("no_proxy", "elsewhere.invalid")
        with proxying("http://provider.invalid", env_proxy=True) as running:
            assert http.get(f"{running.url}/x").text == "ok"
        assert forward.arrived[0].startswith(b"GET http://provider.invalid/x HTTP/1.1")
        with proxying("http://provider.invalid") as running:
            assert http.get(f"{running.url}/x").status_code == 502
        with proxying("http://elsewhere.invalid", env_proxy=True) as running:
            assert http.get(f"{running.url}/x").status_code == 502
    assert len(forward.arrived) == 1


class Process:
    """The command, as a process."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CACHEMW_")}
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("cachemw"), "proxy", "--port", str(self.port), *arguments],
            env=kept,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ready(self) -> bool:
        """Say whether it serves."""
        assert self.process.poll() is None, self.end()
        try:
            return httpx2.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def end(self) -> tuple[int, str]:
        """Wait for its end; return its exit code and what it printed."""
        printed, _ = self.process.communicate(timeout=15)
        return self.process.returncode, printed

    def __enter__(self) -> Self:
        until(self.ready, "the proxy is ready", 30)
        return self

    def __exit__(self, *_: object) -> None:
        with self.process:
            self.process.kill()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_drains(workers: str, http: httpx2.Client) -> None:
    """A stream under way ends whole, /readyz says 503 while requests are still taken, then they are refused."""
    go = threading.Event()

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        assert go.wait(20)
        made.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    with (
        raw(answer) as upstream,
        Process("--upstream", upstream.url, "--workers", workers, "--drain-delay", "1") as served,
    ):
        with http.stream(**chat(path=served.url + CHAT)) as came:
            parts = came.iter_raw()
            assert next(parts) == b"one"
            served.process.send_signal(signal.SIGTERM)
            with httpx2.Client(trust_env=False, headers={"connection": "close"}) as others:
                until(lambda: others.get(f"{served.url}/readyz").text == "draining", "it drains")
                assert others.get(f"{served.url}/healthz").status_code == 200
            until(lambda: not accepts(served.port), "new connections are refused")
            assert served.process.poll() is None
            go.set()
            assert list(parts) == [b"two"]
        code, printed = served.end()
        assert code == 0
        assert "Traceback" not in printed


def test_a_drain_has_an_end(http: httpx2.Client) -> None:
    """A stream that does not end within the limit is broken off, quietly, and the process is gone."""

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        rest(made)

    with raw(answer) as upstream, Process("--upstream", upstream.url, "--drain", "1") as served:
        with http.stream(**chat(path=served.url + CHAT)) as came:
            parts = came.iter_raw()
            next(parts)
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises(httpx2.TransportError):
                list(parts)
        code, printed = served.end()
        assert code == 0
        assert "Traceback" not in printed


def accepts(port: int) -> bool:
    """Say whether a connection is taken."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_is_said() -> None:
    """As a setting that is wrong."""
    with closing(listen("127.0.0.1", 0)) as listener:
        listener.listen()
        with pytest.raises(ConfigError, match="can't be served"):
            listen("127.0.0.1", listener.getsockname()[1])


def test_the_command_serves_in_this_process(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where, takes requests for a while after SIGTERM, breaks off what does not end, and leaves with 0."""
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    monkeypatch.setattr(signal, "raise_signal", lambda number: signal.getsignal(number)(number, None))  # type: ignore[operator,misc]
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    seen: list[str] = []

    def use() -> None:
        until(lambda: accepts(port), "it listens")
        with http.stream(**chat(path=f"http://127.0.0.1:{port}{CHAT}")) as came:
            parts = came.iter_raw()
            next(parts)
            os.kill(os.getpid(), signal.SIGTERM)
            with httpx2.Client(trust_env=False) as others:
                until(lambda: others.get(f"http://127.0.0.1:{port}/readyz").status_code == 503, "it drains")
                seen.append("draining")
            with pytest.raises(httpx2.TransportError):
                list(parts)
            seen.append("broken off")

    def never_end(made: socket.socket, _: bytes) -> None:
        made.sendall(answer)
        rest(made)

    using = threading.Thread(target=use)
    with raw(never_end) as upstream:
        using.start()
        command = [
            "proxy",
            "--upstream",
            upstream.url,
            "--port",
            str(port),
            "--drain-delay",
            "0.5",
            "--drain",
            "1",
        ]
        try:
            with pytest.raises(SystemExit) as left:
                cli.main(command)
        finally:
            signal.signal(signal.SIGTERM, before)
        using.join(10)
    assert left.value.code == 0
    assert seen == ["draining", "broken off"]
    assert capsys.readouterr().out.startswith(f"Proxy on http://127.0.0.1:{port} to {upstream.url}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--upstream"),
        (["--upstream", "provider.com"], "upstream: 'provider.com' is not allowed"),
        (["--upstream", "http://a.com", "--port", "0"], "--port"),
        (["--upstream", "http://a.com", "--workers", "0"], "--workers"),
        (["--upstream", "http://a.com", "--max-body", "-1"], "--max-body"),
        (["--upstream", "http://a.com", "--idle-timeout", "0"], "--idle-timeout"),
        (["--upstream", "http://a.com", "--namespace-header", "a b"], "namespace header: 'a b'"),
        (["--upstream", "http://a.com", "--provider", "databrick"], "provider: 'databrick'"),
        (["--upstream", "http://a.com", "--store", "redis"], "store"),
        (["--upstream", "http://a.com", "--config", "nowhere.toml"], "nowhere.toml"),
        (["--upstream", "http://a.com", "--host", "not.a.host.invalid"], "can't be served"),
    ],
)
def test_bad_values_are_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With exit code 2, and what is allowed."""
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", *arguments])
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With the command that installs it."""
    for name in ("cachemw.apps.proxy.server", "cachemw.apps.proxy.reverse_proxy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", "--upstream", "http://a.com"])
    assert left.value.code == 2
    assert "pip install 'cachemw[proxy]'" in capsys.readouterr().err


def test_workers_with_a_store_of_their_own_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each learns for itself then."""
    monkeypatch.setattr("cachemw.apps.proxy.server.run", lambda *_, **__: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", "--upstream", "http://a.com", "--workers", "2"])
    assert left.value.code == 0
    assert "each worker learns for itself" in capsys.readouterr().err


def test_credentials_are_neither_kept_nor_logged(
    http: httpx2.Client, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing that the process holds afterwards has the key in it, nor anything that was written."""
    key = "sk-" + os.urandom(8).hex()
    with proxying(endpoint.url) as running:
        http.request(**chat({"authorization": f"Bearer {key}"}, running.url + CHAT))
        with raw(b"") as broken, proxying(broken.url) as failing:
            http.request(**chat({"authorization": f"Bearer {key}"}, failing.url + CHAT))
        assert key not in repr(running.mw._shared.__dict__)
        assert key not in repr(vars(running.mw._shell.store))
    out, err = capfd.readouterr()
    assert key not in out + err


def test_a_compressed_stream_is_accounted_for(
    http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """Its bytes pass as they are, and its usage is read on the way."""
    endpoint.answers.append(events(zipped=True))
    answer = http.request(**chat(path=proxied.url + CHAT, stream=True))
    assert answer.headers["content-encoding"] == "gzip"
    assert b"[DONE]" in answer.content
    until(lambda: sum(proxied.mw._shared.sums.values()), "it is accounted for")
    assert "settle.no_usage" not in proxied.mw.counts
