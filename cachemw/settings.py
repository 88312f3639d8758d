"""Settings: the choices of a user, their sources and their checks.

Arguments win over `CACHEMW_*` in the environment, the environment over a TOML file (`--config` or
./cachemw.toml), and the file over the defaults. Every wrong setting is a `ConfigError` at construction.
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
    """The settings of one middleware, fixed at construction.

    Raises `ConfigError` with the setting, its value and the allowed values. An unknown setting is an error
    too; the message names the nearest known one.
    """

    model_config = SettingsConfigDict(
        env_prefix="CACHEMW_",
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        toml_file="cachemw.toml",
    )

    provider: Literal["databricks", "anthropic", "openrouter", "litellm", "openai", "auto"] = "auto"
    """The provider whose rules apply. "auto" takes it from the client's base URL or the proxy's route."""
    store: str = Field("memory://", repr=False)
    """The store of prefix hashes: memory://, or a Redis URL of any topology (see `cachemw.stores.url`)."""
    mode: Literal["optimize", "observe", "off"] = "optimize"
    """"observe" learns and reports but changes no body; "off" only counts usage."""
    namespace: str = Field("default", min_length=1, max_length=256)
    """The tenant. Different namespaces never share hashes."""
    cohort_groups: Mapping[str, str] = Field(default_factory=dict)
    """Namespaces or patterns, such as "team-*", each mapped to a group that shares reuse statistics."""
    secret: SecretStr | None = Field(None, min_length=1)
    """The key of all hashes that leave the process."""
    models: Mapping[str, str] = Field(default_factory=dict)
    """Model names or patterns, each mapped to a known model."""
    mark_kinds: Mapping[str, Literal["on", "off", "learn"]] = Field(default_factory=dict)
    """Kinds of block that may carry a breakpoint; overrides the provider's row."""
    min_tokens: int | None = Field(None, ge=0)
    """Smallest number of tokens of a cached prefix; overrides the model's row."""
    prices: Mapping[str, Mapping[str, float]] = Field(default_factory=dict)
    """Prices of models in USD per million tokens: input, write_5m, write_1h, read, output."""
    ttl: Literal["5m", "1h", "auto"] | None = None
    """The TTL of breakpoints; None is 5m. "auto" lets the planner choose; with it you accept 1h writes."""
    tokens: Literal["estimate", "tiktoken"] = "estimate"
    """"tiktoken" counts exactly once its encoding has been loaded in the background."""
    store_timeout_ms: int = Field(20, ge=1, le=10_000)
    """The longest time in ms for which a request waits for the store."""
    split_text: bool = False
    """Split long texts into a stable and a changing part, so that the stable part can be cached (for example
    a system prompt that ends with the date)."""
    sort_tools: bool = False
    """Send tool definitions sorted by name, with sorted keys."""
    openai_hints: bool = False
    """Add a `prompt_cache_key` to requests to OpenAI, and breakpoints on models that take OpenAI's form."""
    coalesce: bool = False
    """Send only one of several concurrent requests that share an uncached prefix. The others wait until it is
    cached (see `coalesce_wait_ms`)."""
    coalesce_wait_ms: int = Field(5_000, ge=1, le=60_000)
    """The longest time in ms for which a request waits for the response of another one to start."""
    max_labels: int = Field(100, ge=0)
    """Number of different values of one label; further values count as "other"."""
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
        """Return settings with this TOML file instead of ./cachemw.toml."""
        if not Path(config).is_file():
            raise ConfigError(f"config: there is no file {str(config)!r}; a TOML file is needed")

        class _FromFile(cls):  # type: ignore[misc, valid-type]  # the library takes the path from the class
            model_config = SettingsConfigDict(toml_file=config)

        return _FromFile(**fields)

    def cohort_group(self, namespace: str) -> str:
        """Return the owner of a namespace's reuse statistics: its group, or the namespace itself."""
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
    """Return the fault of each setting in sentences, with its value unless it may hold a password."""
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
