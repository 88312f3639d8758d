"""A Redis cluster behind relays, and the faults that a run injects into it.

Contains: each fault and its repair. Must not depend on: traffic, accounts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.load.processes import Process, running
from benchmarks.ports import free_port
from benchmarks.redis_servers import Cluster, Server, cluster, is_whole, until

# Longer than in tests: two busy cores must not make a node look dead.
_DOWN_AFTER = 2_000
_PATIENCE = 60.0


@dataclass
class Store:
    """Three masters with a replica each; workers reach every node through a relay."""

    nodes: Cluster
    relay: Process
    url: str

    def masters(self) -> list[Server]:
        """Return the nodes that are masters now."""
        return [node for node in self.nodes.nodes if _role(node) == "master"]

    def partition(self, mode: str) -> None:
        """Set the relays to `pass`, `refuse` or `blackhole`."""
        assert self.relay.popen.stdin is not None
        self.relay.popen.stdin.write(f"{mode}\n".encode())
        self.relay.popen.stdin.flush()

    def until_whole(self) -> None:
        """Wait until all nodes serve and every master has its replica. Raises `TimeoutError`."""

        def is_whole() -> bool:
            return all(self._sees_all(node) for node in self.nodes.nodes)

        until(is_whole, "the cluster does not become complete", _PATIENCE, pause=0.1)

    def _sees_all(self, node: Server) -> bool:
        with node.client() as client:
            return is_whole(client, self.nodes.masters, self.nodes.masters)


@contextmanager
def relayed_cluster(folder: Path) -> Iterator[Store]:
    """Start a cluster whose nodes name themselves by their relays' ports."""
    with cluster(3, 1, down_after=_DOWN_AFTER) as nodes:
        ports = [free_port() for _ in nodes.nodes]
        pairs = [f"{port}:{node.port}" for port, node in zip(ports, nodes.nodes, strict=True)]
        command = [sys.executable, "-m", "benchmarks.load.relay", *pairs]
        with running(command, ports[0], folder / "relay.log") as relay:
            for node, port in zip(nodes.nodes, ports, strict=True):
                bus = node.command[list(node.command).index("--cluster-port") + 1]
                announced = ["--cluster-announce-port", str(port), "--cluster-announce-bus-port", bus]
                node.command = [*node.command, *announced]  # for its next start
                with node.client() as client:
                    client.config_set("cluster-announce-bus-port", bus)
                    client.config_set("cluster-announce-port", port)
            url = "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports[:3])
            store = Store(nodes, relay, url)
            until(lambda: all(_named(node) == set(ports) for node in nodes.nodes), "ports are not known", 30)
            store.until_whole()
            yield store


def _named(node: Server) -> set[int]:
    with node.client() as client:
        return {server[1] for _, _, *servers in client.execute_command("CLUSTER SLOTS") for server in servers}


def _role(node: Server) -> str:
    with suppress(redis.RedisError, OSError), node.client(socket_timeout=1) as client:
        return str(client.info("replication")["role"])
    return ""


# -- faults, each with its repair --------------------------------------------------------------


def _kill_master(store: Store) -> Callable[[], None]:
    node = store.masters()[0]
    node.kill()
    return node.start


def _kill_all(store: Store) -> Callable[[], None]:
    for node in store.nodes.nodes:
        node.kill()

    def mend() -> None:
        for node in store.nodes.nodes:
            node.start(wait=False)

    return mend


def _fail_over(store: Store) -> Callable[[], None]:
    """Let every replica take over, one by an agreed failover and two by force."""
    replicas = [node for node in store.nodes.nodes if _role(node) == "slave"]
    for number, node in enumerate(replicas):
        with node.client() as client:
            client.execute_command("CLUSTER FAILOVER", *(["TAKEOVER"] if number else []))
    return lambda: None


def _freeze_master(store: Store) -> Callable[[], None]:
    """Stop one master until its replica has taken over."""
    node = store.masters()[0]
    node.freeze()
    return node.thaw


def _freeze_all(store: Store) -> Callable[[], None]:
    for node in store.nodes.nodes:
        node.freeze()

    def mend() -> None:
        for node in store.nodes.nodes:
            node.thaw()

    return mend


def _fill(store: Store) -> Callable[[], None]:
    """Make the nodes refuse every write: they hold more than their limit and evict no key."""

    def limit(size: str) -> None:
        for node in store.nodes.nodes:
            with node.client() as client:
                client.config_set("maxmemory-policy", "noeviction")
                client.config_set("maxmemory", size)

    limit("1")
    return lambda: limit("0")


def _refuse(store: Store) -> Callable[[], None]:
    store.partition("refuse")
    return lambda: store.partition("pass")


def _blackhole(store: Store) -> Callable[[], None]:
    store.partition("blackhole")
    return lambda: store.partition("pass")


Fault = Callable[[Store], Callable[[], None]]

FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "store node killed": (_kill_master,),
    "store killed": (_kill_all,),
    "store failed over": (_fail_over,),
    "store frozen": (_freeze_all, _freeze_master),
    "store full": (_fill,),
    "store partitioned": (_refuse, _blackhole),
}
"""The faults of the store by phase, one after another; each returns its repair."""


def mended(store: Store) -> None:
    """Bring the store back to health, from any state that a fault left. Raises `TimeoutError`."""
    store.partition("pass")
    for node in store.nodes.nodes:
        if node.process is None or node.process.poll() is not None:
            node.start(wait=False)
        node.thaw()
    for node in store.nodes.nodes:
        node.until_ready()
        with node.client() as client:
            client.config_set("maxmemory", "0")
    store.until_whole()
