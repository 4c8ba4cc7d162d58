"""What every benchmark shares."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import record


def test_a_clock_that_stood_still_gives_a_rate_all_the_same() -> None:
    seconds = record.durations([1.0, 1.5, 1.5, 3.0])
    assert seconds == pytest.approx([0.5, 0, 1.5], abs=1e-8)
    assert all(1 / s > 0 for s in seconds)
