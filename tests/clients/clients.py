"""The clients that these tests wrap: the way to make each, and the path of its requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

SERVING = "/serving-endpoints/chat/completions"
GATEWAY = "/ai-gateway/mlflow/v1/chat/completions"


class Client(NamedTuple):
    """A client: made by `make(is_async, url)`, known to users as `named`, with requests to `path`."""

    named: str
    make: Callable[[bool, str], Any]
    path: str


def _openai(is_async: bool, url: str) -> Any:
    return (AsyncOpenAI if is_async else OpenAI)(
        base_url=f"{url}/serving-endpoints", api_key="key", max_retries=0
    )


def _azure(is_async: bool, url: str) -> Any:
    kind = AsyncAzureOpenAI if is_async else AzureOpenAI
    return kind(azure_endpoint=url, api_version="2025-01-01", api_key="key", max_retries=0)


def _workspace(url: str) -> Any:
    return pytest.importorskip("databricks.sdk", reason="databricks-sdk is not installed").WorkspaceClient(
        host=url, token="key"
    )


def _databricks(is_async: bool, url: str, **fields: Any) -> Any:
    package = pytest.importorskip("databricks_openai", reason="databricks-openai is not installed")
    kind = package.AsyncDatabricksOpenAI if is_async else package.DatabricksOpenAI
    return kind(workspace_client=_workspace(url), **fields)


def _gateway(is_async: bool, url: str) -> Any:
    return _databricks(is_async, url, use_ai_gateway=True)


def _sdk(is_async: bool, url: str) -> Any:
    workspace = _workspace(url)
    if is_async:
        pytest.skip("databricks-sdk makes no async client")
    with pytest.warns(DeprecationWarning, match="databricks-openai"):
        return workspace.serving_endpoints.get_open_ai_client()


CLIENTS: dict[str, Client] = {
    "openai": Client("OpenAI", _openai, SERVING),
    "azure": Client("AzureOpenAI", _azure, "/openai/deployments/databricks-claude-sonnet-4/chat/completions"),
    "databricks": Client("DatabricksOpenAI", _databricks, SERVING),
    "gateway": Client("DatabricksOpenAI(use_ai_gateway=True)", _gateway, GATEWAY),
    "sdk": Client("WorkspaceClient().serving_endpoints.get_open_ai_client()", _sdk, SERVING),
}
CHANGING = ("databricks", "gateway")
"""Clients that change the caller's tools by themselves, and whose own `with_options` fails."""
