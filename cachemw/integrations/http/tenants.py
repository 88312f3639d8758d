"""Whose request it is: the credentials that it brings, as the name of a namespace.

Lives here: what of a request is a credential, and what of one names its owner. Must not know: what a namespace
holds. A credential is hashed at once and kept nowhere; what comes out can't be turned back.
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

# Gateways name them as they like, so it is told by a word in the name. Keys of other kinds are new each time.
_CREDENTIAL = re.compile(
    rb"auth|cookie|token(?!s)|secret|api[-_]?key|jwt|credential|passw|principal"
    rb"|key(?<!idempotency.key)(?<!cache.key)$"
)
# Clients choose the names: a longer one is not kept in the memo.
_KEPT = 64
# Load balancers set these, some anew with each answer, and nobody is known by them. A value of any other form could
# hide a cookie from us that its reader sees.
_BALANCING = re.compile(
    rb"(?:AWSALB(?:TG)?(?:CORS)?|AWSELB(?:CORS)?|ARRAffinity(?:SameSite)?|GCLB|__cf_?bm|__cflb|_cfuvid)"
    rb"=[\w.+/=-]*"
)
_JWT = re.compile(r"eyJ[\w-]*\.([\w-]+)\.[\w-]+", re.ASCII)


def tenants(host: str, secret: bytes) -> Callable[[Headers, bytes], str]:
    """Return a function from a request's headers (lower case) and query to the namespace of whoever sent it.

    `host` is the provider's: the same key means another account elsewhere. `secret` keys the hash. All credentials
    of a request count together, each with the name it came under: which of them the provider goes by is not
    known here. So do cookies, but those of load balancers, and the query as a whole. Of a JWT the issuer and the
    subject count, so that the hourly tokens of one service principal are one: they are read without a check of the
    signature, since that is the provider's to refuse, and name nothing but the namespace. Requests without any
    of these share a namespace.
    """
    key = blake2b(secret, digest_size=32).digest()

    def namespace(headers: Headers, query: bytes) -> str:
        named = orjson.dumps([host, query.decode("latin-1"), *sorted(_owners(headers))])
        return f"principal:{blake2b(named, key=key, digest_size=16).hexdigest()}"

    return namespace


def _owners(headers: Headers) -> Iterator[list[str]]:
    """Yield what each credential says of its owner."""
    given: list[tuple[bytes, bytes]] = []
    hops: set[bytes] = set()
    for name, value in headers:
        if name == b"connection":
            hops.update(part.strip().lower() for part in value.split(b","))
        elif _credential(name) if len(name) <= _KEPT else _CREDENTIAL.search(name):
            given.append((name, value))
    for name, value in given:
        # What `Connection` names may end at the next hop: it must not pass for what the provider sees.
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
    """Return what is the same in all of an owner's credentials of this kind, and in nobody else's."""
    text = value.decode("latin-1").strip()
    scheme, _, token = text.partition(" ")
    bearer = scheme.lower() == "bearer"
    bare = token.strip() if bearer else text
    claims = _claims(bare)
    if claims is not None:
        return ["jwt", *claims]
    return [f"bearer {bare}" if bearer else text]


def _claims(token: str) -> tuple[str, str] | None:
    """Return issuer and subject of a JWT; None where it is none, or names neither."""
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
