"""Measure how long one large request blocks the proxy: the longest answer of /healthz while it is in flight.

    python benchmarks/large_bodies.py
    python benchmarks/large_bodies.py --mib 30 --limit 250

The proxy, with its defaults and one worker, and an upstream that answers at once are processes of their own on
loopback. Each body is sent to a proxy that was just started, while another connection asks for /healthz every few
milliseconds. The first bodies are built to be slow to read; the last ones are the largest that the proxy
reads. The exit code is 1 if an answer of /healthz took longer than the limit.
"""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.proxy_load import server
from benchmarks.proxy_servers import MODEL

LIMIT = 100.0  # milliseconds
PATH = "/v1/chat/completions"
_GAP = 0.002  # seconds between two requests for /healthz
_HEAD = b'{"model":"%s","messages":[' % MODEL.encode()
_ONE = b'{"role":"user","content":"a"}'
console = Console(width=110)


def messages(*each: bytes) -> bytes:
    """Return a chat request of these messages."""
    return _HEAD + b",".join(each) + b"]}"


def text(piece: bytes, size: int) -> bytes:
    """Return a chat request of one text: a piece repeated up to so many bytes."""
    return messages(b'{"role":"user","content":"' + piece * (size // len(piece)) + b'"}')


def numbered(pattern: bytes, size: int) -> bytes:
    """Return values, each with a number of its own, of so many bytes together."""
    count = size // (len(pattern % 1_000_000) + 1)
    return b",".join(pattern % number for number in range(1_000_000, 1_000_000 + count))


def schema(values: bytes) -> bytes:
    """Return a chat request with one tool whose schema holds these values."""
    tool = b'{"type":"function","function":{"name":"a","parameters":{"x":[' + values + b"]}}}"
    return messages(_ONE)[:-1] + b',"tools":[' + tool + b"]}"


def bodies(size: int) -> Iterator[tuple[str, str, Callable[[], bytes]]]:
    """Yield each request's description, its path, and a function that builds its body."""
    part, message = b'{"type":"text","text":"%d"}', b'{"role":"user","content":"%d"}'
    same = size // (len(_ONE) + 1)
    yield "no chat request", "/v1/other", lambda: messages(*[_ONE] * same)
    yield "one text", PATH, lambda: text(b"a", size)
    yield "the same tiny message", PATH, lambda: messages(*[_ONE] * same)
    yield "distinct tiny messages", PATH, lambda: messages(numbered(message, size))
    yield (
        "tiny parts of a message",
        PATH,
        lambda: messages(b'{"role":"user","content":[' + numbered(part, size) + b"]}"),
    )
    yield "empty objects in a schema", PATH, lambda: schema(b"{}," * (size // 3) + b"{}")
    yield "read: one text of 31 MiB", PATH, lambda: text(b"word ", 31 << 20)
    yield "read: 3,000,000 line ends", PATH, lambda: text(b"\\n", 6_000_000)
    yield "read: 20 MiB of no ASCII", PATH, lambda: text("東京".encode(), 20 << 20)
    yield "read: 70,000 arrays", PATH, lambda: schema(b"[ ],   " * 70_000 + b"[]")
    yield "read: 25,000 tiny messages", PATH, lambda: messages(numbered(message, 25_000 * 38))


@contextmanager
def watching(port: int) -> Iterator[list[float]]:
    """Ask for /healthz again and again, and collect the milliseconds of each answer."""
    took, stop = list[float](), threading.Event()

    def watch() -> None:
        with socket.create_connection(("127.0.0.1", port), 120) as made:
            while not stop.is_set():
                begun = time.perf_counter()
                made.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                answer = b""
                while not answer.endswith(b"\r\n\r\nok"):
                    answer += made.recv(1000)
                took.append(1000 * (time.perf_counter() - begun))
                time.sleep(_GAP)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


def post(port: int, path: str, body: bytes) -> bytes:
    """Send a request and return the first line of its answer."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), 300) as made:
        made.sendall(head.encode())
        made.sendall(body)
        with made.makefile("rb") as answer:
            return answer.readline()


def measure(upstream: str, path: str, body: bytes) -> tuple[float, float]:
    """Return the seconds of a request, and the milliseconds of the longest answer of /healthz meanwhile."""
    command = str(Path(sys.executable).with_name("cachemw"))
    options = ("--upstream", upstream, "--provider", "databricks", "--port", "PORT")
    with server(command, "proxy", *options) as (url, _):
        port = int(url.rpartition(":")[2])
        with watching(port) as took:
            time.sleep(0.2)
            begun = time.perf_counter()
            status = post(port, path, body)
            seconds = time.perf_counter() - begun
            time.sleep(0.2)
    if b" 200 " not in status:
        raise RuntimeError(f"the answer began with {status!r}")
    return seconds, max(took)


def main() -> None:
    """Measure, and exit 1 if the limit is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=60, help="of each body that is built to be slow")
    parser.add_argument("--limit", type=float, default=LIMIT, help="milliseconds that /healthz may take")
    parser.add_argument("--only", default="", help="measure the bodies whose name has this in it")
    given = parser.parse_args()
    missed = 0
    table = Table("", "MiB", "request, s", "longest /healthz, ms", box=None, header_style="bold")
    with server(sys.executable, "-m", "benchmarks.proxy_servers", "upstream", "PORT") as (upstream, _):
        for name, path, build in bodies(given.mib << 20):
            if given.only not in name:
                continue
            body = build()
            seconds, longest = measure(upstream, path, body)
            missed += longest > given.limit
            style = "red" if longest > given.limit else None
            table.add_row(
                name, f"{len(body) / (1 << 20):.1f}", f"{seconds:.2f}", f"{longest:.0f}", style=style
            )
    console.print(table)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
