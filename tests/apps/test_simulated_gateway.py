"""The simulated provider over HTTP, with three kinds of clients."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI
from starlette.applications import Starlette
from starlette.testclient import TestClient

from cachemw.apps import simulated_gateway
from cachemw.apps.simulated_gateway import (
    CHAT_PATHS,
    CLOCK_HEADER,
    MESSAGES_PATHS,
    BilledRequest,
    build,
    running,
)
from cachemw.simulation.options import Options

MODEL = "databricks-claude-sonnet-4-5"
KEY = {"authorization": "Bearer team-a"}
LONG = "A support agent reads the policy, looks at the order and answers in two sentences. " * 120
Body = dict[str, Any]


def body(question: str = "Where is my order?", *, ttl: str | None = None, **rest: Any) -> Any:
    """Return a request with a marked system prompt of some 2,000 tokens."""
    marker = {"type": "ephemeral", **({"ttl": ttl} if ttl else {})}
    system = {"role": "system", "content": [{"type": "text", "text": LONG, "cache_control": marker}]}
    return {"model": MODEL, "messages": [system, {"role": "user", "content": question}], **rest}


def messages_body(**rest: Any) -> Body:
    """Return the same request for the Messages wire."""
    chat = body()
    return {
        "model": MODEL,
        "max_tokens": 50,
        "system": chat["messages"][0]["content"],
        "messages": chat["messages"][1:],
        **rest,
    }


def post(app: Starlette, path: str, sent: Any, **headers: str) -> Any:
    """Send a body to an app without a socket."""
    with TestClient(app) as client:
        given = {**KEY, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return client.post(path, content=sent if isinstance(sent, bytes) else json.dumps(sent), headers=given)


def events(answer: Any) -> list[Any]:
    """Return the data of a stream's server-sent events, without the end mark."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("path", CHAT_PATHS)
def test_chat_paths_answer_and_share_entries(path: str) -> None:
    """The first request writes, the second reads the same number of tokens, in Databricks' flat usage."""
    app = build()
    path = path.format(name=MODEL) if "{" in path else path
    first, second = (post(app, path, body()).json()["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] == first["cache_creation_input_tokens"] > 1500
    assert second["cache_creation_input_tokens"] == 0
    assert second["prompt_tokens"] == first["prompt_tokens"] > second["cache_read_input_tokens"]
    assert second["total_tokens"] == second["prompt_tokens"] + second["completion_tokens"]


@pytest.mark.parametrize("path", MESSAGES_PATHS)
def test_messages_paths_answer_in_the_format_of_anthropic(path: str) -> None:
    """Usage splits writes by TTL, and `input_tokens` leave out cache reads."""
    app = build()
    first, second = (post(app, path, messages_body()).json() for _ in range(2))
    assert first["content"][0]["type"] == "text"
    assert first["stop_reason"] == "end_turn"
    written = first["usage"]["cache_creation"]["ephemeral_5m_input_tokens"]
    assert (
        written == first["usage"]["cache_creation_input_tokens"] == second["usage"]["cache_read_input_tokens"]
    )
    assert second["usage"]["input_tokens"] < 50 < written


def test_model_name_in_the_path_replaces_one_in_the_body() -> None:
    """`/serving-endpoints/{name}/invocations` needs no model; both spellings are one model."""
    app = build()
    nameless = {key: value for key, value in body().items() if key != "model"}
    post(app, f"/serving-endpoints/{MODEL}/invocations", nameless)
    again = post(app, "/v1/chat/completions", {**body(), "model": "system.ai.claude-sonnet-4-5"})
    assert again.json()["usage"]["cache_read_input_tokens"] > 0


def test_organisations_and_models_share_no_entries() -> None:
    """A request with another token or model reads nothing."""
    app = build()
    post(app, "/v1/chat/completions", body())
    for change, headers in (
        ({}, {"authorization": "Bearer team-b"}),
        ({"model": "databricks-claude-opus-4-1"}, {}),
    ):
        usage = post(app, "/v1/chat/completions", {**body(), **change}, **headers).json()["usage"]
        assert usage["cache_read_input_tokens"] == 0


def test_exclusive_usage_leaves_cached_tokens_out_of_the_prompt() -> None:
    """This is the other reading of Databricks' `prompt_tokens`."""
    usage = post(build(inclusive=False), "/v1/chat/completions", body()).json()["usage"]
    assert usage["prompt_tokens"] < 50 < usage["cache_creation_input_tokens"]


def test_databricks_stream_has_usage_in_every_chunk() -> None:
    """Prompt tokens are constant, completion tokens grow, and the last event is the end mark."""
    answer = post(build(), "/serving-endpoints/chat/completions", body(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.rstrip().endswith("data: [DONE]")
    usages = [chunk["usage"] for chunk in events(answer)]
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    grown = [usage["completion_tokens"] for usage in usages]
    assert grown == sorted(grown)
    assert grown[0] < grown[-1]
    assert events(answer)[-1]["choices"][0]["finish_reason"] == "stop"


def test_openrouter_stream_has_usage_once_at_the_end() -> None:
    """One chunk without choices has it, with details of an inclusive prompt."""
    app = build(Options(provider="openrouter"))
    chunks = events(post(app, "/v1/chat/completions", body(stream=True)))
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cache_write_tokens"] > 0


def test_anthropic_stream_has_usage_first_and_cumulative_last() -> None:
    """`message_start` has the prompt's usage, `message_delta` the whole usage again."""
    answer = post(build(), "/v1/messages", messages_body(stream=True))
    found = events(answer)
    assert [event["type"] for event in found] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert answer.text.startswith("event: message_start\n")
    start, end = found[0]["message"]["usage"], found[-2]["usage"]
    assert start["cache_creation_input_tokens"] == end["cache_creation_input_tokens"] > 0
    assert start["output_tokens"] < end["output_tokens"]


def _databricks_error(data: Any) -> str:
    assert data["error_code"] in ("BAD_REQUEST", "UNAUTHENTICATED", "RESOURCE_DOES_NOT_EXIST")
    return str(data["message"])


def _anthropic_error(data: Any) -> str:
    assert data["type"] == "error"
    assert data["error"]["type"] in ("invalid_request_error", "authentication_error", "not_found_error")
    return str(data["error"]["message"])


def _openai_error(data: Any) -> str:
    return str(data["error"]["message"])


SHAPES: list[tuple[str, str, Body, Callable[[Any], str]]] = [
    ("databricks", "/serving-endpoints/chat/completions", body(), _databricks_error),
    ("databricks", "/serving-endpoints/anthropic/v1/messages", messages_body(), _anthropic_error),
    ("openrouter", "/v1/chat/completions", body(), _openai_error),
]


@pytest.mark.parametrize(
    ("provider", "path", "sent", "message"), SHAPES, ids=["databricks", "anthropic", "openai"]
)
def test_refusal_has_the_format_of_its_wire(
    provider: str, path: str, sent: Body, message: Callable[[Any], str]
) -> None:
    """400, 401 and 404 have their texts; each is counted and none is billed."""
    app = build(Options(provider=provider))
    many = {
        **sent,
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}] * 6,
            }
        ],
    }
    many.pop("system", None)
    refused = post(app, path, many)
    assert (refused.status_code, message(refused.json())) == (
        400,
        "A maximum of 4 blocks with cache_control may be provided. Found 6.",
    )
    stranger = post(app, path, sent, authorization="Basic abc")
    assert stranger.status_code == 401
    assert "Credential was not sent" in message(stranger.json())
    unknown = post(app, path, {**sent, "model": "acme-7"})
    assert unknown.status_code == 404
    assert "acme-7" in message(unknown.json())
    assert [row.status for row in app.state.ledger.rows] == [400, 401, 404]
    assert app.state.ledger.totals["refused"] == app.state.ledger.totals["requests"] == 3
    assert sum(sum(row[3:]) for row in app.state.ledger.rows) == 0


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'{"messages": "\\ud800"}', b"\xff"])
def test_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    """The answer is a 400."""
    answer = post(build(), "/v1/chat/completions", raw)
    assert answer.status_code == 400
    assert "request body is not" in _databricks_error(answer.json())


def test_api_key_header_authenticates_the_messages_wire() -> None:
    """Anthropic's own clients send `x-api-key`."""
    with TestClient(build()) as client:
        assert (
            client.post("/v1/messages", json=messages_body(), headers={"x-api-key": "k"}).status_code == 200
        )


def test_virtual_clock_is_read_from_the_header() -> None:
    """An entry is cached for 300 seconds by the client's clock."""
    app = build(virtual_clock=True)

    def read(at: float) -> int:
        answer = post(app, "/v1/chat/completions", body(), **{CLOCK_HEADER: str(at)})
        return int(answer.json()["usage"]["cache_read_input_tokens"])

    assert read(1000.0) == 0
    assert read(1299.999) > 0
    assert read(1599.999) == 0


@pytest.mark.parametrize("sent", [None, "", "noon", "nan", "inf"])
def test_virtual_clock_without_a_time_is_refused(sent: str | None) -> None:
    """The 400 names the header."""
    headers = {} if sent is None else {CLOCK_HEADER: sent}
    answer = post(build(virtual_clock=True), "/v1/chat/completions", body(), **headers)
    assert answer.status_code == 400
    assert CLOCK_HEADER in answer.json()["message"]


def test_time_without_a_virtual_clock_is_refused() -> None:
    """A client cannot set the time of a gateway with its own clock."""
    answer = post(build(), "/v1/chat/completions", body(), **{CLOCK_HEADER: "5"})
    assert answer.status_code == 400
    assert CLOCK_HEADER in answer.json()["message"]


def test_given_clock_decides_the_expiry() -> None:
    """Entries expire by the clock given to `build`."""
    now = [0.0]
    app = build(clock=lambda: now[0])
    for at, found in ((0.0, False), (299.0, True), (600.0, False)):
        now[0] = at
        usage = post(app, "/v1/chat/completions", body()).json()["usage"]
        assert (usage["cache_read_input_tokens"] > 0) is found


def test_ledger_has_a_row_for_each_request_and_their_sums() -> None:
    """Rows hold tokens by kind and TTL, and the totals are their sums."""
    app = build()
    post(app, "/v1/chat/completions", body(ttl="1h"))
    post(app, "/v1/chat/completions", body("And my refund?"))
    first, second = app.state.ledger.rows
    assert first == BilledRequest(MODEL, "chat", 200, 0, 0, first.cache_write_1h, first.uncached, 6)
    assert second.cache_read == first.cache_write_1h > 0
    totals = app.state.ledger.totals
    assert (totals["requests"], totals["refused"]) == (2, 0)
    assert totals["uncached"] == first.uncached + second.uncached
    assert totals["cache_write_1h"] == first.cache_write_1h


def test_models_and_health_are_served() -> None:
    """The list has the Claude models under Databricks' names."""
    with TestClient(build()) as client:
        assert client.get("/healthz").text == "ok"
        for path in simulated_gateway.MODELS_PATHS:
            assert MODEL in [row["id"] for row in client.get(path).json()["data"]]


@pytest.fixture
def served() -> Iterator[tuple[Starlette, OpenAI]]:
    """Serve a gateway on a loopback port, with an OpenAI client for it."""
    app = build()
    with (
        running(app) as url,
        OpenAI(base_url=f"{url}/serving-endpoints", api_key="team-a", max_retries=0) as client,
    ):
        yield app, client


def test_real_client_reads_answers_streams_and_errors(served: tuple[Starlette, OpenAI]) -> None:
    """Usage has the extra fields, chunks parse, and a 400 is a BadRequestError with its text."""
    _, client = served
    whole = client.chat.completions.create(**body())
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.model_extra is not None
    written = whole.usage.model_extra["cache_creation_input_tokens"]
    last = list(client.chat.completions.create(**body(), stream=True))[-1].to_dict()
    assert last["usage"]["cache_read_input_tokens"] == written > 0
    part = {"type": "text", "text": " ", "cache_control": {"type": "ephemeral"}}
    blank = {"role": "user", "content": [part]}
    with pytest.raises(openai.BadRequestError, match="cache_control cannot be set for empty text blocks"):
        client.chat.completions.create(**body(), extra_body={"messages": [blank]})
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(**body(), extra_headers={"Authorization": "Basic x"})


@pytest.mark.parametrize("stream", [False, True])
def test_concurrent_cold_requests_all_write(
    served: tuple[Starlette, OpenAI], stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Concurrent requests read nothing before an answer has begun; the next request reads."""
    app, client = served
    begun, all_begun = [0], threading.Event()

    async def until_all_have_begun(_seconds: float) -> None:
        begun[0] += 1
        if begun[0] == 5:
            all_begun.set()
        assert await asyncio.to_thread(all_begun.wait, 30)

    monkeypatch.setattr(simulated_gateway, "sleep", until_all_have_begun)

    def ask(number: int) -> None:
        answer = client.chat.completions.create(**body(f"Question {number}"), stream=stream)
        if stream:
            list(answer)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(ask, range(5)))
    ask(6)
    rows = list(app.state.ledger.rows)
    assert [row.cache_read > 0 for row in rows] == [False] * 5 + [True]
    assert all(row.cache_write_5m > 0 for row in rows[:5])


def test_running_frees_its_port() -> None:
    """The server has stopped when the block ends."""
    with running(build()) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0)
        assert client.models.list().data
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    client.close()
