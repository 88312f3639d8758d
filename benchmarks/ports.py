"""Ports for servers of tests and benchmarks."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a free port that the system gives to no outgoing connection meanwhile.

    Outgoing connections get ports from 32768 or 49152 on.
    """
    while True:
        port = secrets.randbelow(20_000) + 12_000
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
