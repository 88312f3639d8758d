"""The client on each topology, and while servers change."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redis.crc import key_slot
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Refused
from redis.exceptions import TimeoutError as RedisTimeout

from benchmarks import redis_servers
from benchmarks.redis_servers import NEVER_DOWN, Certificates, Cluster, Sentinels, Server, until
from cachemw.stores.redis.commands import Command
from tests.stores.conftest import skipping
from tests.stores.links import SLACK, Linker, Twin, count, tls


@pytest.fixture(scope="session")
def watched() -> Iterator[Sentinels]:
    """Start a master, a replica and three sentinels."""
    with redis_servers.sentinel(down_after=NEVER_DOWN) as made:
        yield made


@pytest.fixture(scope="session")
def encrypted_cluster(certificates: Certificates) -> Iterator[Cluster]:
    """Start a cluster of two masters that accept TLS only."""
    with skipping(), redis_servers.cluster(2, 0, "redis", tls=certificates, down_after=NEVER_DOWN) as made:
        yield made


@pytest.fixture(scope="session")
def encrypted_sentinels(certificates: Certificates) -> Iterator[Sentinels]:
    """Start sentinels that require TLS and a password, and their servers."""
    with (
        skipping(),
        redis_servers.sentinel(
            1, "redis", tls=certificates, password="of-sentinels", down_after=NEVER_DOWN
        ) as made,
    ):
        yield made


class Topology:
    """A URL and the masters behind it."""

    def __init__(self, url: str, masters: Sequence[Server]) -> None:
        self.url, self.masters = url, masters


KINDS = ["single", "socket", "cluster", "one seed", "sentinel", "acl", "redis"]
KINDS += ["tls", "tls and acl", "tls cluster", "tls sentinel"]


@pytest.fixture(params=KINDS)
def topology(request: pytest.FixtureRequest) -> Topology:
    """Return each way to reach a server."""
    get = request.getfixturevalue
    if request.param in ("single", "acl"):
        server = get("single")
        return Topology(
            server.url.replace(":all@", "ours:of%3Aours%40@" if request.param == "acl" else ":all@"), [server]
        )
    if request.param == "socket":
        return Topology(get("by_socket").url, [get("by_socket")])
    if request.param in ("cluster", "one seed"):
        made = get("three")
        closed = f"127.0.0.1:{redis_servers.free_port()}"
        one = f"valkey+cluster://{closed},127.0.0.1:{made.nodes[1].port}"
        return Topology(made.url if request.param == "cluster" else one, made.nodes)
    if request.param == "sentinel":
        return Topology(get("watched").url, [get("watched").master])
    if request.param == "redis":
        return Topology(get("redis_server"), [])
    if request.param == "tls cluster":
        made = get("encrypted_cluster")
        return Topology(tls(made.url, get("certificates")), made.nodes)
    if request.param == "tls sentinel":
        made = get("encrypted_sentinels")
        return Topology(tls(made.url, get("certificates")), [made.master])
    server = get("encrypted")
    user = "ours:of%3Aours%40@" if "acl" in request.param else ":all@"
    return Topology(tls(server.url.replace(":all@", user), get("certificates")), [server])


def test_replies_of_mixed_commands_keep_their_order(
    linked: Linker, topology: Topology, keys: list[bytes]
) -> None:
    """Commands of any slots go together, and the refusal of one stops no other."""
    link = linked(topology.url)
    assert link.link.clustered is ("cluster" in topology.url)
    sent: list[Command] = []
    for key in keys:
        sent += [("SET", key, 5), ("LPUSH", key, "x"), ("GET", key)]
    replies = link.execute(sent)
    assert replies[0::3] == [b"OK"] * 10
    assert {type(reply) for reply in replies[1::3]} == {ResponseError}
    assert replies[2::3] == [b"5"] * 10
    assert link.execute([count(key) for key in keys]) == [b"6"] * 10


def test_script_after_a_flush_runs_once(linked: Linker, topology: Topology, keys: list[bytes]) -> None:
    """NOSCRIPT is cured inside the call, on each node that answers with it."""
    link = linked(topology.url)
    for counted in range(1, 4):
        for server in topology.masters:
            with server.client() as client:
                client.script_flush()
        assert link.execute([count(key) for key in keys]) == [b"%d" % counted] * 10


def test_commands_to_two_nodes_are_waited_for_together(linked: Linker, three: Cluster) -> None:
    """A call takes one round trip: two waits take no longer than one."""
    link = linked(three.url)
    both = [b"none{%d}" % tag for tag in _tags(0, 12000)]
    link.execute([("GET", key) for key in both])
    nodes = three.nodes[0], three.nodes[2]

    def release() -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(node.client()) for node in nodes]
            until(
                lambda: all(client.info("clients")["blocked_clients"] for client in clients),
                "the second command is not sent before the first reply",
                seconds=20,
            )
            for client, key in zip(clients, both, strict=True):
                client.rpush(key, "x")

    with ThreadPoolExecutor(1) as pool:
        released = pool.submit(release)
        replies = link.execute([("BLPOP", key, "25") for key in both], 30)
        released.result()
    assert replies == [[key, b"x"] for key in both]


def _tags(*near: int) -> list[int]:
    """Return tags whose slots follow the given ones closely, each on the node of that slot."""
    return [next(tag for tag in range(10**6) if 0 <= key_slot(b"%d" % tag) - slot < 500) for slot in near]


def test_command_with_keys_of_two_slots_is_refused(linked: Linker, three: Cluster) -> None:
    """The server's refusal is a reply like any other."""
    (reply,) = linked(three.url).execute([("MGET", b"{0}", b"{1}")])
    assert isinstance(reply, ResponseError)


def test_slot_that_moves_is_followed(linked: Linker, three: Cluster, keys: list[bytes]) -> None:
    """The client follows ASK while a slot moves and MOVED afterwards, and remembers the new node."""
    link, key = linked(three.url), keys[0]
    slot = key_slot(key)
    source = slot * 3 // 16384
    goal = (source + 1) % 3
    assert link.execute([("SET", key, 1)]) == [b"OK"]
    three.move_slot(slot, source, goal, [key], end=False)
    assert link.execute([count(key)]) == [b"2"]
    assert link.execute([("GET", key), ("STRLEN", key)]) == [b"2", 1]
    asked = _errors(three.nodes[source])
    assert asked["ASK"] >= 1
    three.move_slot(slot, source, goal)
    assert link.execute([count(key)]) == [b"3"]
    assert link.execute([count(key)] * 3) == [b"4", b"5", b"6"]
    link.pause(0.2)
    assert link.execute([count(key)]) == [b"7"]
    assert _errors(three.nodes[source])["MOVED"] == asked.get("MOVED", 0) + 1
    three.move_slot(slot, goal, source)
    assert link.execute([count(key)]) == [b"8"]


def _errors(server: Server) -> dict[str, int]:
    with server.client() as client:
        return {name[10:]: fact["count"] for name, fact in client.info("errorstats").items()}


def test_command_without_a_key_goes_to_any_node(linked: Linker, three: Cluster) -> None:
    """A cluster can be asked for its own state."""
    (reply,) = linked(three.url).execute([("PING",)])
    assert reply == b"PONG"


def test_cluster_url_of_a_single_server_is_refused(linked: Linker, single: Server) -> None:
    """The call raises the server's refusal of the slots."""
    with pytest.raises(ResponseError):
        linked(single.url.replace("redis", "redis+cluster", 1)).execute([("PING",)])


@pytest.mark.parametrize("login", ["nobody:wrong@", ":wrong@", "ours:wrong@", ""])
def test_login_with_a_wrong_password_is_an_authentication_error(
    linked: Linker, single: Server, login: str
) -> None:
    """A missing password raises the same error."""
    with pytest.raises(AuthenticationError):
        linked(single.url.replace(":all@", login)).execute([("GET", "a")])


def test_sentinels_with_a_wrong_password_name_no_master(
    linked: Linker, encrypted_sentinels: Sentinels, certificates: Certificates
) -> None:
    """The sentinels may have a password of their own."""
    url = tls(encrypted_sentinels.url, certificates).replace("of-sentinels", "wrong")
    with pytest.raises((Refused, TimeoutError)):
        linked(url).execute([("GET", "a")])


def test_certificate_after_a_renewal_is_read_again(
    linked: Linker, encrypted: Server, tmp_path: Path, certificates: Certificates
) -> None:
    """The client keeps the content of files only as long as they stay unchanged."""
    for file in certificates.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    link = linked(tls(encrypted.url, Certificates(tmp_path)))
    (tmp_path / "client.crt").write_bytes(certificates.folder.joinpath("ca.crt").read_bytes())
    with pytest.raises((RedisError, OSError)):
        link.execute([("GET", "a")])
    (tmp_path / "client.crt").write_bytes(certificates.folder.joinpath("client.crt").read_bytes())
    assert link.execute([("GET", "a")]) == [None]


def test_user_with_an_acl_reaches_only_allowed_keys(
    linked: Linker, single: Server, keys: list[bytes]
) -> None:
    """A refused key is refused in place, and an allowed one is served."""
    link = linked(single.url.replace(":all@", "ours:of%3Aours%40@"))
    replies = link.execute([("SET", "other", 1), count(b"other"), count(keys[0])])
    assert [type(reply) for reply in replies] == [NoPermissionError, NoPermissionError, bytes]


def test_database_number_in_the_url_is_selected(linked: Linker, single: Server, keys: list[bytes]) -> None:
    """Each connection selects the database of the URL."""
    assert linked(single.url + "/3").execute([("SET", keys[0], 1)]) == [b"OK"]
    assert linked(single.url + "?db=3").execute([("GET", keys[0])]) == [b"1"]
    assert linked(single.url).execute([("GET", keys[0])]) == [None]


@pytest.mark.parametrize(
    "changes",
    [
        {"ssl_certfile": "", "ssl_keyfile": "", "ssl_password": ""},
        {"ssl_ca_certs": ""},
        {"ssl_password": "wrong"},
        {"host": "ip6-localhost"},
    ],
    ids=["no client certificate", "unknown authority", "wrong key password", "another name"],
)
def test_tls_with_a_wrong_part_is_an_error(
    linked: Linker,
    encrypted: Server,
    certificates: Certificates,
    changes: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client never continues without encryption."""
    url = encrypted.url
    changes = dict(changes)
    if changes.pop("host", ""):
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more)
        )
        url = url.replace("127.0.0.1", "another.invalid")
        assert linked(tls(url, certificates, ssl_check_hostname="no")).execute([("GET", "a")]) == [None]
        assert linked(tls(url, certificates, ssl_cert_reqs="none")).execute([("GET", "a")]) == [None]
    with pytest.raises((RedisError, OSError)):
        linked(tls(url, certificates, **changes)).execute([("GET", "a")])


def test_opening_sends_one_ping_only(linked: Linker) -> None:
    """A driver name or a protocol negotiation would each cost a round trip on a slow network."""
    with redis_servers.standalone() as server, server.client() as client:
        before = client.info("commandstats")
        link = linked(server.url)
        for _ in range(3):
            link.execute([("GET", "a")])
        after = client.info("commandstats")
    ran = {name: fact["calls"] - before.get(name, {"calls": 0})["calls"] for name, fact in after.items()}
    assert {name: calls for name, calls in ran.items() if calls} == {
        "cmdstat_ping": 1,
        "cmdstat_get": 3,
        "cmdstat_info": 1,
    }


def test_loading_server_is_an_error_until_it_has_loaded(linked: Linker) -> None:
    """LOADING is an error of its class at once, and the next call after it is served."""
    slowly = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    with redis_servers.standalone("valkey", *slowly) as server:
        with server.client() as client:
            client.mset({f"key {number}": "x" * 100 for number in range(300)})
            client.save()
        server.kill()
        server.start(wait=False)
        link, seen = linked(server.url), []
        end = time.monotonic() + 60
        while bytes not in seen:
            assert time.monotonic() < end, seen
            try:
                seen.append(type(link.execute([("GET", "key 7")], 1)[0]))
            except Refused as error:
                # The server does not listen at first.
                seen.append(type(error))
        assert seen[-2:] == [BusyLoadingError, bytes]


def test_read_only_refusal_opens_a_new_connection(linked: Linker, closed_port: int) -> None:
    """After a failover a name may lead to another server, which an old connection would never reach."""
    with redis_servers.standalone() as server, server.client() as client:
        link = linked(server.url)
        (before,) = link.execute([("CLIENT", "ID")])
        client.replicaof("127.0.0.1", closed_port)
        assert [type(reply) for reply in link.execute([count(b"a"), ("SET", "a", 1)])] == [ReadOnlyError] * 2
        client.replicaof("NO", "ONE")
        (after,), (counted,) = link.execute([("CLIENT", "ID")]), link.execute([count(b"a")])
        assert after > before
        assert counted == b"1"


@pytest.mark.parametrize("gone", ["demoted", "killed", "frozen"])
def test_promotion_by_the_sentinels_is_followed(gone: str) -> None:
    """Both twins follow it, whatever happened to the old master, and without one of the sentinels."""
    with redis_servers.sentinel() as made, ExitStack() as stack:
        twins = [Twin(kind, made.url, connect_patience=0.5) for kind in ("sync", "async")]
        for twin in twins:
            stack.callback(twin.end)
            assert twin.execute([("SET", "a", 1)]) == [b"OK"]
        if gone == "demoted":
            with made.sentinels[0].client() as client:
                fail_over = ("SENTINEL", "FAILOVER", redis_servers.SERVICE)
                until(lambda: client.execute_command(*fail_over), "the sentinels know no good replica")
            until(lambda: made.master_port() != made.master.port, "no promotion")
            # The sentinels would do the same ten seconds later.
            with made.master.client() as client:
                client.replicaof("127.0.0.1", made.replicas[0].port)
        else:
            made.sentinels[0].kill()
            made.master.kill() if gone == "killed" else made.master.freeze()
        for twin in twins:
            _until_at(twin, made.replicas[0].port)


def _until_at(twin: Twin, port: int) -> None:
    # The old master accepts writes until it is demoted.
    end = time.monotonic() + 60
    while twin.until(("SET", "a", 2)) and int(twin.until(("CONFIG", "GET", "port"))[1]) != port:
        assert time.monotonic() < end, "the promotion is not followed"
        twin.pause(0.02)


def test_cluster_without_a_node_serves_other_slots_and_then_all() -> None:
    """The slots of a killed or frozen node are served again after the election."""
    with redis_servers.cluster(replicas=1) as made, ExitStack() as stack:
        url = f"redis+cluster://127.0.0.1:{made.nodes[2].port}"
        twins = [Twin(kind, url, connect_patience=0.5) for kind in ("sync", "async")]
        lost, kept = ([b"{%d}" % tag for tag in _tags(*slots)] for slots in ((0, 6000), (12000,)))
        for twin in twins:
            stack.callback(twin.end)
            twin.execute([("SET", key, 1) for key in (*lost, *kept)])
        for key, gone in zip(lost, (made.nodes[0].kill, made.nodes[1].freeze), strict=True):
            gone()
            for twin in twins:
                with pytest.raises((Refused, RedisTimeout, TimeoutError)):
                    twin.execute([("SET", key, 2)], 0.1)
                for _ in range(20):
                    start = time.monotonic()
                    with suppress(RedisError, TimeoutError):
                        twin.execute([("SET", key, 2)], 0.1)
                    assert twin.execute([("SET", kept[0], 2)], 0.1) == [b"OK"]
                    assert time.monotonic() - start < 0.1 + SLACK
            for twin in twins:
                assert twin.until(("SET", key, 3)) == b"OK"
                assert twin.execute([("SET", other, 3) for other in (key, kept[0])]) == [b"OK"] * 2


def test_frozen_node_is_waited_for_by_one_call_only(linked: Linker, three: Cluster) -> None:
    """While a connection is opened in vain, later calls fail at once."""
    link = linked(three.url)
    (tag,) = _tags(0)
    link.execute([("SET", b"{%d}" % tag, 1)])
    waits = []
    three.nodes[0].freeze()
    try:
        for _ in range(12):
            start = time.monotonic()
            with pytest.raises((RedisTimeout, TimeoutError)):
                link.execute([("GET", b"{%d}" % tag)], 0.2)
            waits.append(time.monotonic() - start)
    finally:
        three.nodes[0].thaw()
    assert sum(wait > 0.15 for wait in waits) <= 6
    assert link.until(("GET", b"{%d}" % tag)) == b"1"
