"""The reading of every spelling of a model's name, and the row that it finds.

Contains: the patterns of model names. Must not depend on: providers, settings, requests.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Literal

from cachemw.core.rules import automatic_models
from cachemw.core.rules.claude_models import SAFE
from cachemw.core.rules.models import MODELS, OTHER, automatic_minimum
from cachemw.core.rules.types import Model

_FAMILY = "opus|sonnet|haiku|fable|mythos"
_NUMBER = r"\d{1,2}(?:[.-]\d{1,2})?"
_CLAUDE_NAME = re.compile(
    rf"claude-(?:(?P<family>{_FAMILY})-(?P<version>{_NUMBER}|preview)"
    rf"|(?P<before>{_NUMBER})-(?P<after>{_FAMILY}))"
    r"(?:[-@](?:\d{8}|latest|default))?(?:-v\d+(?::\d+)?)?(?P<variant>:[a-z]+)?"
)
# Models without a row that cache automatically; those among them that take breakpoints in OpenAI's form.
_AUTOMATIC = re.compile(
    r"(?:chatgpt-4o|gpt-(?:4o|4\.1|[5-9])|o[1-9]|gemini-(?:2\.5|[3-9])|deepseek-(?:chat|reasoner|flash|v\d))(?![a-z0-9])"
)
_HINTED = re.compile(r"gpt-(?:5\.[6-9]|[6-9])(?!\d)")
_DATED = re.compile(r"-\d{4}-\d{2}-\d{2}$")
_DASHED = re.compile(r"^((?:gpt|gemini)-\d|deepseek-v\d)-(\d)(?=-|$)")
_UNCACHED = re.compile(r"claude-(?:v?[12]|instant)(?![0-9])")
_ALIAS = re.compile(r"(?:databricks-|system\.ai\.)")
_ROUTE = re.compile(r"(?:databricks-|system\.ai\.|(?:[a-z-]+\.)?anthropic\.)")


def find_model(name: str) -> Model | None:
    """Return the row of a model by any spelling of its name, or None if nothing identifies it.

    A Claude without a row gets the safe one. A model of OpenAI, Gemini or DeepSeek without a row is known to
    cache automatically, at an unknown price. Both have the name `model_key(name)`.
    """
    bare, variant = _bare(name)
    row = MODELS.get(bare)
    if row is not None:
        return row
    whole = bare + variant
    if "claude" in whole:
        caching: Literal["explicit", "none"] = "none" if _UNCACHED.match(whole) else "explicit"
        return replace(SAFE, name=model_key(name), caching=caching)
    if _AUTOMATIC.match(bare):
        hints = _HINTED.match(bare) is not None
        return replace(OTHER, name=model_key(name), minimum=automatic_minimum(bare), hints=hints)
    return None


def model_key(name: str) -> str:
    """Return the name under which prefixes are hashed: equal for all spellings of one model.

    A variant that a router serves apart (`...:thinking`) keeps its suffix. A name without a row is
    lower-cased and loses `databricks-` or `system.ai.`, which Databricks reads as the same service.
    """
    bare, variant = _bare(name)
    if bare in MODELS:
        return bare + variant
    lowered = name.strip().lower()
    return lowered[found.end() :] if (found := _ALIAS.match(lowered)) else lowered


def _bare(name: str) -> tuple[str, str]:
    """Return a name without route, date and revision, as the rows write it, and its variant suffix."""
    last = name.strip().lower().rpartition("/")[2]
    if found := _ROUTE.match(last):
        last = last[found.end() :]
    parts = _CLAUDE_NAME.fullmatch(last)
    if parts is None:
        plain = _DASHED.sub(r"\1.\2", _DATED.sub("", last))
        return automatic_models.ALIASES.get(plain, plain), ""
    family = parts["family"] or parts["after"]
    version = (parts["version"] or parts["before"]).replace(".", "-").removesuffix("-0")
    return f"claude-{family}-{version}", parts["variant"] or ""
