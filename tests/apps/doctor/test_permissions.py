"""Permissions that the doctor needs, and the findings if one is missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks import redis_servers
from benchmarks.redis_servers import Cluster, MissingError, Server
from cachemw.apps.doctor import examine
from cachemw.settings import Settings
from tests.apps.doctor.doctor import ACL, ASKED, CLUSTERED, NEEDED, levels, look


@pytest.mark.parametrize(
    ("user", "expected", "words"),
    [
        ("worker", {"server": "warn", "scripts": "ok", "clock": "ok"}, ""),
        ("doctor", {"server": "ok", "memory": "ok", "scripts": "ok"}, ""),
        ("numbered", {"server": "ok", "scripts": "ok"}, ""),
        ("stranger", {"server": "ok", "scripts": "bad"}, "Give it the ACL rule in docs/stores.md"),
        ("scriptless", {"scripts": "bad"}, "'evalsha'"),
        ("inside", {"scripts": "bad"}, "(NoPermissionError: ACL failure in script: User inside has no"),
        ("half", {"scripts": "bad"}, "has no permissions to run the 'get' command"),
    ],
)
def test_doctor_as_a_user_finds_missing_permissions(
    roomy: Server,
    capsys: pytest.CaptureFixture[str],
    user: str,
    expected: dict[str, str],
    words: str,
) -> None:
    """The documented rule is enough; each missing permission is found, inside scripts too."""
    database = "/3" if user == "numbered" else ""
    code, found, _ = look(roomy.url.replace("://", f"://{user}:pw@") + database, capsys)
    assert expected.items() <= levels(found).items()
    assert code == ("bad" in expected.values())
    assert words in found["scripts"][0]


@pytest.mark.parametrize("word", NEEDED.split())
def test_doctor_without_one_command_of_the_rule_finds_it_bad(roomy: Server, word: str) -> None:
    """Each command of the documented rule is needed."""
    rule = [other for other in NEEDED.split() if other != word]
    with roomy.client() as client:
        client.execute_command("ACL", "SETUSER", "less", "reset", "on", ">pw", "~cachemw:*", *rule)
    settings = Settings(store=roomy.url.replace("://", "://less:pw@"))
    assert [found.about for found in examine.examine(settings) if found.level == "bad"] == ["scripts"]


def test_doctor_in_a_cluster_needs_two_more_commands(
    three: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cluster needs the look-up of slots as well."""
    for more, code in ("", 1), (CLUSTERED, 0):
        for node in three.nodes:
            with node.client() as client:
                rule = f"reset on >pw ~cachemw:* -@all {NEEDED} {ASKED} {more}".split()
                client.execute_command("ACL", "SETUSER", "worker", *rule)
        left, found, _ = look(three.url.replace("://", "://worker:pw@"), capsys)
        assert left == code, found


def test_doctor_of_redis_accepts_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """Redis accepts the same rule, and does not name a refused command inside a script."""
    try:
        with redis_servers.standalone("redis", *ACL) as server:
            for user, code in (("worker", 0), ("doctor", 0), ("stranger", 1), ("inside", 1)):
                left, found, _ = look(server.url.replace("://", f"://{user}:pw@"), capsys)
                assert left == code, found
            assert "(NoPermissionError: The user executing the script can't run" in found["scripts"][0]
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Run a cluster of three nodes."""
    with redis_servers.cluster(3) as made:
        yield made
