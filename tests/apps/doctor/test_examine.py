"""The doctor's findings about real servers, and its exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import redis_servers
from benchmarks.ports import free_port
from benchmarks.redis_servers import Certificates, Cluster, MissingError, Sentinels, Server
from cachemw.apps.cli import main
from cachemw.apps.doctor import checkup, examine, findings
from cachemw.settings import Settings
from cachemw.stores import open_store
from cachemw.stores.protocol import Arrival
from cachemw.stores.redis.client.link import RedisClient
from cachemw.stores.redis.commands import Commands
from tests.apps.doctor.doctor import Answering, levels, look
from tests.stores.links import tls


def arrive(url: str, secret: bytes, count: int = 20) -> None:
    """Act as a worker: observe one arrival."""
    store = open_store(url, secret=secret, timeout_ms=2000)
    keys = tuple(bytes([index]) * 16 for index in range(1, count + 1))
    store.observe(Arrival("default", b"r" * 16, b"t" * 16, 2, keys), 1.0)
    assert not store.flush()
    store.close()


def test_doctor_of_a_healthy_server_finds_no_fault(
    roomy: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory, an eviction policy and one secret, every finding is ok, and no key stays behind."""
    monkeypatch.setenv("CACHEMW_SECRET", "of all workers")
    code, found, _ = look(roomy.url, capsys)
    assert (code, found["secret"]) == (0, ["ok Set. No worker has used the store yet."])
    with roomy.client() as client:
        assert client.keys("*") == []
        arrive(roomy.url, b"of all workers")
        code, found, printed = look(roomy.url, capsys)
        assert set(levels(found).values()) == {"ok"}
        assert (code, printed.splitlines()[-1]) == (0, "The store is fit for use.")
        assert re.fullmatch(r"ok Valkey \d+\.\d+\.\d+, standalone\.", found["server"][0])
        assert re.fullmatch(
            r"ok \d\.\d MB of 67\.1 MB used, volatile-lru, 0 keys evicted so far\.", found["memory"][0]
        )
        assert re.fullmatch(
            r"ok PING \d+\.\d\d ms, 50 prefixes \d+\.\d\d ms \(p50\); store_timeout_ms is 5000\.",
            found["latency"][0],
        )
        assert re.fullmatch(
            r"ok About 20 in all namespaces, 2\d\d bytes each: \d\.\d KB\.", found["prefixes"][0]
        )
        assert found["secret"] == ["ok Set, and the same as other workers have."]
        assert len(client.keys("*:p:*")) == len(client.keys("*")) - 1 == 20
        client.flushall()


def test_doctor_of_redis_warns_about_limit_and_secret(
    redis_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Redis without a limit and without a secret works; both are warnings."""
    code, found, printed = look(redis_server, capsys)
    assert code == 0
    assert found["server"][0].startswith("ok Redis ")
    assert found["memory"][0].endswith("used, no limit. Set maxmemory, and maxmemory-policy volatile-lru.")
    assert found["secret"][0].startswith("warn No secret is set, so hashes are guessable.")
    assert printed.splitlines()[-1] == "The store is fit for use. Consider the findings marked warn (2)."


@pytest.fixture(scope="module")
def redis_server() -> Iterator[str]:
    """Return the URL of a Redis, if this machine has one."""
    try:
        with redis_servers.standalone("redis") as server:
            yield server.url
    except MissingError as missing:
        pytest.skip(str(missing))


def test_doctor_over_tls_names_the_missing_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all certificates the server is checked like any other; a missing one is named."""
    try:
        certificates = Certificates.make(tmp_path)
        with redis_servers.standalone("redis", tls=certificates) as server:
            code, found, printed = look(tls(server.url, certificates), capsys)
            assert (code, found["server"][0][:9]) == (0, "ok Redis ")
            assert certificates.key_word not in printed
            for left_out, cause in (
                (["ssl_ca_certs"], "authority"),
                (["ssl_certfile", "ssl_keyfile", "ssl_password"], "client certificate"),
                (["ssl_keyfile", "ssl_password"], "file of a certificate or key"),
            ):
                url = tls(server.url, certificates, **dict.fromkeys(left_out, ""))
                code, found, _ = look(url, capsys)
                assert (code, levels(found)) == (1, {"server": "bad"})
                assert cause in found["server"][0]
    except MissingError as missing:
        pytest.skip(str(missing))


def test_doctor_with_another_secret_reports_it_and_sets_none(
    roomy: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A secret that differs from the workers' is bad, and the doctor does not write its own fingerprint."""
    arrive(roomy.url, b"of the workers")
    for mine in ("another", None):
        if mine is None:
            monkeypatch.delenv("CACHEMW_SECRET")
        else:
            monkeypatch.setenv("CACHEMW_SECRET", mine)
        code, found, _ = look(roomy.url, capsys)
        assert (code, levels(found)["secret"]) == (1, "bad")
        assert "Other workers of the namespace have another secret" in found["secret"][0]
    monkeypatch.setenv("CACHEMW_SECRET", "of the workers")
    assert look(roomy.url, capsys)[0] == 0
    with roomy.client() as client:
        client.flushall()


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        (("noeviction", "64mb"), "warn", "used, noeviction. Once full, it refuses all writes."),
        (("allkeys-lru", "64mb"), "ok", "used, allkeys-lru, 0 keys evicted so far."),
        (
            ("volatile-random", "64mb"),
            "warn",
            "used, volatile-random. It evicts busy keys as often as idle ones.",
        ),
    ],
)
def test_doctor_judges_the_eviction_policy(
    roomy: Server, options: tuple[str, str], level: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The policy decides the behaviour of a full server."""
    with roomy.client() as client:
        client.config_set("maxmemory-policy", options[0])
        code, found, _ = look(roomy.url, capsys)
        client.config_set("maxmemory-policy", "volatile-lru")
    assert code == 0
    assert found["memory"][0].startswith(level)
    assert words in found["memory"][0]


def test_doctor_of_a_full_server_without_eviction_finds_it_bad(capsys: pytest.CaptureFixture[str]) -> None:
    """The finding names the policy to set."""
    with redis_servers.standalone("valkey", "--maxmemory", "1") as server:
        code, found, _ = look(server.url, capsys)
    assert code == 1
    assert levels(found) == {"server": "ok", "memory": "bad", "scripts": "bad"}
    assert found["scripts"][0].startswith(
        "bad The server is full and evicts no key. Set maxmemory-policy volatile-lru."
    )


def test_doctor_of_a_replica_warns(roomy: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A replica refuses writes; one that accepts them is a warning."""
    following = ("--replicaof", f"127.0.0.1 {roomy.port}")
    with redis_servers.standalone("valkey", *following) as replica, replica.client() as client:
        redis_servers.until(
            lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow"
        )
        code, found, _ = look(replica.url, capsys)
        assert (code, levels(found)) == (1, {"server": "warn", "memory": "warn", "scripts": "bad"})
        assert "A replica takes no writes. Name the master, or the sentinels" in found["scripts"][0]
        client.config_set("replica-read-only", "no")
        code, found, _ = look(replica.url, capsys)
        assert (code, levels(found)["server"]) == (0, "warn")
        assert "a replica. Its writes reach no other server. Name the master." in found["server"][0]


def test_doctor_finds_lost_writes(roomy: Server) -> None:
    """Successful replies are not enough: the written values must be there."""
    link = RedisClient(roomy.url)

    class Forgetful(Answering):
        def execute(self, commands: Any, seconds: float) -> list[Any]:
            replies = link.execute(commands, seconds)
            link.execute([("FLUSHALL",)], seconds)
            return replies

    commands = Commands(b"secret")
    (found,) = examine._exercise(Forgetful([]), commands, 20)
    assert found.level == "bad"
    assert found.words.startswith("The scripts run, but their writes are lost.")
    link.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Run a cluster of three nodes."""
    with redis_servers.cluster(3) as made:
        yield made


def test_doctor_of_a_cluster_checks_each_master(three: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys in two slots are written and deleted."""
    code, found, _ = look(three.url, capsys)
    assert code == 0
    assert levels(found)["server"] == "ok,ok,ok"
    ports = sorted(str(node.port) for node in three.nodes)
    for port, line in zip(ports, sorted(found["server"]), strict=True):
        assert re.fullmatch(rf"ok 127\.0\.0\.1:{port}: Valkey \S+, cluster\.", line)
    assert levels(found)["scripts"] == "ok"
    for node in three.nodes:
        with node.client() as client:
            assert client.keys("*") == []


def test_doctor_with_the_wrong_kind_of_url_names_the_right_one(
    three: Cluster, roomy: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster node needs redis+cluster://, and a single server does not."""
    code, found, _ = look(three.nodes[0].url, capsys)
    assert code == 1
    assert "Write redis+cluster:// instead of redis://." in found["server"][0] + found["scripts"][0]
    assert levels(found)["server"] == levels(found)["scripts"] == "bad"
    code, found, _ = look(roomy.url.replace("redis://", "redis+cluster://"), capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})


@pytest.fixture(scope="module")
def watched() -> Iterator[Sentinels]:
    """Run a master with sentinels."""
    with redis_servers.sentinel() as made:
        yield made


def test_doctor_with_sentinels_checks_the_master(
    watched: Sentinels, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown master is bad, and so is the URL of a sentinel itself."""
    code, found, _ = look(watched.url, capsys)
    assert (code, levels(found)["server"]) == (0, "ok")
    code, found, _ = look(watched.url.replace(redis_servers.SERVICE, "other"), capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert "No sentinel knows this master." in found["server"][0]
    code, found, _ = look(watched.sentinels[0].url, capsys)
    assert code == 1
    assert "Write redis+sentinel://host:port/service" in found["server"][0]


def test_doctor_of_a_frozen_server_gives_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that accepts connections and does not answer is bad."""
    for module in (examine, findings):
        monkeypatch.setattr(module, "PATIENCE", 0.2)
    with redis_servers.standalone() as server:
        server.freeze()
        code, found, _ = look(server.url, capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert found["server"][0].startswith("bad The server does not answer. Check that it runs")


def test_doctor_of_a_closed_port_finds_it_bad(capsys: pytest.CaptureFixture[str]) -> None:
    """The server cannot be reached, with each kind of URL."""
    port = free_port()
    for url in (f"redis://127.0.0.1:{port}", f"redis+cluster://127.0.0.1:{port}"):
        code, found, printed = look(url, capsys)
        assert (code, levels(found)) == (1, {"server": "bad"})
        assert "The server cannot be reached. Check host, port" in found["server"][0]
        assert printed.splitlines()[-1] == "The store is not fit for use. Fix the findings marked bad (1)."


@pytest.mark.parametrize("login", ["worker:hunter2@", ":hunter2@", "nobody:hunter2@"])
def test_doctor_with_a_wrong_password_shows_no_secret(
    roomy: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, login: str
) -> None:
    """The refusal is reported; password and secret are printed nowhere."""
    monkeypatch.delenv("CACHEMW_STORE_TIMEOUT_MS")
    url = roomy.url.replace("://", f"://{login}")
    Path("settings.toml").write_text('secret = "correct horse battery"\nstore_timeout_ms = 30\n')
    code, found, printed = look(url, capsys, "--config", "settings.toml")
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert "The server refuses user or password." in found["server"][0]
    assert "hunter2" not in printed
    assert "correct horse" not in printed
    assert f"  store = redis://***@127.0.0.1:{roomy.port}" in printed
    assert "  secret = set\n" in printed
    assert "  store_timeout_ms = 30\n" in printed


def test_doctor_without_option_checks_the_store_of_the_settings(
    roomy: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The settings file in the working directory names the store."""
    Path("cachemw.toml").write_text(f'store = "{roomy.url}"\n')
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    assert not left.value.code
    assert f"  store = {roomy.url}\n" in capsys.readouterr().out


def test_doctor_estimates_the_number_of_prefixes(roomy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate uses a sample of keys, and keys of other programs do not count."""
    monkeypatch.setattr(checkup, "_SCANS", 3)
    monkeypatch.setattr(checkup, "_SCANNED", 200)
    with roomy.client() as client:
        client.mset({f"other:{index}": "x" for index in range(2_000)})
        client.mset({f"cachemw:{{a:b}}:p:{index}": "x" for index in range(2_000)})
        settings = Settings(store=roomy.url)
        (found,) = [each for each in examine.examine(settings) if each.about == "prefixes"]
        client.flushall()
    about = int(found.words.split()[1].replace(",", ""))
    assert about == pytest.approx(2_000, rel=0.25)
