"""Serve one peer's policy on stdin and stdout, in the environment that has the peer's package.

    .venv-peers/bin/python benchmarks/peers/serve.py litellm

The program reads one JSON object a line and answers each with one line:
- `{"body": <chat body>}` -> `{"marks": [[path in that body, "5m" | "1h"], ...]}`. With `"with_texts": true` the
  package sees the texts in place of their stand-ins. This is slow, and shows that the answer is the same.
- `{"body": ..., "repeat": N}` (litellm only) -> `{"seconds": [...]}`, the times of its hook on that body.
- `{"error": <class and message>}` if the package refuses.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
import warnings
from typing import Any

from sent import marks
from skeleton import Skeleton

PACKAGES = ("langchain", "litellm", "pydantic_ai", "strands")


def answer(driver: Any, question: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to one line."""
    if "repeat" in question:
        return {"seconds": driver.time_hook(question["body"], question["repeat"])}
    skeleton = Skeleton(question["body"], with_texts=question.get("with_texts", False))
    return {"marks": marks(skeleton, driver.send(skeleton.body))}


def main(name: str) -> None:
    """Answer until stdin ends."""
    out, sys.stdout = sys.stdout, sys.stderr  # the output of a package is no answer
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ["LANGSMITH_TRACING"] = "false"
    driver = importlib.import_module(f"drivers.{name}")
    for line in sys.stdin:
        try:
            found = answer(driver, json.loads(line))
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found), file=out, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in PACKAGES]:
        sys.exit(f"usage: serve.py {' | '.join(PACKAGES)}")
    main(sys.argv[1])
