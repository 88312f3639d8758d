"""Every snippet of the README and the docs is run, and prints what the page says it prints.

The snippets of a page run in their order and share their names. A `text` block is what the snippet before it
prints, in part. A `toml` block becomes ./cachemw.toml, a `yaml` block ./config.yaml. What follows
`<!-- skip: next -->` is not run: it would install something or run these tests. The addresses that pages name are
served by fixtures.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import LANGUAGES, PAGES, Page, Shell


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_run(
    path: Path, workspace: str, redis_url: str, ports: dict[str, str], shell: Shell
) -> None:
    """A reader who copies a page's snippets sees what the page says."""
    if path.name == "litellm.md":
        pytest.skip("its snippets need the LiteLLM proxy; tests/clients/litellm runs them")
    replaced = {
        "https://my-workspace.cloud.databricks.com": workspace,
        "redis://localhost:6379/0": redis_url,
    }
    Page(path, replaced | ports, shell).run()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_snippet_is_left_out(path: Path) -> None:
    """Each fenced block names a language that is run or compared."""
    fences = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert set(fences[::2]) <= {f"```{name}" for name in LANGUAGES}
    assert set(fences[1::2]) <= {"```"}
