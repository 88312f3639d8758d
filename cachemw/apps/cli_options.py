"""Options of the command line: type, limits and help of each.

Contains: one annotated type for each option, used by `cli` in the signatures of commands. Must not depend
on: default values, the work of the commands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

Config: TypeAlias = Annotated[
    Path | None, typer.Option(help="Read settings from this TOML file instead of ./cachemw.toml.")
]
Host: TypeAlias = Annotated[str, typer.Option(help="Listen on this address.")]
Port: TypeAlias = Annotated[int, typer.Option(min=1, max=65_535, help="Listen on this port.")]

# demo
Data: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Read conversations or request bodies from this file, one a line (.jsonl, .jsonl.gz),"
        " instead of generating them."
    ),
]
Html: TypeAlias = Annotated[Path, typer.Option(help="Write the report to this file.")]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed of the conversations and of their arrival times.")]
Conversations: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Number of conversations; the default is 120, or all conversations of --data."),
]
DemoModel: TypeAlias = Annotated[str | None, typer.Option(help="Send every request to this model.")]

# gateway
SimulatedProvider: TypeAlias = Annotated[
    str,
    typer.Option(help="Behave like this provider: databricks, anthropic, openrouter, litellm or openai."),
]
VirtualClock: TypeAlias = Annotated[
    bool, typer.Option("--virtual-clock", help="Take the time from each request's x-cachemw-clock header.")
]
Exclusive: TypeAlias = Annotated[
    bool, typer.Option("--exclusive", help="Leave cached tokens out of Databricks' prompt_tokens.")
]
AnswerAfter: TypeAlias = Annotated[float, typer.Option(min=0, help="Seconds until an answer begins.")]
Minimum: TypeAlias = Annotated[
    int | None,
    typer.Option(min=0, help="Cache prefixes from this many tokens; the default is the model's minimum."),
]
Lookback: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Positions in which a breakpoint finds an earlier cache entry.")
]
MaxMarkers: TypeAlias = Annotated[int, typer.Option(min=0, help="Most breakpoints of a request.")]
RunCollapse: TypeAlias = Annotated[
    bool, typer.Option(help="Count a run of tool calls or results as one position of the lookback.")
]
ThinkingScope: TypeAlias = Annotated[
    Literal["all", "messages"],
    typer.Option(help="Cache entries that a change of thinking mode or effort invalidates."),
]
ReasoningMarkers: TypeAlias = Annotated[bool, typer.Option(help="Accept breakpoints on reasoning parts.")]
ToolMarkers: TypeAlias = Annotated[bool, typer.Option(help="Accept breakpoints on tool definitions.")]
ToolResultMarkers: TypeAlias = Annotated[bool, typer.Option(help="Accept breakpoints on tool results.")]
SupportsOneHour: TypeAlias = Annotated[bool, typer.Option(help="Accept a ttl in a breakpoint.")]
MidSystem: TypeAlias = Annotated[
    Literal["model", "hoist", "keep", "refuse"],
    typer.Option(
        help="System messages after the first user message: do as the model does (model), move them to the"
        " system section (hoist), keep their place (keep), or answer 400 (refuse)."
    ),
]
BiasSeed: TypeAlias = Annotated[
    int, typer.Option(help="Seed of the difference between token counts and estimates.")
]

# proxy
Upstream: TypeAlias = Annotated[
    str, typer.Option(help="Base URL of the provider; the paths of requests follow it.")
]
Workers: TypeAlias = Annotated[int, typer.Option(min=1, max=256, help="Number of worker processes.")]
ProxyStore: TypeAlias = Annotated[
    str | None, typer.Option(help="URL of a Redis in which workers share their statistics.")
]
ProxyProvider: TypeAlias = Annotated[
    str | None, typer.Option(help="Provider whose rules apply, if the upstream's URL does not show it.")
]
NamespaceHeader: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Header that names the tenant. Only a trusted gateway may set it; it is not passed on."
    ),
]
MaxBody: TypeAlias = Annotated[int, typer.Option(min=1, max=1024, help="Largest request, in MiB.")]
ConnectTimeout: TypeAlias = Annotated[
    float, typer.Option(min=0.01, help="Seconds to connect to the upstream.")
]
FirstByteTimeout: TypeAlias = Annotated[
    float, typer.Option(min=0.01, help="Seconds until a request has arrived, and until its answer begins.")
]
IdleTimeout: TypeAlias = Annotated[
    float, typer.Option(min=0.01, help="Seconds between two parts of a request or an answer.")
]
DrainTime: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Seconds after SIGTERM until unfinished answers are broken off.")
]
DrainDelay: TypeAlias = Annotated[
    float, typer.Option(min=0, help="Seconds after SIGTERM in which new requests are still accepted.")
]
EnvProxy: TypeAlias = Annotated[
    bool, typer.Option("--env-proxy", help="Reach the upstream through the environment's proxy.")
]

# explain, doctor
RequestFile: TypeAlias = Annotated[
    Path, typer.Argument(help="A request body as JSON, or several in their order, one on each line.")
]
Gap: TypeAlias = Annotated[float, typer.Option(min=0, help="Seconds between two requests.")]
DoctorStore: TypeAlias = Annotated[
    str | None, typer.Option(help="Check the store at this URL instead of the one in the settings.")
]
