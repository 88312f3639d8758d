"""A master and its replicas under three sentinels.

Contains: their start and configuration. Must not depend on: clusters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.ports import free_port
from benchmarks.redis_servers.certificates import Certificates
from benchmarks.redis_servers.server import (
    DOWN_AFTER,
    Server,
    listening_options,
    new_server,
    program_path,
    running,
    temporary_folder,
    until,
    url_scheme,
)

SERVICE = "mymaster"


@dataclass
class Sentinels:
    """A master, its replicas, and the sentinels that watch them."""

    url: str
    master: Server
    replicas: list[Server]
    sentinels: list[Server]

    def master_port(self) -> int:
        """Return the port of the master as the first sentinel knows it."""
        found = self.sentinels[0].client().execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(found[1])


@contextmanager
def sentinel(
    replicas: int = 1,
    program: str = "valkey",
    *options: str,
    tls: Certificates | None = None,
    password: str = "",
    down_after: int = DOWN_AFTER,
) -> Iterator[Sentinels]:
    """Start a master, its replicas, and three sentinels that know each other, and ask for `password` if any."""
    with ExitStack() as stack:

        def started(*more: str, wait: bool = True) -> Server:
            server = new_server(
                program, stack.enter_context(temporary_folder()), free_port(), *options, *more, tls=tls
            )
            stack.enter_context(running(server, wait=wait))
            return server

        master = started()
        copies = [started("--replicaof", f"127.0.0.1 {master.port}", wait=False) for _ in range(replicas)]
        ports = [free_port() for _ in range(3)]
        watching = []
        for port in ports:
            folder = stack.enter_context(temporary_folder())
            peers = [peer for peer in ports if peer != port]
            lines = [f"{name[2:]} {value}" for name, value in _pairs(listening_options(port, tls))]
            lines += _sentinel(port, peers, master.port, [copy.port for copy in copies])
            lines.append(f"sentinel down-after-milliseconds {SERVICE} {down_after}")
            if password:
                lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
            (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
            command = [program_path(program), str(folder / "sentinel.conf"), "--sentinel"]
            login = f":{password}@" if password else ""
            watching.append(
                Server(folder, command, f"{url_scheme(tls)}://{login}127.0.0.1:{port}", port, tls)
            )
            stack.enter_context(running(watching[-1], wait=False))
        for server in (*copies, *watching):
            server.until_ready()
        with master.client() as client:
            until(lambda: _online(client) == replicas, "the replicas do not follow")
        url = (
            f"{url_scheme(tls)}+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports) + f"/{SERVICE}"
        )
        url += f"?sentinel_password={password}" if password else ""
        made = Sentinels(url, master, copies, watching)
        for server in watching:
            with server.client() as client:
                until(lambda: _watches(client, replicas), "the sentinels do not see all servers")
        yield made


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(texts[::2], texts[1::2], strict=True))


def _sentinel(port: int, peers: Sequence[int], master: int, replicas: Sequence[int]) -> list[str]:
    # The configuration names replicas and sentinels: they would need seconds to discover each other.
    return [
        f"sentinel myid {port:040d}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2",
        f"sentinel failover-timeout {SERVICE} 3000",
        *(f"sentinel known-replica {SERVICE} 127.0.0.1 {replica}" for replica in replicas),
        *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {peer} {peer:040d}" for peer in peers),
    ]


def _online(client: Any) -> int:
    facts = client.info("replication").values()
    return sum(isinstance(fact, dict) and fact.get("state") == "online" for fact in facts)


def _watches(client: Any, replicas: int) -> bool:
    answer = client.execute_command("SENTINEL", "MASTER", SERVICE)
    facts = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    facts = {_text(name): _text(value) for name, value in facts.items()}
    known = (facts["flags"], int(facts["num-slaves"]), int(facts["num-other-sentinels"]))
    return known == ("master", replicas, 2)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
