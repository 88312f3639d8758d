"""Refusals, errors and cancellations through `CacheMiddleware`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from cachemw import CacheMiddleware
from tests.clients.endpoint import completion
from tests.clients.recorder import AsyncRecorder, conversation, marks
from tests.integrations.asgi_apps import App, Asked, answer, asking, event_names, part, start

REFUSAL = {"error": {"message": "messages.0.content.0: cache_control cannot be set for this block"}}


async def test_refused_request_is_resent_with_the_original_bytes() -> None:
    """The app is called once more with the original bytes; the client sees the second answer only."""
    app, mw = App(answer(REFUSAL, 400), answer(completion())), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert [marks(json.loads(body)) > 0 for body in app.bodies] == [True, False]
    assert app.bodies[1] == json.dumps(conversation()).encode()
    assert app.scopes[0] is not app.scopes[1]
    assert [message["type"] for message in asked.sent] == ["http.response.start", "http.response.body"]
    assert asked.headers == {b"x-app": b"1", b"x-cachemw-decision": b"refused"}
    assert event_names(mw) == ["prepare", "refused", "begun", "settle"]


async def test_second_refusal_reaches_the_client() -> None:
    """The second refusal goes to the client."""
    app, mw = App(answer(REFUSAL, 400), answer(REFUSAL, 400)), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert len(app.bodies) == 2
    assert asked.sent == answer(REFUSAL, 400)
    assert event_names(mw) == ["prepare", "refused", "fail"]


OTHER = json.dumps({"error": {"message": "max_tokens: too large"}}).encode()


@pytest.mark.parametrize(
    ("messages", "refusals"),
    [
        pytest.param([start(400), part(OTHER)], 1, id="another reason"),
        pytest.param([start(400), part(OTHER[:9], more=True), part(OTHER[9:])], 1, id="in parts"),
        pytest.param([start(400), *[part(b"x" * 600_000, more=True)] * 3, part(b"")], 0, id="too long"),
        pytest.param([start(400), part(OTHER, more=True)], 0, id="half of it"),
        pytest.param([start(503), part(b"busy")], 0, id="another status"),
    ],
)
async def test_error_about_anything_else_passes_unchanged(messages: list[Message], refusals: int) -> None:
    """Each message reaches the client, and the call has failed."""
    app, mw = App(list(messages)), AsyncRecorder()
    asked = await asking(CacheMiddleware(app, middleware=mw)).run()
    assert asked.sent == messages
    assert event_names(mw) == ["prepare", *["refused"] * refusals, "fail"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError()])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["fail"]),
        ([start()], ["begun", "settle"]),
        ([start(), part(b"data: {}\n\n", more=True)], ["begun", "settle"]),
        ([start(400)], ["fail"]),
    ],
    ids=["nothing", "start", "part", "held"],
)
async def test_app_that_raises_fails_or_settles_its_call(
    error: BaseException, before: list[Message], after: list[str]
) -> None:
    """Its exception passes; an answer that had begun is settled as partial, any other call has failed."""
    app, mw = App([*before, error]), AsyncRecorder()
    with pytest.raises(type(error)):
        await asking(CacheMiddleware(app, middleware=mw)).run()
    assert event_names(mw) == ["prepare", *after]
    if after[-1] == "settle":
        assert mw.events[-1][2] is True


async def test_app_that_raises_after_a_refusal_is_not_called_again() -> None:
    """An exception after a withheld refusal passes."""
    app, mw = App([*answer(REFUSAL, 400), RuntimeError("bug")]), AsyncRecorder()
    with pytest.raises(RuntimeError):
        await asking(CacheMiddleware(app, middleware=mw)).run()
    assert len(app.bodies) == 1
    assert event_names(mw) == ["prepare", "refused", "fail"]


class SlowRecorder(AsyncRecorder):
    """A middleware that takes a while to record a beginning and an end."""

    async def begun(self, call: Any) -> None:
        await asyncio.sleep(0.01)
        await super().begun(call)

    async def settle(self, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.01)
        return await super().settle(*args, **kwargs)

    async def fail(self, call: Any) -> None:
        await asyncio.sleep(0.01)
        await super().fail(call)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("turn", range(6))
@pytest.mark.parametrize(
    ("messages", "after"),
    [
        pytest.param([start(), part(b"{}")], ["begun", "settle"], id="whole"),
        pytest.param(
            [start(), part(b"{}", more=True), RuntimeError("bug")], ["begun", "settle"], id="broken"
        ),
        pytest.param([start(503), part(b"busy")], ["fail"], id="failed"),
    ],
)
async def test_cancelled_request_is_settled_or_failed_once(
    messages: list[Any], after: list[str], turn: int, times: int
) -> None:
    """The call ends once, however often and in whatever turn of the loop the request is cancelled."""
    mw, loop = SlowRecorder(), asyncio.get_running_loop()

    def cancel(left: int, wait: int) -> None:
        if wait:
            loop.call_soon(cancel, left, wait - 1)
        elif left:
            task.cancel()
            loop.call_soon(cancel, left - 1, 1)

    class Cancelling(Asked):
        async def send(self, message: Message) -> None:
            if message is messages[1]:
                cancel(times, turn + 1)

    wrapped = CacheMiddleware(App(messages), middleware=mw)
    asked = Cancelling(wrapped, json.dumps(conversation()).encode())
    task = asyncio.create_task(asked.run())
    await asyncio.gather(task, return_exceptions=True)
    while wrapped._tasks:
        await asyncio.wait(set(wrapped._tasks))
    assert event_names(mw) == ["prepare", *after]


def test_loop_that_ends_settles_begun_calls() -> None:
    """The end of the loop cancels every task, cachemw's too; the call ends all the same."""
    mw = SlowRecorder()

    async def main() -> None:
        ended = asyncio.Event()

        class Answered(Asked):
            async def send(self, message: Message) -> None:
                if message["type"] == "http.response.body":
                    ended.set()

        asked = Answered(CacheMiddleware(App(), middleware=mw), json.dumps(conversation()).encode())
        running = asyncio.create_task(asked.run())
        await ended.wait()
        assert not running.done()

    asyncio.run(main())
    assert event_names(mw)[-1] == "settle"
