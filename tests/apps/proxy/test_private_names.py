"""Undocumented names of uvicorn and aiohttp that the proxy overrides or uses.

One test for each name: it fails if a new version renames, removes or changes it. The proxy uses only
documented names of starlette and httptools. Keep the caps in pyproject.toml below the next major version of
these packages.
"""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import ServerState
from uvicorn.supervisors import Multiprocess

from cachemw.apps.proxy.connection import Connection
from cachemw.apps.proxy.reverse_proxy import _Body

CHANGED = "changed in this version: adapt cachemw/apps/proxy, or lower the cap in pyproject.toml"
ROOT = Path(__file__).parents[3]
GET = b"GET /x HTTP/1.1\r\nhost: proxy\r\n\r\n"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the request is parsed only")


async def protocol() -> httptools_impl.HttpToolsProtocol:
    """Return uvicorn's own protocol after the head of a request, with a transport that sends nothing."""
    settings = uvicorn.Config(_app, lifespan="off", ws="none", log_config=None)
    settings.load()
    made = httptools_impl.HttpToolsProtocol(settings, ServerState(), {})
    made._start_asgi_task = Mock()  # type: ignore[method-assign]
    made.connection_made(Mock(get_extra_info=Mock(return_value=None), is_closing=Mock(return_value=False)))
    made.data_received(GET)
    return made


def parameters(method: Callable[..., Any]) -> list[str]:
    """Return the names of a method's parameters."""
    return list(inspect.signature(method).parameters)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("connection_made", ["self", "transport"]),
        ("connection_lost", ["self", "exc"]),
        ("data_received", ["self", "data"]),
        ("eof_received", ["self"]),
        ("on_message_begin", ["self"]),
        ("on_headers_complete", ["self"]),
        ("on_message_complete", ["self"]),
        ("on_response_complete", ["self"]),
        ("timeout_keep_alive_handler", ["self"]),
    ],
)
def test_overridden_method_of_the_protocol_exists(name: str, expected: list[str]) -> None:
    """`Connection` overrides this method of uvicorn's `HttpToolsProtocol`."""
    method = getattr(httptools_impl.HttpToolsProtocol, name, None)
    assert method is not None, f"uvicorn's HttpToolsProtocol.{name} {CHANGED}"
    assert parameters(method) == expected, f"the parameters of uvicorn's HttpToolsProtocol.{name} {CHANGED}"
    assert name in vars(Connection)


@pytest.mark.parametrize(
    ("name", "expected"), [("_unset_keepalive_if_required", ["self"]), ("send_400_response", ["self", "msg"])]
)
def test_called_method_of_the_protocol_exists(name: str, expected: list[str]) -> None:
    """`Connection` calls this method of uvicorn's `HttpToolsProtocol`."""
    method = getattr(httptools_impl.HttpToolsProtocol, name, None)
    assert method is not None, f"uvicorn's HttpToolsProtocol.{name} {CHANGED}"
    assert parameters(method) == expected, f"the parameters of uvicorn's HttpToolsProtocol.{name} {CHANGED}"


@pytest.mark.parametrize(
    "name",
    ["cycle", "flow", "headers", "logger", "loop", "parser", "pipeline", "scope", "transport", "url"],
)
async def test_attribute_of_the_protocol_exists(name: str) -> None:
    """`Connection` reads or sets this attribute of uvicorn's `HttpToolsProtocol`."""
    assert getattr(await protocol(), name, None) is not None, f"uvicorn's HttpToolsProtocol.{name} {CHANGED}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("body", b""),
        ("chunked_encoding", None),
        ("expected_content_length", 0),
        ("keep_alive", True),
        ("more_body", False),
        ("response_complete", False),
        ("response_started", False),
    ],
)
async def test_attribute_of_the_cycle_exists(name: str, value: object) -> None:
    """`Connection`, `without_chunks` or `ReverseProxy` uses this attribute of uvicorn's request state."""
    cycle = (await protocol()).cycle
    assert hasattr(cycle, name), f"uvicorn's RequestResponseCycle.{name} {CHANGED}"
    assert getattr(cycle, name) == value, f"the meaning of uvicorn's RequestResponseCycle.{name} {CHANGED}"


async def test_scope_of_the_cycle_exists() -> None:
    """`Connection` reads the HTTP version in the scope of uvicorn's request state."""
    assert (await protocol()).cycle.scope["http_version"] == "1.1", f"RequestResponseCycle.scope {CHANGED}"


async def test_flow_resumes_reading() -> None:
    """`Connection` calls `resume_reading` of uvicorn's flow control."""
    assert callable(getattr((await protocol()).flow, "resume_reading", None)), f"FlowControl {CHANGED}"


def test_pattern_of_header_values_exists() -> None:
    """`ReverseProxy` checks header values with uvicorn's pattern, because uvicorn raises for a match."""
    pattern = getattr(httptools_impl, "HEADER_VALUE_RE", None)
    assert pattern is not None, f"uvicorn's HEADER_VALUE_RE {CHANGED}"
    assert pattern.search(b"a\x01b")
    assert not pattern.search(b"a b")


def test_supervisor_terminates_all_workers() -> None:
    """The proxy closes the parent's sockets after `Multiprocess.terminate_all`."""
    assert parameters(getattr(Multiprocess, "terminate_all", test_supervisor_terminates_all_workers)) == [
        "self"
    ], f"uvicorn's Multiprocess.terminate_all {CHANGED}"
    supervisor = Multiprocess(uvicorn.Config(_app, workers=2), sockets=[])
    assert supervisor.sockets == [], f"uvicorn's Multiprocess.sockets {CHANGED}"


@pytest.mark.parametrize("name", ["started", "should_exit"])
def test_attribute_of_the_server_exists(name: str) -> None:
    """The simulated gateway waits for the start of uvicorn's server and ends it from another thread."""
    server = uvicorn.Server(uvicorn.Config(_app))
    assert getattr(server, name, None) is False, f"uvicorn's Server.{name} {CHANGED}"


@pytest.mark.parametrize("name", ["_value", "_size"])
def test_attribute_of_the_payload_exists(name: str) -> None:
    """`_Body` is an aiohttp payload with this attribute."""
    assert hasattr(_Body(b"abc"), name), f"aiohttp's Payload.{name} {CHANGED}"


def test_size_of_the_payload_is_sent() -> None:
    """The length of a body that aiohttp sends is `_size`, through the property `size`."""
    assert _Body(b"abc").size == 3, f"aiohttp's Payload.size {CHANGED}"


@pytest.mark.parametrize("name", ["write", "decode"])
def test_overridden_method_of_the_payload_exists(name: str) -> None:
    """`_Body` overrides this method of aiohttp's `Payload`."""
    assert parameters(getattr(aiohttp.Payload, name)) == parameters(getattr(_Body, name)), (
        f"aiohttp's Payload.{name} {CHANGED}"
    )


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "aiohttp"])
def test_package_with_private_names_is_capped(package: str) -> None:
    """The range of such a package ends below its next major version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    groups = project["dependency-groups"].values()
    listed = [*project["project"]["dependencies"], *chain(*extras), *chain(*groups)]
    ranges = [each for each in listed if re.match(rf"{package}\b", each)]
    installed = int(version(package).partition(".")[0])
    assert ranges
    assert all(each.endswith(f",<{installed + 1}") for each in ranges)
