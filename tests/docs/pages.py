"""The pages, and a runner for the snippets of one page."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from cachemw import Settings

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = ("python", "bash", "text", "toml", "yaml")


class Shell:
    """Run bash snippets. `close` ends the processes that they leave running."""

    def __init__(self) -> None:
        self._groups: list[int] = []

    def run(self, text: str) -> str:
        """Return a snippet's output, both streams together. The snippet must succeed."""
        for name in ("curl", "make"):
            if re.search(rf"^{name} ", text, re.MULTILINE) and shutil.which(name) is None:
                pytest.skip(f"there is no {name} on PATH")
        with Path("printed").open("w+", encoding="utf-8") as file:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", text],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            status = process.wait(600)
            file.seek(0)
            printed = file.read()
        assert status == 0, f"exit code {status}:\n{text}\n{printed}"
        return printed

    def close(self) -> None:
        """End all processes that still run."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)


class Page:
    """One page's snippets, run in their order; `replaced` maps words of the page to their replacements."""

    def __init__(self, path: Path, replaced: Mapping[str, str], shell: Shell) -> None:
        text = path.read_text(encoding="utf-8")
        for word, meant in replaced.items():
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", meant, text)
        self._document = Document(text, str(path))
        self._shell, self._python, self._printed = shell, PythonEvaluator(), ""
        for parser in (SkipParser(), *(CodeBlockParser(name, getattr(self, name)) for name in LANGUAGES)):
            for region in parser(self._document):
                self._document.add(region)

    def run(self) -> None:
        """Run all snippets."""
        for example in self._document:
            example.evaluate()

    def python(self, example: Example) -> None:
        """Run a snippet with the names of those before it."""
        printed = io.StringIO()
        with redirect_stdout(printed):
            self._python(example)
        self._printed = printed.getvalue()

    def bash(self, example: Example) -> None:
        """Run commands."""
        self._printed = self._shell.run(example.parsed)

    def text(self, example: Example) -> None:
        """Compare a block of output with the printed text."""
        documented, printed = _lines(example.parsed), _lines(self._printed)
        assert documented in printed, f"line {example.line} has:\n{documented}\nprinted was:\n{printed}"

    def toml(self, example: Example) -> None:
        """Write the settings file; all of its keys must be allowed."""
        Path("cachemw.toml").write_text(example.parsed, encoding="utf-8")
        Settings()

    def yaml(self, example: Example) -> None:
        """Write LiteLLM's configuration file."""
        Path("config.yaml").write_text(example.parsed, encoding="utf-8")


def _lines(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
