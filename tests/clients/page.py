"""Show the results of the contract tests: as docs/compatibility.md, and as a table for the terminal.

Contains: rows and columns. Must not depend on: the way tests are run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
STYLES = "tests.clients.test_styles"
STYLE_TEST = "test_call_in_each_style_is_caught"
_CAUGHT = re.compile(r"(\w+)-(.+)-(sync|async)")
_HEAD = """# Compatibility

`make test-clients` writes this page. It runs the contract tests against the real packages, each set in its own
environment at exactly these versions. "yes": a test passed. "-": the package is not in that environment.

| environment | packages |
|---|---|
"""
_STYLES = """
## Call styles of wrapped clients

Caught means: one request arrived; only markers were added; the usage was settled once; the SDK left your objects as it
does without cachemw. The styles are {styles}.

| client | with | sync | async | not caught |
|---|---|---|---|---|
"""
_REST = """
## Further results
"""


class Case(NamedTuple):
    """One case of a test: module, name, parameters, and the verdict "yes", "NO" or "-" (skipped) with its reason."""

    module: str
    test: str
    parameters: str
    verdict: str
    why: str


class Outcome(NamedTuple):
    """The results of one environment's tests."""

    name: str
    versions: dict[str, str]
    cases: list[Case]


class Row(NamedTuple):
    """One client in one environment: versions, numbers of caught styles, sync and async, and the missed styles."""

    client: str
    packages: str
    sync: str
    asynchronous: str
    missing: str


def styles(outcomes: Sequence[Outcome]) -> tuple[list[str], list[Row]]:
    """Return the names of all call styles, and a row for each client that was installed."""
    named = _named()
    rows, all_styles = [], dict[str, None]()
    for outcome in outcomes:
        found: dict[str, dict[str, dict[str, Case]]] = {}
        for case in outcome.cases:
            parts = _CAUGHT.fullmatch(case.parameters)
            if case.module == STYLES and case.test == STYLE_TEST and parts:
                found.setdefault(parts[1], {}).setdefault(parts[3], {})[parts[2]] = case
                all_styles[parts[2]] = None
        for client, twins in found.items():
            if all(case.verdict == "-" for cases in twins.values() for case in cases.values()):
                continue
            packages = [
                package for package in outcome.versions if package.startswith(("openai", "databricks-"))
            ]
            if "databricks" not in named[client].lower() and client != "sdk":
                packages = packages[:1]
            used = ", ".join(f"{package} {outcome.versions[package]}" for package in packages)
            rows.append(
                Row(named[client], used, _share(twins["sync"]), _share(twins["async"]), _missing(twins))
            )
    return list(all_styles), rows


def _named() -> dict[str, str]:
    """Return each client's name for users, without importing the clients."""
    source = (ROOT / "tests" / "clients" / "clients.py").read_text(encoding="utf-8")
    return dict(re.findall(r'^    "(\w+)": Client\("([^"]+)"', source, re.MULTILINE))


def _share(cases: dict[str, Case]) -> str:
    if all(case.verdict == "-" for case in cases.values()):
        return "none"
    return f"{sum(case.verdict == 'yes' for case in cases.values())} of {len(cases)}"


def _missing(twins: dict[str, dict[str, Case]]) -> str:
    """Return the missed styles, grouped by reason."""
    reasons = dict[str, list[str]]()
    for twin, cases in twins.items():
        lacking = {
            style: case.why or "a failed test" for style, case in cases.items() if case.verdict != "yes"
        }
        for style, why in lacking.items():
            name = twin if len(lacking) == len(cases) else style
            if name not in reasons.setdefault(why, []):
                reasons[why].append(name)
    return "; ".join(f"{', '.join(missed)}: {why}" for why, missed in reasons.items())


def contract_results(outcomes: Sequence[Outcome]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield each module of contract tests: its subject, its environments, and a row for each of its tests."""
    modules = dict.fromkeys(case.module for outcome in outcomes for case in outcome.cases)
    for module in sorted(modules):
        if not module.startswith("tests.clients."):
            continue
        subject, tests = _docstrings(module)
        ran = [
            outcome
            for outcome in outcomes
            if any(case.module == module and case.verdict != "-" for case in outcome.cases)
        ]
        rows = [
            [docstring, *(_verdict(outcome.cases, module, test) for outcome in ran)]
            for test, docstring in tests.items()
            if (module, test) != (STYLES, STYLE_TEST)
        ]
        if ran and rows:
            yield subject, [outcome.name for outcome in ran], rows


def _docstrings(module: str) -> tuple[str, dict[str, str]]:
    """Return the first sentence of a module, and that of each of its tests."""
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


def for_docs(outcomes: Sequence[Outcome]) -> str:
    """Return the page of the docs."""
    lines = [_HEAD.rstrip("\n")]
    lines += [
        f"| {outcome.name} | {', '.join(map(' '.join, outcome.versions.items()))} |" for outcome in outcomes
    ]
    names, rows = styles(outcomes)
    lines.append(_STYLES.format(styles=", ".join(f"`{name}`" for name in names)).rstrip("\n"))
    lines += [f"| `{row.client}` | {' | '.join(row[1:])} |" for row in rows]
    lines.append(_REST.rstrip("\n"))
    for subject, environments, tests in contract_results(outcomes):
        lines += [
            "",
            f"### {subject}",
            "",
            f"| | {' | '.join(environments)} |",
            f"|{'---|' * (len(environments) + 1)}",
        ]
        lines += [f"| {' | '.join(row)} |" for row in tests]
    return "\n".join(lines) + "\n"


def for_terminal(outcomes: Sequence[Outcome]) -> str:
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
