"""The page that the contract tests write names the pinned versions."""

from __future__ import annotations

import re

import pytest

from tests.clients.run import ENVIRONMENTS, ROOT
from tests.docs.test_pages import rows


def test_page_of_compatibility_names_the_pinned_versions() -> None:
    """Each environment on the page has the versions of its lock file; `make test-clients` updates it."""
    listed = {row[0]: row[1].split(", ") for row in rows("compatibility.md", "environment")}
    if missing := ENVIRONMENTS.keys() - listed.keys():
        pytest.fail(f"run `make test-clients`: {', '.join(missing)} was never run")
    for name, environment in ENVIRONMENTS.items():
        lock = (ROOT / environment.lock).read_text(encoding="utf-8")
        pinned = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==(\S+)", lock, re.MULTILINE))
        assert listed[name] == [f"{package} {pinned[package]}" for package in environment.packages]
