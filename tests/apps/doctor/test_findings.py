"""Findings and advice without a server."""

from __future__ import annotations

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from cachemw.apps.doctor import checkup, examine
from cachemw.apps.doctor.findings import Finding, advice
from tests.apps.doctor.doctor import Answering, levels, look


def test_advice_drops_the_arguments_that_a_server_quotes() -> None:
    """Servers quote unknown commands, and arguments may hold a password."""
    error = ResponseError("unknown command 'AUTH', with args beginning with: 'worker' 'hunter2' ")
    assert advice(error) == "The server refuses a command of cachemw. (ResponseError: unknown command 'AUTH')"


@pytest.mark.parametrize(("taken", "level"), [(0.003, "ok"), (0.015, "warn"), (0.025, "bad")])
def test_latency_is_judged_by_the_timeout(monkeypatch: pytest.MonkeyPatch, taken: float, level: str) -> None:
    """Above the timeout it is bad, above half of it a warning."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(examine.time, "perf_counter", lambda: next(ticks) * taken)
    assert examine._latency(Answering([]), [("GET", "a")], 20).level == level


@pytest.mark.parametrize(
    ("off", "found"),
    [
        (0.4, ("ok", "agree within a second.")),
        (90, ("warn", "The server's clock is 90 s ahead. Prefixes use it")),
        (-3600, ("warn", "The server's clock is 3600 s behind.")),
    ],
)
def test_clock_difference_is_named(
    off: float, found: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finding names the difference and its effect."""
    monkeypatch.setattr(examine.time, "time", lambda: 1e9)
    there = 1e9 + off
    finding = examine._clock(Answering([[b"%d" % there, b"%d" % (there % 1 * 1e6)]]))
    assert finding.level == found[0]
    assert found[1] in finding.words


@pytest.mark.parametrize(
    ("amount", "text"),
    [(0, "0.0 bytes"), (1_500, "1.5 KB"), (2.5e9, "2.5 GB"), (9e15, "9,000.0 TB")],
)
def test_size_has_a_readable_unit(amount: float, text: str) -> None:
    """Sizes are shown in the largest fitting unit."""
    assert checkup.size(amount) == text


def test_advice_on_a_permission_error_names_the_rule() -> None:
    """The server's text follows the advice."""
    words = advice(NoPermissionError("User x has no permissions to run the 'get' command"))
    assert words.startswith("The user lacks a permission. Give it the ACL rule in docs/stores.md. (NoPerm")
    assert Finding("bad", "scripts", words).words == words


def test_doctor_of_a_memory_store_is_ok(capsys: pytest.CaptureFixture[str]) -> None:
    """The memory store works for one worker, and the finding says so."""
    code, found, printed = look("memory://", capsys)
    assert (code, levels(found)) == (0, {"server": "ok"})
    assert "For several workers, name a Redis." in found["server"][0]
    assert "  store = memory://\n" in printed


@pytest.mark.parametrize("url", ["redis://host:port", "http://host", "nonsense", "redis://localhost?x=1"])
def test_doctor_with_a_wrong_url_exits_with_2(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong URL is explained in one sentence."""
    code, found, printed = look(url, capsys)
    assert (code, found) == (2, {})
    assert printed.startswith("cachemw: store: ")
