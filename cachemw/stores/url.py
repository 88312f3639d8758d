"""The URLs of stores, and the refusal of all others.

Contains: the check of each part, before any connection. Must not depend on: clients, connections. A URL may
hold a password, and an error never shows it.

==============================================================================  ============================
``memory://[?max_prefixes=N]``                                                  this process alone
``redis://[[user]:password@]host[:port][/db]``                                  one server
``unix://[[user]:password@]/path/to/socket[?db=N]``                             one server, by its socket
``redis+sentinel://[[user]:password@]host[:port][,host...]/service[/db]``       the service's master
``redis+cluster://[[user]:password@]host[:port][,host...]``                     a cluster, by any of its nodes
==============================================================================  ============================

``rediss``, ``rediss+sentinel`` and ``rediss+cluster`` are the same over TLS; ``valkey`` stands for ``redis``
wherever it is written. An ACL user is ``user:password``. Parameters follow a question mark:

- ``max_connections``: connections to one server, 50 by default.
- ``db``: the number of a database, if the path has none.
- ``sentinel_username``, ``sentinel_password``: the login of the sentinels.
- TLS: ``ssl_ca_certs`` (a file of authorities that may vouch for the server, besides the system's own),
  ``ssl_certfile``, ``ssl_keyfile``, ``ssl_password`` (the client's certificate, its key, the key's password),
  ``ssl_check_hostname=no`` (for nodes whose certificate does not name their address),
  ``ssl_cert_reqs=none`` (no check of the server's certificate).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias
from urllib.parse import parse_qsl, unquote

from cachemw.errors import ConfigError

Address: TypeAlias = tuple[str, int]

_POOL = {"max_connections": r"[1-9]\d*"}
_REDIS = _POOL | {"db": r"\d+"}
_SENTINEL = _REDIS | {"sentinel_username": r".+", "sentinel_password": r".+"}
_TLS = {
    "ssl_ca_certs": r".+",
    "ssl_certfile": r".+",
    "ssl_keyfile": r".+",
    "ssl_password": r".+",
    "ssl_cert_reqs": r"required|optional|none",
    "ssl_check_hostname": r"yes|no",
}
# The parameters of TLS with paths as values.
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# The parameters of each scheme, with the pattern of their values.
_SCHEMES = {
    "memory": {"max_prefixes": r"[1-9]\d*"},
    "redis": _REDIS,
    "rediss": _REDIS | _TLS,
    "unix": _REDIS,
    "redis+sentinel": _SENTINEL,
    "rediss+sentinel": _SENTINEL | _TLS,
    "redis+cluster": _POOL,
    "rediss+cluster": _POOL | _TLS,
}
_ALLOWED = (
    "memory://, redis://[[user]:password@]host[:port][/db], unix://[[user]:password@]/path/to/socket, "
    "redis+sentinel://[[user]:password@]host[:port][,host...]/service[/db], "
    "redis+cluster://[[user]:password@]host[:port][,host...]; "
    "rediss://, rediss+sentinel:// and rediss+cluster:// for TLS; valkey for redis"
)
_ESCAPES = "'#' is written %23, '/' %2F and '?' %3F in a password, '@' %40 in a path or parameter"
_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://(?:(?P<login>[^/?]*)@)?(?P<hosts>[^/?]*)(?P<path>/[^?]*)?(?:\?(?P<query>.*))?",
    re.DOTALL,
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:,@\s]+)(?::(\d{1,5}))?")


@dataclass(frozen=True)
class Target:
    """The parts of a URL: servers, login and parameters.

    `kind` is "memory", "server", "sentinel" or "cluster". `hosts` are the server, the sentinels, or some of
    the cluster's nodes; a server with a `path` is reached by that socket instead.
    """

    kind: str
    tls: bool = False
    hosts: tuple[Address, ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    parameters: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse(url: str) -> tuple[str, dict[str, str]]:
    """Return a store URL's scheme and parameters. Raises `ConfigError` if a part is not allowed."""
    return url.partition("://")[0], dict(target(url).parameters)


def target(url: str) -> Target:
    """Return the parts of a store URL. Raises `ConfigError` if a part is not allowed."""
    if "#" in url:
        _refuse(url, _ESCAPES)
    parts = _URL.fullmatch(url)
    scheme = parts["scheme"].replace("valkey", "redis", 1) if parts else ""
    if parts is None or scheme not in _SCHEMES:
        _refuse(url, f"allowed: {_ALLOWED}")
    hosts, path = parts["hosts"], parts["path"] or ""
    if "@" in (parts["query"] or "") or ("@" in path and scheme != "unix"):
        # Probably a part of a password.
        _refuse(url, _ESCAPES)
    parameters = _parameters(url, parts["query"] or "", _SCHEMES[scheme])
    if scheme == "memory":
        if hosts or path or parts["login"] is not None:
            _refuse(url, "memory:// takes neither host nor path")
        return Target("memory", parameters=parameters)
    user, _, password = (parts["login"] or "").partition(":")
    front, _, kind = scheme.partition("+")
    at = Target(
        kind or "server",
        tls=front == "rediss",
        db=int(parameters.get("db", 0)),
        username=unquote(user),
        password=unquote(password),
        parameters=parameters,
    )
    if at.username and not at.password:
        _refuse(url, "a user needs a password, as in user:password@")
    if front == "unix":
        if hosts or not path.strip("/"):
            _refuse(url, "the socket's full path is needed after two slashes, as in unix:///run/redis.sock")
        return _with(at, path=unquote(path))
    at = _with(at, hosts=_hosts(url, hosts, many=bool(kind), port=26379 if kind == "sentinel" else 6379))
    if kind == "sentinel":
        named = re.fullmatch(r"/([^/]+)(?:/(\d+)?)?", path)
        if named is None:
            _refuse(
                url,
                "the name of the service follows the hosts, then the number of a database if any, "
                "as in redis+sentinel://host:26379/mymaster/0",
            )
        return _with(at, service=unquote(named[1]), db=_db(url, at, named[2]))
    if kind == "cluster":
        if path.strip("/"):
            _refuse(url, "nothing follows the hosts: a cluster has one database")
        return at
    numbered = re.fullmatch(r"/?(\d+)?", path)
    if numbered is None:
        _refuse(url, "what follows the host is the number of a database, as in redis://localhost:6379/0")
    return _with(at, db=_db(url, at, numbered[1]))


def _with(at: Target, **changes: object) -> Target:
    return Target(**{**at.__dict__, **changes})


def _db(url: str, at: Target, number: str | None) -> int:
    if number is not None and "db" in at.parameters:
        _refuse(url, "the number of the database is given twice")
    return at.db if number is None else int(number)


def _hosts(url: str, text: str, *, many: bool, port: int) -> tuple[Address, ...]:
    found: list[Address] = []
    for part in text.split(",") if many else [text or "localhost"]:
        host = _HOST.fullmatch(part)
        if host is None or int(host[2] or 0) > 65535:
            example = " several are parted by commas" if many else ""
            _refuse(url, f"the host or its port can't be read; a port is a number up to 65535;{example}")
        found.append((unquote(host[1].strip("[]")), int(host[2] or port)))
    return tuple(found)


def _parameters(url: str, query: str, allowed: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            # It may be the rest of a password after a "&".
            shown = re.fullmatch("[a-z_]+", name) and not any("password" in earlier for earlier in found)
            named = f"parameter {name!r}" if shown else "such parameter"
            _refuse(url, f"there is no {named}; allowed: {', '.join(sorted(allowed))}")
        if name in found:
            _refuse(url, f"{name} is given twice")
        if not re.fullmatch(allowed[name], value):
            _refuse(url, f"{name} must match {allowed[name]}")
        if name in FILES and not Path(value).is_file():
            _refuse(url, f"{name}: there is no such file that can be read")
        found[name] = value
    for name, needed in (
        ("ssl_keyfile", "ssl_certfile"),
        ("ssl_password", "ssl_certfile"),
        ("sentinel_username", "sentinel_password"),
    ):
        if name in found and needed not in found:
            _refuse(url, f"{name} needs {needed}")
    return found


def masked(url: str) -> str:
    """Return the URL without its users, passwords and key password."""
    # Up to the last "@", and from a secret parameter on: an unescaped password may hold any character.
    shown = re.sub(r"^([\w+.-]+://)?.*@", r"\1***@", url, flags=re.DOTALL)
    return re.sub(r"((?:user|pass)\w*=).*", r"\1***", shown, flags=re.DOTALL | re.IGNORECASE)


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigError(f"store: {masked(url)!r} is not allowed: {why}") from None
