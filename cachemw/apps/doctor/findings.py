"""Findings of the doctor, and advice about errors of a store.

Contains: findings, one call that raises its errors, and advice by the class or the words of an error. Must
not depend on: the checks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from redis.exceptions import RedisError

from cachemw.stores.redis.client.link import RedisClient
from cachemw.stores.redis.commands import Command

Level: TypeAlias = Literal["ok", "warn", "bad"]

PATIENCE = 2.0
"""Seconds until the doctor gives up waiting for an answer. No request waits meanwhile."""
FAILURES = (RedisError, OSError)

_UNREACHABLE = "The server cannot be reached. Check host, port, TLS (rediss://) and firewalls."
_OF_A_CLUSTER = "The server is a node of a cluster. Write redis+cluster:// instead of redis://."
# State, cause and action by the class of an error or the nearest of its bases.
_ADVICE = {
    "AuthenticationError": "The server refuses user or password. Write redis://user:password@host.",
    "BusyLoadingError": "The server is still loading its data. Try again in a moment.",
    "ClusterDownError": "No node serves some slots of the cluster. Bring back the node that has them.",
    "ClusterCrossSlotError": _OF_A_CLUSTER,
    "MovedError": _OF_A_CLUSTER,
    "MasterNotFoundError": "No sentinel knows this master. Check service name and sentinel hosts.",
    "NoPermissionError": "The user lacks a permission. Give it the ACL rule in docs/stores.md.",
    "OutOfMemoryError": "The server is full and evicts no key. Set maxmemory-policy volatile-lru.",
    "ReadOnlyError": "A replica takes no writes. Name the master, or the sentinels (redis+sentinel://).",
    "TimeoutError": "The server does not answer. Check that it runs, its load, and TLS (rediss://).",
    "ConnectionError": _UNREACHABLE,
    "OSError": _UNREACHABLE,
}
# The same by words in an error's text: errors of TLS have no classes of their own.
_SAID = {
    "CERTIFICATE_VERIFY_FAILED": "The server's certificate cannot be verified. Name the file of its authority"
    " in the URL: ?ssl_ca_certs=...",
    "EOF occurred in violation of protocol": "The server ended the connection, maybe for lack of a client"
    " certificate. Name it in the URL: ?ssl_certfile=...&ssl_keyfile=...",
    "CERTIFICATE_REQUIRED": "The server requires a client certificate. Name it in the URL:"
    " ?ssl_certfile=...&ssl_keyfile=...",
    "PEM lib": "The file of a certificate or key cannot be used. Check the pair and the password.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its level, its subject, and a state with the action to take."""

    level: Level
    about: str
    words: str


def ask(link: RedisClient, *commands: Command) -> list[Any]:
    """Return the replies to commands. Raises the first reply that is an error."""
    replies = link.execute(commands, PATIENCE)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def advice(error: Exception) -> str:
    """Return the state and action for an error, followed by its class and text."""
    # Servers quote a command that they do not know, and its arguments may hold a password.
    said = re.sub(r", with args.*| script: (\w+, )?on @.*", "", str(error), flags=re.DOTALL)
    names = [kind.__name__ for kind in type(error).__mro__]
    if "executing the script can't" in said or "ACL failure" in said:
        names[0] = "NoPermissionError"
    known = [advised for words, advised in _SAID.items() if words in said]
    known += [_ADVICE[name] for name in names if name in _ADVICE]
    return f"{[*known, 'The server refuses a command of cachemw.'][0]} ({names[0]}: {said})"
