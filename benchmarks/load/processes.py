"""Start and stop the processes of a run, and read from /proc which resources they hold.

Contains: the proxy, the provider and the relay as processes. Must not depend on: traffic, faults. Every
process ends with its `with`, also if the body raises.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson

from benchmarks.load.provider import Received
from benchmarks.ports import free_port

ROOT = Path(__file__).parents[2]
SECRET = "of the run"  # noqa: S105 - workers on loopback, for minutes
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Process:
    """A server of this run. Its children are processes of the same session."""

    popen: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """Return the base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        """Return True if the first process runs."""
        return self.popen.poll() is None

    def pids(self) -> list[int]:
        """Return the process and all its children."""
        return [self.popen.pid, *_children(self.popen.pid)]

    def workers(self) -> list[int]:
        """Return the worker processes of the proxy."""
        return [pid for pid in _children(self.popen.pid) if b"resource_tracker" not in _command(pid)]

    def stop(self, seconds: float = 40.0) -> int | None:
        """Ask the server to end; return its exit code, None if it had to be killed."""
        self.popen.terminate()
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def running(
    command: Sequence[str], port: int, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Process]:
    """Run a server until the `with` ends. Raises `RuntimeError` with its output if it does not listen."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CACHEMW_") and "_proxy" not in k.lower()}
    kept |= {"PYTHONPATH": str(ROOT), **(environment or {})}
    with log.open("ab") as out:
        popen = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            stdin=subprocess.PIPE,
            env=kept,
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        end = time.monotonic() + 60
        while not _listens(port):
            if popen.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[0]} does not serve:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield Process(popen, port, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.communicate(timeout=10)


@contextmanager
def provider(folder: Path) -> Iterator[Process]:
    """Run the simulated provider."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.load.provider", str(port)]
    with running(command, port, folder / "provider.log") as process:
        yield process


@contextmanager
def proxy(folder: Path, upstream: str, store: str, workers: int, *options: str) -> Iterator[Process]:
    """Run the real proxy; wait until all its workers serve."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("cachemw")), "proxy", "--upstream", upstream]
    command += ["--port", str(port), "--provider", "databricks", "--store", store, *options]
    command += ["--workers", str(workers)]
    with running(command, port, folder / "proxy.log", {"CACHEMW_SECRET": SECRET}) as process:
        _until_ready(process, workers)
        yield process


def _until_ready(process: Process, workers: int) -> None:
    """Wait until the workers serve: each loads its modules, which takes CPU that a measurement would miss."""
    end = time.monotonic() + 60
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                if client.get(f"{process.url}/readyz").is_success:
                    break
            time.sleep(0.1)
    busy = cpu_seconds(process.pids())
    while time.monotonic() < end:
        time.sleep(0.5)
        before, busy = busy, cpu_seconds(process.pids())
        if busy - before < 0.1 and (workers == 1 or len(process.workers()) == workers):
            return


def received(provider: Process) -> list[Received]:
    """Return the requests that the provider received since the last call."""
    with httpx.Client(trust_env=False, timeout=60) as client:
        return [Received(**row) for row in orjson.loads(client.get(f"{provider.url}/received").content)]


def ports_of(pid: int, port: int) -> set[int]:
    """Return the clients' ports of the connections to `port` that a process holds."""
    inodes = set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(link.readlink()))
    found = set()
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.split(":")[1], 16) for address in fields[1:3])
        if local == port and f"socket:[{fields[9]}]" in inodes:
            found.add(remote)
    return found


def resident(pids: Sequence[int]) -> int:
    """Return the bytes of memory that processes hold."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def descriptors(pids: Sequence[int]) -> int:
    """Return how many files and sockets processes hold open."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    return total


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the seconds of CPU that processes have taken."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            total += sum(map(int, _stat(pid)[11:13]))
    return total / _TICKS


def busy_seconds() -> float:
    """Return the seconds of CPU that all processes of the machine have taken."""
    user, nice, system = Path("/proc/stat").read_text(encoding="ascii").split()[1:4]
    return (int(user) + int(nice) + int(system)) / _TICKS


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = _stat(int(entry.name))
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/<pid>/stat from the state on; a name before it may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
