"""Credentials as namespaces: who is the same, who is not."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cachemw.integrations.principals import principals

named = principals("provider.com", b"secret")


def bearer(token: str) -> list[tuple[bytes, bytes]]:
    """Return the header of a bearer token."""
    return [(b"authorization", b"Bearer " + token.encode())]


def token(claims: Any, signature: str = "c2lnbmVk") -> str:
    """Return a JWT; claims that are text stand as they are."""
    text = claims if isinstance(claims, str) else json.dumps(claims)
    return f"eyJhbGciOiJIUzI1NiJ9.{base64.urlsafe_b64encode(text.encode()).rstrip(b'=').decode()}.{signature}"


OWNER = {"iss": "https://a.com", "sub": "app"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (bearer("key"), [(b"authorization", b"bearer  key ")]),
        (bearer(token(OWNER)), bearer(token({**OWNER, "exp": 2}, "b3RoZXI"))),
        (bearer(token(OWNER)), [(b"api-key", token(OWNER).encode())]),
        ([*bearer("key"), (b"x-api-key", b"k")], [(b"x-api-key", b"k"), *bearer("key")]),
        ([*bearer("key"), (b"cookie", b"a=1")], [*bearer("key"), (b"cookie", b"a=2")]),
        ([(b"accept", b"a")], [(b"accept", b"b")]),
    ],
    ids=["spelling", "hour", "header", "order", "cookie beside a key", "nobody"],
)
def test_the_same_owner_is_one(one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]) -> None:
    """Whatever else the request says."""
    assert named(one) == named(other)


APART = {
    "key": bearer("key"),
    "other key": bearer("key2"),
    "x-api-key": [(b"x-api-key", b"key")],
    "api-key": [(b"api-key", b"key")],
    "basic": [(b"authorization", b"Basic key")],
    "two keys": [*bearer("key"), (b"x-api-key", b"key")],
    "cookie": [(b"cookie", b"key")],
    "nobody": [],
    "empty": [(b"authorization", b"")],
    "owner": bearer(token(OWNER)),
    "other subject": bearer(token({**OWNER, "sub": "app2"})),
    "other issuer": bearer(token({**OWNER, "iss": "https://b.com"})),
    "parts moved": bearer(token({"iss": "https://a.comapp", "sub": "x"})),
    "no subject": bearer(token({"iss": "https://a.com"})),
    "no subject, other signature": bearer(token({"iss": "https://a.com"}, "b3RoZXI")),
    "empty subject": bearer(token({**OWNER, "sub": ""})),
    "number as subject": bearer(token({**OWNER, "sub": 1})),
    "no object": bearer(token([OWNER])),
    "no JSON": bearer(token("{")),
    "no base64": bearer("eyJhbGciOiJIUzI1NiJ9.a.b"),
    "owner's name": bearer('["jwt","https://a.com","app"]'),
}


def test_different_owners_are_apart() -> None:
    """No two of them have a namespace in common, nor at another provider, nor under another secret."""
    spaces = [
        space(headers)
        for space in (named, principals("other.com", b"secret"), principals("provider.com", b"secret2"))
        for headers in APART.values()
    ]
    assert len(set(spaces)) == 3 * len(APART)


def test_nothing_of_a_credential_is_in_its_name() -> None:
    """It is a hash of fixed length."""
    assert all(len(named(headers)) == len("principal:") + 32 for headers in APART.values())
