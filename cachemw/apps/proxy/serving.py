"""Serve the proxy: uvicorn's settings, a drain on SIGTERM, several workers, and memory.

Contains: the functions that start and stop uvicorn. Must not depend on: the app that is served.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from uvicorn import Config, Server
from uvicorn.supervisors import Multiprocess

from cachemw.apps.proxy.connection import CONNECTION as CONNECTION
from cachemw.apps.proxy.connection import KEEP_ALIVE, Connection
from cachemw.errors import ConfigError

__all__ = ["CONNECTION", "Drain", "config", "freeze_loaded", "keep_memory", "listen", "serve"]

# Parameters of glibc's mallopt(3): the size from which an allocation gets a mapping of its own, and the free
# memory that stays with the process.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1


class Drain:
    """The state of a process between SIGTERM and its end: for `delay` seconds it still accepts requests."""

    def __init__(self, delay: float) -> None:
        self.begun = False
        self._delay = delay

    def listen(self) -> None:
        """Install a handler of SIGTERM in front of the server's own; call it in the event loop."""
        if threading.current_thread() is not threading.main_thread():
            return
        stop, loop = signal.getsignal(signal.SIGTERM), asyncio.get_running_loop()
        assert callable(stop)

        def begin(number: int, frame: FrameType | None) -> None:
            again, self.begun = self.begun, True
            if again or not self._delay:
                stop(number, frame)
            else:
                loop.call_soon_threadsafe(loop.call_later, self._delay, stop, number, None)

        signal.signal(signal.SIGTERM, begin)


def keep_memory() -> None:
    """Let the C library keep freed memory: a request of 400 KB is copied some ten times on its way.

    Fresh pages of the system cost more than the copying itself (0.6 of 1.7 ms measured). glibc only.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, most in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20)):
            mallopt(parameter, most)


def freeze_loaded() -> None:
    """Exclude modules and all other objects loaded by now from the garbage collector's passes.

    A request with 80,000 values triggers a pass over all objects: 20 ms, most of it for modules.
    """
    gc.collect()
    gc.freeze()


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `ConfigError` if the address is not available."""
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio switches Nagle's algorithm off only if the socket names its protocol.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(f"port {port} of {host!r} cannot be served: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener


def config(build: Callable[[], Any], *, workers: int = 1, drain: int = 30) -> Config:
    """Return uvicorn's settings for the app of `build`: no headers of its own, a log of failures only."""
    return Config(
        build,
        factory=True,
        http=Connection,
        ws="none",
        lifespan="on",
        workers=workers,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=drain,
    )


def serve(served: Config, listener: socket.socket) -> None:
    """Serve until SIGTERM, then until the answers under way are complete, at most for the drain time."""
    if served.workers > 1:
        _Workers(served, sockets=[listener]).run()
        return
    signal.signal(signal.SIGTERM, _leave)  # the server raises the signal again at its end
    Server(served).run(sockets=[listener])


class _Workers(Multiprocess):
    """Workers that refuse new connections while they drain: the parent's socket would queue them unserved."""

    def terminate_all(self) -> None:
        super().terminate_all()
        for listener in self.sockets:
            listener.close()


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
