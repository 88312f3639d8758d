"""All errors that cachemw raises.

::

    CachemwError
    ├── ConfigError     a setting, a price, a name or a file is wrong; raised at construction only
    ├── BodyError       a body is no chat request; caught by the engine, counted by `reason`
    └── StoreError      the store failed or was late; caught by the engine, counted by class

Only `ConfigError` reaches a caller. With the other two the inner layers ask the engine to send the original
request.
"""

from __future__ import annotations

from cachemw.printable import printable


class CachemwError(Exception):
    """The root of the tree."""


class ConfigError(CachemwError, ValueError):
    """A wrong setting: the message has its name, its value, and the allowed values.

    Names in the message come from settings, files and the command line, so it is made printable.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def missing_package(user: str, package: str | None, extra: str) -> ConfigError:
    """Return the error of a part of cachemw whose optional package is not installed."""
    return ConfigError(
        f"{user}: the package {package} is missing. Run `pip install '.[{extra}]'` in a clone of cachemw."
    )


class BodyError(CachemwError):
    """A body that cannot be read as a chat request.

    `reason` is a short name that is counted; it never holds a part of the body.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class StoreError(CachemwError):
    """An error of the store's library, without its text, which may hold hosts or keys."""
