"""LiteLLM's keywords as a body, its injection points, and the namespace and labels of a call."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachemw.core.request.equality import canonical
from cachemw.integrations.litellm_request import labels, namespace, read, rewritten
from tests.clients.recorder import marks

MARK = {"type": "ephemeral"}

SYSTEM = {"location": "message", "role": "system"}

LAST = {"location": "message", "index": -1}

TOOLS = {"location": "tool_config"}


def text(words: str, **more: Any) -> dict[str, Any]:
    """Return a text part."""
    return {"type": "text", "text": words, **more}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content, **more}


def keywords(**more: Any) -> dict[str, Any]:
    """Return the keywords of one call."""
    return {
        "messages": [
            message("system", "S"),
            message("user", "q"),
            message("assistant", "a"),
            message("user", "r"),
        ],
        **more,
    }


def body_of(kwargs: dict[str, Any], route: str = "openai", call: str = "acompletion") -> Any:
    """Return the body that is prepared for a call on a route, or None if there is none."""
    request = read(kwargs, call, route, "m", None, None)
    return request and request.body


def marked(value: Any, path: str = "") -> set[str]:
    """Return the places of markers."""
    found = {path} if isinstance(value, dict) and "cache_control" in value else set()
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found.union(*(marked(inner, f"{path}.{key}".lstrip(".")) for key, inner in pairs))


# --- keywords ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "base", "named", "provider"),
    [
        ("databricks", "https://proxy.example/serving-endpoints", None, "litellm-databricks"),
        ("anthropic", None, "openrouter", "anthropic"),
        ("openrouter", None, None, "openrouter"),
        ("openai", None, "databricks", "openai"),
        ("openai", "https://one.cloud.databricks.com/serving-endpoints", None, "databricks"),
        ("openai", "https://openrouter.ai/api/v1/", None, "openrouter"),
        ("openai", "https://gateway.example/v1", None, None),
        ("openai", "https://gateway.example/v1", "databricks", "databricks"),
        ("bedrock", None, None, None),
        ("bedrock", None, "litellm", "litellm"),
        ("gemini", None, None, "gemini"),
        ("deepseek", None, None, "deepseek"),
    ],
)
def test_provider_is_named_by_route_then_host_then_setting(
    route: str, base: str | None, named: str | None, provider: str | None
) -> None:
    """LiteLLM's route names it, or the host of an OpenAI-compatible deployment, or the setting."""
    request = read(keywords(), "acompletion", route, "m", base, named)
    assert request is not None
    assert (request.provider, request.wire, request.body["model"]) == (provider, "chat", "m")


@pytest.mark.parametrize(
    ("kwargs", "call", "route"),
    [
        ({}, "acompletion", "openai"),
        ({"messages": "hello"}, "acompletion", "openai"),
        (keywords(), "aembedding", "openai"),
        (keywords(), "anthropic_messages", "databricks"),
        (keywords(extra_body={"tools": []}), "acompletion", "openai"),
        (keywords(extra_body={"messages": []}), "acompletion", "openai"),
    ],
)
def test_call_that_cannot_be_rewritten_has_no_body(kwargs: dict[str, Any], call: str, route: str) -> None:
    """Other calls, positional messages, content in `extra_body` and converted calls have no body."""
    assert body_of(kwargs, route, call) is None


def test_body_holds_the_prompt_and_the_keys_of_its_cache() -> None:
    """The body has no credential and no logging object; a class stands for its schema."""

    class Shape:
        pass

    class Answer:
        def model_dump(self, exclude_none: bool) -> dict[str, Any]:
            assert exclude_none
            return message("assistant", "a")

    kwargs = keywords(
        api_key="secret", litellm_logging_obj=object(), response_format=Shape, tools=None,
        extra_body={"thinking": {"type": "enabled"}, "top_k": 1}, tool_choice="auto",
    )  # fmt: skip
    kwargs["messages"].append(Answer())
    body = body_of(kwargs)
    assert body == {
        "model": "m",
        "messages": [*kwargs["messages"][:-1], message("assistant", "a")],
        "thinking": {"type": "enabled"},
        "tool_choice": "auto",
        "response_format": {"class": f"{Shape.__module__}.{Shape.__qualname__}"},
    }


def test_markers_that_litellm_drops_take_no_slot() -> None:
    """LiteLLM drops markers on tools on the databricks route; on other routes they are the client's."""
    tools = [{"type": "function", "function": {"name": "f", "cache_control": MARK}, "cache_control": MARK}]
    assert marks(body_of(keywords(tools=tools), "databricks")) == 0
    assert marks(body_of(keywords(tools=tools), "openrouter")) == 2
    assert marks(tools) == 2


def test_rewritten_keywords_replace_content_only() -> None:
    """Content is replaced and all else stays; without a marker there is no rewriting."""
    kwargs = keywords(api_key="k", stream=True)
    before = deepcopy(kwargs)
    request = read(kwargs, "acompletion", "openai", "m", None, None)
    assert request is not None
    assert rewritten(kwargs, request, request.body) is None
    messages = [message("system", [text("S", cache_control=MARK)]), *kwargs["messages"][1:]]
    sent = {**request.body, "messages": messages, "prompt_cache_key": "p"}
    assert rewritten(kwargs, request, sent) == {**before, "messages": messages, "prompt_cache_key": "p"}
    assert kwargs == before


# --- injection points -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "places"),
    [
        ([SYSTEM], {"messages.0.content.0"}),
        ([LAST], {"messages.3.content.0"}),
        ([{"location": "message", "role": "user"}], {"messages.1.content.0", "messages.3.content.0"}),
        ([{"location": "message", "index": "1"}], {"messages.1.content.0"}),
        ([{"location": "message", "index": 9}, {"location": "message", "index": -9}], set()),
        ([{"location": "message", "index": "x", "role": "system"}], {"messages.0.content.0"}),
        ([{"location": "message"}, {"location": "elsewhere"}, "odd"], set()),
        ([LAST, LAST, {"location": "message", "index": 3}], {"messages.3.content.0"}),
        ([{**SYSTEM, "index": 2}], {"messages.2.content.0"}),
        ([TOOLS], set()),
        ("odd", set()),
        (None, set()),
    ],
)
def test_points_are_read_as_litellm_reads_them(points: Any, places: set[str]) -> None:
    """A point is found by index before role, from the end too; text that is a string is marked as a part."""
    body = body_of(keywords(cache_control_injection_points=points))
    assert marked(body) == places
    assert canonical(body)["messages"] == canonical(keywords())["messages"]


@pytest.mark.parametrize(
    "content", [None, "", "  ", [], [text(" ")], ["odd"], [text("x", cache_control=MARK), text("y")]]
)
def test_point_on_blank_or_marked_content_adds_no_marker(content: Any) -> None:
    """Blank text gets no marker, and a marked message gets no second one."""
    kwargs = {"messages": [message("user", content)], "cache_control_injection_points": [LAST]}
    assert body_of(kwargs)["messages"] == kwargs["messages"]


def test_point_keeps_its_ttl_and_counts_markers_beside_the_text() -> None:
    """`control` may ask for an hour; a marker beside the text counts, too."""
    hour = {**SYSTEM, "control": {"type": "ephemeral", "ttl": "1h"}}
    body = body_of(keywords(cache_control_injection_points=[hour]))
    assert body["messages"][0]["content"][0]["cache_control"] == hour["control"]
    beside = {
        "messages": [message("user", "q", cache_control=MARK)],
        "cache_control_injection_points": [LAST],
    }
    assert body_of(beside)["messages"] == beside["messages"]


def test_points_mark_tools_and_system_on_the_messages_route() -> None:
    """Anthropic's route marks the last tool unless one is marked; a point's role selects the system."""
    tools = [{"name": "f"}, {"name": "g"}]
    points = [SYSTEM, TOOLS, LAST]
    kwargs = keywords(system="S", tools=tools, cache_control_injection_points=points)
    expected = {"tools.1", "system.0", "messages.3.content.0"}
    assert marked(body_of(kwargs, "anthropic", "anthropic_messages")) == expected
    kwargs["system"] = [text("S"), text("T")]
    kwargs["tools"] = [{"name": "f", "cache_control": MARK}, {"name": "g"}]
    expected = {"tools.0", "system.1", "messages.3.content.0"}
    assert marked(body_of(kwargs, "anthropic", "anthropic_messages")) == expected
    assert "tools.1" not in marked(body_of(keywords(tools=tools, cache_control_injection_points=points)))


def test_points_for_messages_are_removed_once_placed() -> None:
    """Points for messages go; points that only LiteLLM can serve stay."""
    kwargs = keywords(cache_control_injection_points=[SYSTEM, TOOLS])
    request = read(kwargs, "acompletion", "openai", "m", None, None)
    assert request is not None
    changed = rewritten(kwargs, request, {**request.body})
    assert changed is not None
    assert changed["cache_control_injection_points"] == [TOOLS]
    kwargs["cache_control_injection_points"] = [SYSTEM]
    changed = rewritten(kwargs, request, {**request.body})
    assert changed is not None
    assert "cache_control_injection_points" not in changed
    assert marked(changed["messages"]) == {"0.content.0"}


_CONTENT = st.one_of(
    st.sampled_from(["", "x"]),
    st.lists(st.sampled_from([text("x"), text(""), text("y", cache_control=MARK)]), max_size=3),
)

_MESSAGE = st.builds(message, st.sampled_from(["system", "user", "assistant"]), _CONTENT)

_POINT = st.sampled_from([SYSTEM, LAST, TOOLS, *({"location": "message", "index": n} for n in range(-2, 5))])


@given(st.lists(_MESSAGE, min_size=1, max_size=6), st.lists(_POINT, max_size=6), st.integers(0, 2))
def test_points_add_up_to_four_markers_at_most(messages: Any, points: Any, tools: int) -> None:
    """Injected markers stop at four, including those of the client."""
    own = [{"name": "f", "cache_control": MARK}] * tools + [{"name": "g"}]
    kwargs = {"messages": messages, "tools": own, "cache_control_injection_points": points}
    before = marks(messages) + tools
    assert marks(body_of(kwargs, "anthropic")) <= max(before, 4)
    assert marks(messages) + tools == before


# --- namespaces and labels ---------------------------------------------------------------------------------


def test_namespace_is_a_hash_of_the_team_or_the_key() -> None:
    """The team comes before the key, and the proxy's metadata before the client's."""
    key = namespace({"metadata": {"user_api_key_hash": "k", "user_api_key_team_id": None}})
    team = namespace({"metadata": {"user_api_key_hash": "k", "user_api_key_team_id": "t"}})
    assert key is not None
    assert team is not None
    assert key.startswith("litellm-key-")
    assert team.startswith("litellm-team-")
    assert "k" not in key.removeprefix("litellm-key-")
    same = {"user_api_key_hash": "other", "user_api_key_team_id": "t"}
    assert namespace({"litellm_metadata": same, "metadata": {"user_api_key_team_id": "spoofed"}}) == team
    assert namespace({"metadata": {"user_api_key_hash": "l"}}) != key
    for unknown in ({}, {"metadata": None}, {"metadata": {"user_api_key_hash": ""}}):
        assert namespace(unknown) is None


def test_labels_are_read_from_the_metadata() -> None:
    """`cachemw_labels` holds the labels; None leaves those of the context."""
    assert labels({"metadata": {"cachemw_labels": {"app": "x"}}}) == {"app": "x"}
    assert labels({"metadata": {"cachemw_labels": "x"}}) is None
    assert labels({}) is None
