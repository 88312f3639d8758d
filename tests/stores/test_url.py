"""The store URLs: the store of each, and the refusal of other URLs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cachemw.errors import ConfigError
from cachemw.stores import open_async_store, open_store
from cachemw.stores.memory import AsyncMemoryStore, MemoryStore
from cachemw.stores.redis.client.link import AsyncRedisClient, RedisClient
from cachemw.stores.url import masked, parse, target


def both(url: str) -> tuple[Any, Any]:
    """Open a URL for threads and for a loop."""
    return open_store(url, secret=b"s", timeout_ms=20), open_async_store(url, secret=b"s", timeout_ms=20)


@pytest.mark.parametrize(("url", "limit"), [("memory://", 200_000), ("memory://?max_prefixes=7", 7)])
def test_memory_url_sets_the_bound(url: str, limit: int) -> None:
    """The bound comes from the URL."""
    sync, asynced = both(url)
    assert (type(sync), type(asynced)) == (MemoryStore, AsyncMemoryStore)
    assert sync._records._records._limit == asynced._store._records._records._limit == limit
    assert sync.local
    assert asynced.local


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {"hosts": (("localhost", 6379),)}),
        ("redis://h", {"kind": "server", "tls": False, "hosts": (("h", 6379),), "db": 0}),
        ("redis://h/", {"hosts": (("h", 6379),)}),
        ("redis://h:7000/3", {"hosts": (("h", 7000),), "db": 3}),
        ("redis://h?db=4", {"hosts": (("h", 6379),), "db": 4}),
        ("redis://[::1]:7000", {"hosts": (("::1", 7000),)}),
        ("redis://:p%40ss@h", {"username": "", "password": "p@ss"}),
        ("redis://us%3Aer:pa:ss@h", {"username": "us:er", "password": "pa:ss"}),
        ("redis://user:hun@ter2@h", {"username": "user", "password": "hun@ter2", "hosts": (("h", 6379),)}),
        ("rediss://user:pass@h/1", {"tls": True, "username": "user", "password": "pass", "db": 1}),
        ("unix:///run/redis.sock?db=2", {"kind": "server", "path": "/run/redis.sock", "db": 2, "hosts": ()}),
        ("unix://user:pass@/run/a%20b", {"path": "/run/a b", "username": "user", "password": "pass"}),
        (
            "redis+sentinel://h,[::1]:7001,i:7002/my%20master/2",
            {
                "kind": "sentinel",
                "hosts": (("h", 26379), ("::1", 7001), ("i", 7002)),
                "service": "my master",
                "db": 2,
            },
        ),
        ("redis+sentinel://h/m?db=3", {"service": "m", "db": 3}),
        ("redis+sentinel://h/m/", {"service": "m", "db": 0}),
        (
            "rediss+sentinel://user:pass@h/m?sentinel_username=s&sentinel_password=t",
            {
                "tls": True,
                "username": "user",
                "parameters": {"sentinel_username": "s", "sentinel_password": "t"},
            },
        ),
        ("redis+cluster://h,i:7001", {"kind": "cluster", "hosts": (("h", 6379), ("i", 7001))}),
        (
            "rediss+cluster://:pass@h/?max_connections=9",
            {"tls": True, "parameters": {"max_connections": "9"}},
        ),
        ("valkey://h", {"kind": "server", "tls": False}),
        ("valkeys://h", {"kind": "server", "tls": True}),
        ("valkey+cluster://h", {"kind": "cluster", "tls": False}),
        ("valkeys+sentinel://h/m", {"kind": "sentinel", "tls": True}),
    ],
)
def test_allowed_url_is_parsed_to_its_target(url: str, expected: dict[str, Any]) -> None:
    """Clients and stores accept each part without a connection."""
    found = target(url)
    assert {name: getattr(found, name) for name in expected} == expected
    for link in (RedisClient(url), AsyncRedisClient(url)):
        assert link.clustered is (found.kind == "cluster")
    for store in both(url):
        assert not store.local


def test_missing_tls_file_is_refused_by_name(tmp_path: Path) -> None:
    """The error names the parameter of the mistyped path."""
    paths = [tmp_path / name for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")]
    for path in paths:
        path.touch()
    url = "rediss://h?" + "&".join(f"{path.name}={path}" for path in paths)
    assert target(url).parameters == {path.name: str(path) for path in paths}
    paths[1].unlink()
    with pytest.raises(ConfigError, match="ssl_certfile: there is no such file"):
        target(url)


def test_repr_of_a_target_shows_no_password() -> None:
    """The repr may be in a traceback or a log."""
    assert "hunter2" not in repr(target("redis+sentinel://u:hunter2@h/m?sentinel_password=hunter2"))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "allowed: memory://, redis://"),
        ("memory", "allowed: memory://, redis://"),
        ("redis:h", "allowed: memory://, redis://"),
        ("Redis://h", "allowed: memory://, redis://"),
        ("http://h", "allowed: memory://, redis://"),
        ("redis+sentinel://h", "name of the service"),
        ("redis+sentinel://h/", "name of the service"),
        ("redis+sentinel://h/m/one", "name of the service"),
        ("redis+sentinel://h/m/1/2", "name of the service"),
        ("redis+sentinel://h,/m", "can't be read"),
        ("redis+sentinel:///m", "can't be read"),
        ("redis+sentinel://h/m/1?db=2", "number of the database is given twice"),
        ("redis+sentinel://h/m?sentinel_username=s", "sentinel_username needs sentinel_password"),
        ("redis+sentinel://h/m?ssl_password=x", "no parameter 'ssl_password'"),
        ("redis+cluster://", "can't be read"),
        ("redis+cluster://h,h:99999", "a port is a number up to 65535; several are parted by commas"),
        ("redis+cluster://h/0", "a cluster has one database"),
        ("redis+cluster://h?db=0", "no parameter 'db'; allowed: max_connections"),
        ("redis+other://h", "allowed: memory://, redis://"),
        ("redis://h,i", "can't be read"),
        ("redis://h/1?db=2", "number of the database is given twice"),
        ("redis://user@h", "a user needs a password"),
        ("redis://user:@h", "a user needs a password"),
        ("memory://:pass@", "neither host nor path"),
        ("rediss://h?ssl_ca_certs=/no/such.pem", "ssl_ca_certs: there is no such file"),
        ("rediss://h?ssl_password=x", "ssl_password needs ssl_certfile"),
        ("memory://?max_prefixes=0", "max_prefixes must match"),
        ("memory://?max_prefixes=-5", "max_prefixes must match"),
        ("memory://?max_prefixes=many", "max_prefixes must match"),
        ("memory://?max_prefixes", "max_prefixes must match"),
        ("memory://?max_prefixes=1&max_prefixes=2", "max_prefixes is given twice"),
        ("memory://?max_prefix=5", "no parameter 'max_prefix'; allowed: max_prefixes"),
        ("memory://host", "neither host nor path"),
        ("memory:///path", "neither host nor path"),
        ("redis://h:port", "a port is a number"),
        ("redis://h:99999", "a port is a number"),
        ("redis://[::1", "can't be read"),
        ("redis://::1", "can't be read"),
        ("redis://h/one", "number of a database"),
        ("redis://h/0/1", "number of a database"),
        ("redis://h?db=one", "db must match"),
        ("redis://h?socket_timeout=9", "no parameter 'socket_timeout'; allowed: db, max_connections"),
        ("redis://h?decode_responses=1", "no parameter 'decode_responses'"),
        ("redis://h?ssl_ca_certs=/ca.pem", "no parameter 'ssl_ca_certs'"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must match"),
        ("redis://:pa#ss@h", "'#' is written %23"),
        ("redis://:pa/ss@h", "'/' %2F"),
        ("redis://user:6379/5@h", "'/' %2F"),
        ("redis+sentinel://user:6379/ss@h", "'/' %2F"),
        ("redis://:pa?ss@h", "'?' %3F in a password"),
        ("redis+sentinel://h/m?sentinel_password=pa@ss", "'@' %40 in a path or parameter"),
        ("redis://h?Db=1", "there is no such parameter; allowed: db, max_connections"),
        ("unix://run/redis.sock", "full path"),
        ("unix://", "full path"),
    ],
)
def test_other_urls_are_refused_by_name(url: str, why: str) -> None:
    """The error names the setting, the value and the allowed forms."""
    for opening in (open_store, open_async_store):
        with pytest.raises(ConfigError) as refused:
            opening(url, secret=b"s", timeout_ms=20)
        assert str(refused.value).startswith(f"store: {masked(url)!r} is not allowed: ")
        assert why in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h:port",
        "redis://user:hunter2@h/one",
        "redis://user:hun@ter2@h/one",
        "redis://:hunter2/x@h",
        "redis://:hunter2#x@h",
        "redis://:hunter2?x@h",
        "redis://user:pa?hunter2@host:6379/0",
        "redis://user:pa?x=1&hunter2@h",
        "redis://user:pa?db=hunter2@h",
        "redis://user:pa#hunter2@h",
        "redis://user:pa/hunter2@h",
        "redis://user:1/hunter2@h",
        "redis://user:p@1/hunter2@h",
        "redis://user:p@h?hunter2@h",
        "redis+sentinel://user:1/hunter2@h",
        "redis+cluster://user:1/hunter2@h",
        "unix://user:pa/hunter2@/run/redis.sock",
        "unix://user:pa?hunter2@/run/redis.sock",
        "memory://:pa?hunter2@",
        "user:hunter2@h",
        "redis:user:hunter2@h",
        "rediss://h?ssl_password=pa&hunter2",
        "rediss://h?ssl_password=pa&hunter",
        "redis://h?password=pa&hunter2=1",
        "unix://user:hunter2@",
        "what://user:hunter2@h",
        "redis+cluster://user:hunter2@h/0",
        "redis+sentinel://h?sentinel_password=hunter2",
        "valkey+sentinel://user:hunter2@h,i",
        "rediss://h?ssl_password=hunter2&no=1",
        "redis://h?password=hunter2",
    ],
)
def test_error_of_any_url_shows_no_password(url: str) -> None:
    """The error masks each possible password, whatever is wrong with the URL."""
    with pytest.raises(ConfigError) as refused:
        parse(url)
    assert "hunter" not in str(refused.value)
    assert "ter2" not in str(refused.value)


def test_memory_url_imports_no_redis() -> None:
    """A process with a memory store never loads the client library."""
    program = (
        "import sys, cachemw, cachemw.stores as s; s.open_store('memory://', secret=None, timeout_ms=9);"
        "s.open_async_store('memory://', secret=None, timeout_ms=9); assert 'redis' not in sys.modules;"
        "s.open_store('redis://h', secret=b'x', timeout_ms=9); assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
