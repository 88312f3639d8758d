"""Run the fuzz targets for some time each, and print one line for each: `python -m tests.fuzz.run SECONDS [TARGET]`.

New inputs stay in `.fuzz/` for the next run. A failing input goes to `tests/fuzz/found/<target>/`, which `test_corpus`
replays. The exit code is 1 if an input failed, and 2 if a target could not run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
KEPT = Path(".fuzz")
# No parser depends on a length beyond this. The time-out ends a target whose C code never returns.
_OPTIONS = ("-max_len=8192", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1")
_LINE = "{:10} {:>10} {:>12} {:>9} {:>9}"


def fuzz(name: str, seconds: int) -> tuple[str, int]:
    """Run one target; return its line of the table and the number of failed inputs."""
    kept, found = KEPT / name, HERE / "found" / name
    for folder in (kept, found):
        folder.mkdir(parents=True, exist_ok=True)
    before = set(found.iterdir())
    command = [sys.executable, "-m", "tests.fuzz.one", name, *_OPTIONS]
    command += [f"-max_total_time={seconds}", f"-dict={HERE / 'tokens.dict'}", f"-artifact_prefix={found}/"]
    ran = subprocess.run(
        [*command, str(kept), str(HERE / "seeds" / name)], capture_output=True, text=True, errors="replace"
    )
    output = ran.stderr + ran.stdout
    found.mkdir(parents=True, exist_ok=True)  # git drops an empty folder when it switches branches
    new = sorted(set(found.iterdir()) - before)
    if not any(found.iterdir()):
        found.rmdir()
    executions = _last(r"stat::number_of_executed_units:\s*(\d+)|^#(\d+)\s", output)
    rate = _last(r"exec/s: (\d+)", output)
    coverage = _last(r"cov: (\d+)", output)
    line = _LINE.format(name, executions or "-", rate or "-", coverage or "-", len(new))
    if new or ran.returncode:
        reason = output if not executions else output[max(output.find("=== Uncaught"), 0) :]
        line += "\n" + "\n".join(reason.splitlines()[-40:])
        line += "".join(f"\nkept: {path}" for path in new)
    if ran.returncode and not new:
        sys.exit(f"{line}\nThe target {name} did not run (exit status {ran.returncode}).")
    return line, len(new)


def _last(pattern: str, output: str) -> str:
    """Return the text of the last match of a pattern's groups."""
    found = re.findall(pattern, output, re.MULTILINE)
    last = found[-1] if found else ""
    return last if isinstance(last, str) else "".join(last)


def main() -> None:
    """Run all targets, or the named one."""
    seconds, names = int(sys.argv[1]), sys.argv[2:] or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        sys.exit(f"There is no target {unknown.pop()!r}; there are: {', '.join(TARGETS)}.")
    print(_LINE.format("target", "executions", "executions/s", "coverage", "findings"), flush=True)
    findings = 0
    for name in names:
        line, new = fuzz(name, seconds)
        findings += new
        print(line, flush=True)
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
