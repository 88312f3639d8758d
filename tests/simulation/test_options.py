"""Options of the provider are checked at construction."""

from __future__ import annotations

from typing import Any

import pytest

from cachemw.errors import ConfigError
from cachemw.simulation.options import Options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"provider": "acme"},
            "provider is 'acme'; allowed: databricks, anthropic, openrouter, litellm, openai",
        ),
        ({"thinking_scope": "system"}, "thinking_scope is 'system'; allowed: all, messages"),
        ({"mid_system": "drop"}, "mid_system is 'drop'; allowed: model, hoist, keep, refuse"),
        ({"lookback": 0}, "lookback is 0; allowed: 1 or more"),
        ({"max_markers": -1}, "max_markers is -1; allowed: 0 or more"),
        ({"minimum": -5}, "minimum is -5; allowed: 0 or more"),
    ],
)
def test_invalid_option_is_a_config_error(given: dict[str, Any], message: str) -> None:
    """The error names the option, the value and the allowed values."""
    with pytest.raises(ConfigError) as error:
        Options(**given)
    assert str(error.value) == message
