"""Options of the simulated provider where sources are silent or disagree, and its refusals.

Contains: one switch for each reading of the sources, and the 400. Must not depend on: requests, entries, the
planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NoReturn

from cachemw.errors import ConfigError

PROVIDERS = ("databricks", "anthropic", "openrouter", "litellm", "openai")


class Refused(Exception):  # noqa: N818 - an answer of the provider, not an error of cachemw
    """The provider's answer to a request that it refuses: an HTTP status and a text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def refuse(message: str) -> NoReturn:
    """Raise the 400 with this text."""
    raise Refused(400, message)


@dataclass(frozen=True, slots=True)
class Options:
    """One reading of the provider's rules; the defaults are the strict or the best-attested readings.

    - `provider`: the provider that is simulated. databricks refuses image URLs, `strict` in tools, `name` on
      user messages and automatic caching; databricks and anthropic refuse empty texts.
    - `minimum`: fewest tokens of a stored prefix, instead of the model's own minimum.
    - `lookback`: positions that a marker examines, itself included.
    - `run_collapse`: a run of tool calls, or of tool results, is one position of a lookback.
    - `thinking_scope`: another thinking mode or effort invalidates all entries, or those of messages only.
    - `reasoning_markers`, `tool_markers`, `tool_result_markers`, `supports_1h`: accepted, or a 400.
    - `mid_system`: a system message after the first message of another role. `model` keeps its place if the
      model's row says so, and else moves it to the end of the system section (on the Messages wire: refuses
      it); `keep`, `hoist` and `refuse` always do the same.
    - `bias_seed`: seed of the difference between this provider's token counts and the unbiased count.

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
