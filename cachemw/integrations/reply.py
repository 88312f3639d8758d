"""The reply to one attempt at a request, as an exchange flow needs it.

Contains: data. Must not depend on: clients, HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class Reply:
    """A reply: `accepted` if the answer started, else maybe with a `refusal` (status, error text) to examine.

    `value` is the host's own object. `close` gives back a reply that the application will not see. `error` is the
    exception that a client raised instead of returning a value.
    """

    accepted: bool
    value: Any = None
    refusal: tuple[int, Any] | None = None
    error: BaseException | None = None
    close: Callable[[], Any] | None = None
