"""Write the table of runtime dependencies in SECURITY.md.

    python -m scripts.dependencies

Names and ranges are those of pyproject.toml, versions those of the lock files. Licences are the metadata of the
pinned versions, as pip reports them; dates are the upload times that the package index gives to `uv lock`. The last
column, the reason for a package, is written by hand; the script keeps it. Needs pip and uv beside this interpreter, and a
package index. The exit status is 1 if a package has no reason yet.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "SECURITY.md"
# The first file that pins a package counts. Later files belong to extras that cannot be installed together.
LOCKS = (
    "requirements.lock",
    "tests/clients/litellm/requirements.txt",
    "tests/clients/requirements-openai2.txt",
)
BEGIN, END = "<!-- dependencies: written by `make sbom` -->\n", "<!-- end of dependencies -->"
HEAD = "| package | needed by | range | pinned | licence | released | needed for |"
UNKNOWN = "?"


class Dependency(NamedTuple):
    """One row of the table; `lock` is the file that pins the version."""

    name: str
    needed_by: str
    range: str
    version: str
    lock: str


def dependencies() -> list[Dependency]:
    """Return the direct runtime dependencies, those of the core first. Raises `KeyError` if one is not pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {lock: pinned(ROOT / lock) for lock in LOCKS}
    found = []
    for needed_by, requirements in {
        "core": project["dependencies"],
        **project["optional-dependencies"],
    }.items():
        for requirement in requirements:
            name, allowed = re.match(r"([\w.-]+)(?:\[\w+\])?([^;]*)", requirement).groups()  # type: ignore[union-attr]
            lock = next(lock for lock in LOCKS if name in pins[lock])
            found.append(Dependency(name, needed_by, allowed.strip(), pins[lock][name], lock))
    return found


def pinned(lock: Path) -> dict[str, str]:
    """Return the version of each package in a lock file."""
    return dict(
        re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;\\]+)", lock.read_text(encoding="utf-8"), re.MULTILINE)
    )


def licence(metadata: Mapping[str, Any]) -> str:
    """Return the licence in a package's metadata as JSON: the expression, else the field's first line, else classifiers."""
    field = (metadata.get("license") or "").strip().partition("\n")[0]
    named = [
        each.rpartition(" :: ")[2] for each in metadata.get("classifier", ()) if each.startswith("License ::")
    ]
    return metadata.get("license_expression") or field or ", ".join(named) or UNKNOWN


def licences(found: Iterable[Dependency]) -> dict[str, str]:
    """Return the licence of each package at its pinned version, by pip's report of a dry run."""
    with TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--dry-run",
            "--ignore-installed",
            "--no-deps",
        ]
        wanted = [f"{each.name}=={each.version}" for each in found]
        subprocess.run([*command, "--report", report, *wanted], check=True)
        installs = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {_normal(each["metadata"]["name"]): licence(each["metadata"]) for each in installs}


def dates(found: Iterable[Dependency]) -> dict[str, str]:
    """Return the day on which each pinned version's last file was uploaded, by `uv lock`."""
    by_lock: dict[str, list[Dependency]] = {}
    for each in found:
        by_lock.setdefault(each.lock, []).append(each)
    released = {}
    for packages in by_lock.values():
        wanted = [f"{each.name}=={each.version}" for each in packages]
        with TemporaryDirectory() as folder:
            text = f'[project]\nname = "dates"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = {wanted}\n'
            Path(folder, "pyproject.toml").write_text(text, encoding="utf-8")
            uv = Path(sys.executable).parent / "uv"
            subprocess.run([uv, "lock", "-q", "--directory", folder], check=True)
            locked = tomllib.loads(Path(folder, "uv.lock").read_text(encoding="utf-8"))["package"]
        for package in locked:
            files = [*package.get("wheels", ()), *([package["sdist"]] if "sdist" in package else [])]
            times = [str(file["upload-time"])[:10] for file in files if "upload-time" in file]
            released[_normal(package["name"])] = max(times, default=UNKNOWN)
    return released


def rows(page: str) -> list[list[str]]:
    """Return the cells of the table on a page."""
    lines = page.partition(BEGIN)[2].partition(END)[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def written(
    page: str, found: Iterable[Dependency], licensed: Mapping[str, str], dated: Mapping[str, str]
) -> str:
    """Return the page with its table anew; the last column is kept by package."""
    reasons = {row[0]: row[-1] for row in rows(page)}
    table = [HEAD, "|" + "---|" * HEAD.count(" | ") + "---|"]
    for each in found:
        name = _normal(each.name)
        cells = (each.name, each.needed_by, f"`{each.range}`", each.version, licensed[name], dated[name])
        table.append(f"| {' | '.join(cells)} | {reasons.get(each.name, UNKNOWN)} |")
    front, begin, rest = page.partition(BEGIN)
    return front + begin + "\n".join(table) + "\n" + "".join(rest.partition(END)[1:])


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> int:
    """Write the table; return the exit status."""
    found = dependencies()
    page = written(PAGE.read_text(encoding="utf-8"), found, licences(found), dates(found))
    PAGE.write_text(page, encoding="utf-8")
    unknown = [row[0] for row in rows(page) if UNKNOWN in row]
    if unknown:
        print(f"SECURITY.md: complete the row of {', '.join(unknown)}", file=sys.stderr)
    return bool(unknown)


if __name__ == "__main__":
    sys.exit(main())
