"""Fuzz one target with atheris: `python -m tests.fuzz.one TARGET [libFuzzer's options and folders]`.

An input fails if it breaks a rule of its target, or takes more processor time than its size explains.
"""

from __future__ import annotations

import sys
import time

import atheris

with atheris.instrument_imports(include=["cachemw"]):
    from tests.fuzz.targets import TARGETS

# Seconds of instrumented code for any input and for each of its bytes: a hundred times the need of the slowest target.
_BASE, _PER_BYTE = 1.0, 1e-3


def main() -> None:
    """Run until libFuzzer's options end it."""
    name, *options = sys.argv[1:]
    target = TARGETS[name]

    def timed(data: bytes) -> None:
        start = time.process_time()
        target(data)
        took = time.process_time() - start
        if took > _BASE + _PER_BYTE * len(data):
            raise AssertionError(f"{len(data)} bytes took {took:.1f} s")

    atheris.Setup([sys.argv[0], *options], timed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
