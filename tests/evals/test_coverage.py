"""A small, seeded run of the simulation behind docs/explanation/intervals.md."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import interval_coverage

CASES = list(interval_coverage.cases())


@pytest.mark.parametrize("kind", list(dict.fromkeys(case.kind for case in CASES)))
def test_every_kind_of_interval_holds_its_level(kind: str) -> None:
    for case in CASES:
        if case.kind == kind:
            found = interval_coverage.measure(case, 200, seed=0)
            assert not found.fails(200), found
            assert found.none < 0.65, found


def test_an_interval_that_is_too_short_fails() -> None:
    """Student's t of a paired difference of 0s and 1s, of which few differ, does not pass."""
    from posttrain.evals import stats

    case = next(case for case in CASES if case.name.startswith("n 300, 1% differ, 100%"))

    def draw(rng: object) -> stats.Estimate:
        signs = interval_coverage._signs(rng, 300, 0.01, 1.0)  # type: ignore[arg-type]
        return stats.mean(signs.tolist())

    short = interval_coverage.Case(case.kind, case.name, case.truth, draw)
    assert interval_coverage.measure(short, 400, seed=0).fails(400)
