"""The page of the API has every public name, with the signatures and fields of the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest

import cachemw
from tests.docs.test_pages import text

PAGE = "api.md"
VALUES = [name for name in cachemw.__all__ if dataclasses.is_dataclass(getattr(cachemw, name))]


def section(name: str) -> str:
    """Return the section of a public name, without its heading."""
    return text(PAGE).partition(f"\n### `{name}`\n")[2].partition("\n### ")[0]


def code(name: str) -> set[str]:
    """Return the spans of code in the section of a name."""
    return set(re.findall(r"`([^`\n]+)`", section(name)))


def written(name: str, function: Callable[..., Any]) -> str:
    """Return a call as the page writes it: names and defaults, no types."""
    parameters = [
        each.replace(annotation=inspect.Parameter.empty)
        for each in inspect.signature(function).parameters.values()
        if each.name != "self"
    ]
    call = str(inspect.Signature(parameters))
    return f"{name}{call}".replace("'", '"')


def methods(thing: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the public methods that a class of the package defines itself or inherits from the package."""
    for base in thing.__mro__:
        if base.__module__.startswith("cachemw"):
            for name, value in vars(base).items():
                if isinstance(value, FunctionType) and not name.startswith("_"):
                    yield name, value


def test_sections_of_the_page_are_the_public_names() -> None:
    """Each public name has a section, and no section describes another name."""
    headings = re.findall(r"^### `(\w+)`$", text(PAGE), re.MULTILINE)
    assert sorted(headings) == sorted(cachemw.__all__)


@pytest.mark.parametrize(
    "name", ["wrap", "of", "labels", "Middleware", "AsyncMiddleware", "CacheTransport", "AsyncCacheTransport",
             "CacheMiddleware", "HttpHooks"],
)  # fmt: skip
def test_signature_of_an_integration_is_that_of_the_code(name: str) -> None:
    """The page writes parameters and defaults as the code has them."""
    assert written(name, getattr(cachemw, name)) in code(name)


@pytest.mark.parametrize("name", ["Middleware", "HttpHooks"])
def test_methods_of_a_section_are_those_of_the_class(name: str) -> None:
    """Each public method is on the page with its parameters and defaults."""
    missing = {written(method, value) for method, value in methods(getattr(cachemw, name))} - code(name)
    assert missing == set()


@pytest.mark.parametrize("name", VALUES)
def test_fields_of_a_section_are_those_of_the_value_type(name: str) -> None:
    """Each field, property and method of a value type is on the page."""
    thing = getattr(cachemw, name)
    public = {field.name for field in dataclasses.fields(thing)}
    public |= {attribute for attribute, value in vars(thing).items() if isinstance(value, property)}
    public |= {f"{method}()" for method, _ in methods(thing)}
    assert {each for each in public if not each.startswith("_")} - code(name) == set()
