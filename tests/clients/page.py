"""What the contract tests showed, as the page docs/compatibility.md and as a table for the terminal.

Lives here: which rows and columns there are. Must not know: how tests are run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
STYLES = "tests.clients.test_styles"
_CAUGHT = re.compile(r"(\w+)-(.+)-(sync|async)")
_HEAD = """# Compatibility

Written by `make test-clients`, which runs the contract tests against the real packages, each set in an environment of
its own at exactly these versions. "yes" is what a test of it showed; nothing here is taken from documents. "-": the
package is not in that environment.

| environment | packages |
|---|---|
"""
_STYLES = """
## Call styles of wrapped clients

Caught means: one arrival; markers added and nothing else; the usage settled once; your objects as the SDK itself
leaves them. The styles are {styles}.

| client | with | sync | async | not caught |
|---|---|---|---|---|
"""
_REST = """
## What else holds
"""


class Case(NamedTuple):
    """One case of one test: its module, name and parameters; "yes", "NO" or "-" for one that was skipped, and why."""

    module: str
    test: str
    parameters: str
    verdict: str
    why: str


class Outcome(NamedTuple):
    """What came of one environment's tests."""

    name: str
    versions: dict[str, str]
    cases: list[Case]


class Row(NamedTuple):
    """One client in one environment: its versions, how many styles are caught by colour, and what is not."""

    client: str
    packages: str
    sync: str
    asynchronous: str
    missing: str


def styles(outcomes: Sequence[Outcome]) -> tuple[list[str], list[Row]]:
    """Return the names of all call styles, and a row for each client that was there."""
    named = _named()
    rows, all_styles = [], dict[str, None]()
    for outcome in outcomes:
        found: dict[str, dict[str, dict[str, Case]]] = {}
        for case in outcome.cases:
            parts = _CAUGHT.fullmatch(case.parameters)
            if case.module == STYLES and case.test == "test_caught" and parts:
                found.setdefault(parts[1], {}).setdefault(parts[3], {})[parts[2]] = case
                all_styles[parts[2]] = None
        for client, colours in found.items():
            if all(case.verdict == "-" for cases in colours.values() for case in cases.values()):
                continue
            packages = [
                package for package in outcome.versions if package.startswith(("openai", "databricks-"))
            ]
            if "databricks" not in named[client].lower() and client != "sdk":
                packages = packages[:1]
            used = ", ".join(f"{package} {outcome.versions[package]}" for package in packages)
            rows.append(
                Row(named[client], used, _share(colours["sync"]), _share(colours["async"]), _missing(colours))
            )
    return list(all_styles), rows


def _named() -> dict[str, str]:
    """Return what users call each client, without importing any."""
    source = (ROOT / "tests" / "clients" / "clients.py").read_text(encoding="utf-8")
    return dict(re.findall(r'^    "(\w+)": Client\("([^"]+)"', source, re.MULTILINE))


def _share(cases: dict[str, Case]) -> str:
    if all(case.verdict == "-" for case in cases.values()):
        return "none"
    return f"{sum(case.verdict == 'yes' for case in cases.values())} of {len(cases)}"


def _missing(colours: dict[str, dict[str, Case]]) -> str:
    """Say what is not caught and why, each reason once."""
    reasons = dict[str, list[str]]()
    for colour, cases in colours.items():
        lacking = {
            style: case.why or "a failed test" for style, case in cases.items() if case.verdict != "yes"
        }
        for style, why in lacking.items():
            what = colour if len(lacking) == len(cases) else style
            if what not in reasons.setdefault(why, []):
                reasons[why].append(what)
    return "; ".join(f"{', '.join(what)}: {why}" for why, what in reasons.items())


def others(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield each module of contract tests: what it is about, its environments, and a row for each test in it."""
    modules = dict.fromkeys(case.module for outcome in outcomes for case in outcome.cases)
    for module in sorted(modules):
        if not module.startswith("tests.clients."):
            continue
        about, tests = _said(module)
        ran = [
            outcome
            for outcome in outcomes
            if any(case.module == module and case.verdict != "-" for case in outcome.cases)
        ]
        rows = [
            [said, *(_verdict(outcome.cases, module, test) for outcome in ran)]
            for test, said in tests.items()
            if (module, test) != (STYLES, "test_caught")
        ]
        if ran and rows:
            yield about, [outcome.name for outcome in ran], rows


def _said(module: str) -> tuple[str, dict[str, str]]:
    """Return the sentence that a module begins with, and that of each test in it."""
    tree = ast.parse(ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
    tests = {
        node.name: " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }
    return " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split()).rstrip("."), tests


def _verdict(cases: list[Case], module: str, test: str) -> str:
    verdicts = {case.verdict for case in cases if (case.module, case.test) == (module, test)}
    return next((verdict for verdict in ("NO", "yes") if verdict in verdicts), "-")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return the page."""
    lines = [_HEAD.rstrip("\n")]
    lines += [
        f"| {outcome.name} | {', '.join(map(' '.join, outcome.versions.items()))} |" for outcome in outcomes
    ]
    names, rows = styles(outcomes)
    lines.append(_STYLES.format(styles=", ".join(f"`{name}`" for name in names)).rstrip("\n"))
    lines += [f"| `{row.client}` | {' | '.join(row[1:])} |" for row in rows]
    lines.append(_REST.rstrip("\n"))
    for about, environments, tests in others(outcomes):
        lines += [
            "",
            f"### {about}",
            "",
            f"| | {' | '.join(environments)} |",
            f"|{'---|' * (len(environments) + 1)}",
        ]
        lines += [f"| {' | '.join(row)} |" for row in tests]
    return "\n".join(lines) + "\n"


def plain(outcomes: Sequence[Outcome]) -> str:
    """Return the clients' table, and how many tests of each environment passed, for the terminal."""
    _, rows = styles(outcomes)
    cells = [["client", "with", "sync", "async", "not caught"], *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    table = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in cells
    ]
    counts = []
    for outcome in outcomes:
        count = {
            verdict: sum(case.verdict == verdict for case in outcome.cases) for verdict in ("yes", "NO", "-")
        }
        counts.append(f"{outcome.name}: {count['yes']} passed, {count['NO']} failed, {count['-']} skipped")
    return "\n".join([*table, "", *counts])
