"""What a store's URL may say, and how one that says anything else is refused.

Lives here: the check of every part, before anything is opened. Must not know: clients, connections.
A URL may hold a password: what an error shows of one never does.
"""

from __future__ import annotations

import re
from typing import NoReturn
from urllib.parse import parse_qsl, urlsplit

from cachemw.errors import ConfigError

_REDIS = {"db": r"\d+", "max_connections": r"[1-9]\d*"}
_TLS = {
    "ssl_ca_certs": r".+",
    "ssl_certfile": r".+",
    "ssl_keyfile": r".+",
    "ssl_password": r".+",
    "ssl_cert_reqs": r"required|optional|none",
    "ssl_check_hostname": r"yes|no",
}
# Every scheme with the parameters that it takes, each with the pattern of its values.
_SCHEMES = {
    "memory": {"max_prefixes": r"[1-9]\d*"},
    "redis": _REDIS,
    "rediss": _REDIS | _TLS,
    "unix": _REDIS,
}
_LATER = {"redis+sentinel", "redis+cluster"}
_ALLOWED = (
    "memory://, redis://[[user]:password@]host[:port][/db], rediss://... for TLS, "
    "unix://[[user]:password@]/path/to/socket"
)


def parse(url: str) -> tuple[str, dict[str, str]]:
    """Return a store URL's scheme and parameters. Raises `ConfigError` where any part is not allowed."""
    scheme = url.partition("://")[0]
    if scheme in _LATER:
        _refuse(url, f"{scheme}:// is not supported in this version; allowed: {_ALLOWED}")
    if "://" not in url or scheme not in _SCHEMES:
        _refuse(url, f"allowed: {_ALLOWED}")
    if "#" in url:
        _refuse(url, "a '#' in a password is written %23")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        _refuse(url, "the host or its port can't be read; a port is a number up to 65535")
    if scheme == "memory" and (parts.netloc or parts.path):
        _refuse(url, "memory:// takes neither host nor path")
    if scheme == "unix" and (host or not parts.path.strip("/")):
        _refuse(url, "the socket's full path is needed after two slashes, as in unix:///run/redis.sock")
    if scheme in ("redis", "rediss") and not re.fullmatch(r"/?|/\d+", parts.path):
        _refuse(url, "what follows the host is the number of a database, as in redis://localhost:6379/0")
    return scheme, _parameters(url, parts.query, _SCHEMES[scheme])


def _parameters(url: str, query: str, allowed: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in allowed:
            _refuse(url, f"there is no parameter {name!r}; allowed: {', '.join(sorted(allowed))}")
        if name in found:
            _refuse(url, f"{name} is given twice")
        if not re.fullmatch(allowed[name], value):
            _refuse(url, f"{name} must match {allowed[name]}")
        found[name] = value
    return found


def masked(url: str) -> str:
    """Return the URL without its user, password and key password."""
    # Up to the last "@": an unescaped password may hold any character.
    shown = re.sub(r"://.*@", "://***@", url, flags=re.DOTALL)
    return re.sub(r"(pass\w*=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


def _refuse(url: str, why: str) -> NoReturn:
    raise ConfigError(f"store: {masked(url)!r} is not allowed: {why}") from None
