"""Text that a terminal, a log or a page can show as it is.

Contains: one function. Must not depend on: the origin of a text, or the place that shows it.
"""

from __future__ import annotations


def printable(text: str, limit: int = 4_000) -> str:
    r"""Return the text as one line of at most `limit` characters that changes nothing around it.

    Call it for every text that holds a name from a request, a file, a setting or a server. Control characters
    (escape sequences, line breaks), invisible and bidirectional ones, and lone surrogates become escapes such as
    `\x1b`; letters of any script stay. A text that is cut ends with three dots.
    """
    kept = text[: limit + 1]
    if not kept.isprintable():
        kept = "".join(each if each.isprintable() else repr(each)[1:-1] for each in kept)
    return kept if len(kept) <= limit else kept[: limit - 3] + "..."
