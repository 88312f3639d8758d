"""The command line: exit codes, and one sentence on stderr instead of a traceback."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

import cachemw
from cachemw.apps import simulated_gateway
from cachemw.apps.cli import main
from cachemw.simulation.conversation_families import MODEL

LONG = "Answer in one short sentence. " * 300


def called(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def bodies(path: Path, *questions: str) -> str:
    """Write request bodies of one long system prompt, one a line."""
    rows = [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": LONG}, {"role": "user", "content": question}],
        }
        for question in questions
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return str(path)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is that of the package."""
    assert called("--version") == 0
    assert capsys.readouterr().out == "cachemw 0.1.0\n"


def test_demo(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo prints a table and leaves its page in the working directory."""
    monkeypatch.chdir(tmp_path)
    assert called("demo", "--conversations", "3") == 0
    assert "cachemw" in capsys.readouterr().out
    assert (tmp_path / "cachemw-demo.html").read_text().startswith("<!doctype html>")


def test_demo_reads_bodies_and_sends_them_to_one_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Bodies of any model can be sent to a priced one."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}))
    html = str(tmp_path / "page.html")
    assert called("demo", "--data", str(path), "--html", html) == 2
    assert "model is 'gpt-4o'" in capsys.readouterr().err
    assert called("demo", "--data", str(path), "--html", html, "--model", "claude-opus-4-8") == 0
    assert "claude-opus-4-8" in capsys.readouterr().out


def test_a_failed_check_is_exit_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the middleware's figures are not the gateway's, no table is shown."""
    monkeypatch.setattr(cachemw.Middleware, "settle", lambda *_, **__: cachemw.Receipt())
    assert called("demo", "--conversations", "1", "--html", str(tmp_path / "a.html")) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("cachemw: check failed: no caching: the gateway billed ")
    assert "hit" not in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--data", "none.jsonl"], "none.jsonl: the file can't be read: No such file or directory"),
        (["demo", "--data", "bad.jsonl"], "bad.jsonl line 2: expected a JSON object, got "),
        (["demo", "--html", "none/page.html"], "html: 'none/page.html' can't be written: "),
        (["demo", "--model", "llama"], "model is 'llama'; needed: a Claude model"),
        (["explain", "bad.jsonl"], "bad.jsonl line 2: expected a JSON object, got "),
        (["explain", "none.json"], "none.json: the file can't be read: No such file or directory"),
        (["gateway", "--provider", "nobody"], "provider is 'nobody'; allowed: databricks, "),
        (["gateway", "--host", "192.0.2.1"], "port 8000 of '192.0.2.1' can't be served: "),
    ],
)
def test_bad_input_is_exit_2_and_one_sentence(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is wrong is said on stderr, in one line without a traceback."""
    monkeypatch.chdir(tmp_path)
    bodies(tmp_path / "bad.jsonl", "one")
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write("\n{")
    assert called(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cachemw: {words}")
    assert error.count("\n") == 1


def test_a_wrong_setting_is_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of the environment are checked like arguments."""
    monkeypatch.setenv("CACHEMW_TTL", "3h")
    assert called("demo") == 2
    assert capsys.readouterr().err.startswith("cachemw: ttl: '3h' is not allowed")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["demo", "--conversations", "0"], ["gateway", "--port", "x"]]
)
def test_wrong_usage_is_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and options out of range are bad input too."""
    assert called(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_client_is_an_extra(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the openai package the demo says how to get it."""
    monkeypatch.setitem(sys.modules, "openai", None)
    assert called("demo", "--html", str(tmp_path / "a.html")) == 2
    assert "pip install 'cachemw[openai]'" in capsys.readouterr().err


def test_explain_says_where_breakpoints_go(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Requests are taken in their order: the second reads what the first has written, unless it is late."""
    path = bodies(tmp_path / "log.jsonl", "one", "two", "three")
    assert called("explain", path) == 0
    first, second, third = capsys.readouterr().out.split("Request ")[1:]
    assert first.startswith("1, after 0 s. Expected: 0 tokens read, ")
    assert "messages.0.content (5m, " in first
    assert second.startswith("2, after 30 s. Expected: ")
    assert "Expected: 0 tokens read" not in second
    assert third.startswith("3, after 60 s.")
    assert called("explain", path, "--gap", "400") == 0
    assert capsys.readouterr().out.count(" 0 tokens read, ") >= 2


def test_explain_says_why_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A short prompt and an unknown model are named as what they are."""
    path = tmp_path / "short.json"
    for model, words in ((MODEL, "shorter than what the model caches"), ("llama", "what this model is")):
        path.write_bytes(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}))
        assert called("explain", str(path)) == 0
        assert words in capsys.readouterr().out


def served(monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """Return the app, host and port that `gateway` would serve."""
    given: list[Any] = []
    monkeypatch.setattr(simulated_gateway, "serve", lambda *arguments: given.extend(arguments))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert called("gateway", "--port", str(port), *options) == 0
    assert given[1:] == ["127.0.0.1", port]
    return given[0]


def asked(app: Any, headers: dict[str, str], **part: Any) -> Any:
    """Ask an app twice for an answer on a long text part, and return the second one's usage."""
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": LONG, **part}]}]
    with (
        simulated_gateway.running(app) as url,
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, http_client=http) as client,
    ):
        for _ in range(2):
            answer = client.chat.completions.create(model=MODEL, messages=messages, extra_headers=headers)
    return answer.usage


def test_gateway_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock, the exclusive count, the minimum and the switches reach the provider."""
    mark = {"cache_control": {"type": "ephemeral", "ttl": "5m"}}
    at = {simulated_gateway.CLOCK_HEADER: "5"}
    usage = asked(served(monkeypatch, "--virtual-clock", "--exclusive", "--minimum", "10"), at, **mark)
    assert usage.prompt_tokens < 10 < usage.cache_read_input_tokens
    usage = asked(served(monkeypatch, "--minimum", "100000"), {}, **mark)
    assert usage.cache_read_input_tokens == 0
    with pytest.raises(openai.BadRequestError, match="required by the virtual clock"):
        asked(served(monkeypatch, "--virtual-clock"), {})
    with pytest.raises(openai.BadRequestError, match="ttl"):
        asked(served(monkeypatch, "--no-supports-1h"), {}, **mark)


def test_gateway_says_that_its_port_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    """A port in use is bad input, said before anything is served."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert called("gateway", "--port", str(taken.getsockname()[1])) == 2
    assert "can't be served: Address already in use" in capsys.readouterr().err


def test_explain_by_another_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--config` reads a TOML file in the place of ./cachemw.toml; one that isn't there is said."""
    config = tmp_path / "high.toml"
    config.write_text("min_tokens = 100000\n")
    rows = bodies(tmp_path / "rows.jsonl", "One?", "Two?")
    assert called("explain", rows, "--config", str(config)) == 0
    assert "shorter than what the model caches" in capsys.readouterr().out
    assert called("explain", rows, "--config", str(tmp_path / "absent.toml")) == 2
    assert "there is no file" in capsys.readouterr().err
