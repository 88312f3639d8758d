"""The public names of `cachemw`, and the libraries that importing it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import cachemw
from cachemw import errors

IMPORT_TOOLS = {"TYPE_CHECKING", "Any", "import_module"}


def test_all_lists_every_public_name_sorted() -> None:
    """`__all__` and `dir` have every public name, also one that is imported at its first use."""
    public = {
        name
        for name in dir(cachemw)
        if not name.startswith("_") and not isinstance(getattr(cachemw, name), ModuleType)
    }
    assert set(cachemw.__all__) == public - IMPORT_TOOLS
    assert cachemw.__all__ == sorted(cachemw.__all__)


def test_lazy_name_that_does_not_exist_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="no attribute 'read_usages'"):
        _ = cachemw.read_usages  # type: ignore[attr-defined]


def test_lazy_names_find_models_providers_and_usage() -> None:
    """The public look-ups answer for a model, a URL and a response."""
    model = cachemw.find_model("databricks-claude-sonnet-4-5")
    assert model is not None
    assert (model.name, model.caching) == ("claude-sonnet-4-5", "explicit")
    behind = cachemw.find_model("claude-sonnet-4-5", provider="anthropic-openai")
    assert behind is not None
    assert behind.caching == "none"
    assert cachemw.find_model("claude-sonnet-4-5", provider="databricks") == model
    assert cachemw.find_model("llama-4") is None
    with pytest.raises(cachemw.ConfigError, match="did you mean 'databricks'"):
        cachemw.find_model("claude-sonnet-4-5", provider="databrick")
    assert cachemw.provider_of("https://x.cloud.databricks.com/serving-endpoints") == "databricks"
    assert cachemw.provider_of("https://example.com/v1") is None
    usage = cachemw.read_usage({"usage": {"input_tokens": 3, "cache_read_input_tokens": 5}})
    assert usage is not None
    assert (usage.uncached, usage.cache_read) == (3, 5)
    reader = cachemw.UsageReader()
    reader.feed(b'{"model": "m", "usage": {"prompt_tokens": 3}}')
    reader.finish()
    assert reader.answer == {"model": "m", "usage": {"prompt_tokens": 3}}


def test_public_name_has_a_docstring() -> None:
    """Every exported name, and every public method of it, has a docstring."""
    for name in cachemw.__all__:
        thing = getattr(cachemw, name)
        assert (thing.__doc__ or "").strip(), name
        for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
            if not attribute.startswith("_") and callable(value) and thing.__module__.startswith("cachemw"):
                assert (value.__doc__ or "").strip(), f"{name}.{attribute}"


def test_import_loads_no_heavy_library() -> None:
    """The import loads neither the library of a store or client, nor a tokenizer."""
    code = "import sys, cachemw; print([m for m in ('redis', 'tiktoken', 'openai', 'httpx', 'httpx2', 'starlette', 'rich') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_sync_and_async_middleware_have_the_same_methods() -> None:
    """Both middleware classes have the same methods with the same arguments."""
    import inspect

    for name, method in vars(cachemw.Middleware).items():
        if name.startswith("_") or not callable(method):
            continue
        twin = getattr(cachemw.AsyncMiddleware, name)
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(twin).parameters == inspect.signature(method).parameters


def test_errors_have_one_root() -> None:
    """All errors are `CachemwError`; a wrong setting is a `ValueError` too."""
    for name in ("ConfigError", "BodyError", "StoreError"):
        assert issubclass(getattr(errors, name), cachemw.CachemwError)
    assert issubclass(cachemw.ConfigError, ValueError)
    error = cachemw.BodyError("no_messages")
    assert (error.reason, str(error)) == ("no_messages", "no_messages")
