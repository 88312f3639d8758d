"""Settings: what a user may choose, from where, and what is refused.

Arguments win over `CACHEMW_*` in the environment, that over a TOML file (`--config` or
./cachemw.toml), that over the defaults. Every wrong setting is a `ConfigError` at construction.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_serializer, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)  # fmt: skip

from cachemw.core.rules import resolve
from cachemw.errors import ConfigError
from cachemw.stores.url import masked

_MAY_HOLD_PASSWORDS = {"store", "secret"}


class Settings(BaseSettings):
    """What cachemw does, fixed at construction.

    Raises `ConfigError` naming the setting, the value and what is allowed; an unknown name is one
    too, with the nearest known name.
    """

    model_config = SettingsConfigDict(
        env_prefix="CACHEMW_",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        toml_file="cachemw.toml",
    )

    provider: Literal["databricks", "anthropic", "openrouter", "litellm", "openai", "auto"] = "auto"
    """Whose rules hold; "auto" takes it from the client's base URL or the proxy's route."""
    store: str = Field("memory://", repr=False)
    """Where prefix hashes are kept: memory://, or Redis in any topology by its URL (see `cachemw.stores.url`)."""
    mode: Literal["optimize", "observe", "off"] = "optimize"
    """"observe" learns and reports but changes no body; "off" only counts usage."""
    namespace: str = Field("default", min_length=1, max_length=256)
    """Tenants of different namespaces never see each other's hashes."""
    cohort_groups: Mapping[str, str] = Field(default_factory=dict)
    """Namespaces by name or pattern, such as "team-*", to the group with which they share reuse statistics."""
    secret: SecretStr | None = Field(None, min_length=1)
    """Keys the hashes that leave the process."""
    models: Mapping[str, str] = Field(default_factory=dict)
    """A model's name or pattern, to the known model that it is."""
    mark_kinds: Mapping[str, Literal["on", "off", "learn"]] = Field(default_factory=dict)
    """Which kinds of block may carry a breakpoint, over the provider's own row."""
    min_tokens: int | None = Field(None, ge=0)
    """Fewest tokens of a prefix that is cached, where you know better than the model's row."""
    prices: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    """A model's prices in USD per million tokens: input, write_5m, write_1h, read, output."""
    ttl: Literal["5m", "1h", "auto"] | None = None
    """None is 5m. "auto" lets the planner choose, and is your word that 1h is accepted."""
    tokens: Literal["estimate", "tiktoken"] = "estimate"
    """"tiktoken" counts exactly once its encoding has been loaded in the background."""
    store_timeout_ms: int = Field(20, ge=1, le=10_000)
    """How long a store may keep a request waiting."""
    split_text: bool = False
    """Let long texts leave in parts, cut where texts like them go on differently."""
    sort_tools: bool = False
    """Let tool definitions leave by name, with their keys sorted."""
    openai_hints: bool = False
    """Let requests to OpenAI carry a `prompt_cache_key`, and breakpoints on models that take OpenAI's."""
    coalesce: bool = False
    """Of concurrent requests that would write one prefix, send one first; the others wait, and read it."""
    coalesce_wait_ms: int = Field(5_000, ge=1, le=60_000)
    """How long a request waits at most for another's answer to begin."""
    max_labels: int = Field(100, ge=0)
    """How many different values of one label are kept; further ones count as "other"."""
    max_label_length: int = Field(64, ge=1, le=256)
    """Longer label names and values count as "other"."""

    def __init__(self, **fields: Any) -> None:
        prefix = str(self.model_config["env_prefix"])
        for name in os.environ:
            if name.upper().startswith(prefix):
                _known(name[len(prefix) :].lower(), "environment")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(_sentences(error)) from None
        except SettingsError as error:
            raise ConfigError(f"settings: {error}; JSON is needed") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{self.model_config['toml_file']}: {error}; a TOML file is needed") from None

    @classmethod
    def load(cls, config: str | Path, **fields: Any) -> Settings:
        """Return settings with this TOML file in the place of ./cachemw.toml."""
        if not Path(config).is_file():
            raise ConfigError(f"config: there is no file {str(config)!r}; a TOML file is needed")

        class _FromFile(cls):  # type: ignore[misc, valid-type]  # the library takes the path from the class
            model_config = SettingsConfigDict(toml_file=config)

        return _FromFile(**fields)

    def cohort_group(self, namespace: str) -> str:
        """Return whose reuse statistics count for a namespace: its group's, or its own where it is in none."""
        for pattern, group in self.cohort_groups.items():
            if fnmatchcase(namespace, pattern):
                return f"group\x00{group}"
        return f"namespace\x00{namespace}"

    @field_validator("store")
    @classmethod
    def _store_scheme(cls, value: str) -> str:
        if "://" not in value:
            raise ValueError("a URL such as memory:// or redis://localhost:6379/0 is needed")
        return value

    @field_serializer("store")
    def _without_password(self, value: str) -> str:
        return masked(value)

    @model_validator(mode="after")
    def _against_rows(self) -> Self:
        resolve.check(self.provider, models=self.models, mark_kinds=self.mark_kinds, prices=self.prices)
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library calls by name
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the library calls by name
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take arguments, then the environment, then the TOML file; no dotenv, no secrets directory."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def _known(name: str, where: str) -> None:
    allowed = sorted(Settings.model_fields)
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{where}: there is no setting {name!r}.{hint} Allowed: {', '.join(allowed)}.")


def _sentences(error: ValidationError) -> str:
    """Say what is wrong with each setting; the value is shown unless it may hold a password."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        name = str(fault["loc"][0]) if fault["loc"] else "settings"
        if fault["type"] == "extra_forbidden":
            try:
                _known(name, "settings")
            except ConfigError as unknown:
                lines.append(str(unknown))
            continue
        if not fault["loc"]:
            lines.append(fault["msg"].removeprefix("Value error, "))
            continue
        where = ".".join(map(str, fault["loc"]))
        shown = "" if name in _MAY_HOLD_PASSWORDS else f" {fault['input']!r}"[:100]
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{where}:{shown} is not allowed: {message}")
    return "; ".join(lines)
