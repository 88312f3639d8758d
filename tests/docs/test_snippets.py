"""Run every snippet of the README and the docs, and compare its output with the page.

The snippets of a page run in their order and share their names. A `text` block is a part of the output
of the snippet before it. A `toml` block becomes ./cachemw.toml, a `yaml` block ./config.yaml. The block after
`<!-- skip: next -->` is not run: it would install packages or run these tests. Fixtures serve the addresses that pages
name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import LANGUAGES, PAGES, Page, Shell


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_of_a_page_print_the_documented_output(
    path: Path, workspace: str, redis_url: str, ports: dict[str, str], shell: Shell
) -> None:
    """A reader who copies a page's snippets sees the documented output."""
    if path.name == "litellm.md":
        pytest.skip("its snippets need the LiteLLM proxy; tests/clients/litellm runs them")
    replaced = {
        "https://my-workspace.cloud.databricks.com": workspace,
        "redis://localhost:6379/0": redis_url,
    }
    Page(path, replaced | ports, shell).run()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_snippets_of_a_page_have_known_languages(path: Path) -> None:
    """Each fenced block names a language that the tests run or compare."""
    fences = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
    assert set(fences[::2]) <= {f"```{name}" for name in LANGUAGES}
    assert set(fences[1::2]) <= {"```"}
