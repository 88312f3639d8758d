"""Everything that cachemw raises.

::

    CachemwError
    ├── ConfigError     a setting, a price, a name or a file is wrong; raised at construction only
    ├── BodyError       a body is no chat request; caught by the engine, counted by `reason`
    └── StoreError      the store failed or was late; caught by the engine, counted by class

Only `ConfigError` ever reaches a caller. The other two are how the inner layers tell the engine to
send the original request.
"""

from __future__ import annotations

from cachemw.printable import printable


class CachemwError(Exception):
    """The root of the tree."""


class ConfigError(CachemwError, ValueError):
    """Say which setting is wrong, what it was, and what is allowed.

    Names in the message come from settings, files and the command line, so it is made printable.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class BodyError(CachemwError):
    """Say why a body can't be read as a chat request.

    `reason` is a short name that is counted; no part of the body is ever in it.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreError(CachemwError):
    """Wrap whatever the store's own library raised, without its text: that may name hosts or keys."""
