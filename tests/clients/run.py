"""Run the client tests on each major of `openai` in an environment of its own and print who is caught where.

    python -m tests.clients.run [--databricks]

The interpreter that runs this is the environment of openai 3.x. The one of 2.x is built beside it with uv
(`--databricks` builds a third, about 700 MB, with databricks-openai). Exit status 1 where a test fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
TOOLS = ["hypothesis", "pytest", "pytest-asyncio", "pytest-cov", "pytest-xdist"]
NEEDED = {
    "openai 2.x": [".venv-openai2", "openai>=2.20,<3"],
    "databricks": [".venv-databricks", "databricks-openai>=0.18"],
}
TESTS = {"databricks": ["tests/clients", "-k", "databricks"]}
CASE = re.compile(r"test_caught\[(\w+)-(.+)-(sync|async)\]")
Verdicts = dict[tuple[str, str, str], str]


def build(folder: str, package: str) -> Path:
    """Build an environment with the project's dependencies and one client package; return its interpreter."""
    python = ROOT / folder / "bin" / "python"
    uv = [sys.executable, "-m", "uv"]
    if find_spec("uv") is None:
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "uv"], check=True)
    if not python.exists():
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, folder], cwd=ROOT, check=True)
    wanted = [package, *TOOLS, "--requirements", "pyproject.toml"]
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *wanted], cwd=ROOT, check=True)
    return python


def versions(python: Path) -> str:
    """Return the version of `openai`, and of `databricks-openai` where it is there."""
    program = (
        "from importlib.metadata import version, packages_distributions as found; print(*("
        "version(name) for name in ('openai', 'databricks-openai') if name.replace('-', '_') in found()), sep=' / ')"
    )
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def verdicts(python: Path, tests: list[str]) -> tuple[bool, Verdicts]:
    """Run the tests; return whether all passed, and for (client, style, colour) what came of it."""
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [str(python), "-m", "pytest", "--quiet", *tests, f"--junitxml={report}", "--no-cov"]
        passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        found: Verdicts = {}
        for case in cases:
            if match := CASE.fullmatch(case.get("name", "")):
                kinds = {child.tag for child in case}
                verdict = "NO" if kinds & {"failure", "error"} else "-" if "skipped" in kinds else "yes"
                found[match[1], match[2], match[3]] = verdict
    return passed, found


def table(columns: dict[str, Verdicts]) -> str:
    """Lay the verdicts out: a row for each style, a column for each client, colour and version."""
    heads = [
        (name, client, colour)
        for name, found in columns.items()
        for client in dict.fromkeys(key[0] for key, verdict in found.items() if verdict != "-")
        for colour in ("sync", "async")
    ]
    styles = dict.fromkeys(key[1] for found in columns.values() for key in found)
    labels = ("openai / databricks-openai", "client", "call style")
    rows = [[label, *parts] for label, parts in zip(labels, zip(*heads, strict=True), strict=False)]
    rows += [
        [style, *(columns[n].get((client, style, colour), "-") for n, client, colour in heads)]
        for style in styles
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows
    )


def main(arguments: list[str]) -> int:
    """Build what is missing, run, print the table."""
    wanted = ["openai 2.x", *(["databricks"] if "--databricks" in arguments else [])]
    pythons = {"openai 3.x": Path(sys.executable)} | {name: build(*NEEDED[name]) for name in wanted}
    columns, good = {}, True
    for name, python in pythons.items():
        version = versions(python)
        print(f"{name}: {version}", flush=True)
        passed, columns[version] = verdicts(python, TESTS.get(name, ["tests/clients", "tests/integrations"]))
        good &= passed
    print(
        "\nyes: one arrival, annotated, usage settled once, caller's objects untouched; -: the client itself fails\n"
    )
    print(table(columns))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
