"""The addon of docs/http-hooks.md, unchanged, in a real mitmdump in front of the simulated provider."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cachemw.apps import simulated_gateway
from cachemw.core.request.equality import canonical
from tests.clients.endpoint import Endpoint, completion, error, plain
from tests.clients.recorder import conversation, marks

ROOT = Path(__file__).parents[2]
MITMDUMP = shutil.which("mitmdump", path=str(Path(sys.executable).parent))
PATH = "/serving-endpoints/chat/completions"

pytestmark = pytest.mark.skipif(MITMDUMP is None, reason="mitmproxy is not installed")


def _addon() -> str:
    """Return the page's block of code that defines the addon."""
    page = (ROOT / "docs" / "http-hooks.md").read_text(encoding="utf-8")
    (block,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "addons = [" in code]
    return block


# A second addon: it answers one path with the report of the first.
_REPORT = """
class Report:
    def request(self, flow):
        if flow.request.path == "/report":
            report = cachemw.of(addons[0].hooks).report()
            rows = [[dict(row.labels), row.calls, row.unsettled, row.cache_read, row.cache_write_5m, row.output] for row in report.rows]
            counts = cachemw.of(addons[0].hooks).counts
            from mitmproxy.http import Response
            flow.response = Response.make(200, json.dumps([rows, counts]))

import json
addons.append(Report())
"""


@contextmanager
def _running(upstream: str, folder: Path) -> Iterator[int]:
    """Run mitmdump in front of a URL; yield its port."""
    script = folder / "breakpoints.py"
    script.write_text(_addon() + _REPORT, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [str(MITMDUMP), "--quiet", "--scripts", str(script), "--mode", f"reverse:{upstream}"]
    command += ["--listen-host", "127.0.0.1", "--listen-port", str(port), "--set", f"confdir={folder}"]
    command += [
        "--set",
        "connection_strategy=lazy",
    ]  # with an eager one it closes the client's connection before any hook
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    with (folder / "printed").open("w") as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)
        try:
            for _ in range(1200):
                try:
                    socket.create_connection(("127.0.0.1", port), 0.1).close()
                    break
                except OSError:
                    assert process.poll() is None, (folder / "printed").read_text()
                    time.sleep(0.05)
            yield port
        finally:
            process.terminate()
            process.wait(60)
    assert "Traceback" not in (folder / "printed").read_text()


def _post(port: int, body: Any, path: str = PATH, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    given = {"authorization": "Bearer key", "content-type": "application/json", **headers}
    connection.request("POST", path, json.dumps(body), given)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def _report(port: int) -> tuple[list[Any], dict[str, int]]:
    rows, counts = json.loads(_post(port, {}, "/report")[1])
    return rows, counts


def test_addon_with_answers_complete_and_streamed_reports_the_bill(tmp_path: Path) -> None:
    """The second request reads the cache write of the first; the report equals the provider's bill."""
    body = conversation()
    del body["tools"][0]["function"]["strict"]
    app = simulated_gateway.build()
    with simulated_gateway.running(app) as url, _running(url, tmp_path) as port:
        status, complete_answer = _post(port, body, **{"x-cachemw-label-team": "north"})
        assert (status, json.loads(complete_answer)["usage"]["cache_creation_input_tokens"] > 10_000) == (
            200,
            True,
        )
        status, streamed = _post(port, {**body, "stream": True}, **{"x-cachemw-label-team": "north"})
        assert status == 200
        assert streamed.endswith(b"data: [DONE]\n\n")
        assert _post(port, {"input": "x"}, "/v1/embeddings")[0] == 404
        rows, counts = _report(port)
    billed = app.state.ledger.totals
    assert billed["cache_read"] > 10_000
    assert rows == [
        [{"team": "north"}, 2, 0, billed["cache_read"], billed["cache_write_5m"], billed["output"]]
    ]
    assert counts == {}


def test_addon_before_a_failing_provider_leaves_no_call_open(endpoint: Endpoint, tmp_path: Path) -> None:
    """After a refused marker the original is sent; an error passes; an unreachable provider leaves no call open."""
    refusal = "messages.0.content.0: cache_control cannot be set for this block"
    endpoint.answers.extend([error(400, refusal), plain(), error(503, "later")])
    with _running(endpoint.url, tmp_path) as port:
        assert (
            _post(port, conversation(), **{"x-cachemw-label-a": "b"})[1] == json.dumps(completion()).encode()
        )
        refused, again = endpoint.arrived
        assert marks(refused.body) > 0
        assert canonical(refused.body) == canonical(conversation())
        assert again.body == conversation()
        assert again.headers["authorization"] == "Bearer key"
        assert not [name for arrival in endpoint.arrived for name in arrival.headers if "cachemw" in name]
        assert _post(port, conversation())[0] == 503
        _, counts = _report(port)
    assert (counts["refused"], counts["fail"]) == (1, 1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gone = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with _running(gone, tmp_path) as port:
        assert _post(port, conversation())[0] == 502
        assert _report(port)[1] == {"fail": 1}
