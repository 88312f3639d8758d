"""LiteLLM's keywords of one call: the prompt, the provider's rules, and the tenant.

Contains: keywords to a body and back, and the markers that LiteLLM itself will inject. Must not depend on: LiteLLM's
classes, the time at which its hooks run, the placement of breakpoints.

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
# Other keywords that are part of the prompt, or of its key at the provider.
_KEYING = (
    "functions", "function_call", "tool_choice", "parallel_tool_calls", "thinking", "reasoning",
    "reasoning_effort", "output_config", "response_format", "output_format", "speed", "web_search_options",
    "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
)  # fmt: skip
# The proxy knows clients without a virtual key (JWT, OAuth2) by one of the last three.
_TENANTS = {
    "team": "user_api_key_team_id",
    "key": "user_api_key_hash",
    "user": "user_api_key_user_id",
    "email": "user_api_key_user_email",
    "org": "user_api_key_org_id",
}
_POINTS = "cache_control_injection_points"
_MOST = 4

# The routes whose rules do not depend on the host, because LiteLLM changes the request on each in its own way.
_ROUTES = {
    "anthropic": "anthropic",
    "databricks": "litellm-databricks",
    "deepseek": "deepseek",
    "gemini": "gemini",
    "openrouter": "openrouter",
}


class Request(NamedTuple):
    """One call as LiteLLM is about to send it: the arguments of `prepare`."""

    body: dict[str, Any]
    wire: WireFormat
    provider: str | None


def read(
    kwargs: Mapping[str, Any], call_type: str, route: str, model: str, base: str | None, named: str | None
) -> Request | None:
    """Return the request in a deployment's keywords, or None if its prompt cannot be rewritten here.

    `route` is LiteLLM's provider, `model` the model without it, `base` the deployment's URL. `named` is the provider
    that the user gives for an unknown host. The body contains the markers of injection points.
    """
    body = _body(kwargs, model)
    if body is None or call_type not in ("acompletion", "anthropic_messages"):
        return None
    wire: WireFormat = "messages" if call_type == "anthropic_messages" else "chat"
    if wire == "messages" and route != "anthropic":
        return None  # LiteLLM turns it into a chat call, which passes the hook itself
    drops_tool_markers = route == "databricks"
    if drops_tool_markers and body.get("tools"):
        body["tools"] = strip({"tools": body["tools"]})["tools"]
    points = injection_points(kwargs)
    if points:
        # Only this route turns an injection point for tools into a marker.
        body = dict(insert(body, _injected(body, points, wire, tools=route == "anthropic")))
    return Request(body, wire, _provider(route, base, named))


def rewritten(kwargs: Mapping[str, Any], request: Request, sent: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the keywords with the body to send, or None if nothing was added to it.

    The injection points whose markers are in the body are removed from the keywords: placed twice, they could make
    more than four.
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

    Return None outside of the proxy, and for a proxy without authentication.
    """
    for data in _metadata(kwargs):
        for kind, key in _TENANTS.items():
            if isinstance(value := data.get(key), str) and value:
                digest = hashlib.blake2b(value.encode(), digest_size=16, person=b"cachemw").hexdigest()
                return f"litellm-{kind}-{digest}"
    return None


def labels(kwargs: Mapping[str, Any]) -> Mapping[str, str] | None:
    """Return the labels in the call's metadata, or None if there are none."""
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
    # `extra_body` replaces the same keywords on its way out, so a marker beside it would be lost.
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
    """Yield the places that LiteLLM would mark, in its order: four at most, and none that has a marker.

    LiteLLM marks the message beside a string content, which not every provider reads. Here the text itself is marked.
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
    """Yield the messages of an injection point: by index, which may count from the end, else by role."""
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
    """Return the place of a marker in a message or system section, or None if it has one or takes none."""
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
    """Yield every object that may carry a marker in a body's sections, or in one message."""
    for key in ("tools", "system", "messages", "content", "tool_calls"):
        section = body.get(key)
        for item in section if isinstance(section, (list, tuple)) else ():
            if isinstance(item, Mapping):
                yield item
                yield from _holders(item)


def _markers(item: Any) -> int:
    """Return the number of markers on one object and on its function, not deeper."""
    if not isinstance(item, Mapping):
        return 0
    function = item.get("function")
    return (marker_ttl(item) is not None) + (
        isinstance(function, Mapping) and marker_ttl(function) is not None
    )


def _ttl(point: Mapping[str, Any]) -> Ttl:
    return marker_ttl({"cache_control": point.get("control") or marker_value("5m")}) or "5m"
