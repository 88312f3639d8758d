"""pydantic-ai: `OpenRouterModel` with its three cache settings on, caught as it hands the request to its SDK.

The body becomes the message history that an agent would hold, prepared as the agent prepares it. Leading
system texts are static instructions. A body's own markers have no counterpart and are left out.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any, NoReturn

from openai import AsyncOpenAI
from pydantic_ai.messages import (
    BinaryContent,
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openrouter import OpenRouterModel, OpenRouterModelSettings
from pydantic_ai.providers.openrouter import OpenRouterProvider
from pydantic_ai.tools import ToolDefinition

_SETTINGS = OpenRouterModelSettings(
    openrouter_cache_instructions=True,
    openrouter_cache_messages=True,
    openrouter_cache_tool_definitions=True,
)


class _Caught(Exception):  # noqa: N818 - it carries the request, and nothing went wrong
    """The request, raised in place of an answer: the SDK would spend ten times as long on serializing it."""


async def _catch(**request: Any) -> NoReturn:
    raise _Caught({key: request[key] for key in ("messages", "tools") if request[key]})


_CLIENT = AsyncOpenAI(api_key="unused", base_url="https://openrouter.ai/api/v1", max_retries=0)
_CLIENT.chat.completions.create = _catch  # type: ignore[method-assign]
_MODEL = OpenRouterModel(
    "anthropic/claude-sonnet-4.5", provider=OpenRouterProvider(openai_client=_CLIENT), settings=_SETTINGS
)
_LOOP = asyncio.new_event_loop()


def send(body: dict[str, Any]) -> dict[str, Any]:
    """Return the request as pydantic-ai sends it to OpenRouter."""
    instructions, history = _history(body["messages"])
    parameters = ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=tool["function"]["name"],
                description=tool["function"]["description"],
                parameters_json_schema=tool["function"]["parameters"],
            )
            for tool in body.get("tools") or ()
        ],
        instruction_parts=instructions,
    )
    history = _MODEL.prepare_messages(history, parameters)
    try:
        _LOOP.run_until_complete(_MODEL.request(history, None, parameters))
    except _Caught as caught:
        request: dict[str, Any] = caught.args[0]
        return request
    raise AssertionError("pydantic-ai made no request")


def _history(messages: list[dict[str, Any]]) -> tuple[list[InstructionPart], list[ModelMessage]]:
    instructions: list[InstructionPart] = []
    history: list[ModelMessage] = []
    for message in messages:
        content = _contents(message.get("content"))
        role = message["role"]
        if role in ("system", "developer") and not history:
            instructions += [InstructionPart(content=text) for text in content if isinstance(text, str)]
        elif role == "assistant":
            history.append(ModelResponse(parts=_response(message)))
        else:
            if not history or isinstance(history[-1], ModelResponse):
                history.append(ModelRequest(parts=[]))
            request = history[-1]
            assert isinstance(request, ModelRequest)
            request.parts = [*request.parts, *_request(message, content)]
    return instructions, history


def _request(message: dict[str, Any], content: list[UserContent]) -> list[ModelRequestPart]:
    texts = [text for text in content if isinstance(text, str)]
    if message["role"] == "tool":
        result = "".join(texts) if len(texts) == len(content) else content
        return [ToolReturnPart(tool_name="called", content=result, tool_call_id=message["tool_call_id"])]
    if message["role"] == "user":
        return [UserPromptPart(content=texts[0] if isinstance(message["content"], str) else content)]
    return [SystemPromptPart(content=text) for text in texts]


def _response(message: dict[str, Any]) -> list[ModelResponsePart]:
    content = message.get("content")
    parts: list[ModelResponsePart] = []
    items: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    for part in items:
        if part["type"] == "text":
            parts.append(TextPart(content=part["text"]))
        elif part["type"] == "reasoning":
            parts.append(ThinkingPart(content=part["summary"][0].get("text", "")))
    return [
        *parts,
        *(
            ToolCallPart(tool_name="called", args=call["function"]["arguments"], tool_call_id=call["id"])
            for call in message.get("tool_calls") or ()
        ),
    ]


def _contents(content: Any) -> list[UserContent]:
    if not isinstance(content, list):
        return [] if content is None else [content]
    return [
        part["text"]
        if part["type"] == "text"
        else BinaryContent(
            base64.b64decode(part["image_url"]["url"].partition(",")[2]), media_type="image/png"
        )
        for part in content
        if part["type"] in ("text", "image_url")
    ]
