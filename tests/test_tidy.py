"""The project's files name neither the machine that made them nor a package registry."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Patterns that don't match their own text.
MACHINE = re.compile(r"(?<![\w.])/(?:work|root|tmp|home|Users)/\w|[A-Z]:\\Users|(?:/var|/private)/folders\b")
REGISTRY = re.compile(
    r"py[p]i\.org|python[h]osted|npm[j]s|[-]-(?:extra-)?index-url[ =]|artifact[o]ry|[r]ubygems|proxy\.go[l]ang",
    re.IGNORECASE,
)


def files() -> list[Path]:
    """Return the files that git tracks or would add."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("this is no clone: what belongs to the project is not known")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("pattern", [MACHINE, REGISTRY], ids=["machine", "registry"])
def test_no_file_names_this_machine(pattern: re.Pattern[str]) -> None:
    """Files hold no path of a home, working or temporary folder, and no host of a package registry."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line[:120]}"
        for path in files()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["cd /" + "tmp/x", "open('/" + "home/me/a')", "https://" + "pypi" + ".org/simple", "--index" + "-url x"],
)
def test_machine_and_registry_names_are_found(line: str) -> None:
    """The patterns match each kind of name."""
    assert MACHINE.search(line) or REGISTRY.search(line)
