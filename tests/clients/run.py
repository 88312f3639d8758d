"""Run the contract tests against the real packages, each set in its own environment, and write the results.

    python -m tests.clients.run [ENVIRONMENT ...]

Environments are built from the lock files beside this one, with hashes, and built anew when these change. The command
prints the table. It writes docs/compatibility.md if all environments ran and passed, and exits with 1 if a test fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from tests.clients.page import Case, Outcome, for_docs, for_terminal

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
_LOCKS = "tests/clients"
_CLIENTS = [
    "tests/clients/test_styles.py",
    "tests/clients/test_transports.py",
    "tests/integrations/test_openai_client.py",
    "tests/integrations/test_openai_answers.py",
    "tests/integrations/test_transport.py",
    "tests/integrations/test_transport_answers.py",
]


class Environment(NamedTuple):
    """One set of packages: its folder, its lock file, the packages to show, and its tests."""

    folder: str
    lock: str
    packages: tuple[str, ...]
    tests: list[str]


ENVIRONMENTS = {
    "openai 3.x": Environment(
        ".venv-openai3",
        f"{_LOCKS}/requirements-openai3.txt",
        ("openai", "httpx2", "anthropic", "langchain-openai", "databricks-sdk"),
        _CLIENTS,
    ),
    "openai 2.x": Environment(
        ".venv-openai2",
        f"{_LOCKS}/requirements-openai2.txt",
        ("openai", "httpx", "databricks-openai", "databricks-sdk"),
        _CLIENTS,
    ),
    "mitmproxy": Environment(
        ".venv-mitm",
        f"{_LOCKS}/requirements-mitmproxy.txt",
        ("mitmproxy",),
        ["tests/clients/test_mitmproxy.py"],
    ),
    "LiteLLM": Environment(
        ".venv-litellm",
        f"{_LOCKS}/litellm/requirements.txt",
        ("litellm", "openai"),
        ["tests/clients/litellm"],
    ),
}


def build(environment: Environment) -> Path:
    """Build an environment from its lock file, with this checkout of cachemw, and return its interpreter."""
    folder, lock = ROOT / environment.folder, ROOT / environment.lock
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.stat().st_mtime < lock.stat().st_mtime:
        print(f"Setting up {environment.folder} (a minute or two, once) ...", flush=True)
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, "--require-hashes", "--requirement", lock], check=True)
        subprocess.run([*install, "--no-build-isolation", "--editable", ROOT], check=True)
        ready.touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of packages in an environment."""
    program = (
        "import sys, json; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
    )
    printed = subprocess.run([python, "-c", program, *packages], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(printed.stdout)
    return found


def outcome(name: str, environment: Environment) -> tuple[bool, Outcome]:
    """Run an environment's tests; return True if all passed, and the result of each."""
    python = build(environment)
    installed = versions(python, environment.packages)
    print(f"{name}: {', '.join(map(' '.join, installed.items()))}", flush=True)
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [python, "-m", "pytest", "--quiet", *environment.tests, f"--junitxml={report}"]
        passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
        cases = (
            [_case(case) for case in ElementTree.parse(report).iter("testcase")] if report.exists() else []
        )
    return passed, Outcome(name, installed, cases)


def _case(found: ElementTree.Element) -> Case:
    test, _, parameters = found.get("name", "").partition("[")
    results = {child.tag: child.get("message", "") for child in found}
    verdict = "NO" if results.keys() & {"failure", "error"} else "-" if "skipped" in results else "yes"
    return Case(
        found.get("classname", ""), test, parameters.removesuffix("]"), verdict, results.get("skipped", "")
    )


def main(names: list[str]) -> int:
    """Run the named environments, or all; print the results, and write them if all tests passed."""
    if unknown := set(names) - set(ENVIRONMENTS):
        print(f"no such environment: {', '.join(sorted(unknown))}; choose from {', '.join(ENVIRONMENTS)}")
        return 2
    good, outcomes = True, []
    for name in names or ENVIRONMENTS:
        passed, found = outcome(name, ENVIRONMENTS[name])
        good &= passed
        outcomes.append(found)
    print(f"\n{for_terminal(outcomes)}")
    if good and not names:
        PAGE.write_text(for_docs(outcomes), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
