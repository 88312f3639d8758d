"""Names from files, settings and servers in terminal output, in errors and on the page."""

from __future__ import annotations

import re
import socket
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import orjson
import pytest

import cachemw
from cachemw.apps.cli import main
from cachemw.apps.demo.outcome import Comparison, Point, PolicyOutcome
from cachemw.apps.demo.page import page
from cachemw.apps.proxy.server import ProxyOptions
from cachemw.core.billing.usage import Usage
from cachemw.errors import ConfigError
from tests import hostile
from tests.stores.links import Impostor, ponging

MODEL = "claude-sonnet-4-6"
names = pytest.mark.parametrize("name", hostile.NAMES.values(), ids=hostile.NAMES)
# Names that JSON, an environment variable or a file name cannot carry.
IN_JSON = {kind: name for kind, name in hostile.NAMES.items() if kind != "surrogate"}
IN_FILES = {kind: name for kind, name in hostile.NAMES.items() if "\0" not in name and "/" not in name} | {
    "tag that closes nothing": "[red]a[" + "]b"
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder without a settings file."""
    monkeypatch.chdir(tmp_path)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Run a command and return the lines of both streams; each must be visible characters only."""
    with pytest.raises(SystemExit):
        main(arguments)
    out, err = capsys.readouterr()
    lines = [*out.split("\n"), *err.split("\n")]
    assert [line for line in lines if not line.isprintable()] == []
    return lines


def quoted(name: str) -> str:
    """Return a name as a string of a TOML file."""
    return '"' + "".join(f"\\U{ord(each):08x}" for each in name) + '"'


def body(**changes: object) -> bytes:
    """Return a request body as one line."""
    return orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **changes})


@pytest.mark.parametrize("name", IN_JSON.values(), ids=IN_JSON)
def test_explain_hostile_request_prints_visible_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Names in a body add no line, no colour and no control character."""
    tool = {"type": "function", "function": {"name": name, "parameters": {name: name}}}
    messages = [{"role": "system", "content": name * 2_000}, {"role": "user", "content": name, "name": name}]
    whole = body(model=name, tools=[tool], messages=messages, **{f"{name}key": name})
    marked = body(messages=[{"role": "system", "content": "Hello. " * 2_000}], tools=[tool])
    Path("bodies.jsonl").write_bytes(whole + b"\n" + marked + b"\n" + marked)
    lines = printed(capsys, "explain", "bodies.jsonl")
    assert sum(line.startswith("Request ") for line in lines) == 3
    assert not any("forged" in line for line in lines)


@pytest.mark.parametrize("name", IN_JSON.values(), ids=IN_JSON)
@pytest.mark.parametrize("command", ["explain", "demo"])
def test_file_with_hostile_keys_is_refused_in_one_line(
    command: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error shows keys of the line that cannot be read, as escapes."""
    Path("bodies.jsonl").write_bytes(orjson.dumps({name: 1}))
    lines = printed(capsys, command, *(["--data"] if command == "demo" else []), "bodies.jsonl")
    (line,) = [line for line in lines if line]
    assert line.startswith("cachemw: bodies.jsonl")
    assert line.partition("the keys: ")[2]


@pytest.mark.parametrize("name", IN_FILES.values(), ids=IN_FILES)
def test_missing_file_of_hostile_name_is_refused_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error shows the file's name as escapes."""
    lines = printed(capsys, "explain", name)
    assert len([line for line in lines if line]) == 1


@pytest.mark.parametrize("kind", ["markup", "colour", "line feed", "override", "surrogate"])
def test_demo_of_hostile_names_prints_and_writes_them_visibly(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of the file, of models and of the report's folder are no markup, and do not stop the demo."""
    name = hostile.NAMES[kind].replace("/", "")
    model = "x/claude-sonnet-4-6" if kind == "surrogate" else f"{name}[/b]/{MODEL}"
    Path(name).mkdir()
    data, html = Path(name, f"{name}[.jsonl"), Path(name, "[") / "]page.html"
    html.parent.mkdir()
    data.write_bytes(body(model=model))
    lines = printed(capsys, "demo", "--data", str(data), "--html", str(html))
    shown = " ".join(" ".join(lines).split())
    assert "Report: " in shown
    assert "[" in shown.partition("Report:")[0]
    assert html.read_text(encoding="utf-8").replace("\n", "").isprintable()


def compared(name: str) -> Comparison:
    """Return a comparison in which every text from outside is this name."""
    usage = Usage(1, 2, 0, 3, 1, "")
    point = Point(0.0, name, usage, (Decimal(1), Decimal(2), Decimal(3)))
    return Comparison([PolicyOutcome(each, [point]) for each in "abc"], name, [(name, name)])


class _Page(HTMLParser):
    """Collect the tags of a page, with the names of their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(name: str) -> _Page:
    """Return the page in which every text from outside is this name."""
    made = _Page()
    made.feed(page(compared(name)))
    return made


@names
def test_page_hostile_name_changes_text_only(name: str) -> None:
    """Tags and attributes are those of a page with a plain name; the text is visible and can be saved."""
    html = page(compared(name))
    assert html.encode()
    assert html.replace("\n", "").isprintable()
    assert parsed(name).tags == parsed("plain").tags


def test_page_has_no_place_for_scripts_or_addresses() -> None:
    """No text stands in a script, a style, an event handler, an address or an attribute without quotes."""
    source = (Path(cachemw.__file__).parent / "apps" / "demo" / "page.html").read_text(encoding="utf-8")
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert set(re.findall(r"{{(.*?)}}", style)) == {" number "}
    assert not re.search(r"<script|\son\w+=|(?:href|src)=|\|\s*safe", source)
    assert not re.search(r"=\s*{{", source)


def test_proxy_refused_upstream_shows_no_credential() -> None:
    """An address is shown without its user, password, query and fragment."""
    for address in ("https://me:hunter2@host", "https://host/?key=hunter2", "ftp://host#hunter2"):
        with pytest.raises(ConfigError) as refused:
            ProxyOptions(address)
        assert "hunter2" not in str(refused.value)
        assert "host" in str(refused.value)


def test_proxy_options_show_no_password() -> None:
    """The repr leaves out settings, which may hold the store's password."""
    assert "hunter2" not in repr(ProxyOptions("https://host", fields={"store": "redis://:hunter2@host"}))


@pytest.mark.parametrize("name", IN_JSON.values(), ids=IN_JSON)
def test_doctor_hostile_namespace_forges_no_finding(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name from the settings stays in the line of its setting."""
    Path("cachemw.toml").write_text(f"namespace = {quoted(name)}\n", encoding="utf-8")
    lines = printed(capsys, "doctor")
    assert [line for line in lines if line.startswith("ok ")] == [lines[0]]
    assert sum(line.startswith("  namespace = ") for line in lines) == 1


@pytest.mark.parametrize("name", IN_JSON.values(), ids=IN_JSON)
def test_settings_file_with_hostile_names_is_refused_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the setting as escapes."""
    key = quoted(name)
    for text in (f"[models]\n{key} = 5\n", f"{key} = 5\n", f"{key} = 5\n{key} = 5\n"):
        Path("cachemw.toml").write_text(text, encoding="utf-8")
        assert len([line for line in printed(capsys, "doctor") if line]) == 1


@names
def test_doctor_hostile_server_prints_visible_lines(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of a server that attacks the terminal of the operator are shown as escapes."""
    sent = name.encode("utf-8", "surrogateescape")
    facts = b"\r\n".join(b"%s:%s" % (key, sent) for key in (b"server_name", b"valkey_version", b"redis_mode"))

    def speak(connection: socket.socket, data: bytes) -> None:
        if b"INFO\r\n" in data and b"CLIENT" not in data:
            connection.sendall(b"$%d\r\n%s\r\n" % (len(facts), facts))
        else:
            line = re.sub(rb"[\r\n]", b"\x1b", sent)
            connection.sendall(b"-ERR %s\r\n" % line * max(data.count(b"*"), 1))

    with Impostor(ponging(speak)) as server:
        lines = printed(capsys, "doctor", "--store", server.url)
    assert not any(re.match(r"ok +server +forged", line) for line in lines)
    assert any(line.startswith("bad ") for line in lines)
