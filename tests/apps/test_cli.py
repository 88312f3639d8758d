"""The command line: exit codes, and one sentence on stderr instead of a traceback."""

from __future__ import annotations

import re
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
from cachemw.core.planner.plan import Plan, Reason
from cachemw.simulation.conversation_families import MODEL

LONG = "Answer in one short sentence. " * 300


def called(*arguments: str) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return int(left.value.code or 0)


def bodies(path: Path, *questions: str) -> str:
    """Write request bodies with one long system prompt, one on each line."""
    rows = [
        {
            "model": MODEL,
            "messages": [{"role": "system", "content": LONG}, {"role": "user", "content": question}],
        }
        for question in questions
    ]
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    return str(path)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints name and version."""
    assert called("--version") == 0
    assert capsys.readouterr().out == "cachemw 0.1.0\n"


def test_demo_prints_a_table_and_writes_a_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written to the working directory."""
    monkeypatch.chdir(tmp_path)
    assert called("demo", "--conversations", "3") == 0
    assert "cachemw" in capsys.readouterr().out
    assert (tmp_path / "cachemw-demo.html").read_text().startswith("<!doctype html>")


def test_demo_sends_bodies_to_one_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--model` sends bodies of any model to a model with known prices."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(orjson.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}))
    html = str(tmp_path / "page.html")
    assert called("demo", "--data", str(path), "--html", html) == 2
    assert "model: 'gpt-4o' is not" in capsys.readouterr().err
    assert called("demo", "--data", str(path), "--html", html, "--model", "claude-opus-4-8") == 0
    assert "claude-opus-4-8" in capsys.readouterr().out


def test_demo_with_a_failed_check_exits_with_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the middleware's figures differ from the gateway's, no table is printed."""
    monkeypatch.setattr(cachemw.Middleware, "settle", lambda *_, **__: cachemw.Receipt())
    assert called("demo", "--conversations", "1", "--html", str(tmp_path / "a.html")) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("cachemw: check failed: no caching: the gateway billed ")
    assert "saved" not in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "--data", "none.jsonl"], "none.jsonl: the file cannot be read: No such file or directory"),
        (["demo", "--data", "bad.jsonl"], "bad.jsonl line 2: expected a JSON object, got "),
        (["demo", "--html", "none/page.html"], "html: 'none/page.html' cannot be written: "),
        (["demo", "--model", "llama"], "model: 'llama' is not a Claude model with known prices"),
        (["explain", "bad.jsonl"], "bad.jsonl line 2: expected a JSON object, got "),
        (["explain", "none.json"], "none.json: the file cannot be read: No such file or directory"),
        (["gateway", "--provider", "nobody"], "provider is 'nobody'; allowed: databricks, "),
        (["gateway", "--host", "192.0.2.1"], "port 8000 of '192.0.2.1' cannot be served: "),
    ],
)
def test_bad_input_exits_with_2_and_one_sentence(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error is one line on stderr without a traceback."""
    monkeypatch.chdir(tmp_path)
    bodies(tmp_path / "bad.jsonl", "one")
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write("\n{")
    assert called(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cachemw: {words}")
    assert error.count("\n") == 1


def test_wrong_setting_exits_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of the environment are checked like arguments."""
    monkeypatch.setenv("CACHEMW_TTL", "3h")
    assert called("demo") == 2
    assert capsys.readouterr().err.startswith("cachemw: ttl: '3h' is not allowed")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["demo", "--conversations", "0"], ["gateway", "--port", "x"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands and options out of range are bad input too."""
    assert called(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_demo_without_the_client_names_the_package(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the openai package and the command that installs it from a clone."""
    monkeypatch.setitem(sys.modules, "openai", None)
    assert called("demo", "--html", str(tmp_path / "a.html")) == 2
    assert (
        "the package openai is missing. Run `pip install '.[openai]'` in a clone" in capsys.readouterr().err
    )


def expected_read(explained: str) -> int:
    """Return the tokens that a plan expects to read: the first number after the time of a request."""
    return int(re.findall(r"\d[\d,]*", explained.partition(" s. ")[2])[0].replace(",", ""))


def test_explain_shows_breakpoints_in_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The second request reads the entry of the first, unless it arrives too late."""
    path = bodies(tmp_path / "log.jsonl", "one", "two", "three")
    assert called("explain", path) == 0
    first, second, third = capsys.readouterr().out.split("Request ")[1:]
    assert first.startswith("1, after 0 s. ")
    assert "messages.0.content" in first
    assert second.startswith("2, after 30 s. ")
    assert third.startswith("3, after 60 s. ")
    assert [expected_read(each) > 0 for each in (first, second, third)] == [False, True, True]
    assert called("explain", path, "--gap", "400") == 0
    late = capsys.readouterr().out.split("Request ")[1:]
    assert [expected_read(each) for each in late[:2]] == [0, 0]


def test_explain_without_breakpoints_gives_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A short prompt and an unknown model have their own reasons."""
    path = tmp_path / "short.json"
    for model, reason in ((MODEL, Reason.BELOW_MINIMUM), ("llama", Reason.MODEL_UNKNOWN)):
        path.write_bytes(orjson.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}))
        assert called("explain", str(path)) == 0
        assert capsys.readouterr().out == f"Request 1, after 0 s. {Plan(skipped=reason).explain()}\n"


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
    """Send one long text part to an app twice, and return the second usage."""
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": LONG, **part}]}]
    with (
        simulated_gateway.running(app) as url,
        openai.DefaultHttpxClient(trust_env=False) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, http_client=http) as client,
    ):
        for _ in range(2):
            answer = client.chat.completions.create(model=MODEL, messages=messages, extra_headers=headers)
    return answer.usage


def test_gateway_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """The virtual clock, the exclusive count, the minimum and the switches have their effect."""
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


def test_gateway_with_a_taken_port_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The error precedes any serving."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert called("gateway", "--port", str(taken.getsockname()[1])) == 2
    assert "cannot be served: Address already in use" in capsys.readouterr().err


def test_explain_reads_another_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`--config` replaces ./cachemw.toml; a missing file is an error."""
    config = tmp_path / "high.toml"
    config.write_text("min_tokens = 100000\n")
    rows = bodies(tmp_path / "rows.jsonl", "One?", "Two?")
    assert called("explain", rows, "--config", str(config)) == 0
    assert capsys.readouterr().out.count(Plan(skipped=Reason.BELOW_MINIMUM).explain()) == 2
    assert called("explain", rows, "--config", str(tmp_path / "absent.toml")) == 2
    assert "there is no file" in capsys.readouterr().err
