"""LangChain: `AnthropicPromptCachingMiddleware` around `ChatAnthropic`, up to the payload that it would send.

The payload has Anthropic's shape, so its markers can be read off it. A body's own markers stay on its parts. A
system message after the first message of another role becomes a user message: an agent has one system prompt.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from langchain.agents.middleware.types import ModelRequest, ModelResponse
from langchain_anthropic import ChatAnthropic
from langchain_anthropic.middleware import AnthropicPromptCachingMiddleware
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import SecretStr

_MODEL = ChatAnthropic(model_name="claude-sonnet-4-5", api_key=SecretStr("unused"), timeout=None, stop=None)
_MIDDLEWARE = AnthropicPromptCachingMiddleware()


def send(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request as LangChain sends it to Anthropic."""
    payload: dict[str, Any] = {}
    system, messages = _history(body["messages"])

    def handler(request: ModelRequest) -> ModelResponse:
        settings = request.model_settings
        bound = _MODEL.bind_tools(request.tools, **settings) if request.tools else _MODEL.bind(**settings)
        head = [] if request.system_message is None else [request.system_message]
        payload.update(_MODEL._get_request_payload([*head, *request.messages], **cast("Any", bound).kwargs))
        return ModelResponse(result=[])

    names = [tool["function"]["name"] for tool in body.get("tools") or ()]
    request = ModelRequest(
        model=_MODEL, messages=messages, system_message=system, tools=[_tool(name) for name in names]
    )
    _MIDDLEWARE.wrap_model_call(request, handler)
    return payload


@lru_cache(maxsize=1024)
def _tool(name: str) -> BaseTool:
    schema = {"type": "object", "properties": {}}
    return StructuredTool(name=name, description="d", args_schema=schema, func=lambda: None)


def _history(messages: list[dict[str, Any]]) -> tuple[SystemMessage | None, list[AnyMessage]]:
    system: list[Any] = []
    history: list[AnyMessage] = []
    for message in messages:
        role, content = message["role"], _content(message.get("content"))
        if role in ("system", "developer") and not history:
            system += [{"type": "text", "text": content}] if isinstance(content, str) else content
        elif role == "assistant":
            calls = [
                {"id": call["id"], "name": call["function"]["name"], "type": "tool_call", "args": {}}
                for call in message.get("tool_calls") or ()
            ]
            history.append(AIMessage(content=content, tool_calls=calls))
        elif role == "tool":
            history.append(ToolMessage(content=content, tool_call_id=message["tool_call_id"]))
        else:
            history.append(HumanMessage(content=content))
    return SystemMessage(content=system) if system else None, history


def _content(content: Any) -> Any:
    return [_part(part) for part in content] if isinstance(content, list) else content or ""


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] != "reasoning":
        return part
    summary = part["summary"][0]
    if summary["type"] == "summary_encrypted_text":
        return {"type": "redacted_thinking", "data": summary["data"]}
    return {"type": "thinking", "thinking": summary["text"], "signature": "s"}
