"""What the doctor says of real servers, and with which exit code it leaves."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from benchmarks import redis_servers
from benchmarks.ports import free_port
from benchmarks.redis_servers import Certificates, Cluster, MissingError, Sentinels, Server
from cachemw.apps.cli import main
from cachemw.apps.doctor import checkup, examine, findings
from cachemw.apps.doctor.findings import Finding, advice
from cachemw.settings import Settings
from cachemw.stores import open_store
from cachemw.stores.protocol import Arrival
from cachemw.stores.redis.client.link import RedisClient
from cachemw.stores.redis.commands import Commands
from tests.stores.links import tls

# The page on stores has the rule; what it says is what is tried.
PAGE = (Path(__file__).parents[3] / "docs" / "stores.md").read_text(encoding="utf-8")


def _said(words: str) -> str:
    (found,) = re.findall(words, PAGE)
    return str(found)


NEEDED = _said(r"resetkeys ~cachemw:\* -@all (.*)")
ASKED = _said(r"finds out more with `(.*?)`")
CLUSTERED = _said(r"in a cluster `(.*?)`")
NUMBERED = _said(r"other than 0 add `(.*?)`")
USERS = {
    "ours": f"~cachemw:* -@all {NEEDED}",
    "doctors": f"~cachemw:* -@all {NEEDED} {ASKED}",
    "numbered": f"~cachemw:* -@all {NEEDED} {ASKED} {NUMBERED}",
    "others": "~others:* +@all",
    "nothing": "~cachemw:* +@all -evalsha",
    "half": f"~cachemw:* -@all {NEEDED} {ASKED} -get",
    "inside": "~cachemw:* +@all -setrange",
}
ACL = [word for name, rule in USERS.items() for word in ("--user", name, "on", ">pw", *rule.split())]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder: no settings of this machine count."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def roomy() -> Iterator[Server]:
    """A server with nothing to find fault with."""
    options = ["--maxmemory", "64mb", "--maxmemory-policy", "volatile-lru", *ACL]
    with redis_servers.standalone("valkey", *options) as server:
        yield server


def look(
    url: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, list[str]], str]:
    """Run the command; its exit code, what it found of each thing ("level words"), and all it printed."""
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--store", url, *options])
    printed = capsys.readouterr()
    found: dict[str, list[str]] = {}
    for line in printed.out.partition("\n\n")[0].splitlines():
        level, about, words = line.split(maxsplit=2)
        found.setdefault(about, []).append(f"{level} {words}")
    return int(left.value.code or 0), found, printed.out + printed.err


def levels(found: dict[str, list[str]]) -> dict[str, str]:
    """Return how each thing stands."""
    return {about: ",".join(words.split()[0] for words in lines) for about, lines in found.items()}


def arrive(url: str, secret: bytes, count: int = 20) -> None:
    """Be a worker for a moment."""
    store = open_store(url, secret=secret, timeout_ms=2000)
    keys = tuple(bytes([index]) * 16 for index in range(1, count + 1))
    store.observe(Arrival("default", b"r" * 16, b"t" * 16, 2, keys), 1.0)
    assert not store.flush()
    store.close()


def test_all_well(roomy: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with room and a policy, and workers with the same secret: nothing to do, nothing left behind."""
    monkeypatch.setenv("CACHEMW_SECRET", "of all workers")
    code, found, _ = look(roomy.url, capsys)
    assert (code, found["secret"]) == (0, ["ok set; no worker was here yet"])
    with roomy.client() as client:
        assert client.keys("*") == []
        arrive(roomy.url, b"of all workers")
        code, found, printed = look(roomy.url, capsys)
        assert set(levels(found).values()) == {"ok"}
        assert (code, printed.splitlines()[-1]) == (0, "Fit for use.")
        assert re.fullmatch(r"ok Valkey \d+\.\d+\.\d+, standalone", found["server"][0])
        assert re.fullmatch(
            r"ok \d\.\d MB of 67\.1 MB used, volatile-lru, 0 keys evicted so far", found["memory"][0]
        )
        assert re.fullmatch(
            r"ok PING \d+\.\d\d ms, 50 prefixes \d+\.\d\d ms \(p50\); store_timeout_ms is 20",
            found["latency"][0],
        )
        assert re.fullmatch(
            r"ok about 20 in all namespaces, 2\d\d bytes each: \d\.\d KB", found["prefixes"][0]
        )
        assert found["secret"] == ["ok set, as other workers have it"]
        assert len(client.keys("*:p:*")) == len(client.keys("*")) - 1 == 20
        client.flushall()


def test_the_machines_own_redis(redis_server: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Redis goes by its own name; without a limit and a secret it works, and could be better."""
    code, found, printed = look(redis_server, capsys)
    assert code == 0
    assert found["server"][0].startswith("ok Redis ")
    assert found["memory"][0].endswith("used, no limit. Set maxmemory, and maxmemory-policy volatile-lru")
    assert found["secret"][0].startswith("warn none is set: hashes are guessable. Set `secret`")
    assert printed.splitlines()[-1] == "Fit for use; see what could be better (2)."


@pytest.fixture(scope="module")
def redis_server() -> Iterator[str]:
    """The machine's own redis-server, where there is one; its URL."""
    try:
        with redis_servers.standalone("redis") as server:
            yield server.url
    except MissingError as missing:
        pytest.skip(str(missing))


def test_over_tls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With all certificates it is looked at as any other; where one is missing it is said which."""
    try:
        certificates = Certificates.make(tmp_path)
        with redis_servers.standalone("redis", tls=certificates) as server:
            code, found, printed = look(tls(server.url, certificates), capsys)
            assert (code, found["server"][0][:9]) == (0, "ok Redis ")
            assert certificates.key_word not in printed
            for left_out, said in (
                (["ssl_ca_certs"], "authority"),
                (["ssl_certfile", "ssl_keyfile", "ssl_password"], "certificate of the client"),
                (["ssl_keyfile", "ssl_password"], "file of a certificate or key"),
            ):
                url = tls(server.url, certificates, **dict.fromkeys(left_out, ""))
                code, found, _ = look(url, capsys)
                assert (code, levels(found)) == (1, {"server": "bad"})
                assert said in found["server"][0]
    except MissingError as missing:
        pytest.skip(str(missing))


def test_another_secret_is_found_and_none_is_set(
    roomy: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has another secret than the workers is told so, and doesn't become the one who has the right one."""
    arrive(roomy.url, b"of the workers")
    for mine in ("another", None):
        if mine is None:
            monkeypatch.delenv("CACHEMW_SECRET")
        else:
            monkeypatch.setenv("CACHEMW_SECRET", mine)
        code, found, _ = look(roomy.url, capsys)
        assert (code, levels(found)["secret"]) == (1, "bad")
        assert "have another one, and share nothing with this" in found["secret"][0]
    monkeypatch.setenv("CACHEMW_SECRET", "of the workers")
    assert look(roomy.url, capsys)[0] == 0
    with roomy.client() as client:
        client.flushall()


@pytest.mark.parametrize(
    ("user", "expected", "words"),
    [
        ("ours", {"server": "warn", "scripts": "ok", "clock": "ok"}, ""),
        ("doctors", {"server": "ok", "memory": "ok", "scripts": "ok"}, ""),
        ("numbered", {"server": "ok", "scripts": "ok"}, ""),
        ("others", {"server": "ok", "scripts": "bad"}, "The page on stores has the ACL rule"),
        ("nothing", {"scripts": "bad"}, "'evalsha'"),
        ("inside", {"scripts": "bad"}, "(NoPermissionError: ACL failure in script: User inside has no"),
        ("half", {"scripts": "bad"}, "has no permissions to run the 'get' command"),
    ],
)
def test_what_a_user_may_not_do(
    roomy: Server,
    capsys: pytest.CaptureFixture[str],
    user: str,
    expected: dict[str, str],
    words: str,
) -> None:
    """The documented rule is enough; where anything of it lacks, that is found, inside scripts too."""
    database = "/3" if user == "numbered" else ""
    code, found, _ = look(roomy.url.replace("://", f"://{user}:pw@") + database, capsys)
    assert expected.items() <= levels(found).items()
    assert code == ("bad" in expected.values())
    assert words in found["scripts"][0]


@pytest.mark.parametrize("word", NEEDED.split())
def test_the_rule_has_nothing_too_much(roomy: Server, word: str) -> None:
    """Without any one of the commands some of the work is refused."""
    rule = [other for other in NEEDED.split() if other != word]
    with roomy.client() as client:
        client.execute_command("ACL", "SETUSER", "less", "reset", "on", ">pw", "~cachemw:*", *rule)
    settings = Settings(store=roomy.url.replace("://", "://less:pw@"))
    assert [found.about for found in examine.examine(settings) if found.level == "bad"] == ["scripts"]


def test_the_rule_in_a_cluster(three: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """There the slots have to be looked up too."""
    for more, code in ("", 1), (CLUSTERED, 0):
        for node in three.nodes:
            with node.client() as client:
                rule = f"reset on >pw ~cachemw:* -@all {NEEDED} {ASKED} {more}".split()
                client.execute_command("ACL", "SETUSER", "ours", *rule)
        left, found, _ = look(three.url.replace("://", "://ours:pw@"), capsys)
        assert left == code, found


def test_the_machines_own_redis_takes_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Redis takes the same rule, and doesn't say which command inside a script it refuses."""
    try:
        with redis_servers.standalone("redis", *ACL) as server:
            for user, code in (("ours", 0), ("doctors", 0), ("others", 1), ("inside", 1)):
                left, found, _ = look(server.url.replace("://", f"://{user}:pw@"), capsys)
                assert left == code, found
            assert "(NoPermissionError: The user executing the script can't run" in found["scripts"][0]
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(
    ("options", "level", "words"),
    [
        (("noeviction", "64mb"), "warn", "used, noeviction: once full it refuses all writes"),
        (("allkeys-lru", "64mb"), "ok", "used, allkeys-lru, 0 keys evicted so far"),
        (("volatile-random", "64mb"), "warn", "what every request needs is dropped like what none does"),
    ],
)
def test_policies(
    roomy: Server, options: tuple[str, str], level: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What becomes of a full server is its policy's business."""
    with roomy.client() as client:
        client.config_set("maxmemory-policy", options[0])
        code, found, _ = look(roomy.url, capsys)
        client.config_set("maxmemory-policy", "volatile-lru")
    assert code == 0
    assert found["memory"][0].startswith(level)
    assert words in found["memory"][0]


def test_full_and_evicting_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """A full server that evicts nothing is bad, and says what to set."""
    with redis_servers.standalone("valkey", "--maxmemory", "1") as server:
        code, found, _ = look(server.url, capsys)
    assert code == 1
    assert levels(found) == {"server": "ok", "memory": "bad", "scripts": "bad"}
    assert found["scripts"][0].startswith(
        "bad it is full and evicts nothing. Set maxmemory-policy volatile-lru"
    )


def test_a_replica(roomy: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A replica refuses writes; one that takes them is doubtful."""
    following = ("--replicaof", f"127.0.0.1 {roomy.port}")
    with redis_servers.standalone("valkey", *following) as replica, replica.client() as client:
        redis_servers.until(
            lambda: client.info("replication")["master_link_status"] == "up", "the replica does not follow"
        )
        code, found, _ = look(replica.url, capsys)
        assert (code, levels(found)) == (1, {"server": "warn", "memory": "warn", "scripts": "bad"})
        assert "a replica takes no writes. Name the master, or the sentinels" in found["scripts"][0]
        client.config_set("replica-read-only", "no")
        code, found, _ = look(replica.url, capsys)
        assert (code, levels(found)["server"]) == (0, "warn")
        assert "a replica. Name the master" in found["server"][0]


def test_what_is_lost_at_once(roomy: Server) -> None:
    """Commands that are all answered well are not enough: what they wrote must be there."""
    link = RedisClient(roomy.url)

    class Forgetful(_Answering):
        def execute(self, commands: Any, seconds: float) -> list[Any]:
            replies = link.execute(commands, seconds)
            link.execute([("FLUSHALL",)], seconds)
            return replies

    commands = Commands(b"secret")
    (found,) = examine._exercise(Forgetful([]), commands, 20)
    assert found.level == "bad"
    assert found.words.startswith("they run, but what they write is not there")
    link.close()


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """A cluster."""
    with redis_servers.cluster(3) as made:
        yield made


def test_a_cluster(three: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Each master is looked at; keys in two slots are written and deleted."""
    code, found, _ = look(three.url, capsys)
    assert code == 0
    assert levels(found)["server"] == "ok,ok,ok"
    ports = sorted(str(node.port) for node in three.nodes)
    for port, line in zip(ports, sorted(found["server"]), strict=True):
        assert re.fullmatch(rf"ok 127\.0\.0\.1:{port}: Valkey \S+, cluster", line)
    assert levels(found)["scripts"] == "ok"
    for node in three.nodes:
        with node.client() as client:
            assert client.keys("*") == []


def test_a_cluster_by_the_wrong_name(
    three: Cluster, roomy: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """A node of a cluster is none of its own; a server of its own is no cluster."""
    code, found, _ = look(three.nodes[0].url, capsys)
    assert code == 1
    assert "Write redis+cluster:// in the place of redis://" in found["server"][0] + found["scripts"][0]
    assert levels(found)["server"] == levels(found)["scripts"] == "bad"
    code, found, _ = look(roomy.url.replace("redis://", "redis+cluster://"), capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})


@pytest.fixture(scope="module")
def watched() -> Iterator[Sentinels]:
    """A master with sentinels."""
    with redis_servers.sentinel() as made:
        yield made


def test_sentinels(watched: Sentinels, capsys: pytest.CaptureFixture[str]) -> None:
    """The master is found and looked at; a sentinel is none, and knows no master of another name."""
    code, found, _ = look(watched.url, capsys)
    assert (code, levels(found)["server"]) == (0, "ok")
    code, found, _ = look(watched.url.replace(redis_servers.SERVICE, "other"), capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert "no sentinel knows such a master" in found["server"][0]
    code, found, _ = look(watched.sentinels[0].url, capsys)
    assert code == 1
    assert "Write redis+sentinel://host:port/service" in found["server"][0]


def test_a_frozen_server(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes connections and does not answer is not waited for long."""
    for module in (examine, findings):
        monkeypatch.setattr(module, "PATIENCE", 0.2)
    with redis_servers.standalone() as server:
        server.freeze()
        code, found, _ = look(server.url, capsys)
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert found["server"][0].startswith("bad it does not answer. Is it overloaded or stopped")


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A closed port can't be reached, whatever the topology."""
    port = free_port()
    for url in (f"redis://127.0.0.1:{port}", f"redis+cluster://127.0.0.1:{port}"):
        code, found, printed = look(url, capsys)
        assert (code, levels(found)) == (1, {"server": "bad"})
        assert "it can't be reached. Check host, port" in found["server"][0]
        assert printed.splitlines()[-1] == "Not fit for use: put right what is bad (1)."


@pytest.mark.parametrize("login", ["ours:hunter2@", ":hunter2@", "nobody:hunter2@"])
def test_a_wrong_password(roomy: Server, capsys: pytest.CaptureFixture[str], login: str) -> None:
    """It is said that it is refused; what it was is shown nowhere, nor the secret."""
    url = roomy.url.replace("://", f"://{login}")
    Path("settings.toml").write_text('secret = "correct horse battery"\nstore_timeout_ms = 30\n')
    code, found, printed = look(url, capsys, "--config", "settings.toml")
    assert (code, levels(found)) == (1, {"server": "bad"})
    assert "user or password is refused" in found["server"][0]
    assert "hunter2" not in printed
    assert "correct horse" not in printed
    assert f"  store = redis://***@127.0.0.1:{roomy.port}" in printed
    assert "  secret = set\n" in printed
    assert "  store_timeout_ms = 30\n" in printed


def test_a_password_that_a_server_repeats() -> None:
    """What a server did not understand it repeats; that is not shown."""
    error = ResponseError("unknown command 'AUTH', with args beginning with: 'ours' 'hunter2' ")
    assert advice(error) == "it refuses what a worker asks of it (ResponseError: unknown command 'AUTH')"


def test_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """The store of one process works, and says what it is not."""
    code, found, printed = look("memory://", capsys)
    assert (code, levels(found)) == (0, {"server": "ok"})
    assert "for several name a Redis" in found["server"][0]
    assert "  store = memory://\n" in printed


@pytest.mark.parametrize("url", ["redis://host:port", "http://host", "nonsense", "redis://localhost?x=1"])
def test_bad_input(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL that isn't allowed is exit code 2 and a sentence."""
    code, found, printed = look(url, capsys)
    assert (code, found) == (2, {})
    assert printed.startswith("cachemw: store: ")


def test_settings_say_which_store(roomy: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --store it is that of the settings, from ./cachemw.toml too."""
    Path("cachemw.toml").write_text(f'store = "{roomy.url}"\n')
    with pytest.raises(SystemExit) as left:
        main(["doctor"])
    assert not left.value.code
    assert f"  store = {roomy.url}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("taken", "level"), [(0.003, "ok"), (0.015, "warn"), (0.025, "bad")])
def test_latency_against_the_timeout(monkeypatch: pytest.MonkeyPatch, taken: float, level: str) -> None:
    """A script that takes longer than requests wait is useless; one that takes half of it nearly."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(examine.time, "perf_counter", lambda: next(ticks) * taken)
    assert examine._latency(_Answering([]), [("GET", "a")], 20).level == level


class _Answering:
    """A link to no server, with given replies."""

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies

    def execute(self, commands: Any, seconds: float) -> list[Any]:
        return self._replies


@pytest.mark.parametrize(
    ("off", "found"),
    [
        (0.4, ("ok", "agree within a second")),
        (90, ("warn", "the server's is 90 s ahead. Prefixes go by it")),
        (-3600, ("warn", "the server's is 3600 s behind")),
    ],
)
def test_clocks(off: float, found: tuple[str, str]) -> None:
    """A clock that is off is named with by how much, and what goes by it."""
    there = time.time() + off
    told = examine._clock(_Answering([[b"%d" % there, b"%d" % (there % 1 * 1e6)]]))
    assert told.level == found[0]
    assert found[1] in told.words


def test_some_of_many_keys_are_looked_at(roomy: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many prefixes there are is estimated from some of the keys, those of others left out."""
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


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.0 bytes"), (1_500, "1.5 KB"), (2.5e9, "2.5 GB"), (9e15, "9,000.0 TB")],
)
def test_sizes(amount: float, text: str) -> None:
    """Sizes have a unit that can be read."""
    assert checkup.size(amount) == text


def test_a_permission_error_is_advised_about() -> None:
    """What was said stays, with what to do before it."""
    said = advice(NoPermissionError("User x has no permissions to run the 'get' command"))
    assert said.startswith("the user may not do what is needed. The page on stores has the ACL rule (NoPerm")
    assert Finding("bad", "scripts", said).words == said
