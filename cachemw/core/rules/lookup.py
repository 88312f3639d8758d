"""Look up a model by its name and a provider by its URL: the public side of the rows.

Contains: two functions that `cachemw` exports. Must not depend on: settings, requests.
"""

from __future__ import annotations

from dataclasses import replace

from cachemw.core.rules import model_names
from cachemw.core.rules.providers import PROVIDERS, find_provider
from cachemw.core.rules.resolve import one_of
from cachemw.core.rules.types import Model


def find_model(name: str, provider: str | None = None) -> Model | None:
    """Return the caching rules of a model by any spelling of its name, or None if nothing identifies it.

    Args:
        name: the model as a request names it, such as "databricks-claude-sonnet-4-5".
        provider: the provider that serves it. The model has `caching="none"` if it needs breakpoints and the
            provider ignores them.

    Raises:
        ConfigError: if there is no such provider.
    """
    if provider is not None:
        one_of("provider", provider, PROVIDERS)
    row = model_names.find_model(name)
    if row is None or provider is None or row.caching != "explicit" or PROVIDERS[provider].max_markers:
        return row
    return replace(row, caching="none")


def provider_of(url: str) -> str | None:
    """Return the name of the provider of a URL, such as "databricks", or None if it is unknown."""
    row = find_provider(url)
    return None if row is None else row.name
