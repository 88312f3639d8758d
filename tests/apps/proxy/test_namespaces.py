"""Forged credentials: a client that names another tenant in an overlooked way learns nothing of it."""

from __future__ import annotations

import httpx2
import pytest

from tests.apps.proxy.proxied import CHAT, LONG, PATIENCE, jwt, proxying
from tests.clients.endpoint import Endpoint
from tests.clients.recorder import MODEL

BODY = {"model": MODEL, "messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "hi"}]}


FORGED = {
    "a header that is ignored": {"api-key": jwt()},
    "a header that is ignored, and a session": {"api-key": jwt(), "cookie": "session=mine"},
    "beside a session": {"authorization": f"Bearer {jwt()}", "cookie": "session=mine"},
    "beside a key": {"authorization": f"Bearer {jwt()}", "x-goog-api-key": "mine"},
    "a header that ends here": {"authorization": f"Bearer {jwt()}", "connection": "Authorization"},
}


@pytest.mark.parametrize("case", FORGED)
def test_forger_starts_without_statistics(endpoint: Endpoint, case: str) -> None:
    """The victim's hourly tokens share statistics; the forger starts from nothing."""
    with proxying(endpoint.url) as running, httpx2.Client(trust_env=False, timeout=PATIENCE) as http:

        def read(headers: dict[str, str], query: str = "") -> int:
            answer = http.post(running.url + CHAT + query, json=BODY, headers=headers)
            return int(answer.headers["x-cachemw-predicted-read"])

        assert read({"authorization": f"Bearer {jwt(exp=1)}"}) == 0
        assert read({"authorization": f"Bearer {jwt(exp=2)}"}) > 0
        assert read(FORGED[case]) == 0
        assert read({"authorization": f"Bearer {jwt(exp=3)}"}, "?key=mine") == 0
