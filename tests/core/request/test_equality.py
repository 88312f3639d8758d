"""The check of a changed request against the request that came."""

from typing import Any

import pytest
from hypothesis import given, settings

from cachemw.core.opt_ins.sort_tools import sort_tools
from cachemw.core.opt_ins.split_text import Splitter
from cachemw.core.request import markers
from cachemw.core.request.equality import same_structure
from cachemw.core.request.parser import Parser
from cachemw.core.rules.models import MODELS
from cachemw.core.rules.types import MarkerKey
from cachemw.errors import BodyError
from tests.bodies import bodies

MARK = {"type": "ephemeral"}
TEXT = {"type": "text", "text": "Hello there"}
CAME = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [TEXT]}],
    "tools": [{"function": {"name": "a"}}, {"function": {"name": "b"}}],
}


def changed(**fields: Any) -> dict[str, Any]:
    """Return the request that came with these fields changed."""
    return {**CAME, **fields}


def message(content: Any, **fields: Any) -> dict[str, Any]:
    """Return the request that came with this user message in the place of its own."""
    return changed(messages=[CAME["messages"][0], {"role": "user", "content": content, **fields}])


@pytest.mark.parametrize(
    ("leaves", "same"),
    [
        (CAME, True),
        (changed(prompt_cache_key="k"), True),
        (message([{**TEXT, "cache_control": MARK}]), True),
        (changed(model="other"), False),
        (changed(extra=1), False),
        (changed(messages=CAME["messages"][:1]), False),
        (changed(messages=[*CAME["messages"], {"role": "user", "content": "more"}]), False),
        (message([TEXT, TEXT]), False),
        (message([{**TEXT, "name": "x"}]), False),
        (message([{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}]), False),
        (message(["H", *"ello there"]), False),
        (message("Hello there"), False),
        (message([TEXT], name="x"), False),
        (changed(tools=list(reversed(CAME["tools"]))), False),
        (changed(tools=CAME["tools"][:1]), False),
    ],
)
def test_structure_is_compared_part_by_part(leaves: dict[str, Any], same: bool) -> None:
    """Markers may be added, and a string may become one part; nothing else may differ."""
    assert same_structure(CAME, leaves) is same


def test_structure_of_a_string_may_be_its_own_one_part_list_only() -> None:
    """The 3,600 characters of a string are no list of 3,600 parts, and another text is no copy of it."""
    system, user = CAME["messages"]
    part = {"type": "text", "text": system["content"], "cache_control": MARK}
    assert same_structure(CAME, changed(messages=[{**system, "content": [part]}, user]))
    assert not same_structure(CAME, changed(messages=[{**system, "content": list("Be kind.")}, user]))
    assert not same_structure(
        CAME, changed(messages=[{**system, "content": [{**part, "text": "Be evil."}]}, user])
    )


def test_structure_of_opt_ins_allows_their_own_change_only() -> None:
    """Split texts keep their length in total, sorted tools keep their names."""
    cut = message([{"type": "text", "text": "Hello"}, {"type": "text", "text": " there"}])
    short = message([{"type": "text", "text": "Hello"}, {"type": "text", "text": " the"}])
    assert same_structure(CAME, cut, split_text=True)
    assert not same_structure(CAME, short, split_text=True)
    turned = changed(tools=list(reversed(CAME["tools"])))
    assert same_structure(CAME, turned, sort_tools=True)
    assert not same_structure(CAME, changed(tools=[CAME["tools"][0]] * 2), sort_tools=True)


@pytest.mark.parametrize("field", ["cache_control", "prompt_cache_breakpoint"])
def test_structure_with_a_marker_in_the_place_of_none_is_accepted(field: MarkerKey) -> None:
    """A marker's field that is None is no marker, so one may be put in its place."""
    unmarked = message([{**TEXT, field: None}])
    place = ("messages", 1, "content", 0)
    assert same_structure(unmarked, markers.insert(unmarked, [(place, "5m")], field))


def test_structure_with_a_key_in_the_place_of_none_is_accepted() -> None:
    """A field `prompt_cache_key` that is None is no key."""
    assert same_structure(changed(prompt_cache_key=None), changed(prompt_cache_key="k"))


def test_structure_with_a_changed_marker_of_the_client_is_refused() -> None:
    """A marker that the client set stays as it is."""
    marked = message([{**TEXT, "cache_control": {**MARK, "ttl": "1h"}}])
    place = ("messages", 1, "content", 0)
    assert not same_structure(marked, markers.insert(marked, [(place, "5m")]))
    assert not same_structure(marked, message([TEXT]))


@settings(max_examples=150, deadline=None)
@given(bodies())
def test_structure_of_every_marked_body_is_accepted(drawn) -> None:
    """A body with markers at all blocks that may get one, after the opt-ins, passes the check."""
    wire, body = drawn
    sent = Splitter(300.0).split(sort_tools(body), wire, "n", 0.0)[0]
    parsed = Parser().parse(sent, MODELS["claude-sonnet-4-6"], wire)
    places = [
        (parsed.path(index), "5m")
        for index, block in enumerate(parsed.blocks)
        if block.markable and block.marker is None
    ]
    assert same_structure(body, markers.insert(sent, places), split_text=True, sort_tools=True)


@pytest.mark.parametrize(
    "path",
    [
        ("messages", 0, "content", 0),
        ("messages", 0, "content", 3),
        ("messages", 1, "content", 1),
        ("messages", 2, "content"),
        ("messages", -1, "content"),
        ("messages", 0, "role"),
        ("messages", "content"),
        ("nothing", 0),
        ("tools", 0, "function", "name"),
        ("tools", 2),
        ("model",),
    ],
)
def test_marker_at_a_path_that_does_not_fit_is_refused(path: tuple[Any, ...]) -> None:
    """A path that was made for another body never changes this one."""
    with pytest.raises(BodyError, match="bad_path"):
        markers.insert(CAME, [(path, "5m")])
