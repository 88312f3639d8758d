"""The wheel and the source archive: content, metadata, and an installation outside the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = f"cachemw-{PROJECT['version']}"
BUILT = (f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz")
SHIPPED = {".py", ".lua", ".html", ".md"}
_BUILD = (
    "import sys; from flit_core import buildapi as b; b.build_wheel(sys.argv[1]); b.build_sdist(sys.argv[1])"
)
# Imports each module but those of packages that are no dependency of the core.
_IMPORT = """
import importlib, pkgutil, cachemw
for module in pkgutil.walk_packages(cachemw.__path__, "cachemw."):
    if "litellm" not in module.name:
        importlib.import_module(module.name)
print(cachemw.__file__)
"""


def built(source: Path, target: Path) -> list[Path]:
    """Build both from a folder that holds the project, and return them."""
    target.mkdir()
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run([sys.executable, "-c", _BUILD, target], cwd=source, env=environment, check=True)
    return [target / name for name in BUILT]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The wheel and the source archive."""
    return built(ROOT, tmp_path_factory.mktemp("built") / "dist")


def package() -> set[str]:
    """Return the files of the package that belong into a wheel."""
    found = [path for path in (ROOT / "cachemw").rglob("*") if path.suffix in SHIPPED]
    return {path.relative_to(ROOT).as_posix() for path in found} | {"cachemw/py.typed"}


def test_wheel_content_is_the_package_and_its_metadata(files: list[Path]) -> None:
    """The wheel holds every module, script and page of the package and the licence, and no other file."""
    with zipfile.ZipFile(files[0]) as wheel:
        names = set(wheel.namelist())
    metadata = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == package() | metadata | {f"{NAME}.dist-info/licenses/LICENSE"}
    assert any(name.endswith(".lua") for name in names)
    assert "cachemw/apps/demo/page.html" in names


def test_source_archive_content_is_the_package_and_its_description(files: list[Path]) -> None:
    """The source archive holds enough to build the wheel, and no tests, benchmarks or caches."""
    with tarfile.open(files[1]) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert names == package() | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"}


def test_built_files_name_no_path_of_the_machine(files: list[Path]) -> None:
    """Neither the folder that was built from nor the home of the user is in any file."""
    with zipfile.ZipFile(files[0]) as wheel:
        texts = {name: wheel.read(name) for name in wheel.namelist()}
    for path in (ROOT, Path.home(), files[0].parent):
        if path != Path(path.anchor):
            assert [name for name, text in texts.items() if f"{path}/".encode() in text] == []


def test_builds_from_two_folders_are_byte_equal(files: list[Path], tmp_path: Path) -> None:
    """The same source gives the same bytes in any folder, with any permissions and file times."""
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, copy / name)
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "cachemw", copy / "cachemw", ignore=leave, copy_function=shutil.copyfile)
    for number, path in enumerate(copy.rglob("*")):
        os.utime(path, (1_600_000_000 + number,) * 2)
    again = built(copy, tmp_path / "dist")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in files]


def test_wheel_metadata_is_that_of_the_project(files: list[Path]) -> None:
    """Name, version, Python, licence, dependencies, extras and the command are those of pyproject.toml."""
    with zipfile.ZipFile(files[0]) as wheel:
        metadata = Parser().parsestr(wheel.read(f"{NAME}.dist-info/METADATA").decode())
        commands = wheel.read(f"{NAME}.dist-info/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == PROJECT["license"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    required = [re.split(r"\s*;", each)[0] for each in metadata.get_all("Requires-Dist", [])]
    extras = [each for extra in PROJECT["optional-dependencies"].values() for each in extra]
    assert sorted(required) == sorted(re.split(r"\s*;", each)[0] for each in PROJECT["dependencies"] + extras)
    assert "cachemw=cachemw.apps.cli:main" in commands.replace(" ", "")


def test_wheel_runs_outside_the_repository(files: list[Path], tmp_path: Path) -> None:
    """In an environment of its own, every module imports, and the commands find their files."""
    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", files[0]], check=True)
    # The dependencies are those of this environment; a .pth of its own, as of an editable cachemw, does not
    # count.
    (site,) = clean.glob("lib/python*/site-packages")
    (site / "parent.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=outside, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert Path(run(python, "-c", _IMPORT).strip()) == site / "cachemw" / "__init__.py"
    command = clean / "bin" / "cachemw"
    assert run(command, "--version") == f"cachemw {PROJECT['version']}\n"
    for name in ("demo", "gateway", "proxy", "explain", "doctor"):
        assert name in run(command, "--help")
    run(command, "demo", "--conversations", "1", "--html", "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
