"""Run the real LiteLLM proxy as a process, for benchmarks and for the tests of its hook.

Contains: its config, its start and its end. Must not depend on: the requests that it gets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
COMMAND = ROOT / ".venv-litellm" / "bin" / "litellm"
SETTLED = "benchmark:settled"
"""The list in Redis in which the benchmark's hook says that a call is accounted for."""
# The proxy accepts any key; a key of the form "<key>@<team>" belongs to that team.
_KEYS = """
from litellm.proxy._types import UserAPIKeyAuth

async def accept(request, api_key):
    return UserAPIKeyAuth(api_key=api_key, team_id=api_key.partition("@")[2] or None)
"""


@contextmanager
def running(
    folder: Path,
    deployments: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    *,
    callback: str | Sequence[str] = "cachemw.integrations.litellm.hook",
    general: Mapping[str, Any] | None = None,
    routing: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Run LiteLLM's proxy with these deployments by name and cachemw's settings in its environment; yield its URL.

    `folder` takes its config and its log, proxy.log. `general` and `routing` are merged into those parts of
    the config. Raises `RuntimeError` with the end of the log if the proxy is not up within a minute.
    """
    config = {
        "model_list": [
            {"model_name": name, "litellm_params": params} for name, params in deployments.items()
        ],
        "litellm_settings": {"callbacks": callback},
        "general_settings": {"master_key": "sk-master", "custom_auth": "keys.accept", **(general or {})},
        "router_settings": dict(routing or {}),
    }
    (folder / "keys.py").write_text(_KEYS, encoding="utf-8")
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("CACHEMW_") and not k.lower().endswith("_proxy")
    }
    given = {f"CACHEMW_{name.upper()}": str(value) for name, value in settings.items()}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "proxy.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(
            [COMMAND, "--config", folder / "config.yaml", "--host", "127.0.0.1", "--port", str(port)],
            env={**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(ROOT), **given},
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait(url, process, folder / "proxy.log")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    with httpx.Client(trust_env=False) as client:
        for _ in range(600):
            if process.poll() is not None:
                break
            try:
                if client.get(f"{url}/health/liveliness").is_success:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.1)
    raise RuntimeError(f"the LiteLLM proxy did not come up:\n{log.read_text(encoding='utf-8')[-4000:]}")
