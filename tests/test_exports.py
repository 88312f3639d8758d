"""What `import cachemw` gives, and what it leaves alone."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import cachemw
from cachemw import errors


def test_all_is_what_there_is() -> None:
    """Every public name is exported, sorted, and nothing else is."""
    public = {
        name
        for name, value in vars(cachemw).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(cachemw.__all__) == public
    assert cachemw.__all__ == sorted(cachemw.__all__)


def test_every_public_thing_is_described() -> None:
    """Whatever is exported says what it is."""
    for name in cachemw.__all__:
        thing = getattr(cachemw, name)
        assert (thing.__doc__ or "").strip(), name
        for attribute, value in vars(thing).items() if isinstance(thing, type) else ():
            if not attribute.startswith("_") and callable(value) and thing.__module__.startswith("cachemw"):
                assert (value.__doc__ or "").strip(), f"{name}.{attribute}"


def test_importing_loads_no_heavy_library() -> None:
    """The import loads neither a store's nor a client's library, nor a tokenizer."""
    code = "import sys, cachemw; print([m for m in ('redis', 'tiktoken', 'openai', 'httpx', 'httpx2', 'starlette', 'rich') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_twins_have_the_same_methods() -> None:
    """What one middleware can, the other can, with the same arguments."""
    import inspect

    for name, method in vars(cachemw.Middleware).items():
        if name.startswith("_") or not callable(method):
            continue
        twin = getattr(cachemw.AsyncMiddleware, name)
        assert inspect.iscoroutinefunction(twin)
        assert inspect.signature(twin).parameters == inspect.signature(method).parameters


def test_errors_have_one_root() -> None:
    """All of them can be caught as one, and the wrong setting as a `ValueError` too."""
    for name in ("ConfigError", "BodyError", "StoreError"):
        assert issubclass(getattr(errors, name), cachemw.CachemwError)
    assert issubclass(cachemw.ConfigError, ValueError)
    error = cachemw.BodyError("no_messages")
    assert (error.reason, str(error)) == ("no_messages", "no_messages")
