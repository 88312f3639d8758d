"""The eight ways to call a chat completion with the `openai` SDK, sync and async, each read to its end.

A style takes a client and the keywords of `create`, and returns the caller's text.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

Style = Callable[[Any, dict[str, Any]], str]
AsyncStyle = Callable[[Any, dict[str, Any]], Awaitable[str]]


def _text(completion: Any) -> str:
    return str(completion.choices[0].message.content)


def _piece(chunk: Any) -> str:
    return (chunk.choices[0].delta.content or "") if chunk.choices else ""


def _from_lines(lines: list[str]) -> str:
    found = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in found)


def _create(client: Any, arguments: dict[str, Any]) -> str:
    return _text(client.chat.completions.create(**arguments))


def _streamed(client: Any, arguments: dict[str, Any]) -> str:
    return "".join(_piece(chunk) for chunk in client.chat.completions.create(**arguments, stream=True))


def _raw(client: Any, arguments: dict[str, Any]) -> str:
    return _text(client.chat.completions.with_raw_response.create(**arguments).parse())


def _raw_streamed(client: Any, arguments: dict[str, Any]) -> str:
    return "".join(
        map(_piece, client.chat.completions.with_raw_response.create(**arguments, stream=True).parse())
    )


def _streaming_response(client: Any, arguments: dict[str, Any]) -> str:
    with client.chat.completions.with_streaming_response.create(**arguments) as response:
        return _text(response.parse())


def _streaming_response_lines(client: Any, arguments: dict[str, Any]) -> str:
    with client.chat.completions.with_streaming_response.create(**arguments, stream=True) as response:
        return _from_lines(list(response.iter_lines()))


def _parse(client: Any, arguments: dict[str, Any]) -> str:
    return _text(client.chat.completions.parse(**arguments))


def _stream_helper(client: Any, arguments: dict[str, Any]) -> str:
    with client.chat.completions.stream(**arguments) as stream:
        return _text(stream.get_final_completion())


def _post(client: Any, arguments: dict[str, Any]) -> str:
    return str(
        client.post("/chat/completions", body=arguments, cast_to=object)["choices"][0]["message"]["content"]
    )


def _with_options(client: Any, arguments: dict[str, Any]) -> str:
    return _text(client.with_options(timeout=60).chat.completions.create(**arguments))


async def _acreate(client: Any, arguments: dict[str, Any]) -> str:
    return _text(await client.chat.completions.create(**arguments))


async def _astreamed(client: Any, arguments: dict[str, Any]) -> str:
    return "".join(
        [_piece(chunk) async for chunk in await client.chat.completions.create(**arguments, stream=True)]
    )


async def _araw(client: Any, arguments: dict[str, Any]) -> str:
    return _text((await client.chat.completions.with_raw_response.create(**arguments)).parse())


async def _araw_streamed(client: Any, arguments: dict[str, Any]) -> str:
    response = await client.chat.completions.with_raw_response.create(**arguments, stream=True)
    return "".join([_piece(chunk) async for chunk in response.parse()])


async def _astreaming_response(client: Any, arguments: dict[str, Any]) -> str:
    async with client.chat.completions.with_streaming_response.create(**arguments) as response:
        return _text(await response.parse())


async def _astreaming_response_lines(client: Any, arguments: dict[str, Any]) -> str:
    async with client.chat.completions.with_streaming_response.create(**arguments, stream=True) as response:
        return _from_lines([line async for line in response.iter_lines()])


async def _aparse(client: Any, arguments: dict[str, Any]) -> str:
    return _text(await client.chat.completions.parse(**arguments))


async def _astream_helper(client: Any, arguments: dict[str, Any]) -> str:
    async with client.chat.completions.stream(**arguments) as stream:
        return _text(await stream.get_final_completion())


async def _apost(client: Any, arguments: dict[str, Any]) -> str:
    answer = await client.post("/chat/completions", body=arguments, cast_to=object)
    return str(answer["choices"][0]["message"]["content"])


async def _awith_options(client: Any, arguments: dict[str, Any]) -> str:
    return _text(await client.with_options(timeout=60).chat.completions.create(**arguments))


STYLES: dict[str, tuple[Style, AsyncStyle]] = {
    "create": (_create, _acreate),
    "create(stream=True)": (_streamed, _astreamed),
    "with_raw_response": (_raw, _araw),
    "with_raw_response, streamed": (_raw_streamed, _araw_streamed),
    "with_streaming_response": (_streaming_response, _astreaming_response),
    "with_streaming_response, streamed": (_streaming_response_lines, _astreaming_response_lines),
    "parse": (_parse, _aparse),
    "stream()": (_stream_helper, _astream_helper),
    "client.post": (_post, _apost),
    "with_options": (_with_options, _awith_options),
}
