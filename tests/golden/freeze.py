"""Write or compare the golden files: outgoing bodies, demo and doctor output, counters, Lua texts, public names.

    python -m tests.golden.freeze            compare, exit 1 at the first difference of each file
    python -m tests.golden.freeze --write    write the files anew after an intended change

A change that only moves or renames code must leave every file as it is. `bodies.json` has one digest for each
stream of the savings benchmark, seed and setting; streams made of recorded texts are compared only where these are
present.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import io
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

import cachemw
from benchmarks.measure import CACHEMW_POLICIES
from benchmarks.policies import CachemwPolicy
from benchmarks.workloads import WORKLOADS, recorded
from cachemw.apps.demo.run import demo
from cachemw.apps.doctor.examine import effective, examine, verdict
from cachemw.core.rules.model_names import find_model
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.replay import Body, Sent, replay

FOLDER = Path(__file__).parent
PACKAGE = Path(cachemw.__file__).parent
SEEDS = (1, 2, 3)
_COUNTING = {"count", "_count", "add", "Guard"}  # functions and methods that take the name of a counter


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or compare them and return 1 where one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing them")
    parser.add_argument("--jobs", type=int, default=2, help="processes; default 2")
    given = parser.parse_args(arguments)
    failed = False
    for name, made in (("surface", surface()), ("bodies", bodies(given.jobs))):
        path = FOLDER / f"{name}.json"
        if given.write:
            path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")
            continue
        found = differences(json.loads(path.read_text("utf-8")), made)
        failed = failed or bool(found)
        print(f"{path.name}: {len(found)} of {len(made)} entries differ" if found else f"{path.name}: equal")
        for line in found[:20]:
            print(f"  {line}")
    return int(failed)


def differences(golden: dict[str, Any], made: dict[str, Any]) -> list[str]:
    """Return one line for each entry that is missing, new or different."""
    lines = [f"{name}: missing" for name in sorted(golden.keys() - made.keys())]
    lines += [f"{name}: new" for name in sorted(made.keys() - golden.keys())]
    lines += [
        f"{name}: {golden[name]!r} is now {made[name]!r}"
        for name in sorted(golden.keys() & made.keys())
        if golden[name] != made[name]
    ]
    return lines


# -- outgoing bodies ----------------------------------------------------------------------------


def bodies(jobs: int) -> dict[str, str]:
    """Return a digest of all outgoing bodies by stream, seed, setting and source of the texts."""
    tasks = [(name, seed, setting) for name in WORKLOADS for seed in SEEDS for setting in CACHEMW_POLICIES]
    with ProcessPoolExecutor(jobs) as pool:
        return dict(pool.map(stream_digest, tasks))


def stream_digest(task: tuple[str, int, str]) -> tuple[str, str]:
    """Return the name of one run and the digest of the bodies that the middleware sent in it."""
    name, seed, setting = task
    stream = WORKLOADS[name](seed)
    model = find_model(stream.model)
    assert model is not None, stream.model
    policy, digest = CachemwPolicy(**CACHEMW_POLICIES[setting]), hashlib.sha256()

    def watched(request: Sent) -> tuple[Body, Any]:
        body, answered = policy(request)
        digest.update(orjson.dumps(body))
        return body, answered

    opted = bool(CACHEMW_POLICIES[setting].get("split_text"))
    replay(stream.requests, watched, ProviderCache(model), split_text=opted, sort_tools=opted)
    policy.check()
    source = "recorded" if recorded.present() else "generated"
    return f"{source}/{name}/{seed}/{setting}", digest.hexdigest()[:32]


# -- all that is seen from outside --------------------------------------------------------------


def surface() -> dict[str, Any]:
    """Return the public signatures, counter names, digests of Lua texts, and what demo and doctor print."""
    return {
        "signatures": dict(signatures()),
        "counters": counters(),
        "lua": lua(),
        "demo": demo_output(),
        "doctor": doctor_output(),
    }


def lua() -> dict[str, str]:
    """Return the SHA1 of each Lua file."""
    return {path.name: hashlib.sha1(path.read_bytes()).hexdigest() for path in sorted(PACKAGE.rglob("*.lua"))}


def signatures() -> Iterator[tuple[str, str]]:
    """Yield each public name, method and field with its signature."""
    for name in cachemw.__all__:
        thing = getattr(cachemw, name)
        if not inspect.isclass(thing):
            yield name, str(inspect.signature(thing))
            continue
        yield name, ", ".join(base.__name__ for base in thing.__bases__)
        fields = getattr(thing, "model_fields", None) or getattr(thing, "__annotations__", {})
        for field in fields:
            if not field.startswith("_"):
                yield f"{name}.{field}", "field"
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and inspect.isfunction(value):
                yield f"{name}.{attribute}", str(inspect.signature(value))


def counters() -> list[str]:
    """Return the names that the package counts by, as the source has them; {} stands for a variable part."""
    names = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                texts = [text for argument in node.args if (text := _text(argument)) is not None]
                if called in _COUNTING:
                    names.update(text for text in texts if "." in text or called == "count")
                elif called == "failed":
                    names.update(f"error.{text}.{{}}" for text in texts)
    return sorted(names)


def _text(node: ast.expr) -> str | None:
    """Return a string literal of the source, an f-string with {} for its variable parts, or None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def demo_output() -> list[str]:
    """Return the demo's text without progress bars and the name of its page."""
    return _printed(lambda console, page: demo(console, page, limit=20, seed=3))


def doctor_output() -> list[str]:
    """Return what the doctor says of a store in memory."""
    settings = cachemw.Settings(store="memory://")
    findings = list(examine(settings))
    lines = [f"{finding.level} {finding.about} {finding.words}" for finding in findings]
    return [*lines, *effective(settings), verdict(findings)]


def _printed(run: Callable[[Console, Path], object]) -> list[str]:
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        run(Console(file=printed, width=100), Path(folder) / "page.html")
    lines = [line.rstrip() for line in printed.getvalue().splitlines()]
    return [line for line in lines if line and "page.html" not in line and "━" not in line]


if __name__ == "__main__":
    sys.exit(main())
