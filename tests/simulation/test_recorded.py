"""The rules of the simulated provider predict recorded reads to the token."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.recorded_usage import load, predict
from cachemw.simulation.options import Options

RECORDING = Path(__file__).parents[3] / "shared" / "data" / "C2_raw_requests_hashed.jsonl.gz"
pytestmark = pytest.mark.skipif(not RECORDING.exists(), reason="the recorded usage is not beside the project")


def test_recorded_reads_are_predicted() -> None:
    """At least 14 of 15 reads are exact and the rest unknown; every zero is predicted; none is wrong."""
    counts = predict(load(RECORDING))
    assert counts["wrong"] == 0
    assert counts["exact"] >= 14
    assert counts["exact"] + counts["unknown"] == 15
    assert counts["zero"] == 49


@pytest.mark.parametrize("options", [Options(lookback=1), Options(minimum=0), Options(minimum=30_000)])
def test_recorded_reads_contradict_other_rules(options: Options) -> None:
    """Without a lookback, or with another minimum, the rules do not predict the same rows."""
    counts = predict(load(RECORDING), options)
    assert counts["wrong"] > 0 or counts["exact"] < 14
