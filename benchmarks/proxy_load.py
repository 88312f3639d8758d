"""Measure the cost of the proxy: added latency, requests a second against LiteLLM's proxy, memory of 1,000 streams.

    python benchmarks/proxy_load.py
    python benchmarks/proxy_load.py --only latency --rounds 400

Everything is a process of its own on loopback: an upstream that answers at once, bare pass-throughs on starlette,
`cachemw proxy` with its defaults and one worker, and the real LiteLLM proxy, with one worker too. The client is raw
sockets, so that its share of the measured time is small. The exit code is 1 if a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Self

import uvloop
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import litellm_proxy
from benchmarks.proxy_servers import GAP, MODEL, PART, PARTS
from benchmarks.workloads.conversations import reference

ADDED = 1.3  # times the latency that a bare pass-through adds, at 418 KB
FASTER = 10.0  # times LiteLLM's requests a second, at 4 KB
STREAMS = 1_000
FLAT = 1.10  # times the memory at an earlier moment
OURS, BARE, SAME, LITELLM = "cachemw proxy", "starlette + httpx2", "starlette + aiohttp", "LiteLLM proxy"
PATH = "/v1/chat/completions"
_CLIENTS = 16
# Requests to one server in a row, requests before them that warm the machine's caches, and seconds of rest between
# two: work after an answer is no latency.
_BLOCK, _WARM, _PAUSE = 20, 3, 0.002
_WAVES = 5
_PYTHON = sys.executable
console = Console(width=110)


class Client:
    """One raw connection: no library's work is in the measured times."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)

    async def __aenter__(self) -> Self:
        self._in, self._out = await asyncio.open_connection(self._host, self._port, limit=1 << 22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._out.close()

    async def ask(self, message: bytes) -> int:
        """Send a request; return the bytes of the answer's body. Raises `RuntimeError` for any but a 200."""
        self._out.write(message)
        head = (await self._in.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(
                head.decode(errors="replace") + (await self._in.read(2000)).decode(errors="replace")
            )
        _, announced, length = head.partition(b"content-length:")
        if announced:
            return len(await self._in.readexactly(int(length.partition(b"\r\n")[0])))
        size = 0
        while part := int(await self._in.readline(), 16):
            size += len(await self._in.readexactly(part))
            await self._in.readexactly(2)
        await self._in.readexactly(2)
        return size


def message(body: bytes) -> bytes:
    """Return a request with a body."""
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer sk-master\r\naccept: */*\r\n"
        f"user-agent: load\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


def small(size: int, *, stream: bool = False) -> bytes:
    """Return a chat request of so many bytes."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": ""}],
        **({"stream": True} if stream else {}),
    }
    empty = len(json.dumps(body, separators=(",", ":")))
    body["messages"] = [{"role": "user", "content": ("word " * size)[: size - empty]}]
    return json.dumps(body, separators=(",", ":")).encode()


async def latency(urls: dict[str, str], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each request of 418 KB: a few to each server in turns, so that all see the same machine."""
    large = message(json.dumps({**reference(0)[-1], "model": MODEL}, separators=(",", ":")).encode())
    times: dict[str, list[float]] = {name: [] for name in urls}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(Client(url)) for name, url in urls.items()}
        rng = random.Random(1)
        for _ in range(rounds // _BLOCK):
            for name in rng.sample(list(urls), len(urls)):
                for number in range(_BLOCK + _WARM):
                    await asyncio.sleep(_PAUSE)
                    begun = time.perf_counter()
                    await clients[name].ask(large)
                    if number >= _WARM:
                        times[name].append(time.perf_counter() - begun)
    return times


async def rate(url: str, seconds: float) -> float:
    """Return the answered requests of 4 KB a second, with clients that ask again at once."""
    request, until = message(small(4096)), time.perf_counter() + seconds
    answered = 0

    async def client() -> None:
        nonlocal answered
        async with Client(url) as one:
            while time.perf_counter() < until:
                await one.ask(request)
                answered += 1

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    return answered / (time.perf_counter() - begun)


async def streams(url: str, memory: Callable[[], float]) -> list[float]:
    """Run 1,000 streams at once; return the proxy's MB at each second until they have all ended."""
    request = message(small(4096, stream=True))

    async def one() -> None:
        async with Client(url) as client:
            if await client.ask(request) != PARTS * len(PART):
                raise RuntimeError("a stream ended early")

    seen: list[float] = []
    running = asyncio.gather(*(one() for _ in range(STREAMS)))
    while not running.done():
        await asyncio.wait([running], timeout=0.5)
        seen.append(memory())
    await running
    return seen


@contextmanager
def server(*command: str) -> Iterator[tuple[str, int]]:
    """Run a server, `PORT` in its command being a free one; yield its URL and process id once it listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with subprocess.Popen([part.replace("PORT", str(port)) for part in command]) as process:
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            process.terminate()


def resident(pid: int) -> float:
    """Return the MB that a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def show(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    table = Table(*columns, title=title, box=None, header_style="bold", title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table, "")


def measure_latency(upstream: str, proxy: str, rounds: int) -> Iterator[str]:
    """Show the added latency at 418 KB; yield each missed limit."""
    with ExitStack() as stack:
        urls = {"direct": upstream, OURS: proxy}
        for name, library in ((BARE, "httpx2"), (SAME, "aiohttp")):
            command = (_PYTHON, "-m", "benchmarks.proxy_servers", library, "PORT", upstream)
            urls[name] = stack.enter_context(server(*command))[0]
        times = uvloop.run(latency(urls, rounds))
    # Other work on the machine only adds to times: so the best fifth of each server is compared.
    best = {name: 1000 * quantiles(seen, n=5)[0] for name, seen in times.items()}
    added = {name: one - best["direct"] for name, one in best.items()}
    rows = [
        [name, *(f"{one:.3f}" for one in (best[name], 1000 * median(seen), added[name]))]
        + ["" if name == "direct" else f"{added[name] / added[BARE]:.2f}"]
        for name, seen in times.items()
    ]
    show("Latency at 418 KB, ms", ["", "best fifth", "median", "added", f"of {BARE}'s"], rows)
    if added[OURS] > ADDED * added[BARE]:
        yield f"at 418 KB the proxy adds {added[OURS]:.3f} ms, {ADDED} x what {BARE} adds is {ADDED * added[BARE]:.3f}"


def measure_rate(upstream: str, proxy: str, seconds: float) -> Iterator[str]:
    """Show the requests a second at 4 KB; yield each missed limit."""
    rates: dict[str, list[float]] = {OURS: []}
    with ExitStack() as stack:
        urls = {OURS: proxy}
        if litellm_proxy.COMMAND.exists():
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = {
                "model": f"databricks/{MODEL}",
                "api_base": f"{upstream}/serving-endpoints",
                "api_key": "k",
            }
            console.print("Starting the LiteLLM proxy (some 10 s) ...")
            base = stack.enter_context(litellm_proxy.running(Path(folder), {MODEL: model}, {}, callback=()))
            urls[LITELLM], rates[LITELLM] = base, []
        for _ in range(3):
            for name, url in urls.items():
                rates[name].append(uvloop.run(rate(url, seconds)))
    best = {name: median(seen) for name, seen in rates.items()}
    rows = [[name, f"{best[name]:.0f}", " ".join(f"{one:.0f}" for one in rates[name])] for name in urls]
    show(f"Requests a second at 4 KB, {_CLIENTS} clients, one worker each", ["", "median", "rounds"], rows)
    if LITELLM not in urls:
        console.print(
            "LiteLLM's proxy is not measured: .venv-litellm is missing; make bench-proxy sets it up.\n"
        )
    elif best[OURS] < FASTER * best[LITELLM]:
        yield f"at 4 KB the proxy answers {best[OURS] / best[LITELLM]:.1f} x as many requests as LiteLLM's, not {FASTER:g} x"


def measure_streams(proxy: str, pid: int) -> Iterator[str]:
    """Show the memory before, during and after two waves of streams; yield each missed limit."""
    if not Path("/proc/self/status").exists():
        console.print("Streams are not measured: this system has no /proc to read memory from.\n")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < 4 * STREAMS else soft, hard))
    before, begun = resident(pid), time.perf_counter()
    waves = [uvloop.run(streams(proxy, lambda: resident(pid))) for _ in range(_WAVES)]
    took = (time.perf_counter() - begun) / len(waves)
    after = resident(pid)
    rows = [
        [f"wave {number}", f"{wave[len(wave) // 3]:.0f}", f"{wave[-2]:.0f}", f"{max(wave):.0f}"]
        for number, wave in enumerate(waves, 1)
    ]
    show(f"{STREAMS} streams at once: MB of the proxy", ["", "after a third", "at the end", "most"], rows)
    console.print(
        f"Before {before:.0f} MB, after {after:.0f} MB. A wave took {took:.1f} s, {PARTS * GAP:.0f} s of them the"
        " upstream's.\n"
    )
    for number, wave in enumerate(waves, 1):
        if wave[-2] > FLAT * wave[len(wave) // 3]:
            yield f"in wave {number} memory grew from {wave[len(wave) // 3]:.0f} to {wave[-2]:.0f} MB"
    # The first two fill the pools of both libraries and of the C library.
    if max(waves[-1]) > FLAT * max(waves[2]):
        yield f"memory grew from wave to wave: {max(waves[2]):.0f} to {max(waves[-1]):.0f} MB"


def main() -> None:
    """Measure, and exit 1 if a limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("latency", "rate", "streams"))
    parser.add_argument("--rounds", type=int, default=500, help="requests of 418 KB to each server")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each of three rounds at 4 KB")
    given = parser.parse_args()
    missed: list[str] = []
    with ExitStack() as stack:
        upstream, _ = stack.enter_context(
            server(_PYTHON, "-m", "benchmarks.proxy_servers", "upstream", "PORT")
        )
        command = str(Path(_PYTHON).with_name("cachemw"))
        proxy, pid = stack.enter_context(
            server(command, "proxy", "--upstream", upstream, "--provider", "databricks", "--port", "PORT")
        )
        if given.only in (None, "latency"):
            missed += measure_latency(upstream, proxy, given.rounds)
        if given.only in (None, "rate"):
            missed += measure_rate(upstream, proxy, given.seconds)
        if given.only in (None, "streams"):
            missed += measure_streams(proxy, pid)
    for line in missed:
        console.print(f"MISSED: {line}", style="red")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
