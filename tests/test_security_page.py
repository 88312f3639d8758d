"""SECURITY.md: its tests and links exist, and each threat has a test or a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.test_pages import LINK, slugs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "SECURITY.md"
TEXT = PAGE.read_text(encoding="utf-8")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def threats(text: str) -> list[list[str]]:
    """Return the rows of the table of threats."""
    lines = text.partition("### Threats")[2].partition("\n### ")[0].splitlines()
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")
    ]
    return rows[1:]


def missing(text: str) -> list[str]:
    """Return the tests that a text names and that do not exist."""
    wrong = []
    for path, name in TEST.findall(text):
        file = ROOT / path
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
        functions = {
            node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        wrong += [] if name in functions and name.startswith("test_") else [f"{path}::{name}"]
    return wrong


def unheld(rows: list[list[str]]) -> list[str]:
    """Return the threats whose row names neither a test nor a reason."""
    return [
        row[0]
        for row in rows
        if not TEST.search(row[-1]) and not re.search(r"Accepted[^:]*: \S.{20,}", row[-1])
    ]


def test_each_named_test_exists() -> None:
    """A renamed or removed test no longer covers a threat."""
    assert len(TEST.findall(TEXT)) >= 40
    assert missing(TEXT) == []


@pytest.mark.parametrize(
    "name", ["tests/test_gone.py::test_a", "tests/test_tidy.py::test_gone", "tests/test_tidy.py::files"]
)
def test_missing_test_is_found(name: str) -> None:
    """A missing file, function or test is reported."""
    assert missing(f"see `{name}`") == [name]


def test_each_threat_has_a_test_or_a_reason() -> None:
    """Each row names the actor, and either tests or the reason for which the threat is accepted."""
    rows = threats(TEXT)
    assert len(rows) >= 25
    assert {len(row) for row in rows} == {3}
    assert unheld(rows) == []
    assert unheld([["a", "b", "Accepted:"], ["c", "d", ""]]) == ["a", "c"]


def test_actors_of_threats_are_listed() -> None:
    """The table of actors has each actor of a threat."""
    table = TEXT.partition("### Actors")[2].partition("###")[0]
    known = re.findall(r"^\| ([^|:,]+)", table, re.MULTILINE)
    named = {actor for row in threats(TEXT) for actor in row[1].split(", ")}
    assert named - {each.strip() for each in known} - {"all", "author of a file"} == set()


def test_links_of_the_page_resolve() -> None:
    """Each link leads to a file of the project, and to a heading in it."""
    for link in LINK.findall(TEXT):
        name, _, anchor = link.partition("#")
        target = ROOT / name if name else PAGE
        assert target.is_file(), link
        assert not anchor or anchor in slugs(target), link


def test_page_answers_the_first_questions() -> None:
    """The page says how to report, the supported versions and the deployment; both front pages link it."""
    headings = re.findall(r"^##+ (.+)$", TEXT, re.MULTILINE)
    assert {
        "Report a vulnerability",
        "Supported versions",
        "Identity by hash",
        "Deployment",
        "Dependencies",
    } <= set(headings)
    assert "private security advisory" in TEXT
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(../SECURITY.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
