"""Whose request it is: the credentials that it brings, as the name of a namespace.

Lives here: which headers are credentials, and what of them names their owner. Must not know: what a namespace
holds. A credential is hashed at once and kept nowhere; what comes out can't be turned back.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from hashlib import blake2b

import orjson

Headers = Iterable[tuple[bytes, bytes]]

_CREDENTIALS = frozenset({b"authorization", b"x-api-key", b"api-key"})


def principals(host: str, secret: bytes) -> Callable[[Headers], str]:
    """Return a function from a request's headers (lower case) to the namespace of whoever sent it.

    `host` is the provider's: the same key means another account elsewhere. `secret` keys the hash. All credentials
    of a request count together. Of a JWT the issuer and the subject do, so that the hourly tokens of one
    service principal are one: they are read without a check of the signature, since that is the provider's to
    refuse, and name nothing but the namespace. Without any credential cookies count; who brings neither shares
    a namespace with the others who don't.
    """
    key = blake2b(secret, digest_size=32).digest()

    def namespace(headers: Headers) -> str:
        given = [(name, value) for name, value in headers if name in _CREDENTIALS or name == b"cookie"]
        keys = [_owner(name, value) for name, value in sorted(given) if name in _CREDENTIALS]
        cookies = [["cookie", value.decode("latin-1")] for name, value in given if name == b"cookie"]
        named = orjson.dumps([host, keys or cookies])
        return f"principal:{blake2b(named, key=key, digest_size=16).hexdigest()}"

    return namespace


def _owner(name: bytes, value: bytes) -> list[str]:
    """Return what is the same in all of an owner's credentials of this kind, and in nobody else's."""
    text = value.decode("latin-1").strip()
    scheme, _, token = text.partition(" ")
    bare = token.strip() if scheme.lower() == "bearer" else text
    claims = _claims(bare)
    if claims is not None:
        return ["jwt", *claims]
    return [name.decode("latin-1"), text if bare is text else f"bearer {bare}"]


def _claims(token: str) -> tuple[str, str] | None:
    """Return issuer and subject of a JWT; None where it is none, or names neither."""
    parts = token.split(".")
    if len(parts) != 3 or not token.startswith("eyJ"):
        return None
    try:
        found = orjson.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, binascii.Error):
        return None
    issuer, subject = (found.get("iss"), found.get("sub")) if isinstance(found, dict) else (None, None)
    return (issuer, subject) if isinstance(issuer, str) and isinstance(subject, str) and subject else None
