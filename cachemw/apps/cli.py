"""The command line: `cachemw demo | gateway | proxy | explain | doctor`.

Lives here: options, exit codes and what goes to stderr. Must not know: what the commands do. Exit codes:
0 all well, 1 a check failed, 2 bad input, said in one sentence.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

import cachemw
from cachemw.errors import CachemwError, ConfigError
from cachemw.printable import printable
from cachemw.simulation.options import Options

app = typer.Typer(
    help="Make LLM prompt caches pay: breakpoints where they pay, and proof from the returned usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code."""
    try:
        app(args=arguments)
    except CachemwError as error:
        print(f"cachemw: {error}", file=sys.stderr)  # noqa: T201 - the one place that talks to stderr
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
    data: Annotated[
        Path | None,
        typer.Option(help="Recorded conversations, or request bodies, one a line (.jsonl, .jsonl.gz)."),
    ] = None,
    html: Annotated[Path, typer.Option(help="Where the report is written.")] = Path("cachemw-demo.html"),
    seed: Annotated[int, typer.Option(help="Draws conversations and arrival times.")] = 1,
    conversations: Annotated[
        int | None, typer.Option(min=1, help="How many; 120 are generated, of a file all are taken.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Send every request to this model.")] = None,
) -> None:
    """Send conversations through a wrapped client to a simulated provider, by three policies."""
    from cachemw.apps.demo.run import CheckFailed
    from cachemw.apps.demo.run import demo as run

    try:
        run(Console(), html, data=data, seed=seed, limit=conversations, model=model)
    except CheckFailed as failed:
        typer.echo(f"cachemw: check failed: {failed}", err=True)
        raise typer.Exit(1) from None


@app.command()
def gateway(
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    provider: Annotated[str, typer.Option(help="Whose shapes and quirks hold.")] = "databricks",
    virtual_clock: Annotated[
        bool,
        typer.Option("--virtual-clock", help="Take the time from each request's x-cachemw-clock header."),
    ] = False,
    exclusive: Annotated[
        bool, typer.Option("--exclusive", help="Leave cached tokens out of Databricks' prompt_tokens.")
    ] = False,
    answer_after: Annotated[float, typer.Option(min=0, help="Seconds until an answer begins.")] = 0.0,
    minimum: Annotated[
        int | None, typer.Option(min=0, help="Fewest tokens that are cached, in place of the model's.")
    ] = None,
    lookback: Annotated[int, typer.Option(min=1, help="Positions that a marker examines.")] = 20,
    max_markers: Annotated[int, typer.Option(min=0)] = 4,
    run_collapse: Annotated[
        bool, typer.Option(help="Whether a run of calls or results is one position of a lookback.")
    ] = False,
    thinking_scope: Annotated[
        Literal["all", "messages"], typer.Option(help="What another thinking mode or effort loses.")
    ] = "all",
    reasoning_markers: Annotated[bool, typer.Option(help="Whether reasoning parts take markers.")] = False,
    tool_markers: Annotated[bool, typer.Option(help="Whether tool definitions take markers.")] = True,
    tool_result_markers: Annotated[bool, typer.Option(help="Whether tool results take markers.")] = True,
    supports_1h: Annotated[bool, typer.Option(help="Whether a ttl is accepted.")] = True,
    mid_system: Annotated[
        Literal["model", "hoist", "keep", "refuse"],
        typer.Option(help="What becomes of a system message after the first other one."),
    ] = "model",
    bias_seed: Annotated[int, typer.Option(help="Draws how token counts stray from plain ones.")] = 0,
) -> None:
    """Serve a simulated provider: Databricks' paths, Claude's caching and bills, answers of one sentence."""
    from cachemw.apps import simulated_gateway as served

    options = Options(
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
        options, inclusive=not exclusive, virtual_clock=virtual_clock, answer_after=answer_after
    )
    _free(host, port)
    clock = "virtual time" if virtual_clock else "real time"
    _say(f"Simulated provider on http://{host}:{port}, {clock}; stop it with Ctrl-C.")
    served.serve(built, host, port)


@app.command()
def proxy(
    upstream: Annotated[str, typer.Option(help="The provider's base URL, before the paths of requests.")],
    host: str = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8080,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes.")] = 1,
    store: Annotated[
        str | None, typer.Option(help="A Redis URL, so that workers share what they learn.")
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="Whose rules hold, where the URL does not tell.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML, in the place of ./cachemw.toml.")
    ] = None,
    namespace_header: Annotated[
        str | None,
        typer.Option(help="A header that you trust and that names the tenant; it is not passed on."),
    ] = None,
    max_body: Annotated[int, typer.Option(min=1, max=1024, help="Longest request, in MiB.")] = 64,
    connect_timeout: Annotated[float, typer.Option(min=0.01, help="Seconds to be connected.")] = 10.0,
    first_byte_timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds until an answer begins.")
    ] = 600.0,
    idle_timeout: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two parts of a body.")
    ] = 120.0,
    drain: Annotated[int, typer.Option(min=0, help="Seconds that answers have to end after SIGTERM.")] = 30,
    drain_delay: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM that new requests are still taken for.")
    ] = 0.0,
    env_proxy: Annotated[
        bool, typer.Option("--env-proxy", help="Reach the upstream through the environment's proxy.")
    ] = False,
) -> None:
    """Serve as the provider's endpoint: chat requests leave with breakpoints, all else passes as it is."""
    try:
        from cachemw.apps.proxy import server as served
        from cachemw.apps.proxy.reverse_proxy import Limits
    except ImportError as error:
        raise ConfigError(f"proxy: {error.name} is missing; pip install 'cachemw[proxy]'") from None
    given = {"store": store, "provider": provider}
    options = served.Options(
        upstream,
        namespace_header=namespace_header,
        max_body=max_body << 20,
        limits=Limits(connect_timeout, first_byte_timeout, idle_timeout),
        drain_delay=drain_delay,
        env_proxy=env_proxy,
        config=config,
        fields={name: value for name, value in given.items() if value is not None},
    )
    settings = options.settings()
    if workers > 1 and settings.store.startswith("memory:"):
        typer.echo("cachemw: each worker learns for itself; --store redis://... lets them share", err=True)
    _say(f"Proxy on http://{host}:{port} to {upstream}; stop it with Ctrl-C.")
    served.run(options, host=host, port=port, workers=workers, drain=drain)


@app.command()
def explain(
    file: Annotated[Path, typer.Argument(help="A request body as JSON, or one a line, in their order.")],
    gap: Annotated[float, typer.Option(min=0, help="Seconds between two requests.")] = 30.0,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML, in the place of ./cachemw.toml.")
    ] = None,
) -> None:
    """Say where breakpoints would go in requests that arrive one after another, and why."""
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
def doctor(
    store: Annotated[
        str | None, typer.Option(help="URL of the store, in the place of the one in the settings.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Settings as TOML, in the place of ./cachemw.toml.")
    ] = None,
) -> None:
    """Say whether a store does what workers ask of it, and what to do where it doesn't."""
    from cachemw.apps.doctor.examine import effective, examine, verdict

    given = {} if store is None else {"store": store}
    settings = cachemw.Settings.load(config, **given) if config else cachemw.Settings(**given)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        _say(f"{finding.level:<5} {finding.about:<9} {finding.words}")
    typer.echo("\nSettings:")
    for setting in effective(settings):
        _say(f"  {setting}")
    typer.echo(f"\n{verdict(findings)}")
    if any(finding.level == "bad" for finding in findings):
        raise typer.Exit(1)


def _say(line: str) -> None:
    """Print one line; names in it come from the command line, from settings and from store servers."""
    typer.echo(printable(line))


def _free(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise ConfigError(f"port {port} of {host!r} can't be served: {error.strerror}") from None
