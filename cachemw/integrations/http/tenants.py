"""The tenant of a request: its credentials as the name of a namespace.

Contains: which headers are credentials, and which part of a credential names its owner. Must not depend on: the content
of a namespace. A credential is hashed at once and kept nowhere; the hash cannot be inverted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b

import orjson

Headers = Iterable[tuple[bytes, bytes]]

# Each gateway names its credentials differently, so a word in the name decides. Keys of other kinds are always new.
_CREDENTIAL = re.compile(
    rb"auth|cookie|token(?!s)|secret|api[-_]?key|jwt|credential|passw|principal"
    rb"|key(?<!idempotency.key)(?<!cache.key)$"
)
# Clients choose the names: the memo keeps no longer one.
_KEPT = 64
# Load balancers set these cookies, some anew with each answer, and they identify no account. A value of any other form
# could hide a cookie that the server reads.
_BALANCING = re.compile(
    rb"(?:AWSALB(?:TG)?(?:CORS)?|AWSELB(?:CORS)?|ARRAffinity(?:SameSite)?|GCLB|__cf_?bm|__cflb|_cfuvid)"
    rb"=[\w.+/=-]*"
)
_JWT = re.compile(r"eyJ[\w-]*\.([\w-]+)\.[\w-]+", re.ASCII)


def tenants(host: str, secret: bytes) -> Callable[[Headers, bytes], str]:
    """Return a function from a request's headers (lower case) and query to the namespace of its sender.

    `host` is the provider's, since the same key means another account elsewhere; `secret` keys the hash. All
    credentials of a request count together, each with its header's name, because only the provider knows which one
    decides. Cookies count too, except those of load balancers, and so does the whole query. The issuer and the subject
    of a JWT count, so that the hourly tokens of one service principal are one tenant. They are read without a check of
    the signature: a forged token names a namespace, and the provider refuses its request. Requests without any
    credential share a namespace.
    """
    key = blake2b(secret, digest_size=32).digest()

    def namespace(headers: Headers, query: bytes) -> str:
        named = orjson.dumps([host, query.decode("latin-1"), *sorted(_owners(headers))])
        return f"principal:{blake2b(named, key=key, digest_size=16).hexdigest()}"

    return namespace


def _owners(headers: Headers) -> Iterator[list[str]]:
    """Yield the part of each credential that identifies its owner."""
    given: list[tuple[bytes, bytes]] = []
    hops: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            hops.update(part.strip().lower() for part in value.split(b","))
        elif _credential(name) if len(name) <= _KEPT else _CREDENTIAL.search(name):
            given.append((name, value))
    for name, value in given:
        # A header named in `Connection` may end at the next hop, so it must differ from one that the provider sees.
        label = f"{'hop:' if name in hops else ''}{name.decode('latin-1')}"
        if name == b"cookie":
            for cookie in filter(None, map(bytes.strip, value.split(b";"))):
                if not _BALANCING.fullmatch(cookie):
                    yield [label, cookie.decode("latin-1")]
        else:
            yield [label, *_owner(value)]


@lru_cache(256)
def _credential(name: bytes) -> bool:
    return _CREDENTIAL.search(name) is not None


def _owner(value: bytes) -> list[str]:
    """Return the part that all of an owner's credentials of this kind share, and that no other owner's has."""
    text = value.decode("latin-1").strip()
    scheme, _, token = text.partition(" ")
    bearer = scheme.lower() == "bearer"
    bare = token.strip() if bearer else text
    claims = _claims(bare)
    if claims is not None:
        return ["jwt", *claims]
    return [f"bearer {bare}" if bearer else text]


def _claims(token: str) -> tuple[str, str] | None:
    """Return issuer and subject of a JWT, or None for any other token."""
    parts = _JWT.fullmatch(token)
    if parts is None:
        return None
    payload = parts[1]
    try:
        found = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (ValueError, binascii.Error):
        return None
    issuer, subject = (found.get("iss"), found.get("sub")) if isinstance(found, dict) else (None, None)
    return (issuer, subject) if isinstance(issuer, str) and isinstance(subject, str) and subject else None
