"""Credentials as namespaces: equal for one owner, different for two."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from cachemw.integrations.http.tenants import _credential, tenants
from tests.work import lines_run, peak_memory

_named = tenants("provider.com", b"secret")


def namespace_of(headers: list[tuple[bytes, bytes]], query: bytes = b"") -> str:
    """Return the namespace of a request at one provider."""
    return _named(headers, query)


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
        (
            [*bearer(token(OWNER)), (b"cookie", b"a=1")],
            [(b"cookie", b"a=1"), *bearer(token({**OWNER, "exp": 2}))],
        ),
        ([*bearer("key"), (b"x-api-key", b"k")], [(b"x-api-key", b"k"), *bearer("key")]),
        (
            [*bearer("key"), (b"cookie", b"AWSALB=Zm9v+/b==; a=1; __cf_bm=x_y-1.0")],
            [*bearer("key"), (b"cookie", b"a=1"), (b"cookie", b" AWSALB=YmFy")],
        ),
        ([(b"connection", b"keep-alive"), *bearer("key")], [(b"connection", b"close"), *bearer("key")]),
        ([(b"accept", b"a")], [(b"accept", b"b")]),
        ([(b"idempotency-key", b"1")], [(b"idempotency-key", b"2")]),
        ([(b"x-cache-key", b"1")], [(b"x-max-tokens", b"2"), (b"x-portkey-trace-id", b"3")]),
    ],
    ids=[
        "spelling",
        "hour",
        "hour beside a cookie",
        "order",
        "load balancers",
        "connection",
        "no owner",
        "once",
        "no credentials",
    ],
)
def test_requests_of_one_owner_have_one_namespace(
    one: list[tuple[bytes, bytes]], other: list[tuple[bytes, bytes]]
) -> None:
    """All other parts of the request may differ."""
    assert namespace_of(one) == namespace_of(other)


APART = {
    "key": bearer("key"),
    "other key": bearer("key2"),
    "x-api-key": [(b"x-api-key", b"key")],
    "api-key": [(b"api-key", b"key")],
    "basic": [(b"authorization", b"Basic key")],
    "two keys": [*bearer("key"), (b"x-api-key", b"key")],
    "cookie": [(b"cookie", b"key")],
    "cookie, value": [(b"cookie", b"key=1")],
    "key and cookie": [*bearer("key"), (b"cookie", b"a=1")],
    "key and other cookie": [*bearer("key"), (b"cookie", b"a=2")],
    "owner and cookie": [*bearer(token(OWNER)), (b"cookie", b"a=1")],
    "owner in another header": [(b"api-key", token(OWNER).encode())],
    "owner in two headers": [
        *bearer(token(OWNER)),
        (b"api-key", token(OWNER).encode()),
    ],
    "owner twice": bearer(token(OWNER)) * 2,
    "owner, not sent on": [
        *bearer(token(OWNER)),
        (b"connection", b"close, Authorization"),
    ],
    "owner with more behind": bearer(token(OWNER) + " key"),
    "cookie in a balancer's": [(b"cookie", b"AWSALB=a session=1")],
    "cookie in another balancer's": [(b"cookie", b"AWSALB=a, session=1")],
    "cookie in quotes": [(b"cookie", b'AWSALB="a session=1"')],
    "no owner": [],
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


def test_different_owners_have_different_namespaces() -> None:
    """No two owners share a namespace, nor at another provider, nor under another secret."""
    spaces = [
        space(headers, b"")
        for space in (_named, tenants("other.com", b"secret"), tenants("provider.com", b"secret2"))
        for headers in APART.values()
    ]
    assert len(set(spaces)) == 3 * len(APART)


NAMES = [
    b"authorization", b"proxy-authorization", b"cf-aig-authorization", b"api-key", b"x-api-key", b"x_api_key",
    b"apikey", b"x-goog-api-key", b"x-litellm-api-key", b"x-portkey-api-key", b"x-portkey-virtual-key",
    b"ocp-apim-subscription-key", b"x-functions-key", b"x-forwarded-access-token", b"x-amz-security-token",
    b"cf-access-client-secret", b"cf-access-jwt-assertion", b"helicone-auth", b"x-ms-client-principal", b"cookie",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_credential_of_any_gateway_names_a_tenant(name: bytes) -> None:
    """Two values are two tenants, alone and beside a key that all clients have."""
    for shared in ([], bearer("dummy")):
        one, two = (namespace_of([(name, value), *shared]) for value in (b"A", b"B"))
        assert len({one, two, namespace_of(shared)}) == 3


def test_credential_in_the_query_names_a_tenant() -> None:
    """The query counts in each spelling, alone and beside headers."""
    queries = [
        b"", b"api-key=A", b"api-key=B", b"api%2Dkey=A", b"key=A", b"v=1;key=A", b"v=1&code=A", b"v=1&code=B",
    ]  # fmt: skip
    spaces = {namespace_of(headers, query) for headers in ([], bearer(token(OWNER))) for query in queries}
    assert len(spaces) == 2 * len(queries)


def test_nothing_of_a_credential_is_in_its_name() -> None:
    """A namespace is a hash of fixed length."""
    assert all(len(namespace_of(headers)) == len("principal:") + 32 for headers in APART.values())


def test_memory_for_long_header_names_is_bounded() -> None:
    """Clients choose the names of headers: long ones are read, and not kept."""
    headers = [(b"x-%d-%s-token" % (number, b"x" * 50_000), b"v") for number in range(300)]
    assert namespace_of(headers[:1]) != namespace_of([])
    assert _credential.cache_info().currsize <= 256
    held = peak_memory(lambda: [namespace_of([header]) for header in headers])
    assert held < 2 << 20


@pytest.mark.parametrize(
    "value",
    [b"Bearer eyJ" + b"a" * 500_000, b"Bearer eyJ." + b"-" * 500_000 + b".", b"eyJ." + b"." * 500_000, b"; ".join([b"a=b"] * 50_000),
     b"AWSALB=" + b"=" * 500_000 + b"!", b"Bearer " * 70_000],
)  # fmt: skip
def test_work_on_a_long_credential_grows_with_its_length(value: bytes) -> None:
    """No form of a credential is searched again and again: twice the bytes run at most twice the lines."""

    def run(more: bytes) -> int:
        return lines_run(lambda: namespace_of([(b"authorization", more), (b"cookie", more)]))

    assert run(value + value) < 2.2 * run(value) + 10


def test_namespace_of_a_jwt_with_deep_claims_is_made_of_its_text() -> None:
    """Claims that are nested too deep to be read make it a key as any other."""
    deep = token("[" * 100_000)
    assert namespace_of(bearer(deep)) == namespace_of(bearer(deep))
    assert namespace_of(bearer(deep)) != namespace_of(bearer(token("[" * 100_001)))
