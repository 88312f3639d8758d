"""Which store URLs open what, and how the others are refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from cachemw.errors import ConfigError
from cachemw.stores import open_async_store, open_store
from cachemw.stores.memory import AsyncMemoryStore, MemoryStore
from cachemw.stores.url import masked, parse


def both(url: str) -> tuple[Any, Any]:
    """Open a URL for threads and for a loop."""
    return open_store(url, secret=b"s", timeout_ms=20), open_async_store(url, secret=b"s", timeout_ms=20)


@pytest.mark.parametrize(("url", "limit"), [("memory://", 200_000), ("memory://?max_prefixes=7", 7)])
def test_memory_opens_with_its_bound(url: str, limit: int) -> None:
    """The bound comes from the URL."""
    sync, asynced = both(url)
    assert (type(sync), type(asynced)) == (MemoryStore, AsyncMemoryStore)
    assert sync._limit == asynced._store._limit == limit
    assert sync.local
    assert asynced.local


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", {}),
        ("redis://h", {"host": "h"}),
        ("redis://h/", {"host": "h"}),
        ("redis://h:7000/3", {"host": "h", "port": 7000, "db": 3}),
        ("redis://h?db=4", {"host": "h", "db": 4}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://:p%40ss@h", {"host": "h", "password": "p@ss"}),
        ("rediss://user:pass@h/1", {"host": "h", "username": "user", "password": "pass", "db": 1}),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=/c.pem&ssl_keyfile=/k.pem&ssl_cert_reqs=none",
            {
                "ssl_ca_certs": "/ca.pem",
                "ssl_certfile": "/c.pem",
                "ssl_keyfile": "/k.pem",
                "ssl_cert_reqs": "none",
            },
        ),
        ("rediss://h?ssl_check_hostname=no", {"ssl_check_hostname": False}),
        ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
        (
            "unix://user:pass@/run/redis.sock",
            {"path": "/run/redis.sock", "username": "user", "password": "pass"},
        ),
    ],
)
def test_redis_opens_with_what_the_url_says(url: str, expected: dict[str, Any]) -> None:
    """Every part reaches the client, sync and async, with the timeout and without a connection."""
    sync, asynced = both(url)
    assert asynced._seconds == 0.02
    for store, client, timeout in ((sync, sync._client, 0.02), (asynced, asynced._connect(), None)):
        options = client.connection_pool.connection_kwargs
        assert {name: options.get(name) for name in expected} == expected
        assert options["socket_timeout"] == options["socket_connect_timeout"] == timeout
        assert not store.local


@pytest.mark.parametrize(("url", "bound"), [("redis://h", 50), ("redis://h?max_connections=9", 9)])
def test_connections_are_bounded(url: str, bound: int) -> None:
    """No burst opens more connections than the URL allows."""
    sync, asynced = both(url)
    assert sync._client.connection_pool.max_connections == bound
    assert asynced._connect().connection_pool.max_connections == bound


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "allowed: memory://, redis://"),
        ("memory", "allowed: memory://, redis://"),
        ("redis:h", "allowed: memory://, redis://"),
        ("Redis://h", "allowed: memory://, redis://"),
        ("http://h", "allowed: memory://, redis://"),
        ("redis+sentinel://h/mymaster", "not supported in this version"),
        ("redis+cluster://h", "not supported in this version"),
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
        ("redis://h/one", "number of a database"),
        ("redis://h/0/1", "number of a database"),
        ("redis://h?db=one", "db must match"),
        ("redis://h?socket_timeout=9", "no parameter 'socket_timeout'; allowed: db, max_connections"),
        ("redis://h?decode_responses=1", "no parameter 'decode_responses'"),
        ("redis://h?ssl_ca_certs=/ca.pem", "no parameter 'ssl_ca_certs'"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs must match"),
        ("redis://:pa#ss@h", "'#' in a password"),
        ("unix://run/redis.sock", "full path"),
        ("unix://", "full path"),
    ],
)
def test_anything_else_is_refused_by_name(url: str, why: str) -> None:
    """The error names the setting, the value and what is allowed."""
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
        "unix://user:hunter2@",
        "what://user:hunter2@h",
        "redis+cluster://user:hunter2@h",
        "rediss://h?ssl_password=hunter2&no=1",
        "redis://h?password=hunter2",
    ],
)
def test_no_password_is_in_an_error(url: str) -> None:
    """Whatever is wrong with a URL, what it may hold as a password is masked."""
    with pytest.raises(ConfigError) as refused:
        parse(url)
    assert "hunter2" not in str(refused.value)
    assert "ter2" not in str(refused.value)


def test_redis_is_imported_by_a_redis_url_only() -> None:
    """A process with a memory store never loads the client library."""
    program = (
        "import sys, cachemw, cachemw.stores as s; s.open_store('memory://', secret=None, timeout_ms=9);"
        "s.open_async_store('memory://', secret=None, timeout_ms=9); assert 'redis' not in sys.modules;"
        "s.open_store('redis://h', secret=b'x', timeout_ms=9); assert 'redis' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
