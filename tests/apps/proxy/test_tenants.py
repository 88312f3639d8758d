"""Tenants of the proxy: credentials, JWTs, a set namespace, and a trusted header."""

from __future__ import annotations

import os

import httpx2
import pytest

from tests.apps.proxy.proxied import CHAT, Proxied, chat, jwt, proxying, raw
from tests.clients.endpoint import Endpoint, error

PRINCIPALS = {
    "a": {"authorization": "Bearer key-a"},
    "b": {"authorization": "Bearer key-b"},
    "c": {"x-api-key": "key-a"},
    "d": {"api-key": "key-a"},
    "e": {"authorization": "Basic a2V5LWE="},
    "jwt": {"authorization": f"Bearer {jwt(sub='app-1')}"},
    "other subject": {"authorization": f"Bearer {jwt(sub='app-2')}"},
    "other issuer": {"authorization": f"Bearer {jwt(sub='app-1', iss='https://elsewhere.example.com')}"},
    "both": {"authorization": "Bearer key-a", "x-api-key": "key-b"},
    "cookie": {"cookie": "session=1"},
    "other cookie": {"cookie": "session=2"},
    "no credential": {},
}


def test_tenants_share_no_statistics(http: httpx2.Client, proxied: Proxied) -> None:
    """Each tenant starts from nothing; a second request of the same tenant does not."""
    for name, headers in PRINCIPALS.items():
        first, again = (
            http.request(**chat(headers, proxied.url + CHAT)).headers["x-cachemw-predicted-read"]
            for _ in range(2)
        )
        assert (name, first) == (name, "0")
        assert int(again) > 0, name


def test_jwts_of_one_subject_are_one_tenant(http: httpx2.Client, proxied: Proxied) -> None:
    """Issuer and subject name the tenant; a JWT in another header is another tenant."""
    reads = [
        http.request(**chat(headers, proxied.url + CHAT)).headers["x-cachemw-predicted-read"]
        for headers in (
            {"authorization": f"Bearer {jwt(sub='app', exp=1)}"},
            {"authorization": f"bearer {jwt(sub='app', exp=2)}"},
            {"x-api-key": jwt(sub="app", exp=3)},
        )
    ]
    assert (reads[0], reads[2]) == ("0", "0")
    assert int(reads[1]) > 0


def test_forged_token_learns_nothing(http: httpx2.Client, proxied: Proxied, endpoint: Endpoint) -> None:
    """The provider refuses a forged JWT, and the answer reveals no statistics."""
    mine = {"authorization": f"Bearer {jwt()}"}
    http.request(**chat(mine, proxied.url + CHAT))
    endpoint.answers.append(error(401, "bad token"))
    answer = http.request(**chat({"authorization": f"Bearer {jwt()}"}, proxied.url + CHAT))
    assert answer.status_code == 401
    assert not any(name.startswith("x-cachemw") for name in answer.headers)


def test_set_namespace_is_shared_by_all_clients(http: httpx2.Client, endpoint: Endpoint) -> None:
    """With a namespace in the settings, credentials do not matter."""
    with proxying(endpoint.url, fields={"namespace": "team"}) as running:
        reads = [
            int(
                http.request(**chat(PRINCIPALS[name], running.url + CHAT)).headers["x-cachemw-predicted-read"]
            )
            for name in ("a", "b")
        ]
    assert reads[0] == 0 < reads[1]


def test_trusted_header_names_the_tenant(http: httpx2.Client, endpoint: Endpoint) -> None:
    """The header overrides credentials and is not passed on; without it, credentials count."""
    with proxying(endpoint.url, namespace_header="X-Tenant") as running:

        def read(*headers: tuple[str, str]) -> int:
            asked = {**chat(path=running.url + CHAT), "headers": headers}
            return int(http.request(**asked).headers["x-cachemw-predicted-read"])

        assert read(("x-tenant", "one"), ("x-api-key", "a")) == 0
        assert read(("x-tenant", "one"), ("x-api-key", "b")) > 0
        assert read(("x-tenant", "two"), ("x-api-key", "a")) == 0
        assert read(("x-tenant", "one"), ("x-tenant", "two")) == 0
        assert read(("x-api-key", "a")) == 0
    assert not any("x-tenant" in arrival.headers for arrival in endpoint.arrived)


def test_credentials_are_neither_kept_nor_logged(
    http: httpx2.Client, endpoint: Endpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither the memory nor the output of the process holds the key."""
    key = "sk-" + os.urandom(8).hex()
    with proxying(endpoint.url) as running:
        http.request(**chat({"authorization": f"Bearer {key}"}, running.url + CHAT))
        with raw(b"") as broken, proxying(broken.url) as failing:
            http.request(**chat({"authorization": f"Bearer {key}"}, failing.url + CHAT))
        assert key not in repr(running.mw._shared.__dict__)
        assert key not in repr(vars(running.mw._shell.store))
    out, err = capfd.readouterr()
    assert key not in out + err
