# Generated from _async_flow.py by scripts/unasync.py: change that file instead.
"""The order in which an integration reports one exchange to its middleware.

Contains: `ExchangeFlow`. Must not depend on: a client, HTTP, the form of requests and answers.

An integration that sends requests itself calls `prepare`, `send` and `finish`. An integration that is called back by
its host calls `prepare`, then `start` or `is_refused` for the response, and `finish`::

    prepare --> send: attempt --> accepted --> start --> finish
                      ^   |
                      |   +--> refusable --> is_refused? --no--> fail
                      +---------------------yes-+
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cachemw.engine import Middleware
from cachemw.engine.call import Call
from cachemw.integrations.reply import Reply


class ExchangeFlow:
    """One exchange: a request, its answer, and at most one resend of the original request.

    `call` is set by `prepare`. `started` turns True with the first byte of an accepted answer.
    """

    call: Call

    def __init__(self, mw: Middleware) -> None:
        self._mw = mw
        self.started = False

    def prepare(self, body: Mapping[str, Any], *, namespace: str | None = None, **arguments: Any) -> Call:
        """Return the call whose body is to be sent; `arguments` are those of `Middleware.prepare`."""
        self.call = self._mw.prepare(body, namespace=namespace, **arguments)
        return self.call

    def send(self, attempt: Callable[[], Reply]) -> Reply:
        """Return the reply to the last attempt, which has been reported as started or failed.

        The second attempt follows if the provider refused a marker. An exception that `attempt` raises fails the call.
        """
        while True:
            try:
                reply = attempt()
                if reply.refusal is not None and self.is_refused(reply.refusal):
                    if reply.close is not None:
                        reply.close()
                    continue
            except BaseException:
                self.fail()
                raise
            break
        if not reply.accepted:
            self.fail()
            return reply
        try:
            self.start()
        except BaseException:  # a cancelled task: the application will neither read nor close the answer
            self.finish(None, complete=False)
            if reply.close is not None:
                reply.close()
            raise
        return reply

    def start(self) -> None:
        """Report the first byte of an accepted answer."""
        self.started = True
        self._mw.begun(self.call)

    def is_refused(self, refusal: tuple[int, Any], *, resent: bool = True) -> bool:
        """Return True if the provider refused a marker, and the original request is to be sent once more.

        `refusal` is the status and the text of the error. `resent` is False if the host cannot send again.
        """
        return self._mw.refused(self.call, *refusal, resent=resent) is not None

    def finish(self, usage: Any, *, complete: bool) -> None:
        """Report the end: settle a started answer by its usage, None if it has none, and fail any other call.

        `complete` is False for an answer that broke off or was not read to its end.
        """
        if self.started:
            self._mw.settle(self.call, usage, partial=not complete)
        else:
            self.fail()

    def fail(self) -> None:
        """Report that there will be no answer."""
        self._mw.fail(self.call)
