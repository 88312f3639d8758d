"""`CacheTransport` and `AsyncCacheTransport` under clients of httpx and httpx2: requests, construction."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import pytest
from starlette.responses import RedirectResponse

import cachemw
from benchmarks.ports import free_port
from cachemw import AsyncCacheTransport, CacheTransport, ConfigError, Settings
from cachemw.apps import simulated_gateway
from cachemw.core.request.equality import canonical
from cachemw.integrations.http import libraries
from tests.clients.endpoint import Endpoint, completion
from tests.clients.recorder import AsyncRecorder, Recorder, conversation, marks
from tests.integrations.transport_clients import (
    PATH,
    Integration,
    event_names,
    finished,
    recorder_of,
    settlement,
)


async def test_chat_request_leaves_with_markers_and_settles_once(
    integration: Integration, endpoint: Endpoint
) -> None:
    """One request with markers and nothing else changed, its length right; the usage is settled once."""
    client = integration.client()
    answer = await integration.post(
        client,
        endpoint.url + PATH,
        json=conversation(),
        headers={"X-Cachemw-Label-Team": "north", "x-other": "1"},
    )
    assert answer.json() == completion()
    (arrival,) = endpoint.arrived
    assert marks(arrival.body) > 0
    assert canonical(arrival.body) == canonical(conversation())
    assert arrival.headers["x-other"] == "1"
    assert "x-cachemw-label-team" not in arrival.headers
    assert event_names(client) == ["prepare", "begun", "settle"]
    usage, partial = settlement(client)
    assert (usage.cache_read, usage.cache_write_5m, usage.uncached, usage.output) == (4000, 900, 100, 7)
    assert not partial
    report = await finished(recorder_of(client).report())
    assert dict(report.rows[0].labels) == {"team": "north"}
    await integration.close(client)
    assert event_names(client)[-1] == "close"


async def test_request_of_the_caller_stays_unchanged(integration: Integration) -> None:
    """Headers, body and extensions of the request object stay; the inner transport gets another request."""
    client, arrived = integration.answering_client(
        lambda request: integration.library.Response(200, json=completion())
    )
    request = client.build_request(
        "POST", "https://llm.example.com" + PATH, json=conversation(), headers={"x-trace": "7"}, timeout=3
    )
    before = (list(request.headers.raw), request.content, dict(request.extensions))
    await finished(client.send(request))
    assert (list(request.headers.raw), request.content, dict(request.extensions)) == before
    (sent,) = arrived
    assert sent is not request
    assert sent.extensions == request.extensions
    assert sent.headers["content-length"] == str(
        len(await sent.aread() if integration.is_async else sent.read())
    )
    drop = [(name, value) for name, value in before[0] if name.lower() != b"content-length"]
    assert sent.headers.raw[:-1] == drop
    await integration.close(client)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/models", b""),
        ("POST", "/v1/embeddings", b'{"input": "x"}'),
        ("POST", PATH, b"no json"),
        ("POST", PATH, b'{"messages": [{"role": "user", "role": "user"}]}'),
    ],
)
async def test_request_that_is_no_chat_request_passes_as_the_same_object(
    integration: Integration, method: str, path: str, body: bytes
) -> None:
    """The inner transport gets the very same object, unless labels are taken out."""
    client, arrived = integration.answering_client(lambda request: integration.library.Response(200))
    request = client.build_request(method, f"https://llm.example.com{path}", content=body)
    await finished(client.send(request))
    labelled = client.build_request(method, request.url, content=body, headers={"x-cachemw-label-a": "b"})
    await finished(client.send(labelled))
    first, second = arrived
    assert first is request
    assert second is not labelled
    assert second.headers == request.headers
    assert second.stream is labelled.stream
    assert [name for name in event_names(client) if name != "count"] == []
    await integration.close(client)


async def test_streamed_request_body_passes_unread(integration: Integration, endpoint: Endpoint) -> None:
    """A body that is made while it is sent is not waited for."""
    raw = json.dumps(conversation()).encode()

    async def slowly() -> AsyncIterator[bytes]:
        yield raw

    client = integration.client()
    await integration.post(
        client, endpoint.url + PATH, content=slowly() if integration.is_async else iter([raw])
    )
    assert endpoint.arrived[0].body == conversation()
    assert event_names(client) == []
    await integration.close(client)


async def test_failure_of_the_transport_sends_the_original_request(
    integration: Integration, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the new request can't be made, the caller's request goes, and the failure is counted."""

    def bug(*args: Any) -> Any:
        raise RuntimeError("bug")

    monkeypatch.setattr(libraries, "take_labels", bug)
    client = integration.client()
    assert (await integration.post(client, endpoint.url + PATH, json=conversation())).json() == completion()
    assert endpoint.arrived[0].body == conversation()
    assert ("count", "http.request") in recorder_of(client).events
    await integration.close(client)


@pytest.fixture(scope="module")
def over_http2() -> Iterator[str]:
    """Serve the simulated provider over HTTP/2 without TLS, and return its URL."""
    config = hypercorn.config.Config()
    port = free_port()
    config.bind, config.loglevel, config.accesslog, config.errorlog = (
        [f"127.0.0.1:{port}"],
        "CRITICAL",
        None,
        None,
    )
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def run() -> None:
        serving = hypercorn.asyncio.serve(simulated_gateway.build(), config, shutdown_trigger=stop.wait)  # type: ignore[arg-type]
        loop.run_until_complete(serving)
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for _ in range(6_000):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
            break
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)


async def test_mounts_proxies_retries_and_redirects_work_over_the_transport(
    integration: Integration, endpoint: Endpoint
) -> None:
    """The library's features around a transport work as over any other."""
    kind: Any = AsyncCacheTransport if integration.is_async else CacheTransport
    make: Any = AsyncRecorder if integration.is_async else Recorder
    mounted = kind(integration.inner(proxy=endpoint.url, retries=1), middleware=make())
    client = integration.bare_client(mounts={"http://llm.example.com": mounted}, follow_redirects=True)
    endpoint.answers.append(lambda body: RedirectResponse("/v2/chat/completions", 307))
    got = await integration.post(client, "http://llm.example.com" + PATH, json=conversation())
    assert got.json() == completion()
    assert [marks(arrival.body) > 0 for arrival in endpoint.arrived] == [True, True]
    assert [arrival.headers["host"] for arrival in endpoint.arrived] == ["llm.example.com"] * 2
    found: Any = cachemw.of(mounted)
    assert [name for name, *_ in found.events] == ["prepare", "fail", "prepare", "begun", "settle"]
    await integration.close(client)
    assert found.events[-1] == ("close",)


async def test_calls_over_http2_are_marked_streamed_and_settled(
    integration: Integration, over_http2: str
) -> None:
    """HTTP/2 works like HTTP/1.1; the second request reads the entry that the first wrote."""
    client = integration.client(integration.inner(http1=False, http2=True))
    asked = conversation()
    del asked["tools"][0]["function"]["strict"]
    headers = {"authorization": f"Bearer {integration.library.__name__} {integration.is_async}"}
    first = await integration.post(client, over_http2 + PATH, json=asked, headers=headers)
    assert (first.http_version, first.status_code) == ("HTTP/2", 200)
    got = await integration.stream(client, over_http2 + PATH, json={**asked, "stream": True}, headers=headers)
    assert got[-1].endswith(b"data: [DONE]\n\n")
    usages = [found[1].usage for found in recorder_of(client).events if found[0] == "settle"]
    assert usages[0].cache_write == usages[1].cache_read > 10_000
    await integration.close(client)


async def test_transport_enters_and_closes_the_inner_transport_and_the_middleware(
    integration: Integration,
) -> None:
    """The inner transport and the middleware close with the transport, or with the client."""
    entered: list[str] = []

    class Inner(
        integration.library.AsyncBaseTransport if integration.is_async else integration.library.BaseTransport
    ):  # type: ignore[misc]
        def __enter__(self) -> Any:
            entered.append("enter")
            return self

        async def __aenter__(self) -> Any:
            entered.append("enter")
            return self

        def close(self) -> None:
            entered.append("close")

        async def aclose(self) -> None:
            entered.append("close")

    client = integration.client(Inner())
    if integration.is_async:
        async with client:
            pass
    else:
        with client:
            pass
    assert entered == ["enter", "close"]
    assert event_names(client) == ["close"]
    idle = integration.client()
    if integration.is_async:
        async with idle:
            pass
    else:
        with idle:
            pass
    assert event_names(idle) == ["close"]
    unused = integration.client()
    await integration.close(unused)
    assert event_names(unused) == ["close"]


def test_subclass_of_a_request_belongs_to_its_library(library: Any) -> None:
    """The library is known by the request's base classes."""

    class Request(library.Request):  # type: ignore[misc]
        pass

    assert libraries.library_of(Request("GET", "http://x")) is library


def test_wrong_arguments_of_a_transport_are_config_errors() -> None:
    """Fields of `Settings`, a clock, or a middleware; each wrong mixture is a `ConfigError` that names it."""
    built = CacheTransport(provider="databricks", clock=lambda: 1e9)
    assert cachemw.of(built).settings.provider == "databricks"
    built.close()
    recorded = AsyncRecorder()
    assert cachemw.of(AsyncCacheTransport(middleware=recorded)) is recorded
    with pytest.raises(
        ConfigError, match=r"AsyncCacheTransport: middleware is .*Recorder; .* needs AsyncMiddleware"
    ):
        AsyncCacheTransport(middleware=Recorder())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="CacheTransport: settings and store both given"):
        CacheTransport(settings=Settings(), store="memory://")
    with pytest.raises(ConfigError, match="CacheTransport: a middleware brings its own settings"):
        CacheTransport(middleware=Recorder(), ttl="5m")
