"""Dependencies: pins have hashes, no file names an index, and SECURITY.md lists the pins."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from scripts import dependencies

ROOT = Path(__file__).parents[1]
LOCKS = [
    ROOT / "requirements.lock",
    *(
        path
        for path in sorted(ROOT.glob("*/**/requirements*.txt"))
        if not path.relative_to(ROOT).parts[0].startswith(".")
    ),
]
PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
PIN = re.compile(r"([a-z0-9][a-z0-9.-]*)(\[[a-z0-9,-]+\])?==[\w.+!-]+( ; [\w.'\" ()<>=!]+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def unpinned(text: str) -> list[str]:
    """Return the lines of a lock file that are not an exact version with hashes."""
    wrong = []
    for statement in text.replace("\\\n", " ").splitlines():
        if statement.strip() and not statement.startswith("#"):
            pin, *hashes = re.split(r"\s+(?=--hash)", statement.strip())
            right = PIN.fullmatch(pin) and hashes and all(HASH.fullmatch(each) for each in hashes)
            wrong += [] if right else [statement]
    return wrong


def test_every_lock_file_is_found() -> None:
    """The search finds each file from which an environment is built."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = set(re.findall(r"-r (\S+\.(?:txt|lock))", makefile)) - {"out/runtime.txt"}
    found = {path.relative_to(ROOT).as_posix() for path in LOCKS}
    assert installed <= found
    assert set(dependencies.LOCKS) <= found
    assert len(found) >= 7


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lock_file_pins_each_package_with_hashes(path: Path) -> None:
    """A lock file holds exact versions with SHA-256 hashes, and no option, address or index."""
    assert unpinned(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "redis==8.1.0",
        "redis>=8 --hash=sha256:" + "0" * 64,
        "redis==8.1.0 --hash=md5:" + "0" * 32,
        "redis @ git+ssh://host/redis --hash=sha256:" + "0" * 64,
        "-i" + " simple",
        "-" + "-trusted-host host",
        "-r other.txt",
    ],
)
def test_loose_requirement_is_found(line: str) -> None:
    """The search finds each kind of requirement that a third party could change."""
    assert unpinned(line) == [line]
    assert unpinned(f"attrs==1.0 \\\n    --hash=sha256:{'a' * 64}\n{line}") == [line]


def test_make_installs_lock_files_with_hashes_required() -> None:
    """Each installation from a lock file refuses a package whose hash differs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if re.search(r"pip install .*-r ", line)]
    assert len(installs) >= 5
    assert [line for line in installs if "--require-hashes" not in line] == []


def test_table_names_the_pinned_runtime_dependencies() -> None:
    """Packages, extras, ranges and versions of the table are those of pyproject.toml and the lock files."""
    listed = [
        (name, by, allowed.strip("`"), version) for name, by, allowed, version, *_ in dependencies.rows(PAGE)
    ]
    assert listed == [tuple(each)[:4] for each in dependencies.dependencies()], "run `make sbom`"


def test_table_has_the_licences_of_the_installed_packages() -> None:
    """The licence of each installed package at its pinned version is that of its metadata."""
    compared = 0
    for name, _, _, version, licence, *_ in dependencies.rows(PAGE):
        try:
            installed = distribution(name)
        except PackageNotFoundError:  # of an extra that has an environment of its own
            continue
        if installed.version == version:
            assert licence == dependencies.licence(installed.metadata.json), name
            compared += 1
    assert compared >= 15


def test_table_is_complete() -> None:
    """Each row has a licence, the day of the release, and a reason."""
    for name, *_, licence, released, reason in dependencies.rows(PAGE):
        assert licence not in ("", dependencies.UNKNOWN), name
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", released), name
        assert len(reason) > 10, name


def test_table_written_again_is_the_same() -> None:
    """The command that writes the table keeps the reasons and the rest of the page."""
    rows = dependencies.rows(PAGE)
    licences, dates = {row[0]: row[4] for row in rows}, {row[0]: row[5] for row in rows}
    found = dependencies.dependencies()
    assert dependencies.written(PAGE, found, licences, dates) == PAGE
    fewer = dependencies.written(PAGE, found[1:], licences, dates)
    assert (
        dependencies.rows(dependencies.written(fewer, found, licences, dates))[0][-1] == dependencies.UNKNOWN
    )


@pytest.mark.parametrize(
    ("metadata", "licence"),
    [
        ({"license_expression": "MIT", "license": "other"}, "MIT"),
        ({"license": "MIT License\n\nPermission is"}, "MIT License"),
        ({"classifier": ["License :: OSI Approved :: BSD License", "Typing :: Typed"]}, "BSD License"),
        ({}, "?"),
    ],
)
def test_licence_is_read_from_the_best_field(metadata: dict[str, object], licence: str) -> None:
    """The expression counts first, then the field's first line, then classifiers."""
    assert dependencies.licence(metadata) == licence
