"""How the simulated provider reads what the sources leave open, and how it refuses.

Lives here: one switch for each reading where sources disagree, and the 400. Must not know:
requests, entries, the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from cachemw.errors import ConfigError

PROVIDERS = ("databricks", "anthropic", "openrouter", "litellm", "openai")


class Refused(Exception):  # noqa: N818 - an answer of the provider, no error of ours
    """The provider's answer to a request that it doesn't accept: an HTTP status and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def refuse(message: str) -> NoReturn:
    """Raise the 400 with this text."""
    raise Refused(400, message)


@dataclass(frozen=True, slots=True)
class Options:
    """One reading of the provider's rules; the defaults are the strict or the best-attested ones.

    - `provider`: whose quirks hold. databricks refuses image URLs, `strict` in tools, `name` on user
      messages and automatic caching; it and anthropic refuse empty texts.
    - `minimum`: fewest tokens of a prefix that is stored, in place of the model's own.
    - `lookback`: positions that a marker examines, itself included.
    - `run_collapse`: whether a run of tool calls, or of tool results, is one position of a lookback.
    - `thinking_scope`: whether another thinking mode or effort loses everything or the messages only.
    - `reasoning_markers`, `tool_markers`, `tool_result_markers`, `supports_1h`: accepted, or a 400.
    - `mid_system`: a system message after the first other one keeps its place where the model's row
      says so and else moves to the end of the system section (`model`), or always one of the two, or
      is a 400. On the Messages wire `model` refuses instead of moving.
    - `bias_seed`: draws how far this provider's token counts stray from the plain count.

    Raises `ConfigError`.
    """

    provider: str = "databricks"
    max_markers: int = 4
    lookback: int = 20
    minimum: int | None = None
    run_collapse: bool = False
    thinking_scope: Literal["all", "messages"] = "all"
    reasoning_markers: bool = False
    tool_markers: bool = True
    tool_result_markers: bool = True
    supports_1h: bool = True
    mid_system: Literal["model", "hoist", "keep", "refuse"] = "model"
    bias_seed: int = 0

    def __post_init__(self) -> None:
        _one_of("provider", self.provider, PROVIDERS)
        _one_of("thinking_scope", self.thinking_scope, ("all", "messages"))
        _one_of("mid_system", self.mid_system, ("model", "hoist", "keep", "refuse"))
        for name, value, least in (
            ("max_markers", self.max_markers, 0),
            ("lookback", self.lookback, 1),
            ("minimum", self.minimum or 0, 0),
        ):
            if value < least:
                raise ConfigError(f"{name} is {value}; allowed: {least} or more")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
