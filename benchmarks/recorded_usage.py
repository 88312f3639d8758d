"""Compare the simulated provider's rules with the usage of recorded requests.

    python benchmarks/recorded_usage.py ../shared/data/C2_raw_requests_hashed.jsonl.gz

The recording has each block as a hash with its marker, and the usage that Anthropic returned. The rules predict
which earlier prefix a request reads. The length of that prefix in tokens is learned from the usage of earlier
requests only; the read is `unknown` if no earlier usage contains it. The exit code is 1 if a prediction is wrong.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cachemw.core.rules.model_names import find_model
from cachemw.simulation.options import Options
from cachemw.simulation.provider import Position, ProviderCache, Request

_CHARACTERS_PER_TOKEN = 4  # only decides whether a prefix reaches the minimum


def positions(row: Mapping[str, Any]) -> list[Position]:
    """Return a recorded request's blocks as positions, their lengths only estimated."""
    chain, prefix, found = b"", 0, []
    for block in row["blocks"]:
        identity = f"{block['s']}/{block['role']}/{block['type']}/{block['h']}"
        chain = hashlib.sha256(chain + identity.encode()).digest()
        tokens = max(1, block["chars"] // _CHARACTERS_PER_TOKEN)
        prefix += tokens
        place = (block["s"], block["i"], block["j"])
        found.append(
            Position(place, str(block["role"]), str(block["type"]), chain, tokens, prefix, block["cc"])
        )
    return found


def predict(rows: Iterable[Mapping[str, Any]], options: Options | None = None) -> Counter[str]:
    """Return how many reads were predicted `exact`, `unknown`, `zero` (none, and none was) or `wrong`."""
    caches: dict[str, ProviderCache] = {}
    lengths: dict[bytes, int] = {}
    counts: Counter[str] = Counter()
    for row in sorted(rows, key=lambda row: float(row["t"])):
        model = find_model(row["model"])
        assert model is not None, row["model"]
        cache = caches.setdefault(row["model"], ProviderCache(model, options))
        blocks = positions(row)
        ticket = cache.begin(Request(blocks, blocks[-1].prefix), row["t"])
        digest = blocks[ticket.hit].digest if ticket.hit >= 0 else None
        predicted = 0 if digest is None else lengths.get(digest)
        # The code below may use the row's own usage.
        read = row["usage"]["cache_read_input_tokens"]
        written = row["usage"]["cache_creation_input_tokens"]
        counts[_verdict(predicted, read)] += 1
        if digest is not None:
            lengths[digest] = read
        if written:
            last = max(index for index, block in enumerate(blocks) if block.marker)
            lengths[blocks[last].digest] = read + written
        cache.answer_began(ticket, row["t_resp"])
    return counts


def _verdict(predicted: int | None, read: int) -> str:
    if predicted is None:
        return "unknown" if read else "wrong"
    if predicted != read:
        return "wrong"
    return "exact" if read else "zero"


def load(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a gzipped JSONL file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> int:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    counts = predict(load(parser.parse_args().file))
    print(f"non-zero reads: {counts['exact']} of {counts['exact'] + counts['unknown']} exact, ", end="")
    print(f"{counts['unknown']} of a prefix whose length was not known yet")
    print(f"zero reads: {counts['zero']} as predicted")
    print(f"wrong: {counts['wrong']}")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
