"""Forgers before the proxy: whoever names another in a way that the upstream overlooks hears nothing of him."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx2
import pytest

from tests.apps.proxy.proxied import proxying
from tests.clients.endpoint import Endpoint
from tests.clients.recorder import MODEL

CHAT = "/serving-endpoints/chat/completions"
LONG = "A support agent reads the policy, looks at the order and answers in two sentences. " * 120
BODY = {"model": MODEL, "messages": [{"role": "system", "content": LONG}, {"role": "user", "content": "hi"}]}


def jwt(**claims: Any) -> str:
    """Return a token that nobody has signed."""
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in ({"alg": "RS256"}, {"iss": "https://a.com", "sub": "victim", **claims})
    ]
    return ".".join([*parts, "c2ln"])


FORGED = {
    "a header that is ignored": {"api-key": jwt()},
    "a header that is ignored, and a session": {"api-key": jwt(), "cookie": "session=mine"},
    "beside a session": {"authorization": f"Bearer {jwt()}", "cookie": "session=mine"},
    "beside a key": {"authorization": f"Bearer {jwt()}", "x-goog-api-key": "mine"},
    "a header that ends here": {"authorization": f"Bearer {jwt()}", "connection": "Authorization"},
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forger_hears_nothing(endpoint: Endpoint, case: str) -> None:
    """The hourly tokens of the victim share what they taught; the forger starts from nothing."""
    with proxying(endpoint.url) as running, httpx2.Client(trust_env=False, timeout=10) as http:

        def read(headers: dict[str, str], query: str = "") -> int:
            answer = http.post(running.url + CHAT + query, json=BODY, headers=headers)
            return int(answer.headers["x-cachemw-predicted-read"])

        assert read({"authorization": f"Bearer {jwt(exp=1)}"}) == 0
        assert read({"authorization": f"Bearer {jwt(exp=2)}"}) > 0
        assert read(FORGED[case]) == 0
        assert read({"authorization": f"Bearer {jwt(exp=3)}"}, "?key=mine") == 0
