"""The command line: `cachemw demo | gateway | proxy | explain | doctor`.

Contains: commands, exit codes and messages on stderr. Must not depend on: the work of the commands. Exit
codes: 0 success, 1 a check failed, 2 bad input, explained in one sentence.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import cachemw
from cachemw.apps import cli_options as options
from cachemw.errors import CachemwError, ConfigError, missing_package
from cachemw.printable import printable
from cachemw.simulation.options import Options

app = typer.Typer(
    help="Save money with prompt caches: cachemw adds breakpoints and measures the savings from the usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    try:
        app(args=arguments)
    except CachemwError as error:
        print(f"cachemw: {error}", file=sys.stderr)  # noqa: T201 - the only place that writes to stderr
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cachemw {version('cachemw')}")
        raise typer.Exit


@app.callback()
def _root(
    show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    data: options.Data = None,
    html: options.Html = Path("cachemw-demo.html"),
    seed: options.Seed = 1,
    conversations: options.Conversations = None,
    model: options.DemoModel = None,
) -> None:
    """Send conversations through a client to a simulated provider, and compare the cost of three policies."""
    from cachemw.apps.demo.run import CheckFailed
    from cachemw.apps.demo.run import demo as run

    try:
        run(Console(), html, data=data, seed=seed, limit=conversations, model=model)
    except CheckFailed as failed:
        typer.echo(f"cachemw: check failed: {failed}", err=True)
        raise typer.Exit(1) from None


@app.command()
def gateway(
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    provider: options.SimulatedProvider = "databricks",
    virtual_clock: options.VirtualClock = False,
    exclusive: options.Exclusive = False,
    answer_after: options.AnswerAfter = 0.0,
    minimum: options.Minimum = None,
    lookback: options.Lookback = 20,
    max_markers: options.MaxMarkers = 4,
    run_collapse: options.RunCollapse = False,
    thinking_scope: options.ThinkingScope = "all",
    reasoning_markers: options.ReasoningMarkers = False,
    tool_markers: options.ToolMarkers = True,
    tool_result_markers: options.ToolResultMarkers = True,
    supports_1h: options.SupportsOneHour = True,
    mid_system: options.MidSystem = "model",
    bias_seed: options.BiasSeed = 0,
) -> None:
    """Serve a simulated provider: Databricks' paths, Claude's caching and billing, fixed answers."""
    from cachemw.apps import simulated_gateway as served

    rules = Options(
        provider=provider,
        max_markers=max_markers,
        lookback=lookback,
        minimum=minimum,
        run_collapse=run_collapse,
        thinking_scope=thinking_scope,
        reasoning_markers=reasoning_markers,
        tool_markers=tool_markers,
        tool_result_markers=tool_result_markers,
        supports_1h=supports_1h,
        mid_system=mid_system,
        bias_seed=bias_seed,
    )
    built = served.build(
        rules, inclusive=not exclusive, virtual_clock=virtual_clock, answer_after=answer_after
    )
    _check_port(host, port)
    clock = "virtual time" if virtual_clock else "real time"
    _print(f"Simulated provider on http://{host}:{port}, {clock}. Stop it with Ctrl-C.")
    served.serve(built, host, port)


@app.command()
def proxy(
    upstream: options.Upstream,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8080,
    workers: options.Workers = 1,
    store: options.ProxyStore = None,
    provider: options.ProxyProvider = None,
    config: options.Config = None,
    namespace_header: options.NamespaceHeader = None,
    max_body: options.MaxBody = 64,
    connect_timeout: options.ConnectTimeout = 10.0,
    first_byte_timeout: options.FirstByteTimeout = 600.0,
    idle_timeout: options.IdleTimeout = 120.0,
    drain: options.DrainTime = 30,
    drain_delay: options.DrainDelay = 0.0,
    env_proxy: options.EnvProxy = False,
) -> None:
    """Serve as the provider's endpoint: add breakpoints to chat requests, pass other requests unchanged."""
    try:
        from cachemw.apps.proxy import server as served
        from cachemw.apps.proxy.reverse_proxy import Limits
    except ImportError as error:
        raise missing_package("proxy", error.name, "proxy") from None
    given = {"store": store, "provider": provider}
    proxy_options = served.ProxyOptions(
        upstream,
        namespace_header=namespace_header,
        max_body=max_body << 20,
        limits=Limits(connect_timeout, first_byte_timeout, idle_timeout),
        drain_delay=drain_delay,
        env_proxy=env_proxy,
        config=config,
        fields={name: value for name, value in given.items() if value is not None},
    )
    settings = proxy_options.settings()
    if workers > 1 and settings.store.startswith("memory:"):
        alone = "the workers share no statistics, so each one learns alone. Add --store redis://..."
        typer.echo(f"cachemw: {alone}", err=True)
    _print(f"Proxy on http://{host}:{port} to {upstream}. Stop it with Ctrl-C.")
    served.run(proxy_options, host=host, port=port, workers=workers, drain=drain)


@app.command()
def explain(
    file: options.RequestFile,
    gap: options.Gap = 30.0,
    config: options.Config = None,
) -> None:
    """Show where cachemw would add breakpoints in requests that arrive one after another, and why."""
    from cachemw.apps.demo.conversations import bodies

    fixed = {"store": "memory://", "mode": "optimize"}
    settings = cachemw.Settings.load(config, **fixed) if config else cachemw.Settings(**fixed)
    provider = None if settings.provider != "auto" else "databricks"
    found, now = bodies(file), 0.0
    middleware = cachemw.Middleware(settings, clock=lambda: now)
    for index, body in enumerate(found):
        now = index * gap
        call = middleware.prepare(body, provider=provider)
        typer.echo(f"Request {index + 1}, after {now:g} s. {call.plan.explain()}")
        middleware.begun(call)
        middleware.settle(call, None)
    middleware.close()


@app.command()
def doctor(store: options.DoctorStore = None, config: options.Config = None) -> None:
    """Check that a store works for cachemw, and show how to fix it."""
    from cachemw.apps.doctor.examine import effective, examine, verdict

    given = {} if store is None else {"store": store}
    settings = cachemw.Settings.load(config, **given) if config else cachemw.Settings(**given)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        _print(f"{finding.level:<5} {finding.about:<9} {finding.words}")
    typer.echo("\nSettings:")
    for setting in effective(settings):
        _print(f"  {setting}")
    typer.echo(f"\n{verdict(findings)}")
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _print(line: str) -> None:
    """Print one line in printable characters: it may hold names of options, settings and store servers."""
    typer.echo(printable(line))


def _check_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(f"port {port} of {host!r} cannot be served: {error.strerror}") from None
