"""The modules that `import cachemw` loads."""

from __future__ import annotations

import subprocess
import sys

# A worker needs no network and markup parsers; the other modules are loaded at their first use.
UNWANTED = {"urllib.request", "http.client", "xml", "imagesize", "redis", "tiktoken", "openai", "httpx"}


def test_import_loads_no_module_that_only_some_users_need() -> None:
    """A plain import loads neither clients, parsers of markup, nor the packages of opt-ins and stores."""
    code = "import sys, cachemw; print(*sorted(sys.modules), sep='\\n')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert "cachemw.engine" in loaded
    assert not loaded & UNWANTED
