"""Settings: where they come from, and how each wrong one is refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

import cachemw
from cachemw.errors import ConfigError
from cachemw.settings import Settings

PRICE = {"input": 1, "write_5m": 1.25, "write_1h": 2, "read": 0.1, "output": 5}


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave nothing set outside the test."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("CACHEMW_"):
            monkeypatch.delenv(name)


def refusal(**fields: Any) -> str:
    """Return the text of the `ConfigError` that fields raise."""
    with pytest.raises(ConfigError) as caught:
        Settings(**fields)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_settings_have_safe_defaults() -> None:
    """The defaults are a memory store, added breakpoints, and the provider of the client's URL."""
    settings = Settings()
    assert (settings.provider, settings.store, settings.mode, settings.namespace) == (
        "auto",
        "memory://",
        "optimize",
        "default",
    )
    assert settings.secret is settings.ttl is settings.min_tokens is None


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("provider", "databrick", ["'databrick'", "'databricks'", "'auto'"]),
        ("provider", None, ["None", "'databricks'"]),
        ("store", "redis", ["URL", "memory://"]),
        ("store", 5, ["string"]),
        ("mode", "optimise", ["'optimise'", "'optimize'", "'observe'", "'off'"]),
        ("namespace", "", ["''", "1 character"]),
        ("namespace", "x" * 257, ["256"]),
        ("cohort_groups", {"team-*": 3}, ["team-*", "3", "string"]),
        ("cohort_groups", "team-*", ["'team-*'", "dictionary"]),
        ("secret", "", ["at least 1"]),
        ("secret", 5, ["string"]),
        ("models", 3, ["3", "dictionary"]),
        ("models", {"ours": "claude-opus-99"}, ["'ours'", "'claude-opus-99'", "claude-opus-5"]),
        ("models", {"ours": 3}, ["3", "string"]),
        ("mark_kinds", {"txt": "on"}, ["'txt'", "did you mean 'text'"]),
        ("mark_kinds", {"opaque": "on"}, ["'opaque'", "tool_call"]),
        ("mark_kinds", {"text": "yes"}, ["'yes'", "'on'", "'off'", "'learn'"]),
        ("min_tokens", -1, ["-1", "0"]),
        ("min_tokens", "many", ["'many'", "integer"]),
        ("min_tokens", 1.5, ["1.5", "integer"]),
        ("prices", {"m": 5}, ["5", "dictionary"]),
        ("prices", {"m": {"input": 1}}, ["'m'", "lacks", "write_5m"]),
        ("prices", {"m": {**PRICE, "reads": 1}}, ["'reads'", "did you mean 'read'"]),
        ("prices", {"m": {**PRICE, "read": -1}}, ["'read'", "-1", "from 0"]),
        ("prices", {"m": {**PRICE, "read": float("nan")}}, ["nan", "finite"]),
        ("prices", {"m": {**PRICE, "read": float("inf")}}, ["inf", "finite"]),
        ("ttl", "2h", ["'2h'", "'5m'", "'1h'", "'auto'"]),
        ("tokens", "exact", ["'exact'", "'estimate'", "'tiktoken'"]),
        ("store_timeout_ms", 0, ["0", "1"]),
        ("store_timeout_ms", 10_001, ["10001", "10000"]),
        ("max_labels", -1, ["-1", "0"]),
        ("max_label_length", 0, ["0", "1"]),
        ("max_label_length", 257, ["257", "256"]),
        ("coalesce", "perhaps", ["'perhaps'", "boolean"]),
        ("coalesce_wait_ms", 0, ["0", "1"]),
        ("coalesce_wait_ms", 60_001, ["60001", "60000"]),
    ],
)
def test_wrong_value_is_named_with_the_allowed_ones(
    field: str, value: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting, its value and the allowed values are named, from an argument and to `Middleware` alike."""
    text = refusal(**{field: value})
    assert field in text
    assert [piece for piece in said if piece not in text] == []
    with pytest.raises(ConfigError, match=field):
        cachemw.Middleware(**{field: value})


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_every_setting_refuses_something(field: str) -> None:
    """No setting accepts every value."""
    assert field in refusal(**{field: object()})


def test_several_wrong_settings_are_named_together() -> None:
    """All wrong settings are named in one error."""
    text = refusal(mode="x", ttl="y", colour="z")
    assert all(piece in text for piece in ("mode", "'x'", "ttl", "'y'", "'colour'"))


# -- unknown names --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [("provder", "provider"), ("label_max", None), ("store_timeout", "store_timeout_ms"), ("zzz", None)],
)
def test_unknown_argument_names_the_nearest_setting(name: str, near: str | None) -> None:
    """An unknown name is an error with the nearest known one and all known ones."""
    text = refusal(**{name: "v"})
    assert f"no setting {name!r}" in text
    assert ("Did you mean" in text) is (near is not None)
    assert near is None or f"Did you mean {near!r}" in text
    assert all(known in text for known in Settings.model_fields)


@pytest.mark.parametrize("name", ["CACHEMW_PROVDER", "cachemw_provder"])
def test_unknown_variable_is_refused_without_its_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt variable is refused in any case, without its value in the message."""
    monkeypatch.setenv(name, "hunter2")
    text = refusal()
    assert "environment: there is no setting 'provder'. Did you mean 'provider'?" in text
    assert "hunter2" not in text


def test_unknown_key_of_the_file_is_refused() -> None:
    """A misspelt key of the file is refused too."""
    Path("cachemw.toml").write_text('provder = "databricks"')
    assert "no setting 'provder'. Did you mean 'provider'?" in refusal()


# -- where settings come from ---------------------------------------------------------------------


def test_settings_sources_have_a_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments win over the environment, the environment over the file, the file over the defaults."""
    assert Settings().mode == "optimize"
    Path("cachemw.toml").write_text('mode = "off"\nnamespace = "file"\nttl = "1h"')
    assert Settings().mode == "off"
    monkeypatch.setenv("CACHEMW_MODE", "observe")
    monkeypatch.setenv("CACHEMW_NAMESPACE", "environment")
    assert (Settings().mode, Settings().namespace, Settings().ttl) == ("observe", "environment", "1h")
    settings = Settings(mode="optimize")
    assert (settings.mode, settings.namespace, settings.ttl) == ("optimize", "environment", "1h")


def test_every_setting_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simple values stand as they are, tables as JSON."""
    given = {
        "provider": "databricks", "store": "redis://localhost:6379/0", "mode": "observe", "namespace": "n", "secret": "s",
        "cohort_groups": '{"team-*": "product"}', "models": '{"ours-*": "claude-opus-4-6"}', "mark_kinds": '{"text": "off"}', "min_tokens": "7",
        "prices": '{"m": {"input": 1, "write_5m": 1.25, "write_1h": 2, "read": 0.1, "output": 5}}', "ttl": "auto",
        "tokens": "tiktoken", "store_timeout_ms": "5", "max_labels": "3", "max_label_length": "9", "coalesce": "true",
        "coalesce_wait_ms": "7", "split_text": "1", "openai_hints": "1", "sort_tools": "no",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"CACHEMW_{name.upper()}", value)
    settings = Settings()
    assert settings.model_fields_set == set(given) == set(Settings.model_fields)
    assert settings.models == {"ours-*": "claude-opus-4-6"}
    assert settings.cohort_groups == {"team-*": "product"}
    assert settings.prices == {"m": PRICE}
    assert settings.secret is not None
    assert settings.secret.get_secret_value() == "s"
    assert (settings.min_tokens, settings.store_timeout_ms) == (7, 5)
    assert (settings.coalesce, settings.coalesce_wait_ms) == (True, 7)


def test_every_setting_can_come_from_a_file() -> None:
    """The file's tables are tables."""
    Path("cachemw.toml").write_text(
        'provider = "anthropic"\nsecret = "s"\nmin_tokens = 7\n[models]\nours = "claude-opus-4-6"\n[mark_kinds]\ntext = "off"\n'
        "[prices.m]\ninput = 1\nwrite_5m = 1.25\nwrite_1h = 2\nread = 0.1\noutput = 5\n"
    )
    settings = Settings()
    assert (settings.provider, settings.min_tokens, settings.models) == (
        "anthropic",
        7,
        {"ours": "claude-opus-4-6"},
    )
    assert settings.prices == {"m": PRICE}


def test_named_file_replaces_the_usual_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named file replaces the usual one; the rest of the order stays."""
    Path("cachemw.toml").write_text('mode = "observe"\nttl = "1h"')
    named = tmp_path / "other.toml"
    named.write_text('mode = "off"')
    loaded = Settings.load(named)
    assert isinstance(loaded, Settings)
    assert (loaded.mode, loaded.ttl) == ("off", None)
    assert Settings.load(str(named), mode="optimize").mode == "optimize"
    monkeypatch.setenv("CACHEMW_MODE", "optimize")
    assert Settings.load(named).mode == "optimize"
    named.write_text('provder = "x"')
    with pytest.raises(ConfigError, match="Did you mean 'provider'"):
        Settings.load(named)
    assert Settings().ttl == "1h"


@pytest.mark.parametrize("name", ["nowhere.toml", "."])
def test_missing_named_file_is_refused(name: str) -> None:
    """A named file must exist; the usual one need not."""
    with pytest.raises(ConfigError, match="there is no file"):
        Settings.load(name)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"provider = ", "cachemw.toml"),
        (b"secret = hunter2", "line 1"),
        (b"provider = '\xff'", "utf-8"),
        (b"[store]\nx = 1", "store"),
    ],
)
def test_file_that_is_no_toml_is_refused_without_its_text(content: bytes, said: str) -> None:
    """A file that is no TOML is named with its line, never with its text."""
    Path("cachemw.toml").write_bytes(content)
    text = refusal()
    assert said in text
    assert "hunter2" not in text


def test_file_without_permission_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file without permission is a wrong setting, not a crash."""

    def refuse(file: Any) -> None:
        raise PermissionError("not yours")

    Path("cachemw.toml").write_text("")
    monkeypatch.setattr(tomllib, "load", refuse)
    assert "cachemw.toml: not yours" in refusal()


def test_variable_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreadable table in the environment is named."""
    monkeypatch.setenv("CACHEMW_PRICES", "{hunter2")
    text = refusal()
    assert "prices" in text
    assert "JSON" in text
    assert "hunter2" not in text


# -- groups of namespaces -------------------------------------------------------------------------

GROUPS = {"team-a": "special", "team-*": "product", "batch[12]": "product"}


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("team-b", "team-c", True),
        ("team-b", "batch1", True),
        ("team-a", "team-b", False),  # the first pattern that fits decides
        ("team-b", "batch3", False),
        ("batch3", "batch4", False),
        ("batch3", "batch3", True),
        ("Team-b", "team-b", False),  # letters count as they are
    ],
)
def test_cohort_group_of_two_namespaces_is_one_only_if_declared(one: str, other: str, shared: bool) -> None:
    """Namespaces share statistics if the operator put them into one group; any other has its own."""
    settings = Settings(cohort_groups=GROUPS)
    assert (settings.cohort_group(one) == settings.cohort_group(other)) is shared
    assert Settings().cohort_group(one) != Settings().cohort_group(other) or one == other


@pytest.mark.parametrize("name", ["product", "group\x00product", "namespace\x00team-b"])
def test_cohort_group_of_a_namespace_with_its_name_stays_apart(name: str) -> None:
    """A namespace that is called like a group, or like the name of its statistics, does not enter it."""
    settings = Settings(cohort_groups=GROUPS)
    assert settings.cohort_group(name) not in {
        settings.cohort_group("team-b"),
        Settings().cohort_group("team-b"),
    }


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"store": "hunter2"}, {"store": ["redis://:hunter2@h"]}, {"store": "redis//:hunter2@h"}, {"secret": ["hunter2"]},
        {"secret": {"a": "hunter2"}}, {"secrets": "hunter2"}, {"store": "redis://:hunter2@h", "secret": "hunter2", "mode": "x"},
    ],
)  # fmt: skip
def test_errors_show_no_secret(fields: dict[str, Any]) -> None:
    """A value that may hold a password is never shown."""
    assert "hunter2" not in refusal(**fields)


@pytest.mark.parametrize(
    "url",
    [
        "foo://u:hunter2@h",
        "redis://u:hunter2@h:99999",
        "redis+cluster://u:hunter2@h/0",
        "memory://u:hunter2@h",
    ],
)
def test_store_of_an_unknown_scheme_is_refused_without_its_password(url: str) -> None:
    """A URL of an unknown store is refused when the middleware is made, without its password."""
    for engine in (cachemw.Middleware, cachemw.AsyncMiddleware):
        with pytest.raises(ConfigError, match="store") as caught:
            engine(store=url)
        assert "hunter2" not in str(caught.value)


def test_repr_shows_no_secret() -> None:
    """The repr of settings holds no password."""
    settings = Settings(store="redis://u:hunter2@localhost", secret="hunter2")
    assert "hunter2" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@localhost:6379/0",
        "redis://:hun@hunter2@localhost",
        "rediss://localhost?ssl_password=hunter2",
        "redis+sentinel://h:26379/main?sentinel_password=hunter2&ssl_certfile=x",
    ],
)
def test_settings_dump_leaves_out_the_stores_password(url: str) -> None:
    """Each serialised form of settings leaves the password out; the attribute itself stays usable."""
    settings = Settings(store=url, secret="hunter2")
    shown = [repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())]
    shown += [
        repr(settings.model_dump(mode="json")),
        repr(settings.model_copy(update={"mode": "off"}).model_dump()),
    ]
    assert [text for text in shown if "hunter2" in text] == []
    assert settings.model_dump()["store"].startswith(url.partition("://")[0] + "://")
    assert settings.store == url
    assert Settings.model_validate(settings.__dict__).store == url


def test_settings_with_a_store_without_a_password_dump_its_url() -> None:
    """A URL without a secret is written as it is."""
    assert Settings(store="redis://localhost:6379/1").model_dump()["store"] == "redis://localhost:6379/1"


def test_settings_are_frozen() -> None:
    """Settings do not change after construction."""
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.mode = "off"


def test_middleware_takes_settings_or_fields() -> None:
    """A middleware takes a settings object or fields, not both."""
    for engine in (cachemw.Middleware, cachemw.AsyncMiddleware):
        with pytest.raises(ConfigError, match="not both"):
            engine(Settings(), mode="off")
