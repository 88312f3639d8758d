"""The public names of `import cachemw`, and the libraries that it does not load."""

from __future__ import annotations

import subprocess
import sys

import cachemw
from cachemw import errors


def test_all_names_every_public_attribute_in_order() -> None:
    """Every public attribute of the package is in `__all__`, sorted, and every name in it exists."""
    public = {
        name
        for name, value in vars(cachemw).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("cachemw")
    }
    assert public <= set(cachemw.__all__)
    assert all(hasattr(cachemw, name) for name in cachemw.__all__)
    assert cachemw.__all__ == sorted(cachemw.__all__)


def test_every_public_name_has_a_docstring() -> None:
    """Every export and each of its public methods has a docstring."""
    for name in cachemw.__all__:
        thing = getattr(cachemw, name)
        assert (thing.__doc__ or "").strip(), name
        for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
            if not attribute.startswith("_") and callable(value) and thing.__module__.startswith("cachemw"):
                assert (value.__doc__ or "").strip(), f"{name}.{attribute}"


def test_import_loads_no_heavy_library() -> None:
    """The import loads neither a store's nor a client's library, nor a tokenizer."""
    code = "import sys, cachemw; print([m for m in ('redis', 'tiktoken', 'openai', 'httpx', 'httpx2', 'starlette', 'rich') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_sync_and_async_middleware_have_the_same_methods() -> None:
    """Every method of the sync middleware is in the async one, with the same parameters."""
    import inspect

    for name, method in vars(cachemw.Middleware).items():
        if name.startswith("_") or not callable(method):
            continue
        counterpart = getattr(cachemw.AsyncMiddleware, name)
        assert inspect.iscoroutinefunction(counterpart)
        assert inspect.signature(counterpart).parameters == inspect.signature(method).parameters


def test_errors_have_one_base_class() -> None:
    """All errors can be caught as one, and a wrong setting as a `ValueError` too."""
    for name in ("ConfigError", "BodyError", "StoreError"):
        assert issubclass(getattr(errors, name), cachemw.CachemwError)
    assert issubclass(cachemw.ConfigError, ValueError)
    error = cachemw.BodyError("no_messages")
    assert (error.reason, str(error)) == ("no_messages", "no_messages")
