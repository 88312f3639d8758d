"""What LiteLLM's keywords of one call say: the prompt, the provider's rules, whose call it is.

Lives here: keywords to a body and back, and the markers that LiteLLM itself will inject. Must not know:
LiteLLM's classes, when its hooks run, what becomes of a body.

Facts about LiteLLM are those of litellm 1.108.7, run on 2026-11-24, unless another date is given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from cachemw.core.request.markers import insert, marker_value, strip
from cachemw.core.request.message_blocks import Path, marker_ttl
from cachemw.core.request.parser import WireFormat
from cachemw.core.rules.types import Ttl
from cachemw.integrations.http.chat_routes import provider_at

_CONTENT = ("messages", "tools", "system", "cache_control")
# What else of a call is part of the prompt, or keys it at the provider.
_KEYING = (
    "functions", "function_call", "tool_choice", "parallel_tool_calls", "thinking", "reasoning",
    "reasoning_effort", "output_config", "response_format", "output_format", "speed", "web_search_options",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
# The proxy knows who came without a virtual key (JWT, OAuth2) by one of the last three.
_TENANTS = {
    "team": "user_api_key_team_id",
    "key": "user_api_key_hash",
    "user": "user_api_key_user_id",
    "email": "user_api_key_user_email",
    "org": "user_api_key_org_id",
}
_POINTS = "cache_control_injection_points"
_MOST = 4

# The routes whose rules are known whatever the host: LiteLLM changes what passes on each its own way.
_ROUTES = {
    "anthropic": "anthropic",
    "databricks": "litellm-databricks",
    "deepseek": "deepseek",
    "gemini": "gemini",
    "openrouter": "openrouter",
}


class Request(NamedTuple):
    """One call as LiteLLM is about to send it: what `prepare` takes."""

    body: dict[str, Any]
    wire: WireFormat
    provider: str | None


def read(
    kwargs: Mapping[str, Any], call_type: str, route: str, model: str, base: str | None, named: str | None
) -> Request | None:
    """Return the request in a deployment's keywords, None where no prompt of it can be rewritten here.

    `route` is LiteLLM's provider, `model` the model without it, `base` the deployment's URL. `named` is the
    provider that the user says an unknown host to be. The markers of injection points are in the body.
    """
    body = _body(kwargs, model)
    if body is None or call_type not in ("acompletion", "anthropic_messages"):
        return None
    wire: WireFormat = "messages" if call_type == "anthropic_messages" else "chat"
    if wire == "messages" and route != "anthropic":
        return None  # LiteLLM makes a chat call of it, which comes by on its own
    drops_tool_markers = route == "databricks"
    if drops_tool_markers and body.get("tools"):
        body["tools"] = strip({"tools": body["tools"]})["tools"]
    points = injection_points(kwargs)
    if points:
        # Of the routes here only this one makes a marker of a point for tools.
        body = dict(insert(body, _injected(body, points, wire, tools=route == "anthropic")))
    return Request(body, wire, _provider(route, base, named))


def rewritten(kwargs: Mapping[str, Any], request: Request, sent: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the keywords with the body that is to be sent; None where nothing was added to it.

    Injection points that stand in the body already are taken out of the keywords: placed twice, they
    could make more than four.
    """
    if sent is request.body:
        return None
    changed = dict(kwargs) | {
        key: value for key, value in sent.items() if key in _CONTENT or request.body.get(key) is not value
    }
    if _POINTS in changed:
        changed[_POINTS] = [point for point in injection_points(kwargs) if point.get("location") != "message"]
        if not changed[_POINTS]:
            del changed[_POINTS]
    return changed


def namespace(kwargs: Mapping[str, Any]) -> str | None:
    """Return a namespace for the team, else the virtual key, else the user, that LiteLLM's proxy has authenticated.

    None outside of the proxy, and where it asks nobody who they are.
    """
    for data in _metadata(kwargs):
        for kind, key in _TENANTS.items():
            if isinstance(value := data.get(key), str) and value:
                digest = hashlib.blake2b(value.encode(), digest_size=16, person=b"cachemw").hexdigest()
                return f"litellm-{kind}-{digest}"
    return None


def labels(kwargs: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the labels in the call's metadata, None where there are none."""
    for data in _metadata(kwargs):
        if isinstance(found := data.get("cachemw_labels"), Mapping):
            return found
    return None


def injection_points(kwargs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the places where the user has LiteLLM inject markers."""
    points = kwargs.get(_POINTS)
    return [point for point in points if isinstance(point, Mapping)] if isinstance(points, Sequence) else []


def _metadata(kwargs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # On the proxy's Messages route `metadata` is the client's own, so it must come second.
    for name in ("litellm_metadata", "metadata"):
        if isinstance(data := kwargs.get(name), Mapping):
            yield data


def _provider(route: str, base: str | None, named: str | None) -> str | None:
    if route in _ROUTES:
        return _ROUTES[route]
    if route != "openai":
        return named
    base = base or "https://api.openai.com/v1"
    return provider_at(f"{base.rstrip('/')}/chat/completions") or named


def _body(kwargs: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    extra = kwargs.get("extra_body")
    if not isinstance(extra, Mapping):
        extra = {}
    messages = kwargs.get("messages")
    # What is in `extra_body` replaces the rest on its way out, so a marker beside it would be lost.
    if not isinstance(messages, (list, tuple)) or any(key in extra for key in _CONTENT):
        return None
    body = {key: value for key in _CONTENT if (value := kwargs.get(key)) is not None}
    body |= {key: value for key in _KEYING if (value := extra.get(key, kwargs.get(key))) is not None}
    body["model"] = model
    body["messages"] = [_plain(message) for message in messages]
    if isinstance(shape := body.get("response_format"), type):
        body["response_format"] = {"class": f"{shape.__module__}.{shape.__qualname__}"}
    return body


def _plain(message: Any) -> Any:
    """Return a message as LiteLLM sends it: an answer that is sent back may be an object."""
    if isinstance(message, Mapping) or not hasattr(message, "model_dump"):
        return message
    return message.model_dump(exclude_none=True)


# -- injection points --------------------------------------------------------------------------------------


def _injected(
    body: Mapping[str, Any], points: Sequence[Mapping[str, Any]], wire: WireFormat, *, tools: bool
) -> Iterator[tuple[Path, Ttl]]:
    """Yield the places that LiteLLM would mark, in its order: never over four, never where a marker stands.

    On text that is a string LiteLLM marks the message beside it, which not every provider reads: here it is
    the text that is marked.
    """
    room = _MOST - sum(map(_markers, _holders(body)))
    defined = body.get("tools") or ()
    if tools and defined and not any(map(_markers, defined)):
        for point in points:
            if point.get("location") == "tool_config" and room > 0:
                room -= 1
                yield ("tools", len(defined) - 1), _ttl(point)
                break
    taken: set[Path] = set()
    for point in points:
        for base, holder in _targets(body, point, wire):
            path = _spot(base, holder)
            if room > 0 and path is not None and path not in taken:
                taken.add(path)
                room -= 1
                yield path, _ttl(point)


def _targets(
    body: Mapping[str, Any], point: Mapping[str, Any], wire: WireFormat
) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield where a point for messages leads: by index, which may count from the end, else by role."""
    if point.get("location") != "message":
        return
    messages, role = body["messages"], point.get("role")
    try:
        index = int(point["index"])
    except (KeyError, TypeError, ValueError):
        if wire == "messages" and role == "system":
            yield (), {"system": body.get("system")}
            return
        for index, message in enumerate(messages):
            if isinstance(message, Mapping) and role is not None and message.get("role") == role:
                yield ("messages", index), message
        return
    index += len(messages) if index < 0 else 0
    if 0 <= index < len(messages) and isinstance(messages[index], Mapping):
        yield ("messages", index), messages[index]


def _spot(base: Path, holder: Mapping[str, Any]) -> Path | None:
    """Return where a marker goes in a message or a system section; None where one is, or where none can be."""
    key = "system" if "system" in holder else "content"
    content = holder.get(key)
    if sum(map(_markers, _holders(holder))) or _markers(holder):
        return None
    if isinstance(content, str):
        return (*base, key) if content.strip() else None
    if not isinstance(content, list) or not content or not isinstance(content[-1], Mapping):
        return None
    last = content[-1]
    blank = last.get("type") == "text" and not str(last.get("text", "")).strip()
    return None if blank else (*base, key, len(content) - 1)


def _holders(body: Mapping[str, Any]) -> Iterator[Any]:
    """Yield all that may carry a marker in a body's sections, or in one message."""
    for key in ("tools", "system", "messages", "content", "tool_calls"):
        section = body.get(key)
        for item in section if isinstance(section, (list, tuple)) else ():
            if isinstance(item, Mapping):
                yield item
                yield from _holders(item)


def _markers(item: Any) -> int:
    """Count the markers on one object, and on the function that it may hold; none inside."""
    if not isinstance(item, Mapping):
        return 0
    function = item.get("function")
    return (marker_ttl(item) is not None) + (
        isinstance(function, Mapping) and marker_ttl(function) is not None
    )


def _ttl(point: Mapping[str, Any]) -> Ttl:
    return marker_ttl({"cache_control": point.get("control") or marker_value("5m")}) or "5m"
