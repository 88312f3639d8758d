"""Placement rules of other tools, as policies from a chat body to a chat body.

Contains: the benchmark's side. Four policies drive the real packages, each in a process of its own in
`.venv-peers` (serve.py); two are ports of rules that ship no package (ports.py). A policy adds markers
and changes nothing else: if a package rewrites content on its way to the wire, the policy carries only its
markers over onto the original body. Must not depend on: the way a package is driven.
"""

from __future__ import annotations

import os
import subprocess
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import orjson

from benchmarks.peers import ports
from benchmarks.peers.skeleton import Mark, Skeleton
from cachemw.core.request import markers

Body = dict[str, Any]
Policy = Callable[[Body], Body]

PACKAGES = ("litellm", "pydantic_ai", "langchain", "strands")
ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


class PeerError(Exception):
    """A peer gave no answer: its environment is absent, its process ended, or its package refused the request."""


class Peer:
    """One package behind its process. The process starts at the first question and ends with this object.

    The object caches the answers for the last 4,096 structures, so it asks about conversations of one shape once.
    Only one thread may use it at a time.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._answers = lru_cache(maxsize=4096)(self._marks)

    def __call__(self, body: Body) -> Body:
        """Return the body with the peer's markers; raises `PeerError`, and `ValueError` on an odd part."""
        return _annotated(body, self._answers(orjson.dumps(Skeleton(body).body)))

    def ask(self, question: Body) -> Body:
        """Return the answer to one question of the protocol in serve.py; raises `PeerError`."""
        return self._exchange(orjson.dumps(question))

    def _marks(self, skeleton: bytes) -> list[Mark]:
        found = self._exchange(b'{"body":' + skeleton + b"}")["marks"]
        return [(tuple(path), ttl) for path, ttl in found]

    def _exchange(self, line: bytes) -> Body:
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(line + b"\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise PeerError(f"{self.name}: its process ended with status {process.wait()}")
        found = cast("Body", orjson.loads(line))
        if "error" in found:
            raise PeerError(f"{self.name}: {found['error']}")
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process. A child after a fork starts its own, since inherited pipes belong to the parent."""
        if self._process is None or self._owner != os.getpid():
            if not PYTHON.exists():
                raise PeerError(f"{self.name}: .venv-peers is absent; run make bench-peers-setup")
            self._process = subprocess.Popen(
                [PYTHON, Path(__file__).parent / "serve.py", self.name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            self._owner = os.getpid()
            weakref.finalize(self, _end, self._process)
        return self._process


def peer_policies() -> dict[str, Policy]:
    """Return name -> policy; those of packages raise `PeerError` when called without `.venv-peers`."""
    policies: dict[str, Policy] = {name: _peer(name) for name in PACKAGES}
    return policies | {
        "goose": lambda body: _annotated(body, ports.goose(body)),
        "copilot": lambda body: _annotated(body, ports.copilot(body)),
    }


def time_litellm_hook(body: Body, repeat: int) -> list[float]:
    """Return the seconds of `repeat` runs of LiteLLM's injection hook on a body; raises `PeerError`."""
    return cast("list[float]", _peer("litellm").ask({"body": body, "repeat": repeat})["seconds"])


@cache
def _peer(name: str) -> Peer:
    return Peer(name)


def _annotated(body: Body, marks: Iterable[Mark]) -> Body:
    return dict(markers.insert(markers.strip(body), marks))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()
