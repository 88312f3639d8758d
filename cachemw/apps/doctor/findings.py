"""What the doctor finds, and what an error means for who reads it.

Lives here: findings, one call with its errors raised, and advice by the class of an error or its words. Must not know: what
is looked at.
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
"""Seconds for an answer: it is the doctor that waits, not a request."""
FAILURES = (RedisError, OSError)

_UNREACHABLE = "it can't be reached. Check host, port, TLS (rediss://) and firewalls"
_OF_A_CLUSTER = "it is a node of a cluster. Write redis+cluster:// in the place of redis://"
# What to do, by the class of an error or the nearest of its bases.
_ADVICE = {
    "AuthenticationError": "user or password is refused. Put them in the URL, as in redis://user:password@host",
    "BusyLoadingError": "it is loading its data. Try again in a moment",
    "ClusterDownError": "nobody serves some slots of the cluster. Bring back the node that has them",
    "ClusterCrossSlotError": _OF_A_CLUSTER,
    "MovedError": _OF_A_CLUSTER,
    "MasterNotFoundError": "no sentinel knows such a master. Check the service's name and the sentinels' hosts",
    "NoPermissionError": "the user may not do what is needed. The page on stores has the ACL rule",
    "OutOfMemoryError": "it is full and evicts nothing. Set maxmemory-policy volatile-lru, or more maxmemory",
    "ReadOnlyError": "a replica takes no writes. Name the master, or the sentinels (redis+sentinel://)",
    "TimeoutError": "it does not answer. Is it overloaded or stopped, does it want TLS (rediss://)?",
    "ConnectionError": _UNREACHABLE,
    "OSError": _UNREACHABLE,
}
# And by what TLS says, which has no classes.
_SAID = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate can't be verified. Name its authority's file in the URL:"
    " ?ssl_ca_certs=...",
    "EOF occurred in violation of protocol": "it ended the connection. It may want a certificate of the client:"
    " ssl_certfile=... and ssl_keyfile=... in the URL",
    "CERTIFICATE_REQUIRED": "it wants a certificate of the client: ssl_certfile=... and ssl_keyfile=... in the URL",
    "PEM lib": "a file of a certificate or key can't be used. Do they belong together, is the password right?",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: how it stands, what it is, what was found and what to do."""

    level: Level
    about: str
    words: str


def ask(link: RedisClient, *commands: Command) -> list[Any]:
    """Return the replies to commands. Raises the first that is an error, or what there is in their place."""
    replies = link.execute(commands, PATIENCE)
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def advice(error: Exception) -> str:
    """Return what to do about an error, and what was said."""
    # Servers repeat what they did not understand, and that may be a password.
    said = re.sub(r", with args.*| script: (\w+, )?on @.*", "", str(error), flags=re.DOTALL)
    names = [kind.__name__ for kind in type(error).__mro__]
    if "executing the script can't" in said or "ACL failure" in said:
        names[0] = "NoPermissionError"
    known = [advised for words, advised in _SAID.items() if words in said]
    known += [_ADVICE[name] for name in names if name in _ADVICE]
    return f"{[*known, 'it refuses what a worker asks of it'][0]} ({names[0]}: {said})"
