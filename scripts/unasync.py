"""Generate the sync twin of each async module, so that code which differs only in `await` is written once.

    python -m scripts.unasync            write the generated modules
    python -m scripts.unasync --check    exit 1 if one of them is not as it would be written

Each async module is changed word by word, then formatted by ruff. A rule that changes no module is an error.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PACKAGE = "cachemw"
MODULES = {
    "integrations/_async_flow.py": "integrations/_sync_flow.py",
    "integrations/_async_openai.py": "integrations/_sync_openai.py",
    "integrations/_async_transport.py": "integrations/_sync_transport.py",
    "stores/redis/_async.py": "stores/redis/_sync.py",
}
"""The generated module by the async one, below the package."""

RULES = {
    "async def": "def",
    "async for": "for",
    "await ": "",
    "Callable[[], Awaitable[Reply]]": "Callable[[], Reply]",
    "from collections.abc import Awaitable, Callable": "from collections.abc import Callable",
    "from cachemw.slices import run_in_loop": "from cachemw.slices import run",
    "run_in_loop": "run",
    "AsyncIterator": "Iterator",
    "AsyncMiddleware": "Middleware",
    "AsyncExchangeFlow": "ExchangeFlow",
    "_async_flow": "_sync_flow",
    "hook_async": "hook_sync",
    "an async OpenAI": "a sync OpenAI",
    "aiter_bytes": "iter_bytes",
    "aiter(": "iter(",
    "aclose": "close",
    "an async transport": "a transport",
    "for async clients": "for sync clients",
    "AsyncCacheTransport": "CacheTransport",
    "AsyncHTTPTransport": "HTTPTransport",
    "AsyncByteStream": "SyncByteStream",
    "AsyncObservedStream": "ObservedStream",
    "handle_async_request": "handle_request",
    "__aiter__": "__iter__",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "AsyncRedisStore": "RedisStore",
    "AsyncRedisClient": "RedisClient",
    "The tasks of one event loop at a time may use one.": "Any number of threads may use one.",
}
"""Words of the async modules and those of their twins, in the order in which they are replaced."""


def generated(source: str, name: str, used: set[str]) -> str:
    """Return the sync twin of a module's source, and note the rules that changed it."""
    for word, twin in RULES.items():
        pattern = (
            (r"\b" if word[0].isalnum() else "") + re.escape(word) + (r"\b" if word[-1].isalnum() else "")
        )
        source, count = re.subn(pattern, twin, source)
        if count:
            used.add(word)
    head = f"# Generated from {name} by scripts/unasync.py: change that file instead.\n"
    return formatted(head + source)


def formatted(source: str) -> str:
    """Return the source as ruff formats and sorts it."""
    for command in (("check", "--select", "I", "--fix", "--quiet"), ("format", "--quiet")):
        ran = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", f"{_PACKAGE}/generated.py", "-"],
            input=source,
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        source = ran.stdout
    return source


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check all modules; return 1 if a check fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args(arguments).check
    used: set[str] = set()
    stale = []
    for name, twin in MODULES.items():
        made = generated((ROOT / _PACKAGE / name).read_text("utf-8"), Path(name).name, used)
        path = ROOT / _PACKAGE / twin
        if not path.exists() or path.read_text("utf-8") != made:
            stale.append(twin)
            if not check:
                path.write_text(made, "utf-8")
    if unused := RULES.keys() - used:
        print(f"scripts/unasync.py: no module uses the rules {sorted(unused)}", file=sys.stderr)
        return 1
    for twin in stale:
        print(f"{twin}: {'is not up to date; run python -m scripts.unasync' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
