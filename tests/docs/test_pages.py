"""Pages and code name the same things: links, commands, options, settings, reasons, counters."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic_core import PydanticUndefined

import cachemw
from cachemw.apps.cli import app
from cachemw.core.billing import usage
from cachemw.core.billing.diagnose import MissReason
from cachemw.core.planner.plan import Reason
from cachemw.core.rules.providers import PROVIDERS
from cachemw.core.rules.types import Kind
from tests.docs.pages import PAGES, ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```[a-z]+\n(.*?)```|`([^`\n]+)`", re.DOTALL)
COUNTER = re.compile(r"""(?:count|counters\.add|Guard)\((?:self\._mw, |mw, )?f?"([a-z_]+\.?[a-z_]*)""")


def text(page: str) -> str:
    """Return a page of the docs."""
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def code(path: Path) -> Iterator[str]:
    """Yield the lines of a page's blocks and spans of code."""
    for block, span in CODE.findall(path.read_text(encoding="utf-8")):
        yield from (block or span).splitlines()


def rows(page: str, title: str) -> list[list[str]]:
    """Return the cells of the table whose first column has this title."""
    lines = text(page).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def names(page: str, title: str) -> list[str]:
    """Return the spans of code in the first cells of a table."""
    return [name for row in rows(page, title) for name in re.findall(r"`([^`]+)`", row[0])]


def slugs(path: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_a_page_resolve(path: Path) -> None:
    """Each relative link leads to a file of the project and a heading in it."""
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in slugs(target), link


def test_index_links_every_page() -> None:
    """The index leads to each page."""
    linked = {Path(link).name for link in LINK.findall(text("index.md"))}
    assert {path.name for path in PAGES[1:]} - linked == {"index.md"}


def test_the_readme_says_one_figure() -> None:
    """The percentages in the text are those of the table, and the demo prints the table."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    said = re.findall(r"(\d+\.\d) %", page)
    assert said
    assert [figure for figure in said if f"{figure}%" not in page] == []


def test_make_targets_of_the_pages_exist() -> None:
    """Each `make X` of a page is a target of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = {
        target
        for path in PAGES
        for line in code(path)
        for target in re.findall(r"\bmake (?:PYTHON=\S+ )?([a-z][a-z-]*)", line)
    }
    assert named - targets == set()
    assert {"demo", "test", "check"} <= named


def commands() -> dict[str, Any]:
    """Return the commands of the command line."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(command: Any) -> set[str]:
    """Return the names of a command's options and of their opposites."""
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def test_commands_and_options_of_the_pages_exist() -> None:
    """Each `cachemw X --y` of a page can be called."""
    found = commands()
    named = set()
    for path in PAGES:
        for line in code(path):
            for name, rest in re.findall(r"(?:^|`)cachemw ([a-z]+)\b(.*)", line):
                named.add(name)
                assert name in found, f"{path.name}: {line}"
                assert set(re.findall(r"(?<!\S)--[a-z0-9-]+", rest)) <= options(found[name]), (
                    f"{path.name}: {line}"
                )
    assert named == set(found)


def test_page_of_the_gateway_describes_every_option() -> None:
    """The page has each option with its default."""
    listed = {row[0].strip("`"): row[1].strip("`") for row in rows("simulated-gateway.md", "option")}
    meant = {}
    for option in commands()["gateway"].params:
        default = {True: "on", False: "off", None: "the model's"}.get(option.default, str(option.default))
        meant[option.opts[0]] = str(option.default) if type(option.default) in (int, float) else default
    assert listed == meant


def test_page_of_the_proxy_describes_every_option() -> None:
    """The page has exactly the options of the command."""
    listed = [name for row in rows("proxy.md", "option") for name in re.findall(r"--[a-z-]+", row[0])]
    assert sorted(listed) == sorted(options(commands()["proxy"]) - {"--help"})


def test_page_of_settings_describes_every_setting() -> None:
    """The page has exactly the settings of the code, with their defaults."""
    listed = {
        row[0].strip("`"): ast.literal_eval(row[1].strip("`")) for row in rows("settings.md", "setting")
    }
    defaults = {
        name: field.default if field.default is not PydanticUndefined else {}
        for name, field in cachemw.Settings.model_fields.items()
    }
    assert listed == defaults


def test_pages_describe_every_reason() -> None:
    """Each reason for a breakpoint, for a skipped request and for a miss has its row, with advice."""
    listed = re.findall(
        r"^\| `([a-z_]+)` \|", text("how-it-decides.md").partition("## Reasons")[2], re.MULTILINE
    )
    assert sorted(listed) == sorted(reason.value for reason in Reason)
    skips = {reason.value for reason in list(Reason)[list(Reason).index(Reason.BELOW_MINIMUM) :]}
    assert {name.removeprefix("skip.") for name in names("troubleshooting.md", "counter")} >= skips
    assert names("reports.md", "reason") == [reason.value for reason in MissReason]


def test_page_of_reports_describes_every_usage_rule() -> None:
    """The page names each rule for reading usage."""
    _, table, _ = re.split(
        "^=.*=$", (inspect.getdoc(usage) or "").replace("=\n\n", "=\n"), flags=re.MULTILINE
    )
    assert names("reports.md", "rule") == [line.split()[0] for line in table.splitlines() if line]


def test_page_of_counters_describes_every_counter() -> None:
    """The page names each counter in the code, by its first part if the rest varies."""
    listed = {name.partition("<")[0].rstrip(".") for name in names("counters.md", "counter")}
    counted = {
        found.rstrip(".")
        for path in (ROOT / "cachemw").rglob("*.py")
        for found in COUNTER.findall(path.read_text(encoding="utf-8"))
    }
    assert counted > {"skip", "fail", "refused", "settle.no_usage", "client.body"}
    assert {name for name in counted if name not in listed and name.partition(".")[0] not in listed} == set()
    bodies = {
        found
        for path in (ROOT / "cachemw" / "core").rglob("*.py")
        for found in re.findall(r'BodyError\("(\w+)"\)', path.read_text(encoding="utf-8"))
    }
    assert {word for word in bodies if f"`{word}`" not in text("counters.md")} == set()


def test_table_of_kinds_matches_the_providers() -> None:
    """The table of kinds has the values of each provider's row."""
    providers = ["databricks", "anthropic", "openrouter", "litellm"]
    listed = {row[0].strip("`"): row[1:] for row in rows("how-it-decides.md", "kind")}
    meant = {
        kind.value: [PROVIDERS[name].kinds[kind] for name in providers]
        for kind in Kind
        if kind is not Kind.OPAQUE
    }
    assert listed == meant


def test_table_of_layers_matches_import_linter() -> None:
    """The table has the layers of import-linter's contract, in their order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(c for c in project["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    layers = [
        part.strip().removeprefix("cachemw.") for line in contract["layers"] for part in line.split(":")
    ]
    assert names("../CONTRIBUTING.md", "layer") == layers
