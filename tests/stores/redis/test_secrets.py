"""The data that a run on known prompts leaves in servers, on the way to them, in logs, counts and events.

It must not contain eight characters in a row of any prompt, tool, image, API key or secret, also not as hex
or base64.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import string
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import openai
import pytest

import cachemw
from benchmarks import redis_servers
from benchmarks.ports import free_port
from benchmarks.redis_servers import Server
from cachemw.apps import simulated_gateway
from cachemw.simulation.options import Options
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient

MODEL = "databricks-claude-sonnet-4-6"
RUN = 8
API_KEY = "dapi-Vq7sKx2mZt9wLr4nPb8cHd6f"
SECRET = "Jw5Yh3Tn-Rk8Uq1Xe-Mg6Ba0Sd"
NAMESPACE = "Tenant Zwilling of Quarzhafen"
PASSWORD = "hunter2-Of-The-Servers"
LABELS = {"app": "Kundendienst", "team": "team nine"}
DAYS = 7 * 24 * 3_600_000

Keys = dict[bytes, tuple[int, bytes]]


# --- a run -------------------------------------------------------------------------------------------------


class Prompts:
    """Requests made of unique texts; `texts` are all of them by their role."""

    def __init__(self) -> None:
        self._random = random.Random(20_260_301)
        self.texts: dict[str, bytes] = {"API key": API_KEY.encode(), "secret": SECRET.encode()}

    def text(self, name: str, words: int) -> str:
        drawn = self._random
        said = " ".join(
            "".join(drawn.choices(string.ascii_letters, k=drawn.randint(2, 9))) for _ in range(words)
        )
        self.texts[name] = said.encode()
        return said

    def word(self, name: str) -> str:
        return self.text(name, 3).replace(" ", "_")[:40]

    def image(self) -> str:
        size = 32
        rows = b"".join(b"\0" + self._random.randbytes(3 * size) for _ in range(size))
        parts = (
            (b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
        png = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
        self.texts["image"] = base64.b64encode(png[50:])
        return "data:image/png;base64," + base64.b64encode(png).decode()

    def tool(self, number: int) -> dict[str, Any]:
        arguments = {
            self.word(f"argument {number}"): {
                "type": "string",
                "description": self.text(f"about it {number}", 20),
            }
        }
        function = {
            "name": self.word(f"tool {number}"),
            "description": self.text(f"about tool {number}", 60),
            "parameters": {"type": "object", "properties": arguments},
        }
        return {"type": "function", "function": function}

    def bodies(self) -> list[dict[str, Any]]:
        """Return a growing conversation, more on the same prompts, and a short one."""
        tools = [self.tool(number) for number in range(4)]
        manual = self.text("system prompt", 1_500)
        sent: list[dict[str, Any]] = []
        for number in range(3):
            dated = f"{manual}\n" + self.text(f"rest of system prompt {number}", 40)
            question = [
                {"type": "text", "text": self.text(f"question {number}", 300)},
                {"type": "image_url", "image_url": {"url": self.image()}},
            ]
            asked = [{"role": "system", "content": dated}, {"role": "user", "content": question}]
            call = {
                "id": self.word(f"call {number}"),
                "type": "function",
                "function": {
                    "name": tools[number]["function"]["name"],
                    "arguments": json.dumps({"q": self.text(f"arguments {number}", 30)}),
                },
            }
            answered = [
                {"role": "assistant", "content": self.text(f"answer {number}", 50), "tool_calls": [call]},
                {"role": "tool", "tool_call_id": call["id"], "content": self.text(f"result {number}", 80)},
            ]
            shuffled = self._random.sample(tools, len(tools))
            common = {"model": MODEL, "tools": shuffled, "user": self.word(f"user {number}")}
            sent += [{**common, "messages": asked}, {**common, "messages": [*asked, *answered]}] * 2
        short = [{"role": "user", "content": self.text("short", 5)}]
        return [*sent, {"model": self.word("no model")[:6], "messages": short}]


Told = list[object]


def run(kind: str, store: str, prompts: Prompts, **fields: Any) -> tuple[Told, dict[str, int]]:
    """Send all prompts through a wrapped client to the simulated gateway; return the events and counts."""
    bodies = prompts.bodies()
    told: Told = []
    settings = cachemw.Settings(
        **{"provider": "databricks", "store": store, "secret": SECRET, "namespace": NAMESPACE}
        | {"coalesce": True, "split_text": True, "sort_tools": True, "store_timeout_ms": 2000} | fields
    )  # fmt: skip
    # The gateway refuses one kind of block, so workers share that fact, too.
    with (
        simulated_gateway.running(simulated_gateway.build(Options(tool_result_markers=False))) as url,
        ExitStack() as stack,
    ):
        given: dict[str, Any] = {"base_url": f"{url}/v1", "api_key": API_KEY, "max_retries": 0}
        if kind == "sync":
            mw = cachemw.Middleware(settings, hooks=[told.append])
            http = stack.enter_context(openai.DefaultHttpxClient(trust_env=False))
            client = stack.enter_context(
                cachemw.wrap(openai.OpenAI(http_client=http, **given), middleware=mw)
            )
            with cachemw.labels(**LABELS):
                for number, body in enumerate(bodies):
                    try:
                        answer = client.chat.completions.create(**body, stream=number % 3 == 2)
                        assert number % 3 != 2 or list(answer)
                    except openai.OpenAIError as error:
                        told.append(type(error))
            told += [mw.report(), mw.report("process"), mw, mw.settings, mw._shell.store, repr(mw.counts)]
            return told, mw.counts

        async def awaited() -> dict[str, int]:
            mw = cachemw.AsyncMiddleware(settings, hooks=[told.append])
            http = openai.DefaultAsyncHttpxClient(trust_env=False)
            async with cachemw.wrap(openai.AsyncOpenAI(http_client=http, **given), middleware=mw) as client:
                with cachemw.labels(**LABELS):
                    for number, body in enumerate(bodies):
                        try:
                            answer = await client.chat.completions.create(**body, stream=number % 3 == 2)
                            if number % 3 == 2:
                                assert [chunk async for chunk in answer]
                        except openai.OpenAIError as error:
                            told.append(type(error))
                told.extend(
                    [
                        await mw.report(),
                        await mw.report("process"),
                        mw,
                        mw.settings,
                        mw._shell.store,
                        repr(mw.counts),
                    ]
                )
            return mw.counts

        return told, asyncio.run(awaited())


# --- the search ----------------------------------------------------------------------------------


def grams(data: bytes, length: int) -> set[bytes]:
    """Return all substrings of so many bytes."""
    return {data[start : start + length] for start in range(len(data) - length + 1)}


def found(data: bytes, texts: Mapping[str, bytes]) -> set[str]:
    """Return the texts with eight characters in a row in the data: plain, as hex or as base64."""
    plain, hexes = grams(data, RUN), grams(data.lower(), 2 * RUN)
    return {
        name
        for name, text in texts.items()
        if not plain.isdisjoint(grams(text, RUN))
        or not hexes.isdisjoint(grams(text.hex().encode(), 2 * RUN))
        or any(not plain.isdisjoint(grams(form, RUN)) for form in _base64(text))
    }


def _base64(text: bytes) -> Iterator[bytes]:
    for start in range(3):
        for alphabet in (b"+/", b"-_"):
            yield base64.b64encode(text[start:], alphabet).rstrip(b"=")


def dumped(servers: Iterable[Server]) -> Keys:
    """Return all keys of servers with their remaining milliseconds and their values."""
    keys: Keys = {}
    for server in servers:
        with server.client() as client:
            for name in client.keys("*"):
                kind = client.type(name)
                value = (
                    client.get(name)
                    if kind == b"string"
                    else b"\n".join(map(b" ".join, client.hgetall(name).items()))
                )
                keys[name] = client.pttl(name), client.dump(name) + b"\n" + value
    return keys


def joined(keys: Keys) -> bytes:
    """Return names and values as one text."""
    return b"\n".join(name + b"\n" + value for name, (_, value) in keys.items())


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record all parts of all commands that leave the process."""
    parts: list[bytes] = []

    def note(commands: Any) -> None:
        parts.extend(
            part if isinstance(part, bytes) else str(part).encode()
            for command in commands
            for part in command
        )

    execute, execute_async = RedisClient.execute, AsyncRedisClient.execute

    def noted(self: RedisClient, commands: Any, seconds: float) -> Any:
        note(commands)
        return execute(self, commands, seconds)

    async def noted_async(self: AsyncRedisClient, commands: Any, seconds: float) -> Any:
        note(commands)
        return await execute_async(self, commands, seconds)

    monkeypatch.setattr(RedisClient, "execute", noted)
    monkeypatch.setattr(AsyncRedisClient, "execute", noted_async)
    return parts


@pytest.fixture(scope="module")
def one() -> Iterator[tuple[str, list[Server]]]:
    """Start a server; return its URL and processes."""
    with redis_servers.standalone() as server:
        yield server.url, [server]


@pytest.fixture(scope="module")
def three() -> Iterator[tuple[str, list[Server]]]:
    """Start a cluster of three; return its URL and processes."""
    with redis_servers.cluster(3) as cluster:
        yield cluster.url, cluster.nodes


@pytest.fixture(params=["one", "three"])
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[Server]]]:
    """Return each topology, empty."""
    url, nodes = request.getfixturevalue(request.param)
    yield url, nodes
    for node in nodes:
        with node.client() as client:
            client.flushall()


# --- tests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_run_with_all_opt_ins_stores_no_prompt(
    servers: tuple[str, list[Server]], kind: str, sent: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A run leaves hashes, sums, model names and labels; each key is cachemw's and expires."""
    caplog.set_level(logging.DEBUG, logger="cachemw")
    url, nodes = servers
    prompts = Prompts()
    told, counts = run(kind, url, prompts)
    keys = dumped(nodes)
    # The run left prefixes, sums, facts and a fingerprint, and read entries.
    assert len([name for name in keys if b"}:p:" in name]) > 15
    assert {name[-2:] for name in keys if b"}:p:" not in name} == {b":t", b":b", b":s"}
    assert not [name for name in counts if name.startswith("error.")], counts
    report, *_ = [each for each in told if isinstance(each, cachemw.Report)]
    assert report.totals.cache_read > 0
    assert report.totals.calls > 10

    for name, (left, _) in keys.items():
        assert name.startswith(b"cachemw:{")
        assert 0 < left <= DAYS
    inside = joined(keys)
    everything = {**prompts.texts, "namespace": NAMESPACE.encode(), "secret": SECRET.encode()}
    assert found(inside, everything) == set()
    assert found(b"\n".join(sent), everything) == set()
    # Only the tables of sums hold text of the application: labels and model names.
    for word in (*LABELS, *LABELS.values(), "claude-sonnet-4-6"):
        holding = {name[-2:] for name, (_, value) in keys.items() if word.encode() in name + value}
        assert holding == {b":t"}, word
    outside = "\n".join([caplog.text, *map(repr, told), *counts])
    assert found(outside.encode(), {**prompts.texts, "secret": SECRET.encode()}) == set()


def test_search_finds_planted_text() -> None:
    """The search finds eight characters of any text in any form, and nothing without them."""
    prompts = Prompts()
    prompts.bodies()
    for name, text in list(prompts.texts.items())[::5]:
        middle = len(text) // 2 - RUN // 2
        run_of_it = text[middle : middle + RUN]
        for planted in (
            run_of_it,
            run_of_it.hex().upper().encode(),
            base64.b64encode(text),
            base64.urlsafe_b64encode(b"~" + text),
        ):
            assert found(b"~~" + planted + b"~~", {name: text}) == {name}
    assert (
        found(b"cachemw:{0123456789abcdef:0123456789abcdef}:p:" + b"0123456789abcdef" * 2, prompts.texts)
        == set()
    )


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_unavailable_store_logs_no_prompt_and_no_password(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Failures show no prompt, and of the store's URL neither user nor password nor host."""
    caplog.set_level(logging.DEBUG, logger="cachemw")
    prompts = Prompts()
    port = free_port()
    told, counts = run(kind, f"redis://worker:{PASSWORD}@127.0.0.1:{port}/0", prompts, store_timeout_ms=20)
    assert counts["error.store.ConnectionError"] > 0
    assert counts["store.away"] == 1
    outside = "\n".join([caplog.text, *map(repr, told), *counts])
    assert "Store unavailable (ConnectionError)." in caplog.text
    assert found(outside.encode(), {**prompts.texts, "password": PASSWORD.encode()}) == set()
    assert f":{port}" not in outside
    assert "127.0.0.1" not in outside


def keys_of(nodes: list[Server]) -> set[bytes]:
    """Return the names of all keys, and delete them."""
    names = set(dumped(nodes))
    for node in nodes:
        with node.client() as client:
            client.flushall()
    return names


def prefixes(keys: set[bytes]) -> set[bytes]:
    """Return the keys of records. The time decides which tables exist, too."""
    return {key for key in keys if b"}:p:" in key}


def traffic(
    url: str, *, namespace: str | None = None, setting: str = "default", secret: str = SECRET
) -> None:
    """Send the same requests, in the namespace of the settings or in one for each call."""
    prompts = Prompts()
    mw = cachemw.Middleware(
        provider="databricks", store=url, secret=secret, namespace=setting, store_timeout_ms=2000
    )
    for body in prompts.bodies():
        call = mw.prepare(body, LABELS, namespace)
        mw.begun(call)
        mw.settle(call, {"prompt_tokens": 5000, "completion_tokens": 1, "cache_creation_input_tokens": 4000})
    assert mw.flush()
    mw.close()


def test_traffic_under_another_namespace_shares_no_key(servers: tuple[str, list[Server]]) -> None:
    """The namespace may be a setting or come with each call."""
    url, nodes = servers
    traffic(url)
    default = keys_of(nodes)
    traffic(url, namespace="second")
    by_call = keys_of(nodes)
    traffic(url, setting="second")
    by_setting = keys_of(nodes)
    assert default.isdisjoint(by_setting)
    assert prefixes(by_call) == prefixes(by_setting)
    assert len(prefixes(by_call)) == len(prefixes(default)) > 15
    # The namespace of the settings keys the report, the facts and cohorts, and the fingerprint.
    assert {key[-2:] for key in default & by_call} <= {b":s", b":t", b":b"}


def test_traffic_under_another_secret_shares_no_key(servers: tuple[str, list[Server]]) -> None:
    """Only the key of the fingerprint is the same."""
    url, nodes = servers
    traffic(url)
    first = keys_of(nodes)
    traffic(url, secret="another")
    second = keys_of(nodes)
    traffic(url)
    assert prefixes(keys_of(nodes)) == prefixes(first)
    assert len(prefixes(second)) == len(prefixes(first)) > 15
    assert {key[-2:] for key in first & second} == {b":s"}


def test_report_and_entries_of_a_namespace_are_its_own(one: tuple[str, list[Server]]) -> None:
    """Another namespace does not see them, whatever its name looks like."""
    url, nodes = one
    names = ["a", "a:b", "a\x00observed", "A", "{a}", "a" * 256]
    made = cachemw.Middleware
    workers = {
        name: made(provider="databricks", store=url, secret=SECRET, namespace=name, store_timeout_ms=2000)
        for name in names
    }
    body = Prompts().bodies()[0]
    for number, (name, mw) in enumerate(workers.items(), 1):
        for earlier in range(number):
            call = mw.prepare(body)
            assert (call.plan.cache_read > 0) == (earlier > 0)
            billed = {
                "cache_read_input_tokens": call.plan.cache_read,
                "cache_creation_input_tokens": call.plan.cache_write_5m,
            }
            mw.settle(call, {"prompt_tokens": 9_000, "completion_tokens": 1, **billed})
            assert mw.flush()
        assert mw.report().totals.calls == number, name
    for number, (name, mw) in enumerate(workers.items(), 1):
        assert mw.report().totals.calls == number, name
        mw.close()
    keys_of(nodes)


# --- workers whose secrets differ
# ------------------------------------------------------------------------------


def _sync(url: str, secret: str | None, times: int) -> dict[str, int]:
    mw = cachemw.Middleware(provider="databricks", store=url, secret=secret, store_timeout_ms=2000)
    for _ in range(times):
        mw.settle(mw.prepare({"model": MODEL, "messages": [{"role": "user", "content": "x" * 20_000}]}), None)
        assert mw.flush()
    mw.close()
    return mw.counts


def _async(url: str, secret: str | None, times: int) -> dict[str, int]:
    async def awaited() -> dict[str, int]:
        mw = cachemw.AsyncMiddleware(provider="databricks", store=url, secret=secret, store_timeout_ms=2000)
        for _ in range(times):
            body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 20_000}]}
            await mw.settle(await mw.prepare(body), None)
            assert await mw.flush()
        await mw.close()
        return mw.counts

    return asyncio.run(awaited())


@pytest.mark.parametrize("act", [_sync, _async], ids=["sync", "async"])
@pytest.mark.parametrize("other", ["another secret", None])
def test_worker_with_another_secret_warns_once(
    servers: tuple[str, list[Server]],
    act: Callable[[str, str | None, int], dict[str, int]],
    other: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker that came later counts it once and warns once; the first one stays silent."""
    url, nodes = servers
    assert "error.store.OtherSecret" not in act(url, SECRET, 3)
    caplog.clear()
    assert act(url, other, 3)["error.store.OtherSecret"] == 1
    (warning,) = [each.message for each in caplog.records if "another secret" in each.message]
    assert "Set `secret` to the same value for all workers." in warning
    assert SECRET not in warning
    assert "error.store.OtherSecret" not in act(url, SECRET, 1)
    keys = dumped(nodes)
    assert found(joined(keys), {"secret": SECRET.encode(), "other": (other or "default").encode()}) == set()
