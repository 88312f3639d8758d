"""The doctor's command for tests, the ACL rule of docs/stores.md, and users with and without it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cachemw.apps.cli import main

# The tests use the ACL rule as docs/stores.md states it.
PAGE = (Path(__file__).parents[3] / "docs" / "stores.md").read_text(encoding="utf-8")


def _rule(pattern: str) -> str:
    (found,) = set(re.findall(pattern, PAGE))
    return str(found)


NEEDED = _rule(r"resetkeys ~cachemw:\* -@all (.*)")
ASKED = _rule(r"`(\+info [^`]*)`")
CLUSTERED = _rule(r"`(\+cluster\|slots[^`]*)`")
NUMBERED = _rule(r"`(\+select)`")
USERS = {
    "worker": f"~cachemw:* -@all {NEEDED}",
    "doctor": f"~cachemw:* -@all {NEEDED} {ASKED}",
    "numbered": f"~cachemw:* -@all {NEEDED} {ASKED} {NUMBERED}",
    "stranger": "~others:* +@all",
    "scriptless": "~cachemw:* +@all -evalsha",
    "half": f"~cachemw:* -@all {NEEDED} {ASKED} -get",
    "inside": "~cachemw:* +@all -setrange",
}
ACL = [word for name, rule in USERS.items() for word in ("--user", name, "on", ">pw", *rule.split())]


def look(
    url: str, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[int, dict[str, list[str]], str]:
    """Run the command; return its exit code, its findings by subject ("level words"), and its output."""
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--store", url, *options])
    printed = capsys.readouterr()
    found: dict[str, list[str]] = {}
    for line in printed.out.partition("\n\n")[0].splitlines():
        level, about, words = line.split(maxsplit=2)
        found.setdefault(about, []).append(f"{level} {words}")
    return int(left.value.code or 0), found, printed.out + printed.err


def levels(found: dict[str, list[str]]) -> dict[str, str]:
    """Return the levels of each subject."""
    return {about: ",".join(words.split()[0] for words in lines) for about, lines in found.items()}


class Answering:
    """A link to no server, with given replies."""

    def __init__(self, replies: list[Any]) -> None:
        self._replies = replies

    def execute(self, commands: Any, seconds: float) -> list[Any]:
        return self._replies
