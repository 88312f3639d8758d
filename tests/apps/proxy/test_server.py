"""Start and end of the proxy: options, processes, drain, and the command's errors."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

import httpx2
import pytest

from cachemw.apps import cli
from cachemw.apps.proxy.server import ProxyOptions
from cachemw.apps.proxy.serving import listen
from cachemw.errors import ConfigError
from tests.apps.proxy.proxied import CHAT, OK, PATIENCE, chat, proxying, raw, rest, until


class Process:
    """The command as a process."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CACHEMW_")}
        self.process = subprocess.Popen(
            [Path(sys.executable).with_name("cachemw"), "proxy", "--port", str(self.port), *arguments],
            env=kept,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def ready(self) -> bool:
        """Return True if the proxy serves."""
        assert self.process.poll() is None, self.end()
        try:
            return httpx2.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def end(self) -> tuple[int, str]:
        """Wait for the end of the process; return its exit code and its output."""
        printed, _ = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, printed

    def __enter__(self) -> Self:
        until(self.ready, "the proxy is ready", 2 * PATIENCE)
        return self

    def __exit__(self, *_: object) -> None:
        with self.process, suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def refuses_after_second_signal(self) -> bool:
        """Send SIGTERM to all processes again, which ends the delay; return True if the port refuses."""
        os.killpg(self.process.pid, signal.SIGTERM)
        return not accepts(self.port)


def accepts(port: int) -> bool:
    """Return True if the port accepts a connection."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


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
def test_wrong_upstream_url_is_a_config_error(url: str) -> None:
    """One sentence explains the error, without a password of the URL."""
    with pytest.raises(ConfigError, match="base URL of the provider") as caught:
        ProxyOptions(url)
    assert "secret" not in str(caught.value)


def test_wrong_header_name_is_a_config_error() -> None:
    """A name with a space is no header name."""
    with pytest.raises(ConfigError, match="header's name"):
        ProxyOptions("https://a.com", namespace_header="x tenant")


def test_environment_proxy_is_used_with_the_option_only(
    monkeypatch: pytest.MonkeyPatch, http: httpx2.Client
) -> None:
    """With `env_proxy`, the request goes through the forward proxy."""
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


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_drains_the_process(workers: str, http: httpx2.Client) -> None:
    """A stream ends whole; /readyz answers 503 during the delay; then connections are refused."""
    go = threading.Event()

    def answer(made: socket.socket, _: bytes) -> None:
        made.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        assert go.wait(PATIENCE)
        made.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    with (
        raw(answer) as upstream,
        Process("--upstream", upstream.url, "--workers", workers, "--drain-delay", "600") as served,
    ):
        with http.stream(**chat(path=served.url + CHAT)) as came:
            parts = came.iter_raw()
            assert next(parts) == b"one"
            served.process.send_signal(signal.SIGTERM)
            with httpx2.Client(trust_env=False, headers={"connection": "close"}) as others:
                until(lambda: others.get(f"{served.url}/readyz").text == "draining", "it drains")
                assert others.get(f"{served.url}/healthz").status_code == 200
            until(served.refuses_after_second_signal, "new connections are refused")
            assert served.process.poll() is None
            go.set()
            assert list(parts) == [b"two"]
        code, printed = served.end()
        assert code == 0
        assert "Traceback" not in printed


def test_drain_breaks_off_after_its_limit(http: httpx2.Client) -> None:
    """A stream that exceeds the limit is broken off without a traceback, and the process ends."""

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


def test_taken_port_is_a_config_error() -> None:
    """The error names the port."""
    with closing(listen("127.0.0.1", 0)) as listener:
        listener.listen()
        with pytest.raises(ConfigError, match="cannot be served"):
            listen("127.0.0.1", listener.getsockname()[1])


def test_command_serves_drains_and_leaves_with_0(
    http: httpx2.Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints its address, serves during the delay, and breaks off at the limit."""
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
            os.kill(os.getpid(), signal.SIGTERM)
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
            "600",
            "--drain",
            "1",
        ]
        try:
            with pytest.raises(SystemExit) as left:
                cli.main(command)
        finally:
            signal.signal(signal.SIGTERM, before)
        using.join(PATIENCE)
    assert left.value.code == 0
    assert seen == ["draining", "broken off"]
    assert capsys.readouterr().out.startswith(f"Proxy on http://127.0.0.1:{port} to {upstream.url}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
        (["--upstream", "http://a.com", "--host", "not.a.host.invalid"], "cannot be served"),
    ],
)
def test_bad_option_values_exit_with_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option or the allowed values."""
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", *arguments])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err


def test_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the package and the command that installs it from a clone."""
    for name in ("cachemw.apps.proxy.server", "cachemw.apps.proxy.reverse_proxy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", "--upstream", "http://a.com"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert "the package aiohttp is missing" in error
    assert "pip install '.[proxy]'` in a clone" in error


def test_workers_without_a_shared_store_are_warned_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each worker learns alone without a shared store."""
    monkeypatch.setattr("cachemw.apps.proxy.server.run", lambda *_, **__: None)
    with pytest.raises(SystemExit) as left:
        cli.main(["proxy", "--upstream", "http://a.com", "--workers", "2"])
    assert left.value.code == 0
    assert "each one learns alone" in capsys.readouterr().err
