"""The guide to LiteLLM, run unchanged: its config starts the real proxy."""

from __future__ import annotations

import pytest

pytest.importorskip("litellm", reason="litellm is not installed here; make test-clients")

from tests.docs.conftest import ports, redis_url, shell, workspace
from tests.docs.pages import ROOT, Page, Shell

__all__ = ["ports", "redis_url", "shell", "workspace"]

pytestmark = pytest.mark.filterwarnings("ignore")  # LiteLLM's own warnings are no errors here


def test_guide_to_litellm_prints_its_documented_output(
    workspace: str, redis_url: str, ports: dict[str, str], shell: Shell
) -> None:
    """A user who copies the guide's snippets sees the documented output."""
    replaced = {
        "https://my-workspace.cloud.databricks.com": workspace,
        "redis://localhost:6379/0": redis_url,
    }
    Page(ROOT / "docs" / "litellm.md", replaced | ports, shell).run()
