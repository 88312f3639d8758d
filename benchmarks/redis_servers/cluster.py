"""A Redis cluster of masters and replicas.

Contains: its start, its slots and its state. Must not depend on: sentinels.
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
    new_server,
    running,
    temporary_folder,
    until,
    url_scheme,
)

_SLOTS = 16384


@dataclass
class Cluster:
    """The nodes of a cluster: masters first, then replicas."""

    url: str
    nodes: list[Server]
    masters: int

    def ids(self) -> list[str]:
        """Return the nodes' names for each other."""
        return [node.client().execute_command("CLUSTER MYID").decode() for node in self.nodes]

    def move_slot(
        self, slot: int, source: int, target: int, keys: Sequence[bytes] = (), *, end: bool = True
    ) -> None:
        """Move a slot and its keys from one node to another; `end=False` leaves it half moved, with these keys."""
        ids = self.ids()
        before, after = self.nodes[source].client(), self.nodes[target].client()
        after.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
        before.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
        if end:
            keys = before.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
        if keys:
            before.execute_command(
                "MIGRATE", "127.0.0.1", self.nodes[target].port, "", 0, 5000, "KEYS", *keys
            )
        if end:
            for client in (after, before):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])


@contextmanager
def cluster(
    nodes: int = 3,
    replicas: int = 0,
    program: str = "valkey",
    *options: str,
    tls: Certificates | None = None,
    down_after: int = DOWN_AFTER,
) -> Iterator[Cluster]:
    """Start a cluster of `nodes` masters, each with `replicas`; slots stay served although another slot's node is down."""
    with ExitStack() as stack:
        servers = []
        for _ in range(nodes * (1 + replicas)):
            clustered = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), *options]
            clustered += ["--cluster-node-timeout", str(down_after), "--cluster-require-full-coverage", "no"]
            folder = stack.enter_context(temporary_folder())
            servers.append(new_server(program, folder, free_port(), *clustered, tls=tls))
            stack.enter_context(running(servers[-1], wait=False))
        for server in servers:
            server.until_ready()
        url = f"{url_scheme(tls)}+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in servers[:nodes])
        made = Cluster(url, servers, nodes)
        clients = [server.client() for server in servers]
        for index, client in enumerate(clients[:nodes]):
            first, last = _SLOTS * index // nodes, _SLOTS * (index + 1) // nodes - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
        for server in servers[1:]:
            bus = int(server.command[server.command.index("--cluster-port") + 1])
            clients[0].execute_command("CLUSTER MEET", "127.0.0.1", server.port, bus)
        until(lambda: all(_known(client) == len(servers) for client in clients), "the nodes do not meet")
        ids = made.ids()
        for index, client in enumerate(clients[nodes:]):
            client.execute_command("CLUSTER REPLICATE", ids[index % nodes])
        copies = nodes * replicas
        until(
            lambda: all(is_whole(client, nodes, copies) for client in clients),
            "the cluster does not become complete",
        )
        yield made


def is_whole(client: Any, nodes: int, replicas: int) -> bool:
    """Return True if a node sees all masters, all slots served, and all replicas."""
    facts = _facts(client)
    if facts["cluster_state"] != "ok" or int(facts["cluster_size"]) != nodes:
        return False
    slots = client.execute_command("CLUSTER SLOTS")
    return sum(len(servers) - 1 for _, _, *servers in slots) == replicas


def _known(client: Any) -> int:
    lines = client.execute_command("CLUSTER NODES")
    text = lines if isinstance(lines, str) else str(lines)
    return 0 if "handshake" in text else int(_facts(client)["cluster_known_nodes"])


def _facts(client: Any) -> dict[str, str]:
    facts = client.execute_command("CLUSTER INFO")
    return (
        dict(facts)
        if isinstance(facts, dict)
        else dict(line.split(":", 1) for line in facts.decode().split())
    )
