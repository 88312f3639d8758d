"""Chat requests through the proxy: markers, answers, refusals, and usage."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx2
import openai
import pytest
from anthropic import Anthropic

from cachemw.apps import simulated_gateway
from cachemw.core.request.equality import canonical
from tests.apps.proxy.proxied import CHAT, LONG, PATIENCE, Proxied, chat, proxying, raw, until
from tests.clients.endpoint import Endpoint, completion, error, events
from tests.clients.recorder import MODEL, marks

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"


@pytest.mark.parametrize(
    "path",
    [
        CHAT,
        "/ai-gateway/mlflow/v1/chat/completions",
        "/v1/chat/completions",
        f"/serving-endpoints/{MODEL}/invocations",
    ],
)
def test_chat_request_gets_markers_only(
    path: str, http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """Markers are added, the answer is unchanged, and usage is counted."""
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


def test_stream_is_passed_on_part_by_part(http: httpx2.Client) -> None:
    """The client has each part before the upstream sends the next one."""
    go = threading.Event()

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(3):
            made.sendall(b"a\r\ndata: {}\n\n\r\n")
            assert go.wait(PATIENCE)
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


def test_real_clients_read_from_the_cache_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clients of OpenAI and Anthropic, whole and streamed: the second call reads."""
    monkeypatch.setenv("NO_PROXY", "*")
    with (
        simulated_gateway.running(simulated_gateway.build()) as url,
        proxying(url, fields={"provider": "auto"}) as running,
    ):
        chats = openai.OpenAI(base_url=f"{running.url}/serving-endpoints", api_key="key")
        system: Any = {"role": "system", "content": LONG}
        for question in ("Where is it?", "When?"):
            messages: Any = [system, {"role": "user", "content": question}]
            answered = chats.chat.completions.with_raw_response.create(model=MODEL, messages=messages)
        read = answered.parse().usage
        assert read is not None
        assert read.model_extra is not None
        assert read.model_extra["cache_read_input_tokens"] > 0
        assert answered.headers["x-cachemw-decision"] == "marked"
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


def test_refused_marker_resends_the_original(
    http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """After a 400 that names a marker of cachemw, the original bytes are sent once."""
    asked = chat(path=proxied.url + CHAT)
    http.request(**asked)
    endpoint.answers.append(error(400, REFUSAL))
    answer = http.request(**asked)
    assert (answer.status_code, answer.json()) == (200, completion())
    assert answer.headers["x-cachemw-decision"] == "refused"
    assert [bool(marks(arrival.body)) for arrival in endpoint.arrived[-2:]] == [True, False]
    assert proxied.mw.counts["refused"] == 1


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_error_of_the_upstream_passes_unchanged(
    status: int, http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """Status, headers and body pass; no header of cachemw is added."""
    http.request(**chat(path=proxied.url + CHAT))
    endpoint.answers.append(error(status, "no such thing", {"retry-after": "3"}))
    answer = http.request(**chat(path=proxied.url + CHAT))
    assert answer.status_code == status
    assert answer.json() == {"error_code": "BAD_REQUEST", "message": "no such thing"}
    assert answer.headers["retry-after"] == "3"
    assert not any(name.startswith("x-cachemw") for name in answer.headers)


def test_usage_of_a_compressed_stream_is_counted(
    http: httpx2.Client, proxied: Proxied, endpoint: Endpoint
) -> None:
    """The bytes pass unchanged, and the usage is read on the way."""
    endpoint.answers.append(events(zipped=True))
    answer = http.request(**chat(path=proxied.url + CHAT, stream=True))
    assert answer.headers["content-encoding"] == "gzip"
    assert b"[DONE]" in answer.content
    until(lambda: sum(proxied.mw._shared.sums.values()), "it is accounted for")
    assert "settle.no_usage" not in proxied.mw.counts
